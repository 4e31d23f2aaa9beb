"""MorphNet (Gordon et al. 2018): a regulariser that weights norm scales by latency shrinks the widths, and a
multiplier expands them to the limits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from htas.data.task import Inputs
from htas.errors import UserError, need_least
from htas.files import load_state, state_of
from htas.graph import Arch, Network, resize
from htas.graph.layout import Run
from htas.search.oneshot import SearchLoop
from htas.search.problem import Problem, SearchOutcome
from htas.search.record import EpochRecord
from htas.strategies import check_charge, need_limits
from htas.strategies._trials import ByTrials, Trials, multiples, nearest, widest_of
from htas.text import significant


@dataclass(frozen=True)
class MorphNet(ByTrials):
    """Trains the base network further with an L1 penalty on the scales of its norms, each weighted by the price of a
    channel of its site. A channel whose scale ends near 0 is dead; the live widths times the largest multiplier within
    the limits are the arch. It searches no depths and keeps all blocks."""

    epochs: int = 20
    """Epochs of the training with the regulariser, and of the trainings that judge archs."""
    lr: float = 0.05
    strength: float = 3.0
    """Weight of the regulariser, which is the live share of the latency: 1 if every scale is 1. At 3, some 400 steps
    bring it to a fifth; twice as many steps need half the strength."""
    dead: float = 0.1
    """A channel is dead if its scale is below this fraction of the base network's median scale."""
    prices: str = "table"
    """The cost that prices channels: calibrated latency (table), that of eq. 7 and 8 (paper), multiply-adds (macs),
    params, memory, energy, or a metric of your own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_charge("prices", self.prices)
        need_least(0, self, "strategy", "strength")
        if not 0 < self.dead < 1:
            raise UserError(f"strategy.dead must lie in 0..1, got {self.dead}")

    @property
    def title(self) -> str:
        """`morphnet` and the strength of its regulariser."""
        return f"morphnet, strength {self.strength:g}"

    @property
    def charged(self) -> str:
        """The option `prices`."""
        return self.prices

    def training_images(self, weights: int) -> float:
        """The training that shrinks, and the one that judges the arch."""
        return 2.0 * self.epochs * weights

    def search(self, problem: Problem) -> SearchOutcome:
        """Raises UserError if the space has depths to search, or a site has no norm."""
        need_limits(bool(problem.limits), self)
        free = [site for site, choices in problem.space.depths.items() if len(choices) > 1]
        if free:
            raise UserError(
                f"strategy morphnet does not search depths, and the space {problem.space.name} has {len(free)} sites "
                "of depth; keep all blocks with --design.depth=false, or take another strategy"
            )
        run = _Shrinking(problem, self)
        run.run()
        alive = run.alive()
        pool = multiples(alive, problem.space, problem.space.widest.depths)
        share = sum(alive.values()) / sum(problem.network.base.widths.values())
        why = f"{share:.0%} of the channels were alive after {self.epochs} epochs"
        return widest_of(
            problem, Trials(problem, self.recipe), pool, why, run.seconds, epochs=run.epochs, converged=share < 1
        )  # fmt: skip


def scales(network: Network) -> dict[str, list[tuple[str, Run, int]]]:
    """The norms over the channels of each width site: a norm's name, the site's run in it, and where that begins."""
    norms: dict[str, list[tuple[str, Run, int]]] = {site: [] for site in network.widths}
    by_name = {node.name: node for node in network.nodes}
    for node in network.nodes:
        if node.kind != "conv" or not node.norm or f"{by_name[node.norm].module}.weight" not in network.layouts:
            continue
        start = 0
        for run in node.layout.runs:
            if run.site in norms:
                norms[run.site].append((by_name[node.norm].module, run, start))
            start += run.atoms * run.repeat
    return norms


def of_channels(scale: Tensor, run: Run, start: int) -> Tensor:
    """The scale of each channel of a site, [atoms, channels in each], in a norm of several sites; the largest of those
    that stand or fall together."""
    atoms = scale[start : start + run.atoms * run.repeat].abs().reshape(run.atoms, run.repeat)
    return atoms if run.repeat == run.multiple else atoms.amax(1, keepdim=True).expand(-1, run.multiple)


def prices(problem: Problem) -> dict[str, float]:
    """Price of a channel of each site, as a fraction of the base network's cost: from the narrower choice that saves
    most per channel, since a device may be as slow with a few channels less; from the widest if none is narrower."""
    space, network = problem.space, problem.network
    base = {site: nearest(choices, network.base.widths[site]) for site, choices in space.widths.items()}
    deepest = {site: choices[-1] for site, choices in space.depths.items()}
    whole = problem.cost.cost(network.base)
    prices_by_site = {}
    for site, choices in space.widths.items():
        width = base[site]
        others = [other for other in choices if other < width] or [other for other in choices[-1:] if other > width]
        costs = {other: problem.cost.cost(Arch({**base, site: other}, deepest)) for other in (width, *others)}
        each = [(costs[width] - costs[other]) / (width - other) for other in others]
        prices_by_site[site] = max(0.0, *each) / whole if each else 0.0
    return prices_by_site


class _Shrinking(SearchLoop):
    """Training of the base network with the regulariser."""

    options: MorphNet

    def __init__(self, problem: Problem, options: MorphNet) -> None:
        torch.manual_seed(problem.seed)
        model = resize(problem.network, problem.network.base)
        load_state(model, state_of(problem.base()))
        super().__init__(problem, options, model)
        self.norms = scales(problem.network)
        self.scales: dict[str, list[Tensor]] = {
            site: [self.model.get_parameter(f"{name}.weight") for name, _, _ in norms]
            for site, norms in self.norms.items()
        }
        self.prices = prices(problem)
        bare = [site for site, each in self.scales.items() if not each]
        if bare:
            raise UserError(
                f"strategy morphnet shrinks by the scales of norms, and {bare[0]} has none; take another strategy"
            )
        self.usual = float(torch.cat([size.detach().cpu() for size in self._sizes().values()]).median())
        """Median scale of the base network."""

    def regulariser(self) -> Tensor:
        """Live share of the latency, a scalar: every scale counts as the share of its channel that is left."""
        sizes = self._sizes()
        alive = (self.prices[site] * size.sum() for site, size in sizes.items())
        whole = sum(self.prices[site] * len(size) for site, size in sizes.items())
        return sum(alive, torch.zeros((), device=self.runner.device)) / whole

    def step(self, images: Inputs, labels: Any, share: float) -> Tensor:
        """Loss and regulariser, [2]."""
        loss = self.task.loss(self.outputs(self.model, images), labels)
        alive = self.regulariser()
        self.descend(loss + self.options.strength * alive)
        return torch.stack([loss.detach(), alive.detach()])

    def figures(self, number: int, sums: Tensor) -> EpochRecord:
        """The mean loss, and the mean live share of the latency as the cost."""
        loss, alive = (sums / self.steps).tolist()
        self.check(number, loss)
        return EpochRecord(number + 1, None, loss, None, None, alive, None, None, self.elapsed)

    def summary(self, figures: EpochRecord) -> str:
        """The loss, and the share of the latency that is alive."""
        return f"{super().summary(figures)}, {significant(figures.expected_cost, 2)} of the latency alive"

    def alive(self) -> dict[str, float]:
        """Number of live channels by site, at least one."""
        limit = self.options.dead * self.usual
        return {site: float(max(1, int((size > limit).sum()))) for site, size in self._sizes().items()}

    def _sizes(self) -> dict[str, Tensor]:
        """Scale of each site's channels, [channels]; the largest if several norms share the site."""
        return {
            site: torch.stack([
                of_channels(scale, run, start).flatten()
                for scale, (_, run, start) in zip(self.scales[site], norms, strict=True)
            ]).amax(0)
            for site, norms in self.norms.items()
        }  # fmt: skip
