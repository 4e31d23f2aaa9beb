"""Draw the README's picture: accuracy over measured latency, from the table of a dated comparison.

python docs/picture.py benchmarks/results/2026-11-26-compare-cifar10-cpu/README.md docs/accuracy-latency.svg
"""

import re
import sys
from pathlib import Path

import altair as alt
import vl_convert

NAMES = {
    "base, not distilled": ("ResNet-20, the base network", "plain", "left"),
    "plain ResNet-14": ("ResNet-14", "plain", "left"),
    "plain ResNet-8": ("ResNet-8", "plain", "right"),
    "TAS's published ResNet-20": ("published by TAS", "plain", "left"),
    "hardware": ("searched, half of the latency", "searched", "right"),
    "hardware at 35 %": ("searched, a third", "searched", "right"),
    "random": ("random, half", "random", "left"),
    "random at 35 %": ("random, a third", "random", "left"),
}
"""By the arm of the comparison: its name in the picture, its kind, and where the name stands."""
KINDS = {
    "searched": ("#d55e00", "diamond", "found by the search"),
    "random": ("#0072b2", "triangle-up", "drawn at random"),
    "plain": ("#1f2328", "circle", "designed or published by people"),
}
PLACES = {"left": ("right", -10, 0), "right": ("left", 11, 0)}
"""Alignment and offsets in pixels."""


def rows(document: str) -> list[dict[str, object]]:
    """Arms of the document's first table, accuracies in percent and latencies in milliseconds."""
    figures = re.findall(
        r"^\| \**([^|*]+?)\** \| ([\d.]+) \(± ([\d.]+)\) \|[^|]*\|[^|]*\|[^|]*\| ([\d.]+)", document, re.M
    )
    by_arm = {arm: (float(accuracy), float(deviation), float(latency)) for arm, accuracy, deviation, latency in figures}
    return [
        {
            "name": name, "kind": KINDS[kind][2], "place": place, "x": by_arm[arm][2], "y": by_arm[arm][0],
            "low": by_arm[arm][0] - by_arm[arm][1], "high": by_arm[arm][0] + by_arm[arm][1],
        }
        for arm, (name, kind, place) in NAMES.items()
    ]  # fmt: skip


def chart(arms: list[dict[str, object]]) -> alt.LayerChart:
    """A mark for each arm, its deviation over the seeds, and its name next to it."""
    x = alt.X(
        "x:Q",
        title="measured latency, ms per batch of 4 (ONNX Runtime)",
        scale=alt.Scale(domain=[0.17, 1.15]),
        axis=alt.Axis(tickCount=10, format=".1f"),
    )
    scale = alt.Scale(domain=[73.5, 80.5], zero=False)
    y = alt.Y("y:Q", title="accuracy, %", scale=scale, axis=alt.Axis(tickMinStep=1))
    domain, colours, shapes = ([kind[i] for kind in KINDS.values()] for i in (2, 0, 1))
    legend = alt.Legend(orient="top", title=None, symbolSize=120, labelLimit=300, columnPadding=24, symbolOpacity=1)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=domain, range=colours), legend=legend)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=domain, range=shapes), legend=legend)
    data = alt.Data(values=arms)
    reach = (
        alt.Chart(data)
        .mark_rule(opacity=0.5, strokeWidth=1.8)
        .encode(x, alt.Y("low:Q", scale=scale, title="accuracy, %"), alt.Y2("high:Q"), colour)
    )
    marks = alt.Chart(data).mark_point(filled=True, size=150, opacity=1).encode(x, y, colour, shape)
    names = [
        alt.Chart(alt.Data(values=[arm for arm in arms if arm["place"] == place]))
        .mark_text(align=align, dx=dx, dy=dy, fontSize=14)
        .encode(x, y, alt.Text("name:N"))
        for place, (align, dx, dy) in PLACES.items()
    ]
    words = {"labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal"}
    return (
        alt.layer(reach, marks, *names)
        .properties(width=760, height=380, background="#ffffff", padding=10)
        .configure(font="sans-serif")
        .configure_axis(**words, gridColor="#e4e7eb")
        .configure_legend(labelFontSize=13)
        .configure_view(stroke=None)
    )


if __name__ == "__main__":
    source, picture = map(Path, sys.argv[1:])
    picture.write_text(vl_convert.vegalite_to_svg(chart(rows(source.read_text())).to_dict()))
