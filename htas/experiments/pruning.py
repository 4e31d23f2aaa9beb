"""A baseline from outside: the base network pruned by Torch-Pruning (Fang et al. 2023), at a latency that is measured.

What is taken over is the widths that a criterion leaves at each site; the network of these widths is trained as all
others are.
"""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from htas.errors import UserError
from htas.experiments.arm_tables import CRITERIA
from htas.graph import Arch, Network
from htas.graph.modes import copied
from htas.graph.resize import by_outputs
from htas.plugins import needed
from htas.text import no_such

RATIOS = tuple(step / 40 for step in range(1, 38))
"""Shares of the channels that are pruned, from which one is chosen by latency."""


def pruned(network: Network, model: nn.Module, example: Tensor, criterion: str, ratio: float) -> Arch:
    """The arch left of the trained base network where this share of all channels is pruned, the least important first.

    Raises UserError for an unknown criterion, and where Torch-Pruning is not installed or cannot prune this network.
    """
    importance = _importance(criterion)
    import torch_pruning  # type: ignore[import-untyped]

    model = copied(model).cpu().eval()
    layers = [node for node in network.nodes if node.kind == "conv"]
    frozen = [
        model.get_submodule(node.module) for node in layers if len(node.segments) > 1 or not node.segments[0].site
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is not ours
        pruner = torch_pruning.pruner.BasePruner(
            model, example, importance=importance, global_pruning=True, pruning_ratio=ratio, max_pruning_ratio=0.95,
            ignored_layers=frozen,
        )  # fmt: skip
        pruner.step()
    widths: dict[str, int] = {}
    for node in layers:
        site, module = node.segments[0].site, model.get_submodule(node.module)
        if not site or module in frozen:
            continue
        channels = int(len(by_outputs(module)) / node.segments[0].repeat)
        if widths.setdefault(site, channels) != channels:
            raise UserError(f"Torch-Pruning left layers of {site} with {widths[site]} and {channels} channels")
    return Arch({**network.base.widths, **widths}, network.base.depths)


def candidates(network: Network, model: nn.Module, example: Tensor, criterion: str) -> list[Arch]:
    """The archs of all RATIOS, the widest first, each once."""
    return list(dict.fromkeys(pruned(network, model, example, criterion, ratio) for ratio in RATIOS))


def _importance(criterion: str) -> Callable[..., Any]:
    if criterion not in CRITERIA:
        raise UserError(no_such("criterion of pruning", criterion, CRITERIA))
    importance = needed("torch_pruning.pruner.importance", "pruning", f"pruning by {criterion}")
    kind, arguments = CRITERIA[criterion]
    factory: Callable[..., Any] = getattr(importance, kind)(**arguments)
    return factory
