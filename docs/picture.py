"""Draw the README's picture: accuracy over measured latency, from the trainings and latencies of benchmarks/evidence.

python docs/picture.py benchmarks/evidence docs/accuracy-latency.svg
"""

import json
import re
import statistics
import sys
from pathlib import Path

import altair as alt
import vl_convert

GROUP = "cifar10-resnet20"
NAMES = {
    "base": ("ResNet-20, the base network", "plain", "left"),
    "plain ResNet-14": ("ResNet-14", "plain", "left"),
    "plain ResNet-8": ("ResNet-8", "plain", "left"),
    "TAS published": ("published by TAS", "plain", "below"),
    "knapsack, 50 %": ("searched, half of the latency", "searched", "right"),
    "knapsack, 35 %": ("searched, a third", "searched", "left"),
    "pruned, local, 52 %": ("Torch-Pruning", "plain", "right"),
    "uniform, 50 %": ("narrowed alike", "plain", "right"),
    "most MACs, 50 %": ("most multiply-adds, half", "plain", "right"),
    "most MACs, 35 %": ("most multiply-adds, a third", "plain", "left"),
}
"""By the arm: its name in the picture, its kind, and where that stands by its mark."""
RANDOM = re.compile(r"random-\d+-\d+")
KINDS = {
    "searched": ("#d55e00", "diamond", "found by the search", 150),
    "random": ("#0072b2", "triangle-up", "drawn at random", 60),
    "plain": ("#1f2328", "circle", "without a search", 110),
}
PLACES = {"left": ("right", -10, 0), "right": ("left", 11, 0), "below": ("center", 0, 18)}
"""Alignment and offsets in pixels."""


def rows(folder: Path) -> list[dict[str, object]]:
    """Arms whose networks are measured: mean accuracy in percent, its deviation, mean latency in milliseconds."""
    measured = json.loads((folder / "resnet20" / "latencies.json").read_text())
    by_arm: dict[str, list[tuple[float, float]]] = {}
    for path in sorted((folder / "results").glob(f"{GROUP}-*.json")):
        result = json.loads(path.read_text())
        took = measured["over_base"].get(result["name"])
        if took and (result["arm"] in NAMES or RANDOM.fullmatch(result["arm"])):
            figures = 100 * result["accuracy"], measured["base_ms"] * took["ratio"]
            by_arm.setdefault(result["arm"], []).append(figures)
    arms = []
    for arm, figures_of_seeds in by_arm.items():
        name, kind, place = NAMES.get(arm, ("", "random", "left"))
        accuracies, latencies = zip(*figures_of_seeds, strict=True)
        mean, reach = statistics.mean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        arms.append({
            "name": name, "kind": KINDS[kind][2], "size": KINDS[kind][3], "place": place,
            "x": round(statistics.mean(latencies), 4), "y": round(mean, 3),
            "low": round(mean - reach, 3), "high": round(mean + reach, 3),
        })  # fmt: skip
    return arms


def chart(arms: list[dict[str, object]]) -> alt.LayerChart:
    """A mark for each arm, its deviation over the seeds, and its name next to it."""
    x = alt.X(
        "x:Q",
        title="measured latency, ms per batch of 4 (ONNX Runtime)",
        scale=alt.Scale(domain=[0.09, 0.83]),
        axis=alt.Axis(tickCount=7, format=".1f"),
    )
    scale = alt.Scale(domain=[76.5, 91.5], zero=False)
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
    sizes = alt.Size("size:Q", scale=None, legend=None)
    marks = alt.Chart(data).mark_point(filled=True, opacity=1).encode(x, y, colour, shape, sizes)
    names = [
        alt.Chart(alt.Data(values=[arm for arm in arms if arm["place"] == place]))
        .mark_text(align=align, dx=dx, dy=dy, fontSize=14)
        .encode(x, y, alt.Text("name:N"))
        for place, (align, dx, dy) in PLACES.items()
    ]
    words = {"labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal"}
    return (
        alt.layer(reach, marks, *names)
        .properties(width=760, height=420, background="#ffffff", padding=10)
        .configure(font="sans-serif")
        .configure_axis(**words, gridColor="#e4e7eb")
        .configure_legend(labelFontSize=13)
        .configure_view(stroke=None)
    )


if __name__ == "__main__":
    source, picture = map(Path, sys.argv[1:])
    picture.write_text(vl_convert.vegalite_to_svg(chart(rows(source)).to_dict()))
