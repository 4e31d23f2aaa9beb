"""A baseline from outside: the base network pruned by Torch-Pruning (Fang et al. 2023), at a latency that is measured.

What is taken over is the widths that a criterion leaves at each site, and the weights where they are to be kept; the
network is trained as all others are.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from htas.data.split import Batch
from htas.errors import UserError
from htas.experiments.arm_tables import CRITERIA, Pruning
from htas.experiments.thinet import ThiNet
from htas.graph import Arch, Network
from htas.graph.modes import copied
from htas.graph.resize import by_outputs
from htas.plugins import needed

RATIOS = tuple(step / 40 for step in range(1, 38))
"""Shares of the channels that are pruned, from which one is chosen by latency."""


def pruned(
    network: Network, model: nn.Module, example: Tensor, options: Pruning, ratio: float, importance: Any = None
) -> tuple[Arch, nn.Module]:
    """The arch left of the trained base network where this share of the channels is pruned, the least important first,
    and the network of it, in eval mode, with the weights that are left.

    `importance` is the criterion's, by default one without images. Raises UserError where Torch-Pruning is not
    installed or cannot prune this network.
    """
    importance = importance or importance_of(options.criterion)
    import torch_pruning  # type: ignore[import-untyped]

    model = copied(model).cpu().eval()
    if isinstance(importance, ThiNet):
        importance.judge(model)
    layers = [node for node in network.nodes if node.kind == "conv"]
    frozen = [
        model.get_submodule(node.module) for node in layers if len(node.segments) > 1 or not node.segments[0].site
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is not ours
        pruner = torch_pruning.pruner.BasePruner(
            model, example, importance=importance, global_pruning=options.scope == "global", pruning_ratio=ratio,
            max_pruning_ratio=0.95, round_to=options.round_to if options.round_to > 1 else None, ignored_layers=frozen,
        )  # fmt: skip
        for group in pruner.step(interactive=True):
            if isinstance(importance, ThiNet):
                importance.rescale(*_whole(pruner.DG, group))
            group.prune()
    widths: dict[str, int] = {}
    for node in layers:
        site, module = node.segments[0].site, model.get_submodule(node.module)
        if not site or module in frozen:
            continue
        channels = int(len(by_outputs(module)) / node.segments[0].repeat)
        if widths.setdefault(site, channels) != channels:
            raise UserError(f"Torch-Pruning left layers of {site} with {widths[site]} and {channels} channels")
    return Arch({**network.base.widths, **widths}, network.base.depths), model


def candidates(
    network: Network, model: nn.Module, example: Tensor, options: Pruning, importance: Any = None
) -> dict[Arch, float]:
    """The archs of all RATIOS, the widest first, each with the least ratio that leaves it."""
    archs: dict[Arch, float] = {}
    for ratio in RATIOS:
        archs.setdefault(pruned(network, model, example, options, ratio, importance)[0], ratio)
    return archs


def importance_of(criterion: str, images: Iterable[Batch] = ()) -> Callable[..., Any]:
    """How Torch-Pruning finds out how important the channels of a group are; `images` are of the training split, and
    for thinet alone. Raises UserError where Torch-Pruning is not installed."""
    importance = needed("torch_pruning.pruner.importance", "pruning", f"pruning by {criterion}")
    if criterion == "thinet":
        return ThiNet(images)
    kind, arguments = CRITERIA[criterion]
    factory: Callable[..., Any] = getattr(importance, kind)(**arguments)
    return factory


def _whole(graph: Any, group: Any) -> tuple[Any, list[int]]:
    """The group of all channels of a group that is about to be pruned, and the channels that it prunes."""
    first = group[0].dep
    count = graph.get_out_channels(first.target.module)
    return graph.get_pruning_group(first.target.module, first.handler, list(range(count))), group[0].idxs
