"""A supernet that starts from the weights of a trained base network."""

import torch
from torch import Tensor, nn

from htas.graph import Network, Node
from htas.graph.resize import by_outputs
from htas.search.mixing import columns
from htas.search.supernet import Supernet


@torch.no_grad()
def inherit(supernet: Supernet, trained: nn.Module) -> None:
    """Copy the weights of a trained base network into every slice and norm of a supernet that they fit."""
    for node in supernet.network.nodes:
        if node.kind in ("conv", "grouped"):
            _inherit_conv(supernet, node, trained.get_submodule(node.module))
        elif node.kind in ("norm", "layer_norm"):
            _inherit_norm(supernet, node, trained.get_submodule(node.module))
        elif node.kind == "scale":
            scale, trained_scale = _tensor(supernet.body, node.param), _tensor(trained, node.param)
            axis = node.param_axis
            there, here = _common(supernet, node, scale.device)
            scale.index_copy_(axis, there, trained_scale.to(scale.device).index_select(axis, here))
        elif node.module:
            supernet.body.get_submodule(node.module).load_state_dict(trained.get_submodule(node.module).state_dict())
    into, out = supernet.body.state_dict(), trained.state_dict()
    for name in _direct(supernet.network) & into.keys() & out.keys():
        into[name].copy_(out[name])


def _direct(network: Network) -> set[str]:
    """Parameters and buffers that `forward` uses by itself: those of no module that is resized."""
    resized = {node.module for node in network.nodes if node.kind in ("conv", "grouped", "norm", "layer_norm")}
    scaled = {node.param for node in network.nodes if node.param}
    names = {name for name in network.module.state_dict() if name.rpartition(".")[0] not in resized}
    return names - scaled


def _inherit_norm(supernet: Supernet, node: Node, source: nn.Module) -> None:
    norms = supernet.body.get_submodule(node.module)
    for norm in norms.children():
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(source, name, None) is None:
                continue
            tensor, values = getattr(norm, name), getattr(source, name).to(getattr(norm, name).device)
            if len(node.segments) > 1:
                there, here = _common(supernet, node, values.device)
                tensor[there] = values[here]
            else:
                common = min(len(tensor), len(values))
                tensor[:common] = values[:common]


def _inherit_conv(supernet: Supernet, node: Node, source: nn.Module) -> None:
    module = supernet.body.get_submodule(node.module)
    there, here = _common(supernet, node, module.weight.device)  # type: ignore[arg-type]
    weight, trained = by_outputs(module), by_outputs(source).to(module.weight.device)  # type: ignore[arg-type]
    if node.kind == "grouped":
        weight[there] = trained[here]
        rows = there, here
    else:
        count = min(len(weight), len(trained))
        weight[torch.arange(count)[:, None], there] = trained[:count][:, here]
        rows = (torch.arange(count),) * 2
    if isinstance(module.bias, Tensor) and isinstance(source.bias, Tensor):
        module.bias[rows[0]] = source.bias.to(module.bias.device)[rows[1]]


def _common(supernet: Supernet, node: Node, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of the input channels that a node shares with the base network: in the supernet, and in the base."""
    room, base = supernet.capacity[node.inputs[0]], tuple(segment.base for segment in node.consumed)
    common = tuple(min(one, two) for one, two in zip(room, base, strict=True))
    return columns(node.consumed, room, common, device), columns(node.consumed, base, common, device)


def _tensor(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), name)
    return tensor
