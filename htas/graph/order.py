"""Channels in the order of their importance, so that the first ones are those worth keeping.

A narrower network, and every sub-network of a supernet, takes the first channels of each width site. After this they
are the most important ones, and the network computes the same as before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from htas.graph.modes import copied, unwrapped
from htas.graph.network import Network
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
        name = f"{node.module}.weight"
        if node.kind not in ("conv", "grouped") or name not in network.layouts or node.again:
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


def _scale(tensors: dict[str, Tensor], norm: str, count: int) -> Tensor:
    """What a batch norm multiplies each channel by, [channels]; ones where it keeps no statistics."""
    weight, var = tensors.get(f"{norm}.weight"), tensors.get(f"{norm}.running_var")
    if weight is None or var is None or len(weight) != count:
        return torch.ones(count)
    return (weight.abs() / (var + 1e-5).sqrt()).float().cpu()
