"""Table 2, Fig. 2 and Fig. 3: what a survey of the layers of a CIFAR ResNet says on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from htas.experiments.reproduce.plan import PAPER, Plan
from htas.files import read_record
from htas.report.paper import Picture, Section, fitted_curve, scored_widths
from htas.run.run import Run, open_run
from htas.run.stage import StageHeader, ensure
from htas.run.stages import SURVEY
from htas.spaces.curve import CurveRecord
from htas.spaces.design import DECIDED, records, spaces
from htas.spaces.space import Space
from htas.text import plural, signed, significant

DEPTH = 20
"""Of the ResNet that is surveyed: the distinct layers of all CIFAR ResNets are the same."""
OUTPUTS = {16: "32", 32: "16", 64: "8"}
"""Height and width of the feature maps, by base width (Table 1)."""


def table2(plan: Plan) -> Section:
    """The widths chosen: the paper's, and those of this machine by the paper's rule and by this project's."""
    surveyed = Widths.of(plan)
    rows, says = [], []
    for base, output in OUTPUTS.items():
        curve, shares = surveyed.ours[base], _shares(surveyed.ours[base])
        printed = PAPER["table2"][plan.paper][output]
        unsure = {curve.choices["hardware"][n] for n, sure in enumerate(curve.certain) if sure < DECIDED}
        kinds = {
            "the paper, CPU": PAPER["table2"]["cpu"][output],
            "the paper, GPU": PAPER["table2"]["gpu"][output],
            "here, the paper's rule": surveyed.paper[base].choices["hardware"],
            "here, this project's rule": curve.choices["hardware"],
            "the last of each group": curve.choices["grid"],
        }
        for kind, widths in kinds.items():
            same = sum(one == other for one, other in zip(widths, printed, strict=True))
            gain = signed(100 * sum(shares[width] for width in widths) / len(widths), 1)
            marks = unsure if kind.endswith("project's rule") else set()
            if marks is unsure:
                says.append(f"{same} of {len(widths)} at {output}x{output}")
            text = " ".join(f"{width}?" if width in marks else str(width) for width in widths)
            rows.append((f"{output}x{output}, {base}", kind, text, f"{same} of {len(widths)}", gain))
    return Section(
        "Table 2: the hardware-aware space",
        (
            f"This project's rule chooses as the paper does on its {plan.paper.upper()}: {', '.join(says)}.",
            "A score is the fit less the latency (eq. 2); its mean over the chosen widths, as a share of their "
            "latencies as measured here, says how much faster than their size suggests such widths are "
            "on this machine.",
        ),
        ("output, base width", "whose", "widths chosen", f"as the paper's {plan.paper.upper()}", "mean score here, %"),
        tuple(rows),
        3,
        notes=(
            "A question mark stands behind a width whose group is not decided: more readings could choose another.",
            "The paper's rule takes the mean of all readings and the best score (eq. 3 and 4). This project's takes "
            "the machine's level out of the readings, and the widest of those whose scores are within 2.5 % of the "
            "latency.",
            *surveyed.doubts,
        ),
        facts=surveyed.facts(plan),
    )  # fmt: skip


def fig2(plan: Plan) -> Section:
    """Latency over width with its fit, a picture for each stage; the paper's shows the first, on its CPU."""
    surveyed = Widths.of(plan)
    figures, rows = [], []
    for base, output in OUTPUTS.items():
        curve, shares = surveyed.ours[base], _shares(surveyed.ours[base])
        best, worst = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
        measured = curve.measured
        errors = sorted(error / m for error, m in zip(measured.errors, measured.seconds, strict=bool(measured.errors)))
        rows.append((
            f"{output}x{output}, {base}", significant(1e6 * curve.fit.k), significant(1e6 * curve.fit.b),
            f"{signed(100 * shares[best], 1)} at {best}", f"{signed(100 * shares[worst], 1)} at {worst}",
            significant(100 * errors[len(errors) // 2], 2) if errors else "-",
        ))  # fmt: skip
        alike = f"{plural(len(curve.sites), 'layer')} of ResNet-{DEPTH} {'has' if len(curve.sites) == 1 else 'have'}"
        figures.append(Picture(
            f"fig2-{output}", fitted_curve(curve), f"Latency over width at {output}x{output}, and its fit",
            f"Feature maps of {output}x{output}, base width {base}; {alike} this curve, {curve.sites[0]} the first.",
        ))  # fmt: skip
    return Section(
        "Fig. 2: latency over width, and its fit",
        (
            "f(x) = k x + b (eq. 1, alpha = 1). Widths below the line are faster than their size suggests. The paper "
            "prints one such curve, of its CPU at 32x32, and no figures.",
        ),
        (
            "output, base width", "k, µs a channel", "b, µs", "furthest below the fit, %", "furthest above, %",
            "a latency is known to, %",
        ),
        tuple(rows), 1, figures=tuple(figures), notes=surveyed.doubts, facts=surveyed.facts(plan),
    )  # fmt: skip


def fig3(plan: Plan) -> Section:
    """The score of every width, the groups and the choices."""
    surveyed = Widths.of(plan)
    figures, rows = [], []
    for base, output in OUTPUTS.items():
        curve, shares = surveyed.ours[base], _shares(surveyed.ours[base])
        printed = PAPER["table2"][plan.paper][output]
        for number, ((first, last), width, sure) in enumerate(
            zip(curve.groups, curve.choices["hardware"], curve.certain, strict=True)
        ):
            inside = [x for x in curve.measured.widths if first <= x <= last]
            rows.append((
                f"{output}x{output}, {base}", f"{first} to {last}", str(printed[number]), str(width),
                signed(100 * shares[width], 1), signed(100 * max(shares[x] for x in inside), 1), f"{100 * sure:.0f}",
            ))  # fmt: skip
        figures.append(Picture(
            f"fig3-{output}", scored_widths(curve), f"Score of every width at {output}x{output}",
            f"Feature maps of {output}x{output}: red are the widths chosen, dashed lines part the groups.",
        ))  # fmt: skip
    return Section(
        "Fig. 3: scores, groups and choices",
        ("One width of each of g = 8 groups is kept (eq. 3); the paper's picture is of its CPU at 32x32.",),
        (
            "output, base width", "group", f"the paper's {plan.paper.upper()}", "chosen here", "its score, %",
            "best score of the group, %", "certain, %",
        ),
        tuple(rows), 2, figures=tuple(figures), notes=surveyed.doubts, facts=surveyed.facts(plan),
    )  # fmt: skip


@dataclass(frozen=True)
class Widths:
    """A survey of the layers of one ResNet, and what two rules choose by it, by base width."""

    job: Run
    ours: Mapping[int, CurveRecord]
    """The curve of each base width by this project's rule."""
    paper: Mapping[int, CurveRecord]
    """By the paper's."""
    space: Space
    """The hardware-aware one, by this project's rule."""

    @classmethod
    def of(cls, plan: Plan, name: str = "") -> "Widths":
        """From a survey that is kept, under a name for another target than the plan's: it depends on no length and no
        images, so any later call goes on from it."""
        options = tuple(each for each in plan.overrides if each.startswith(("--target.", "--survey.", "--design.")))
        config = replace(plan, length="short", overrides=options).config("cifar10", DEPTH, "--survey.undecided=1")
        design = config.design
        job = open_run(config, plan.folder / f"widths-{plan.paper}{name}")
        ensure(job, SURVEY)

        def by_base(selection: Literal["ties", "paper"]) -> tuple[dict[int, CurveRecord], Space]:
            rule = replace(design, spaces=("hardware", "grid"), selection=selection)
            by_name = spaces(job.network, job.survey.layers, rule)
            curves = records(job.network, job.survey.layers, rule, by_name)
            return {base: _common(curves, base) for base in OUTPUTS}, by_name["hardware"]

        ours, space = by_base("ties")
        return cls(job, ours, by_base("paper")[0], space)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Of the survey, and of this project's curves."""
        return (*self.job.survey.doubts, *(doubt for curve in self.ours.values() for doubt in curve.doubts))

    def facts(self, plan: Plan) -> dict[str, str]:
        """How the survey was made."""
        took = read_record(self.job.folder / "survey.json", StageHeader).took
        layers = f"{plural(self.job.survey.cases, 'layer')} in {took:.0f} s, less those that the store knew"
        return {"Survey": layers, **plan.facts(self.job.target)}


def _common(curves: Sequence[CurveRecord], base: int) -> CurveRecord:
    """Of the curves of a base width, the one of most sites: the 3x3 convolution from that width."""
    return max((curve for curve in curves if curve.base == base), key=lambda curve: len(curve.sites))


def _shares(curve: CurveRecord) -> dict[int, float]:
    """The score of each width, as a share of its latency."""
    scores = curve.measured.scores(curve.fit)
    return {x: score / m for x, score, m in zip(curve.measured.widths, scores, curve.measured.seconds, strict=True)}
