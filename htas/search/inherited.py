"""Accuracies of archs with the trained base network's weights, without any training of their own."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from htas.data.split import Batch
from htas.data.task import forward
from htas.graph import Arch, ordered, resize
from htas.search.oneshot import CALIBRATION, JUDGED, some, statistical
from htas.search.problem import Problem
from htas.training.int8 import simulated
from htas.training.layout import placed
from htas.training.loop import engine
from htas.training.train import mean_score


class Inherited:
    """Judges an arch by the base network's most important channels and its first blocks, with norm statistics from
    training images; where the arch is wider than the base network, by the base network's widths."""

    title: ClassVar[str] = "with the base network's weights, not trained again"

    def __init__(self, problem: Problem, base: nn.Module) -> None:
        self.problem = problem
        self.network = replace(problem.network, module=ordered(base.cpu(), problem.network.example()))
        self.runner = engine(problem.device, "auto")

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """Validation accuracy of each arch, 0 to 1."""
        return [self._accuracy(arch) for arch in archs]

    @torch.no_grad()
    def _accuracy(self, arch: Arch) -> float:
        data, most = self.problem.data, self.network.base.widths
        widths = {site: min(width, most[site]) for site, width in arch.widths.items()}
        torch.manual_seed(self.problem.seed)  # of projections, which have no weights to inherit
        model = placed(resize(self.network, Arch(widths, arch.depths)).eval(), self.runner.device)
        with simulated(self.problem.weight_bits):
            settle(model, some(data.weights, CALIBRATION))
            judges = some(data.validation, JUDGED)
            return mean_score(data.task, judges, self.runner, partial(forward, model))


@torch.no_grad()
def settle(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Give the batch norms of a network in eval mode the statistics of some images, in place of those of the network
    that its weights come from; a batch of one image is left out, and if there is no other they stay."""
    rest = statistical(batches)
    first = next(rest, None)
    if first is None:
        return
    norms = [part for part in model.modules() if isinstance(part, _NormBase) and part.running_mean is not None]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for images, _ in chain([first], rest):
        forward(model, images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
