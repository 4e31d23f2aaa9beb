"""Channels in the order of their importance, so that the first ones are those worth keeping.

A narrower network, and every sub-network of a supernet, takes the first channels of each width site. After this they
are the most important ones, and the network computes the same as before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from htas.graph.modes import copied, evaluating, unwrapped
from htas.graph.network import Network, Node
from htas.graph.trace import trace
from htas.graph.verify import reorder


@torch.no_grad()
def ordered(module: nn.Module, example: Tensor | Sequence[Tensor]) -> nn.Module:
    """A copy whose channels are sorted, the most important first: equal outputs for equal inputs, in eval mode.

    `example` is [N, C, H, W], or one tensor [N, ...] for each input.

    A channel is as important as the norms of the filters that make it, times the scale of the batch norm behind each
    (in eval mode), and those of the weights that read it: magnitude pruning over all layers that share it. Channels
    in groups move by whole groups.
    """
    clone = copied(unwrapped(module))
    network = trace(clone, example)
    orders = {
        name: worth.argsort(descending=True, stable=True)
        for name, worth in _worth(network).items()
        if name not in network.fixed_order
    }
    reorder(clone, network, orders)
    return clone


def _worth(network: Network) -> dict[str, Tensor]:
    """Importance by site, [atoms]."""
    worth = {name: torch.zeros(site.base // site.multiple) for name, site in network.widths.items()}
    tensors = {**dict(network.module.named_parameters(remove_duplicate=False)), **dict(network.module.named_buffers())}
    norms = {node.name: node.module for node in network.nodes if node.kind == "norm"}
    for node in network.nodes:
        name = _weight(network, node, tensors) if node.kind in ("conv", "grouped") and not node.again else ""
        if not name:
            continue
        weight = tensors[name].detach().float().cpu().abs()
        turned = node.layer is not None and node.layer.op == "conv_transpose"
        for dim, layout in enumerate(network.layouts[name][:2]):
            if layout is None:
                continue
            sums = weight.transpose(0, dim).flatten(1).sum(1)
            if node.norm and dim == (1 if turned else 0):
                sums = sums * _scale(tensors, norms[node.norm], len(sums))
            for site, values in layout.by_atom(sums / sums.mean().clamp_min(1e-12)):
                worth[site] += values.mean(1)
    return worth


def _weight(network: Network, node: Node, tensors: dict[str, Tensor]) -> str:
    """The name of a layer's weight; of one that is computed (torch.nn.utils.parametrize) the name of what it is
    computed from that has its shape, under which `tensors` then has the weight itself. Empty for none."""
    name = f"{node.module}.weight"
    part = network.module.get_submodule(node.module)
    if name in network.layouts or not is_parametrized(part, "weight"):
        return name if name in network.layouts else ""
    with evaluating(part):
        weight: Any = part.weight
    sources = [path for path in network.layouts if path.startswith(f"{node.module}.parametrizations.weight.original")]
    name = next((path for path in sources if tensors[path].shape == weight.shape), "")
    if name:
        tensors[name] = weight
    return name


def _scale(tensors: dict[str, Tensor], norm: str, count: int) -> Tensor:
    """What a batch norm multiplies each channel by, [channels]; ones where it keeps no statistics."""
    weight, var = tensors.get(f"{norm}.weight"), tensors.get(f"{norm}.running_var")
    if weight is None or var is None or len(weight) != count:
        return torch.ones(count)
    return (weight.abs() / (var + 1e-5).sqrt()).float().cpu()
