"""Channels in the order of their importance, so that the first ones are those worth keeping.

A narrower network, and every sub-network of a supernet, takes the first channels of each width site. After this they
are the most important ones, and the network computes the same as before.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from htas.graph.network import Network, Segment, Step
from htas.graph.resize import by_outputs
from htas.graph.trace import trace

Kept = Mapping[str, Tensor]


@torch.no_grad()
def ordered(module: nn.Module, example: Tensor | Sequence[Tensor]) -> nn.Module:
    """A copy whose channels are sorted, the most important first: equal outputs for equal inputs, in eval mode.

    `example` is [N, C, H, W], or one tensor [N, ...] for each input.

    A channel is as important as the norms of the filters that make it, times the scale of the batch norm behind each
    (in eval mode), and those of the weights that read it: magnitude pruning over all layers that share it. Channels
    in groups move by whole groups; those that a group norm parts stay where they are.
    """
    clone = copy.deepcopy(module)
    network = trace(clone, example)
    sites = _free(network)
    orders = {name: _order(worth, network.sites[name].multiple) for name, worth in _worth(network, sites).items()}
    for step, inputs, outputs in _steps(network, sites):
        if not step.node.again:
            columns, rows = _index(step.node.consumed, inputs, orders), _index(step.node.segments, outputs, orders)
            _permute(clone, step, columns, rows)
    return clone


Where = Sequence[str]
"""Of each segment its site; empty where the width is frozen."""


def _free(network: Network) -> set[str]:
    """Width sites whose channels may change places."""
    bound = {
        name
        for step, _, outputs in _steps(network, set(network.widths))
        if step.node.kind == "layer_norm" and isinstance(network.module.get_submodule(step.node.module), nn.GroupNorm)
        for name in outputs
    }
    return set(network.widths) - bound


def _steps(network: Network, sites: set[str]) -> list[tuple[Step, Where, Where]]:
    """Every step with the sites of its first input and of its output."""
    where: dict[str, Where] = {}
    steps = []
    for step in network.steps(network.base):
        node = step.node
        inputs = where[node.inputs[0]] if node.inputs and node.inputs[0] in where else ()
        match node.kind:
            case "conv":
                outputs: Where = (node.site if node.site in sites else "",)
            case "input" | "fixed":
                outputs = ("",) * len(node.segments)
            case "concat":
                outputs = tuple(name for source in node.inputs for name in where[source])
            case _:
                outputs = inputs
        where[node.name] = outputs
        steps.append((step, inputs, outputs))
    return steps


def _worth(network: Network, sites: set[str]) -> dict[str, Tensor]:
    """Importance by site, [channels]."""
    importance = {name: torch.zeros(network.sites[name].base) for name in sites}
    norms = {node.norm: node for node in network.nodes if node.norm}
    scales: dict[str, Tensor] = {}
    for name, node in norms.items():
        norm = network.module.get_submodule(next(other.module for other in network.nodes if other.name == name))
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_var is not None:
            scales[node.name] = (norm.weight.abs() / (norm.running_var + norm.eps).sqrt()).cpu()
    for step, inputs, outputs in _steps(network, sites):
        node = step.node
        if node.kind not in ("conv", "grouped") or not node.module:
            continue
        weight = by_outputs(network.module.get_submodule(node.module)).detach().float().cpu().abs()
        rows = weight.flatten(1).sum(1) * scales.get(node.name, torch.ones(len(weight)))
        _add(importance, outputs, node.segments, rows / rows.mean().clamp_min(1e-12))
        if node.kind == "conv":
            columns = weight.transpose(0, 1).flatten(1).sum(1)
            _add(importance, inputs, node.consumed, columns / columns.mean().clamp_min(1e-12))
    return importance


def _add(importance: dict[str, Tensor], where: Where, segments: Sequence[Segment], values: Tensor) -> None:
    """To the importance of the channels that these segments are."""
    start = 0
    for name, segment in zip(where, segments, strict=True):
        count = segment.base * segment.repeat
        if name:
            importance[name] += values[start : start + count].reshape(segment.base, segment.repeat).mean(1)
        start += count


def _order(worth: Tensor, multiple: int) -> Tensor:
    """Channels, the most important first; whole groups of them where widths are multiples."""
    groups = worth.reshape(-1, multiple).mean(1).argsort(descending=True, stable=True)
    return (groups[:, None] * multiple + torch.arange(multiple)).flatten()


def _index(segments: Sequence[Segment], where: Where, orders: Kept) -> Tensor | None:
    """Where each channel of a layout comes from; None where all stay."""
    if not any(name in orders for name in where):
        return None
    indices, start = [], 0
    for name, segment in zip(where, segments, strict=True):
        order = orders.get(name, torch.arange(segment.base))
        indices.append((start + order[:, None] * segment.repeat + torch.arange(segment.repeat)).flatten())
        start += segment.base * segment.repeat
    return torch.cat(indices)


def _permute(module: nn.Module, step: Step, inputs: Tensor | None, outputs: Tensor | None) -> None:
    node = step.node
    if node.kind == "scale" and outputs is not None:
        owner, _, name = node.param.rpartition(".")
        param: Tensor = getattr(module.get_submodule(owner), name)
        param.copy_(param.index_select(node.param_axis, outputs.to(param.device)))
    if not node.module or node.kind not in ("conv", "grouped", "norm", "layer_norm"):
        return
    part: Any = module.get_submodule(node.module)
    if node.kind in ("conv", "grouped"):
        weight = by_outputs(part)
        if outputs is not None:
            weight.copy_(weight[outputs.to(weight.device)])
        if node.kind == "conv" and inputs is not None:
            weight.copy_(weight[:, inputs.to(weight.device)])
        tensors = ("bias",)
    else:
        tensors = ("weight", "bias", "running_mean", "running_var")  # type: ignore[assignment]
    for name in tensors if outputs is not None else ():
        tensor = getattr(part, name, None)
        if tensor is not None:
            tensor.copy_(tensor[outputs.to(tensor.device)])  # type: ignore[union-attr]
