"""AutoSlim: greedy slimming of a slimmable network (Yu and Huang, "AutoSlim: towards one-shot architecture search for
channel numbers", 2019)."""

from dataclasses import dataclass

from htas.graph.arch import Arch
from htas.search.moves import changed, over
from htas.search.oneshot import Judge
from htas.search.problem import Problem
from htas.strategies._sampled import AROUND, OneShotStrategy


@dataclass(frozen=True)
class AutoSlim(OneShotStrategy):
    """From the widest network, every step narrows the site whose next choice costs the least accuracy, until the limits
    are kept.

    The network is trained by the sandwich rule and then only evaluated, as in the paper; unlike there, the choices of a
    site are the space's and not ten groups of channels each, numbers of blocks are sites like widths, choices
    that save nothing by prediction are passed over, and steps go on to a little below the limits, in case predictions
    are too low.
    """

    @property
    def judged(self) -> int:
        """Twenty sites in each of twenty steps."""
        return 20 * 20

    def pick(self, problem: Problem, judge: Judge) -> None:
        """Steps until an arch is a little below the limits, or none is cheaper."""
        arch = problem.space.widest
        judge([arch])
        while over(problem.limits, arch) > 1 - AROUND:
            candidates = slimmer(problem, arch)
            if not candidates:
                break
            # of those as accurate, the cheapest
            costs = [-over(problem.limits, other) for other in candidates]
            arch = max(zip(judge(candidates), costs, candidates, strict=True), key=lambda each: each[:2])[2]


def slimmer(problem: Problem, arch: Arch) -> list[Arch]:
    """For each site the arch with its next narrower choice that costs less."""
    now, archs = over(problem.limits, arch), []
    for site, choices in problem.space.choices.items():
        narrower = (changed(arch, site, choice) for choice in reversed(choices) if choice < arch[site])
        archs += [other for other in narrower if over(problem.limits, other) < now][:1]
    return archs
