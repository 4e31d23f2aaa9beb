"""Write widths and depths into a network, wider or narrower, keeping the weights that fit."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from htas.graph.arch import Arch
from htas.graph.capture import capture, names
from htas.graph.network import Network, Segment, Step


def resize(network: Network, arch: Arch) -> nn.Module:
    """The network at the widths and depths of `arch`: a new module; the given one is not changed.

    It is of the user's own class, with leaf modules swapped, and an Identity where a block is cut that is not called by
    a Sequential; unless a shortcut needs a projection (`adds="project"` at unequal widths): then it is a torch.fx
    GraphModule with the same module names plus a `project` in each such block. Weights that fit are
    kept, others are drawn by `reset_parameters`.
    Raises UserError for an arch of another network.
    """
    network.check(arch)
    module = _cut(copy.deepcopy(network.module), network, arch)
    places: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        places.setdefault(id(part), []).append(name)
    projections = []
    for step in network.steps(arch):
        if step.node.kind == "project" and step.layer is not None:
            projections.append(step)
        elif step.node.module and not step.node.again and step.node.kind in ("conv", "grouped", "norm", "layer_norm"):
            old = module.get_submodule(step.node.module)
            new = _resized(old, step)
            for place in places[id(old)] if new is not old else ():  # a user may have it under several names
                module.set_submodule(place, new)
        elif step.node.kind == "scale" and not _as_given(step.node.segments, step.outputs):
            owner, _, name = step.node.param.rpartition(".")
            rows = _kept(step.node.segments, step.outputs)
            _rescale(module.get_submodule(owner), name, step.node.param_axis, rows, step.channels)
    return _projected(module, network, projections) if projections else module


def _cut(module: nn.Module, network: Network, arch: Arch) -> nn.Module:
    gone: list[str] = []
    for site in network.depths.values():
        for block in site.producers[arch.depths[site.name] :]:
            if any(block.startswith(f"{other}.") for other in gone):
                continue
            gone.append(block)
            owner, _, child = block.rpartition(".")
            parent = module.get_submodule(owner)
            if type(parent).forward is nn.Sequential.forward:
                parent._modules.pop(child)  # keeps the names of the others, which `del parent[i]` would renumber
            else:
                parent._modules[child] = nn.Identity()
    return module


def _resized(module: nn.Module, step: Step) -> nn.Module:
    """A module with a step's widths; the same object where they are its own."""
    node = step.node
    if _as_given(node.segments, step.outputs) and _as_given(node.consumed, step.inputs[0]):
        return module
    rows = _kept(node.segments, step.outputs)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _norm(module, step.channels, rows)
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return _layer_norm(module, step.channels, rows)
    columns = _kept(node.consumed, step.inputs[0])
    if node.kind == "grouped":
        assert isinstance(module, nn.Conv2d)
        columns = (torch.arange(module.weight.shape[1]),) * 2
    new = remade(module, step.channels_in, step.channels, grouped=node.kind == "grouped")
    return _filled(new, module, rows, columns)


def remade(module: nn.Module, inputs: int, outputs: int, *, grouped: bool = False) -> nn.Module:
    """A linear layer or convolution like this one with other widths; a grouped one has groups of the same size."""
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, outputs, bias)
    window: Any = {name: getattr(module, name) for name in WINDOW}
    if isinstance(module, nn.ConvTranspose2d):
        return nn.ConvTranspose2d(inputs, outputs, bias=bias, output_padding=module.output_padding, **window)  # type: ignore[arg-type]
    assert isinstance(module, nn.Conv2d)
    groups = outputs // (module.in_channels // module.groups) if grouped else 1
    return nn.Conv2d(inputs, outputs, groups=groups, bias=bias, **window)


def _as_given(segments: Sequence[Segment], widths: Sequence[int]) -> bool:
    return all(segment.base == width for segment, width in zip(segments, widths, strict=True))


WINDOW = ("kernel_size", "stride", "padding", "dilation")
"""Options of a convolution that stay."""
Index = tuple[Tensor, Tensor]


def _kept(segments: Sequence[Segment], widths: Sequence[int]) -> Index:
    """Channels of the old layout that stay, and where they stand in the new one."""
    old, new, start, place = [], [], 0, 0
    for segment, width in zip(segments, widths, strict=True):
        count = min(segment.base, width) * segment.repeat
        old.append(torch.arange(start, start + count))
        new.append(torch.arange(place, place + count))
        start += segment.base * segment.repeat
        place += width * segment.repeat
    return torch.cat(old), torch.cat(new)


def _filled(new: nn.Module, old: nn.Module, rows: Index, columns: Index) -> nn.Module:
    with torch.no_grad():
        new.to(_param(old, "weight"))
        ours, theirs = by_outputs(new), by_outputs(old)
        ours[rows[1][:, None], columns[1]] = theirs[rows[0][:, None], columns[0]]
        if getattr(old, "bias", None) is not None:
            _param(new, "bias")[rows[1]] = _param(old, "bias")[rows[0]]
    return _as_frozen(new, old)


def by_outputs(module: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer, [outputs, inputs, ...]: of a transposed convolution a view."""
    weight = _param(module, "weight")
    return weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else weight


def _param(module: nn.Module, name: str) -> nn.Parameter:
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def _norm(old: nn.Module, outputs: int, rows: Index) -> nn.Module:
    assert isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d)
    assert old.num_batches_tracked is not None
    new = type(old)(outputs, eps=old.eps, momentum=old.momentum).to(old.weight)
    new.num_batches_tracked = old.num_batches_tracked.clone()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(new, name)[rows[1]] = getattr(old, name)[rows[0]]
    return _as_frozen(new, old)


def _as_frozen(new: nn.Module, old: nn.Module) -> nn.Module:
    """In the mode of the old one, and with the same parameters learning."""
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(old.get_parameter(name).requires_grad)
    return new.train(old.training)


def _layer_norm(old: nn.LayerNorm | nn.GroupNorm, channels: int, rows: Index) -> nn.Module:
    """Of the same class, which may be a user's own."""
    new = copy.deepcopy(old)
    if isinstance(new, nn.LayerNorm):
        new.normalized_shape = (channels,)
    else:
        new.num_channels = channels
    with torch.no_grad():
        for name, fresh in (("weight", 1.0), ("bias", 0.0)):
            if getattr(old, name) is not None:
                tensor = getattr(old, name).new_full((channels,), fresh)
                tensor[rows[1]] = getattr(old, name)[rows[0]]
                setattr(new, name, nn.Parameter(tensor, getattr(old, name).requires_grad))
    return new


def _rescale(owner: nn.Module, name: str, axis: int, rows: Index, channels: int) -> None:
    """A parameter with a number for each channel; new ones have the mean of the others."""
    old = getattr(owner, name)
    with torch.no_grad():
        tensor = old.mean().expand([channels if dim == axis else 1 for dim in range(old.dim())]).clone()
        tensor.index_copy_(axis, rows[1].to(old.device), old.index_select(axis, rows[0].to(old.device)))
    new = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    setattr(owner, name, new)


def _projected(module: nn.Module, network: Network, steps: Sequence[Step]) -> fx.GraphModule:
    """The module's graph with a 1x1 convolution, and a norm, on each of these shortcuts."""
    graph = capture(module, len(network.shapes))
    calls = {name: node for node, name in names(graph.graph).items()}
    for step in steps:
        graph.add_submodule(step.node.name, _projection(step).to(next(module.parameters())))
        join = next(node for node in network.nodes if node.kind == "join" and step.node.name in node.inputs)
        add = calls[join.name]
        shortcut = add.all_input_nodes[join.inputs.index(step.node.name)]
        with graph.graph.inserting_before(add):
            add.replace_input_with(shortcut, graph.graph.call_module(step.node.name, (shortcut,)))
    graph.recompile()
    modes = {name: part.training for name, part in module.named_modules()}
    for name, part in graph.named_modules():
        part.training = modes.get(name, module.training)
    return graph


def _projection(step: Step) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(step.channels_in, step.channels, 1, bias=False)
    if step.node.normed:
        parts["norm"] = nn.BatchNorm2d(step.channels)
    return nn.Sequential(parts)
