"""Which widths int8 and fp32 choose here, and what it costs to deploy in int8 what was chosen in fp32."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from htas.experiments.reproduce._motivation import Candidate, measured
from htas.experiments.reproduce._widths import DEPTH, OUTPUTS, Widths
from htas.experiments.reproduce.plan import Plan, describe
from htas.files import digest, to_json
from htas.graph import Arch, resize
from htas.report.paper import Picture, Section, stepped
from htas.spaces.space import Space
from htas.text import plural, significant

RUNTIMES = ("onnxruntime", "openvino")
"""Those that run networks in int8; the first one stands for others."""
PRECISIONS = ("fp32", "int8")


def int8(plan: Plan) -> Section:
    """Surveys in both precisions, and networks of the widths that each of them chose, measured in both."""
    surveyed = _surveyed(plan)
    fp32, quantized = (surveyed[precision] for precision in PRECISIONS)
    network = fp32.job.network
    candidates = [_candidate(fp32, "base", network.base)]
    count = max(map(len, fp32.space.widths.values()))
    for number in range(count):
        candidates += [
            _candidate(fp32, f"group {number + 1} of {precision}", _of_group(each.space, number, network.base))
            for precision, each in surveyed.items()
        ]
    read = {
        precision: measured(plan, each.job.target, candidates, f"int8-{each.job.target.runtime}-{precision}")
        for precision, each in surveyed.items()
    }
    macs = read["int8"][1]
    seconds = {precision: [value for value, _ in readings] for precision, (readings, _) in read.items()}
    prices = []
    rows, figures, same, groups = [], [], 0, 0
    for base, output in OUTPUTS.items():
        curves = {precision: each.ours[base] for precision, each in surveyed.items()}
        choices = {precision: curve.choices["hardware"] for precision, curve in curves.items()}
        pairs = list(zip(choices["fp32"], choices["int8"], strict=True))
        per_channel = [curves["int8"].measured.at(a) / a / (curves["int8"].measured.at(b) / b) for a, b in pairs]
        same, groups = same + sum(a == b for a, b in pairs), groups + len(pairs)
        rows.append((
            f"layers, {output}x{output}, base {base}", *(" ".join(map(str, each)) for each in choices.values()),
            " ".join(f"{each:.2f}" for each in per_channel),
        ))  # fmt: skip
        figures.append(Picture(
            f"int8-{output}", stepped(curves), f"Latency over width in fp32 and int8 at {output}x{output}",
            f"Feature maps of {output}x{output}; each precision's latency over its own at the base width {base}. "
            "Filled marks are the widths chosen.",
        ))  # fmt: skip
    for number in range(count):
        one, other = 1 + 2 * number, 2 + 2 * number
        prices.append(seconds["int8"][one] / macs[one] / (seconds["int8"][other] / macs[other]))
        cells = (
            f"{macs[n] / 1e6:.1f} M MACs, {' and '.join(significant(1e3 * seconds[each][n]) for each in PRECISIONS)} ms"
            for n in (one, other)
        )
        rows.append((f"networks of group {number + 1}", *cells, f"{prices[-1]:.2f}"))
    figures_by_name: Mapping[str, Sequence[float]] = {**seconds, "MACs": macs}
    faster = seconds["fp32"][0] / seconds["int8"][0]
    target = quantized.job.target
    speed = f"{significant(faster)} times as fast as" if faster >= 1 else f"{significant(1 / faster)} times slower than"
    return Section(
        "int8: the widths that are fast there",
        (
            f"int8 chooses as fp32 does in {same} of {plural(groups, 'group')} of the layers shown.",
            f"Networks whose widths were chosen in fp32 take {min(prices):.2f} to {max(prices):.2f} times as long in "
            f"int8, for each multiply-add, as those chosen in int8 (median {statistics.median(prices):.2f}).",
            _step({name: each[2::2] for name, each in figures_by_name.items()}),
            f"The base network is {speed} in fp32 here ({significant(1e3 * seconds['int8'][0])} and "
            f"{significant(1e3 * seconds['fp32'][0])} ms, each in a run of its own).",
        ),
        ("what", "chosen in fp32", "chosen in int8", "in int8, time of the former over that of the latter"),
        tuple(rows), 3, figures=tuple(figures),
        notes=(
            "Layers are compared for each channel, networks for each multiply-add; their milliseconds are in fp32 "
            "and in int8. A network of a group has at every site the width that was chosen of that group; they and the "
            f"base ResNet-{DEPTH} are measured in one interleaved run for each precision.",
            "Searched and trained networks for both precisions, measured in both: `htas reproduce table5 "
            f"--target.runtime={target.runtime} --second=runtime={target.runtime},precision=int8`.",
            *fp32.doubts, *quantized.doubts,
        ),
        facts={"Targets": f"{describe(fp32.job.target)}; {describe(target)}", **quantized.facts(plan)},
    )  # fmt: skip


def _step(figures: Mapping[str, Sequence[float]]) -> str:
    """Of two neighbouring groups that int8 chose, those of which the wider one is the best bargain in int8: `figures`
    are the networks' seconds by precision, and their MACs."""
    times = {name: [b / a for a, b in pairwise(each)] for name, each in figures.items()}
    best = max(range(len(times["int8"])), key=lambda n: times["MACs"][n] / times["int8"][n])
    fp32, int8, macs = (times[name][best] for name in (*PRECISIONS, "MACs"))
    return (
        f"Networks of group {best + 2} take {int8:.2f} times as long in int8 as those of group {best + 1}, and "
        f"{fp32:.2f} times in fp32, for {macs:.2f} times the multiply-adds."
    )


def _surveyed(plan: Plan) -> Mapping[str, Widths]:
    usual = plan.config("cifar10", DEPTH).target.runtime
    runtime = usual if usual in RUNTIMES else RUNTIMES[0]
    options = {name: (f"--target.runtime={runtime}", f"--target.precision={name}") for name in PRECISIONS}
    return {
        name: Widths.of(replace(plan, overrides=(*plan.overrides, *each)), f"-{runtime}-{name}")
        for name, each in options.items()
    }


def _of_group(space: Space, number: int, base: Arch) -> Arch:
    return Arch({site: choices[min(number, len(choices) - 1)] for site, choices in space.widths.items()}, base.depths)


def _candidate(surveyed: Widths, name: str, arch: Arch) -> Candidate:
    return Candidate(name, "int8", partial(resize, surveyed.job.network, arch), digest(to_json(arch)))
