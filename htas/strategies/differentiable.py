"""Section 3.3: the differentiable search of TAS, with the latency loss of eq. 6 to 8."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from htas.cost.limits import Limit
from htas.data.task import Inputs, need_score, scalar
from htas.errors import UserError, need_above_zero, need_least
from htas.graph.arch import Arch
from htas.search.draw import Draw
from htas.search.moves import AIM
from htas.search.oneshot import SupernetLoop
from htas.search.problem import Problem, SearchOutcome
from htas.search.record import METRICS, SURE, EpochRecord
from htas.spaces.space import Space
from htas.strategies import SupernetStrategy, check_charge
from htas.text import percent, significant
from htas.training import ranks
from htas.training.loop import Values
from htas.training.recipe import LEAST_TEMPERATURE, Recipe, cosine

CLOSE = 0.1
"""A search has converged only if the cost of its most probable arch is within this fraction of the expected cost."""
STIFFNESS = 10.0
"""Cross-entropy per squared unit of log distance from the budget."""
LEARNING = 0.02
"""Change of the penalty's weight for each step and unit of log distance, as a fraction of the stiffness."""
STEP = 5.0
"""Time of a weight and an architecture step at e = 2, in plain training steps of the base network
(benchmarks/search_step.py)."""
SHARED = 0.5
"""Fraction of the epochs that a search needs if it starts from another budget's supernet."""


@dataclass(frozen=True)
class Differentiable(SupernetStrategy):
    """Two widths drawn per site, their outputs padded and mixed, depths mixed softly; `tas` has TAS's own settings."""

    rates: ClassVar[str] = "strategy.lr or strategy.arch_lr"
    epochs: int = 600
    batch: int = 256
    """Images of a weight step and of an architecture step."""
    arch_lr: float = 1e-3
    """Learning rate of the logits (Adam). A logit moves at most this much a step, so arch_lr x steps should be 10 or
    more."""
    arch_weight_decay: float = 1e-3
    """Weight decay of the logits."""
    warmup: int = 0
    """First epochs in which only the weights learn."""
    anneal: Literal["epoch", "step"] = "step"
    """Whether temperature and learning rate fall with every step, as a search of few epochs needs, or once an epoch, as
    TAS's."""
    hottest: float = 5.0
    """Temperature of the Gumbel softmax at the start."""
    coldest: float = 0.1
    """Temperature at the end of the half cosine between."""
    cost: str = "table"
    """The cost that the search weighs archs by: the calibrated latency of layers at pairs of widths (table), that of
    eq. 7 and 8 (paper), multiply-adds (macs), params, memory (the peak of activations), energy, or a metric of your
    own."""
    loss: Literal["lambda", "band"] = "lambda"
    """`lambda`: eq. 6. `band`: TAS's, which pushes the cost into [ratio - tolerance, ratio] of the base's. A metric
    with a limit is not charged: a penalty that adapts its weight leads the search to just within the limit."""
    weight: float = 1.0
    """lambda of eq. 6, without a unit: it multiplies E[cost] / cost of the base. With `band`, TAS's is 2."""
    ratio: float = 0.5
    """`band` only: cost of the arch over that of the base, at most."""
    tolerance: float = 0.05
    """`band` only: width of the band below `ratio`."""
    mix: Literal["interpolate", "pad"] = "pad"
    """How the outputs of two widths meet: padding with zeros, with which the channels of the narrower one are the same
    in both and a short search learns, or TAS's channel-wise interpolation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_charge("cost", self.cost)
        if not 0 <= self.warmup < self.epochs:
            raise UserError(f"strategy.warmup must lie in 0..{self.epochs - 1}, got {self.warmup}")
        need_above_zero(self, "strategy", "arch_lr", "hottest", "coldest", "ratio")
        need_least(LEAST_TEMPERATURE, self, "strategy", "hottest", "coldest")
        need_least(0, self, "strategy", "weight", "tolerance", "arch_weight_decay")

    @property
    def title(self) -> str:
        """Its name, and eq. 6 with its lambda or TAS's band."""
        rule = f"lambda {self.weight:g}" if self.loss == "lambda" else f"band {self.ratio:g}-{self.tolerance:g}"
        return f"{self.name}, {rule}"

    @property
    def charged(self) -> str:
        """The option `cost`."""
        return self.cost

    @property
    def recipe(self) -> Recipe:
        """The learning rate falls as the temperature does."""
        return replace(super().recipe, anneal=self.anneal)

    def training_images(self, weights: int) -> float:
        """A weight and an architecture step each."""
        return self.epochs * weights * STEP

    def sharing(self, supernet: Path) -> tuple[Self, Self]:
        """The shorter search has SHARED of the epochs, and at least one after the warm-up."""
        shorter = max(self.warmup + 1, math.ceil(SHARED * self.epochs))
        return replace(self, keep=True), replace(self, start=str(supernet), epochs=shorter)

    def search(self, problem: Problem) -> SearchOutcome:
        """TAS: a weight step on one half of the training images, an architecture step on the other, in turn."""
        run = _Search(problem, self)
        run.run()
        converged, why = verdict(run.epochs[-1])
        return SearchOutcome(
            run.logits.argmax(), tuple(run.epochs), converged, why, run.validate, run.seconds, run.logits.worth()
        )


def verdict(last: EpochRecord) -> tuple[bool, str]:
    """Whether a search has converged, and the figures behind that in words: the logits are sure, and the most probable
    arch costs about the expected cost."""
    assert last.argmax_cost is not None and last.top_probability is not None
    gap = abs(last.argmax_cost - last.expected_cost) / last.expected_cost
    converged = last.top_probability >= SURE and gap <= CLOSE
    return converged, (
        f"median top probability {last.top_probability:.2f} (at least {SURE} wanted), cost of the most probable arch "
        f"{percent(gap, 1)} off the expected one (at most {percent(CLOSE, 0)} wanted)"
    )


def penalty(options: Differentiable, expected: Tensor, argmax: float) -> Tensor:
    """The cost part of the loss. `expected` and `argmax` are costs over that of the base.

    `lambda` is eq. 6. `band` is TAS's: the log of the expected cost, pushed down while the most probable arch costs
    more than the ratio, and up while it costs less than the ratio less the tolerance.
    """
    if options.loss == "lambda":
        return options.weight * expected
    if argmax > options.ratio:
        return options.weight * expected.log()
    if argmax < options.ratio - options.tolerance:
        return -options.weight * expected.log()
    return expected * 0


class Multiplier:
    """A penalty that adapts its weight: an augmented Lagrangian of log(E[cost] / aim) = 0.

    Of several limits the most exceeded one counts. It is an equation, not an inequality: a search of few steps seldom
    widens a network by its accuracy alone, and a budget should be used.
    """

    def __init__(self, limits: Sequence[Limit], space: Space) -> None:
        self.limits, self.space = limits, space
        self.value = 0.0

    def penalty(self, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """A scalar to add to the loss; the call also moves the weight."""
        ratios = [limit.cost.expected(self.space, widths, depths) / (AIM * limit.most) for limit in self.limits]
        off = torch.stack([ratio.log() for ratio in ratios]).max()
        penalty = self.value * off + STIFFNESS / 2 * off**2
        self.value += LEARNING * STIFFNESS * float(off.detach())
        return penalty


class Logits(nn.Module):
    """The architecture parameters: a row of logits for every site that has a choice, from N(0, 0.01)."""

    room: Tensor

    def __init__(self, space: Space, blocks: Mapping[str, int], generator: torch.Generator) -> None:
        super().__init__()
        self.space, self.blocks = space, blocks
        free = {site: len(choices) for site, choices in space.choices.items() if len(choices) > 1}
        self.rows = {site: row for row, site in enumerate(free)}
        longest = max(free.values(), default=1)
        room = torch.arange(longest) < torch.tensor(list(free.values())).reshape(-1, 1)
        self.register_buffer("room", room, persistent=False)
        self.table = nn.Parameter(torch.randn(len(free), longest, generator=generator) * 0.01)

    def _log(self) -> Tensor:
        """log softmax of every row, [sites, choices]; minus infinity beyond the choices of a site."""
        return torch.log_softmax(self.table.masked_fill(~self.room, -math.inf), dim=1)

    def probabilities(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Plain softmax of the logits, [choices] by site: of the widths, and of the depths.

        They are copied to the CPU once: each of the many small sums of an expected cost would wait for another device.
        """
        table = self._log().exp().cpu()
        by_site = {
            site: table[self.rows[site], : len(choices)] if site in self.rows else table.new_ones(1)
            for site, choices in self.space.choices.items()
        }
        return {site: by_site[site] for site in self.space.widths}, {site: by_site[site] for site in self.space.depths}

    def draw(self, temperature: float, generator: torch.Generator) -> Draw:
        """TAS's Gumbel-softmax: two different choices of each width site with renormalised weights, and the
        probabilities of all choices of each depth site. Raises FloatingPointError if a logit is not a number."""
        log = self._log()
        noise = -torch.empty(log.shape).exponential_(generator=generator).log().to(log.device)
        z = (log + noise) / temperature
        soft = torch.softmax(z, dim=1)
        chances = ((soft.detach() + 1e-7) * self.room).cpu()
        if not chances.isfinite().all():
            raise FloatingPointError("a logit is not a number")
        indices = torch.multinomial(chances, 2, generator=generator) if self.rows else torch.zeros(0, 2).long()
        shares = torch.softmax(z.gather(1, indices.to(z.device)), dim=1)
        picked = indices.tolist()
        widths: dict[str, tuple[tuple[int, ...], Any]] = {}
        for site, choices in self.space.widths.items():
            row = self.rows.get(site)
            pair = None if row is None else (tuple(choices[index] for index in picked[row]), shares[row])
            widths[site] = pair or (choices, (1.0,))
        return Draw(widths, {site: self._depth(site, soft) for site in self.space.depths})

    def _depth(self, site: str, soft: Tensor) -> list[Any]:
        weights: list[Any] = [0.0] * self.blocks[site]
        choices = self.space.depths[site]
        for index, choice in enumerate(choices):
            weights[choice - 1] = soft[self.rows[site], index] if site in self.rows else 1.0
        return weights

    def argmax(self) -> Arch:
        """The most probable choice of every site."""
        picks = {site: choices[0] for site, choices in self.space.choices.items()}
        for site, best in zip(self.rows, self._log().argmax(dim=1).tolist(), strict=True):
            picks[site] = self.space.choices[site][best]
        return self.space.arch(picks)

    def worth(self) -> Callable[[Arch], float]:
        """The log-probability of an arch."""
        log = self._log().detach().cpu()
        logs_by_site = {
            site: dict(zip(self.space.choices[site], log[row].tolist(), strict=False))
            for site, row in self.rows.items()
        }
        return lambda arch: sum(logs[arch[site]] for site, logs in logs_by_site.items())

    def top(self) -> float:
        """Median over sites of the largest probability; 1 if no site has a choice."""
        if not self.rows:
            return 1.0
        return float(self._log().detach().exp().amax(dim=1).quantile(0.5))

    def entropies(self) -> dict[str, float]:
        """Entropy of each site's probabilities over that of equal ones: 1 is undecided, 0 decided."""
        log = self._log().detach().cpu()
        room = self.room.cpu()
        entropy = -(log.exp() * log.masked_fill(~room, 0.0)).sum(dim=1) / room.sum(dim=1).log()
        return {site: round(value, 4) for site, value in zip(self.rows, entropy.tolist(), strict=True)}


class _Search(SupernetLoop):
    """One search as it runs: supernet, logits, their optimizers, and the epochs so far."""

    options: Differentiable

    def __init__(self, problem: Problem, options: Differentiable) -> None:
        super().__init__(problem, options, options.mix)
        blocks = {name: site.base for name, site in problem.network.depths.items()}
        generator = torch.Generator().manual_seed(problem.seed)
        self.logits = Logits(problem.space, blocks, generator).to(self.runner.device)
        self.base = problem.cost.cost(problem.network.base)
        self.multiplier = Multiplier(problem.limits, problem.space)
        self.adam = torch.optim.Adam(
            self.logits.parameters(), options.arch_lr, (0.5, 0.999), weight_decay=options.arch_weight_decay
        )
        self.optimizers["adam"] = self.adam

    def begin(self, number: int, seed: int) -> None:
        """Architecture steps have batches of their own, of the other half, in an order of the same seed."""
        self.number, self.generator = number, torch.Generator().manual_seed(seed)
        validation = self.problem.data.validation
        size = min(self.options.batch, len(validation))
        self.judging = validation.draws(
            size, self.steps, generator=self.generator, augment=True, channels_last=True,
            only=ranks.share(size, self.batch_option),
        )  # fmt: skip

    def step(self, images: Inputs, labels: Any, share: float) -> Tensor:
        """A weight step, and an architecture step on the other half: both losses and the score of the second, [3]."""
        self.temperature = cosine(self.options.hottest, self.options.coldest, share)
        learn = self.number >= self.options.warmup and bool(self.logits.rows)
        try:
            trained = self._weight_step(images, labels, self.temperature, self.generator)
            judged = self._arch_step(*next(self.judging), self.temperature, self.generator, learn=learn)
        except FloatingPointError:
            raise self.diverged(self.number, math.nan) from None
        return torch.stack([trained, *judged])

    def figures(self, number: int, sums: Tensor) -> EpochRecord:
        """Means of the steps, and the logits at the end."""
        train_loss, loss, accuracy = (total / self.steps for total in sums.tolist())
        self.check(number, (train_loss + loss) / 2)
        need_score(accuracy, self.task.scored_by, f"validation images in epoch {number + 1} of {self.title}")
        ranks.equalize(self.logits.parameters(), ())
        self.multiplier.value = ranks.of_first(lambda: self.multiplier.value)
        with torch.no_grad():
            expected = float(self._expected())
        return EpochRecord(
            number + 1, self.temperature, train_loss, loss, accuracy, expected, self._argmax(), self.logits.top(),
            self.elapsed, self.logits.entropies(),
        )  # fmt: skip

    def summary(self, figures: EpochRecord) -> str:
        """Accuracy of the architecture steps, cost, and how sure the logits are."""
        return (
            f"validation {percent(figures.validation_accuracy or 0.0, 1)}, "
            f"E[cost] {significant(figures.expected_cost)} of the base, "
            f"top p {significant(figures.top_probability or 0.0, 2)}"
        )

    def _weight_step(self, images: Inputs, labels: Any, temperature: float, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            draw = self.logits.draw(temperature, generator)
        loss = self.task.loss(self.mixed(images, draw), labels)
        self.descend(loss)
        return loss.detach()

    def _arch_step(
        self, images: Inputs, labels: Any, temperature: float, generator: torch.Generator, *, learn: bool
    ) -> tuple[Tensor, Tensor]:
        """Loss and score on the other half, scalars; computes no gradient of any weight."""
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.requires_grad_(False)
        with torch.set_grad_enabled(learn):
            draw = self.logits.draw(temperature, generator)
            output = self.mixed(images, draw)
            loss = self.task.loss(output, labels)
            if learn:
                self.adam.zero_grad()
                self.runner.backward(loss + self._penalty())
                self.update(self.adam)
        for parameter in learning:
            parameter.requires_grad_(True)
        with torch.no_grad():
            score = scalar(self.task.score(self.judged(images, draw, output), labels), loss)
        return loss.detach(), score.to(loss.dtype)

    def _penalty(self) -> Tensor:
        limited = {limit.metric for limit in self.problem.limits}
        led = self.multiplier.penalty(*self.logits.probabilities()) if limited else torch.zeros(())
        if METRICS.get(self.options.cost, self.options.cost) in limited:
            return led
        argmax = self._argmax() if self.options.loss == "band" else 0.0
        return led + penalty(self.options, self._expected(), argmax)

    def _expected(self) -> Tensor:
        """E[cost] over the cost of the base."""
        widths, depths = self.logits.probabilities()
        return self.problem.cost.expected(self.problem.space, widths, depths) / self.base

    def _argmax(self) -> float:
        return self.problem.cost.cost(self.logits.argmax()) / self.base

    def tensors(self) -> dict[str, Tensor]:
        """Those of the supernet, logits, and Adam's moments."""
        return {**super().tensors(), "logits": self.logits.table}

    def values(self) -> Values:
        """The weight of the limits' penalty."""
        return {"multiplier": self.multiplier.value}

    def load(self, tensors: dict[str, Tensor], values: Values) -> None:
        super().load(tensors, values)
        with torch.no_grad():
            self.logits.table.copy_(tensors["logits"])
        self.multiplier.value = values["multiplier"]
