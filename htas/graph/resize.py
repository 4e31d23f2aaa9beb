"""Write widths and depths into a network, wider or narrower, keeping the weights that fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from htas.graph.arch import Arch
from htas.graph.draws import draw_through, settle
from htas.graph.layer import CONVS, TRANSPOSED
from htas.graph.layout import Layout, Layouts
from htas.graph.modes import copied, evaluating
from htas.graph.network import Network
from htas.graph.projected import projected


def resize(network: Network, arch: Arch) -> nn.Module:
    """The network at the widths and depths of `arch`: a new module; the given one is not changed.

    It is of the user's own classes, all of them, with parameters of other sizes, and an Identity where a block is cut
    that is not called by a Sequential; unless a shortcut needs a projection (`adds="project"` at unequal widths): then
    it is code made of its steps, with the same module names plus a `project` in each such block. Weights that fit are
    kept, others are drawn by `reset_parameters`, or around the mean of the parameter with its standard deviation.
    Raises UserError for an arch of another network.
    """
    network.check(arch)
    widths = network.widths_at(arch)
    module = _cut(copied(network.module), network, arch)
    widen(module, network, widths)
    projects = any(step.node.kind == "project" and step.layer is not None for step in network.steps(arch))
    return projected(module, network, arch) if projects else module


def widen(module: nn.Module, network: Network, widths: Mapping[str, int]) -> None:
    """Give a copy of the network's module, with some blocks cut, parameters for these widths, in place."""
    parts = dict(module.named_modules())
    tied = _tied(network.module)
    aliases = {other for others in tied.values() for other in others}
    by_owner: dict[str, list[str]] = {}
    for path, layouts in network.layouts.items():
        owner, _, name = path.rpartition(".")
        if owner in parts and path not in aliases and any(_changes(layout, network, widths) for layout in layouts):
            by_owner.setdefault(owner, []).append(name)
    order = {node.module: place for place, node in reversed([*enumerate(network.nodes)])}
    for owner, changed in sorted(by_owner.items(), key=lambda each: order.get(each[0], len(network.nodes))):
        _resized(parts[owner], owner, changed, network, widths)
        for name in changed:
            for other in tied.get(f"{owner}.{name}" if owner else name, ()):
                place, _, alias = other.rpartition(".")
                if place in parts:
                    setattr(parts[place], alias, getattr(parts[owner], name))
                    set_sizes(parts[place], whole=place in network.whole_groups)
    for (_, owner, name, place), layout in network.counted.items():
        if owner in parts:
            set_count(parts[owner], name, place, layout.size(widths))
    computed = {path.partition(".parametrizations.")[0] for path in by_owner if ".parametrizations." in path}
    for path in sorted(computed, key=lambda each: order.get(each, len(network.nodes))):
        _computed(parts[path], path, [each for each in by_owner if each.startswith(f"{path}.")], network, widths)


def _changes(layout: Layout | None, network: Network, widths: Mapping[str, int]) -> bool:
    """Whether other positions stand along a dimension at these widths; there may be as many as before."""
    return layout is not None and any(widths[site] != network.base_widths[site] for site in layout.sites)


def _grows(layouts: Layouts, network: Network, widths: Mapping[str, int]) -> bool:
    """Whether positions come that the base network lacks."""
    sites = [site for layout in layouts if layout is not None for site in layout.sites]
    return any(widths[site] > network.base_widths[site] for site in sites)


def _tied(module: nn.Module) -> dict[str, list[str]]:
    """By the first name of a parameter or buffer its others, where modules share it."""
    first: dict[int, str] = {}
    others: dict[str, list[str]] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    owners: dict[str, int] = {path: id(part) for path, part in module.named_modules(remove_duplicate=False)}
    for path, tensor in named:
        name = first.setdefault(id(tensor), path)
        if name != path and owners[name.rpartition(".")[0]] != owners[path.rpartition(".")[0]]:
            others.setdefault(name, []).append(path)
    return others


@torch.no_grad()
def _resized(part: Any, owner: str, names: Sequence[str], network: Network, widths: Mapping[str, int]) -> None:
    """Give a module parameters and buffers of other sizes, in place."""
    old = {name: getattr(part, name) for name in names}
    paths = {name: f"{owner}.{name}" if owner else name for name in names}
    shapes = {name: network.shape(paths[name], tensor.shape, widths) for name, tensor in old.items()}
    resets = getattr(type(part), "reset_parameters", None) in RESETS
    for name, tensor in old.items():
        if isinstance(tensor, nn.Parameter):
            fresh = tensor.detach().mean().expand(shapes[name]).clone()
            if not (resets and name in ("weight", "bias")) and _grows(network.layouts[paths[name]], network, widths):
                fresh = _spread(fresh, tensor)
            setattr(part, name, nn.Parameter(fresh, tensor.requires_grad))
        else:
            part._buffers[name] = _again_and_again(tensor, shapes[name])
    set_sizes(part, whole=owner in network.whole_groups)
    if resets:
        _reset(part, names)
    for name, tensor in old.items():
        into = getattr(part, name)
        copy_common(into.data, tensor, network.layouts[paths[name]], network.base_widths, widths)
        into.data = into.data.contiguous(memory_format=_format(tensor))


def _spread(mean: Tensor, values: Tensor) -> Tensor:
    """Numbers around the mean, as far from it as the values of a parameter are, where these have two dimensions or
    more; those that are all equal stay so."""
    if values.dim() < 2 or not values.is_floating_point() or values.numel() < 2:
        return mean
    std = values.detach().std()
    return mean + std * torch.randn_like(mean) if float(std) > 0 else mean


@torch.no_grad()
def _computed(part: Any, path: str, owners: Sequence[str], network: Network, widths: Mapping[str, int]) -> None:
    """Sizes, and new values, of a layer that computes its weight from others (torch.nn.utils.parametrize), which have
    their new sizes by now; they are drawn as the layer draws its weight."""
    with evaluating(part):
        set_sizes(part, whole=path in network.whole_groups)
    names = [name for owner in owners for name, _ in _base(network, owner).named_parameters(owner, recurse=False)]
    grown = [name for name in names if _grows(network.layouts.get(name, ()), network, widths)]
    if not grown or getattr(type(part), "reset_parameters", None) not in RESETS:
        return
    twin = copied(part)
    draw_through(twin)
    for name in grown:
        owner, _, last = name.rpartition(".")
        into = part.get_parameter(name.removeprefix(f"{path}."))
        into.copy_(twin.get_parameter(name.removeprefix(f"{path}.")))
        copy_common(into, _base(network, owner).get_parameter(last), network.layouts[name], network.base_widths, widths)
    for steps in part.parametrizations.children():
        settle(steps)


def _base(network: Network, owner: str) -> nn.Module:
    return network.module.get_submodule(owner)


def copy_common(
    into: Tensor, values: Tensor, layouts: Layouts, base: Mapping[str, int], widths: Mapping[str, int]
) -> None:  # fmt: skip
    """Copy what two tensors of one parameter share: `values` at the widths `base`, `into` at `widths`."""
    rows = {dim: layout.common(base, widths) for dim, layout in enumerate(layouts) if layout is not None}
    if not rows:
        into.copy_(values)
        return
    dims, first = list(rows), list(range(len(rows)))
    for dim, (there, _) in rows.items():
        values = values.index_select(dim, there.to(values.device))
    places = torch.meshgrid([here.to(into.device) for _, here in rows.values()], indexing="ij")
    into.movedim(dims, first)[places] = values.movedim(dims, first)


RESETS = {kind.reset_parameters for kind in (
    nn.modules.conv._ConvNd, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase,
)}  # fmt: skip
"""torch.nn's own ways to draw parameters."""


def _again_and_again(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A buffer of other sizes, whose entries start anew where they end: a filter that all channels share."""
    for dim, size in enumerate(shape):
        tensor = tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])
    return tensor.clone()


def _format(tensor: Tensor) -> torch.memory_format:
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def _reset(part: Any, names: Sequence[str]) -> None:
    """Draw the parameters of new sizes, and no others."""
    others = {name: tensor for name, tensor in (*part.named_parameters(), *part.named_buffers()) if name not in names}
    kept = {name: tensor.detach().clone() for name, tensor in others.items()}
    part.reset_parameters()
    for name, tensor in others.items():
        tensor.copy_(kept[name])


def set_sizes(part: Any, *, whole: bool) -> None:
    """The numbers that modules of torch.nn hold of their own sizes; groups of channels come and go where `whole`."""
    weight = getattr(part, "weight", None)
    match part:
        case nn.modules.conv._ConvNd():
            outputs, inputs = part.weight.shape[:2] if not part.transposed else part.weight.shape[1::-1]
            if whole:
                part.groups = outputs * part.groups // part.out_channels
            part.out_channels = outputs * (part.groups if part.transposed else 1)
            part.in_channels = inputs * (1 if part.transposed else part.groups)
        case nn.Linear():
            part.out_features, part.in_features = part.weight.shape
        case nn.LayerNorm() | nn.RMSNorm() if weight is not None:
            part.normalized_shape = tuple(weight.shape)
        case nn.GroupNorm() if weight is not None:
            part.num_channels = len(weight)
        case nn.modules.batchnorm._NormBase():
            tensor = weight if weight is not None else part.running_mean
            part.num_features = len(tensor) if tensor is not None else part.num_features
        case nn.PReLU():
            part.num_parameters = part.weight.numel()


def set_count(part: Any, name: str, place: int | None, number: int) -> None:
    """A whole number that a module, or its class, holds, by itself or in a list."""
    if place is None:
        part.__dict__[name] = number
        return
    held = getattr(part, name)
    part.__dict__[name] = type(held)([*held[:place], number, *held[place + 1 :]])


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


def remade(module: Any, inputs: int, outputs: int, *, grouped: bool = False) -> nn.Module:
    """A linear layer or convolution like this one with other widths; a grouped one has groups of the same size."""
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, outputs, bias)
    window: Any = {name: getattr(module, name) for name in WINDOW}
    dims = module.weight.dim() - 2
    if module.transposed:
        turned: nn.Module = TRANSPOSED[dims](inputs, outputs, bias=bias, output_padding=module.output_padding, **window)
        return turned
    groups = inputs // (module.in_channels // module.groups) if grouped else 1
    made: nn.Module = CONVS[dims](inputs, outputs, groups=groups, bias=bias, padding_mode=module.padding_mode, **window)
    return made


WINDOW = ("kernel_size", "stride", "padding", "dilation")
"""Options of a convolution that stay."""


def by_outputs(module: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer, [outputs, inputs, ...]: of a transposed convolution a view."""
    weight = _param(module, "weight")
    return weight.transpose(0, 1) if isinstance(module, nn.modules.conv._ConvTransposeNd) else weight


def _param(module: nn.Module, name: str) -> nn.Parameter:
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter
