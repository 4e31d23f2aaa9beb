"""NetAdapt (Yang et al. 2018): narrows a network that is too slow one site at a time, by the latency table."""

from dataclasses import dataclass

from htas.errors import UserError, need_least
from htas.graph.arch import Arch
from htas.search.moves import changed, over
from htas.search.oneshot import Judge
from htas.search.problem import Problem, SearchOutcome
from htas.strategies import need_limits
from htas.strategies._sampled import AROUND, OneShotStrategy
from htas.text import percent


@dataclass(frozen=True)
class NetAdapt(OneShotStrategy):
    """Every round removes a share of the latency wherever that costs the least accuracy.

    As in the paper, candidates of a round differ in one site, narrowed until the round's latency is kept; unlike it,
    they are judged by a trained supernet and not by a short fine-tuning each. Depths are sites like others.
    """

    rounds: int = 16
    """Number of rounds from the start to the limits; each removes about the same share of the latency."""
    begin: str = "widest"
    """Starting point: the widest network of the space (widest), or the choices nearest to the base network (base)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need_least(1, self, "strategy", "rounds")
        if self.begin not in ("widest", "base"):
            raise UserError(f"strategy.begin must be widest or base, got {self.begin!r}")

    @property
    def judged(self) -> int:
        """Twenty sites in every round."""
        return 20 * self.rounds

    def search(self, problem: Problem) -> SearchOutcome:
        """Raises UserError if the starting network keeps the limits already."""
        need_limits(bool(problem.limits), self)
        ratio = over(problem.limits, self._first(problem))
        if ratio <= 1 - AROUND:
            raise UserError(
                f"strategy.begin: the {self.begin} network takes {percent(ratio, 1)} of what the limits allow, "
                "which leaves nothing to be narrowed; begin at the widest network, or ask for less"
            )
        return super().search(problem)

    def pick(self, problem: Problem, judge: Judge) -> None:
        """Rounds until an arch is a little below the limits."""
        arch = self._first(problem)
        share = (over(problem.limits, arch) / (1 - AROUND)) ** (1 / self.rounds)
        while over(problem.limits, arch) > 1 - AROUND:
            candidates = reductions(problem, arch, over(problem.limits, arch) / share)
            if not candidates:
                break
            accuracies = judge(candidates)
            arch = max(zip(accuracies, range(len(candidates)), candidates, strict=True))[2]
        judge([arch])

    def _first(self, problem: Problem) -> Arch:
        space = problem.space
        return space.widest if self.begin == "widest" else space.nearest(problem.network.base)


def reductions(problem: Problem, arch: Arch, ratio: float) -> list[Arch]:
    """For each site the arch with the widest of its narrower choices that brings the cost to `ratio` of the limits; if
    none does, the cheapest one that saves anything."""
    now = over(problem.limits, arch)
    candidates = []
    for site, choices in problem.space.choices.items():
        narrower = [changed(arch, site, choice) for choice in choices if choice < arch[site]]
        costs = {other: over(problem.limits, other) for other in narrower}
        enough = [other for other in narrower if costs[other] <= ratio]
        if enough:
            candidates.append(enough[-1])
        elif narrower and min(costs.values()) < now:
            candidates.append(min(narrower, key=costs.__getitem__))
    return candidates
