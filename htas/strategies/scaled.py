"""Members of the family: a small grid of depths with one multiplier for each; the baseline for any search."""

from dataclasses import dataclass

from htas.errors import need_least
from htas.graph.arch import Arch
from htas.search.moves import over
from htas.search.problem import Problem, SearchOutcome
from htas.strategies import need_limits
from htas.strategies._trials import ByTrials, Trials, multiples, widest_within
from htas.text import listing


@dataclass(frozen=True)
class Scaled(ByTrials):
    """For each number of blocks a stage, the largest multiple of the base widths within the limits; of these networks
    the most accurate after a short training."""

    depths: int = 4
    """Largest number of depths tried, spread evenly over the possible ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need_least(1, self, "strategy", "depths")

    @property
    def title(self) -> str:
        """`scaled, depths by one multiplier`."""
        return "scaled, depths by one multiplier"

    def training_images(self, weights: int) -> float:
        """A training for each depth."""
        return float(self.depths * self.epochs * weights)

    def search(self, problem: Problem) -> SearchOutcome:
        """One short training for each depth; a single one needs none."""
        need_limits(bool(problem.limits), self)
        trials = Trials(problem, self.recipe)
        rows: dict[int, list[Arch]] = {}
        for blocks in self._blocks(problem):
            depths = {
                site: min(options, key=lambda n: abs(n - blocks)) for site, options in problem.space.depths.items()
            }
            rows[blocks] = multiples(problem.network.base.widths, problem.space, depths)
        best = {blocks: widest_within(problem, row) for blocks, row in rows.items()}
        within = {blocks: arch for blocks, arch in best.items() if over(problem.limits, arch) <= 1} or best
        accuracies = trials(list(within.values())) if len(within) > 1 else [1.0]
        judged = dict(zip(within, accuracies, strict=True))
        best_blocks = max(judged, key=judged.__getitem__)
        numbers = listing(map(str, within))
        why = f"the most accurate after {self.epochs} epochs of networks with {numbers} blocks a stage"
        accuracy_of = {within[blocks]: accuracy for blocks, accuracy in judged.items()}
        # if the best one is too slow when measured, another depth follows, then the archs of most MACs
        others = [arch for blocks in rows for arch in rows[blocks] if arch not in accuracy_of]
        order = {arch: number / len(others) - 1 for number, arch in enumerate(sorted(others, key=problem.network.macs))}
        worths = accuracy_of | order
        return SearchOutcome(
            within[best_blocks], (), True, why, trials, trials.seconds, pool=(*accuracy_of, *others), cheap=False,
            worth=lambda arch: worths.get(arch, -1.0), judge=trials.judge,
        )  # fmt: skip

    def _blocks(self, problem: Problem) -> list[int]:
        """Numbers of blocks to try, from few to many."""
        most = max((choices[-1] for choices in problem.space.depths.values()), default=1)
        there = sorted({depth for choices in problem.space.depths.values() for depth in choices}) or [most]
        if len(there) <= self.depths:
            return there
        return sorted({there[round(k * (len(there) - 1) / max(1, self.depths - 1))] for k in range(self.depths)})
