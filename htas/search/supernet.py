"""Every arch of a space in one network (section 3.3; TAS).

Candidates are slices, by index map, of one tensor; each candidate has its own norm; the outputs of two candidates are
interpolated to the wider one and mixed; the outputs of a stage's candidate depths are mixed in the same way.

Faster than the plain formulation, and equal to it: in training mode both norms of a layer see the same batch
statistics on their common channels, so one norm without weights is computed, and the two affine maps, the
interpolation and the mixture become one small matrix applied as a 1x1 convolution, of which the norm itself is a part
(NormMix). Convolutions compute whole blocks of 8 channels; what is too much the matrix leaves out.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.graph import Network, Node
from htas.graph.arch import Arch
from htas.graph.resize import WINDOW, by_outputs
from htas.search.mixing import (
    FirstOf,
    NormMix,
    WeightedSum,
    _affine,
    _padded,
    _padded_to,
    _positive,
    _stacked,
    columns,
    interpolation,
)
from htas.spaces.space import Space
from htas.training.layout import conv2d

MOMENTUM = 0.1


BLOCK = 8
"""Channels that processors compute together: a tensor of 14 takes longer than one of 16 (docs/decisions.md)."""


ALL = "all"
"""Key of the one norm that stands for all widths."""


ROOMY = ("conv", "norm", "map", "join", "flatten")
"""Kinds of nodes that take tensors with channels of zeros behind the others."""


@dataclass(frozen=True)
class Draw:
    """What one forward pass uses: per width site one or two widths with their weights, per depth site a weight each.

    Weights are scalars or tensors of one element; those of a site sum to 1.
    """

    widths: Mapping[str, tuple[tuple[int, ...], Any]]
    depths: Mapping[str, Any]
    """Weights by block of the site: [k] is that of keeping k + 1 blocks; exact zeros are left out of the mixture."""
    momentum: float = MOMENTUM
    """Share of this batch in the running statistics of norms, in training mode."""

    @staticmethod
    def of(arch: Arch, network: Network) -> "Draw":
        """One width per site, and depth one-hot."""
        return Draw(
            {site: ((width,), (1.0,)) for site, width in arch.widths.items()},
            {
                name: tuple(float(index == arch.depths[name] - 1) for index in range(site.base))
                for name, site in network.depths.items()
            },
        )


class Supernet(nn.Module):
    """All archs of `space` over `network`, with weights of their own, drawn by `reset`.

    `shortcut` is what stands where added widths differ (`adds="project"`): a sliced 1x1 convolution with norm, as in
    the network derived, or TAS's padding with zeros. `mix` is how a narrow candidate meets a wide one: TAS's
    channel-wise interpolation, or padding with zeros, which keeps channel c of both the same thing. `norms` is whether
    every width has a norm of its own, as TAS's, or the first channels of the widest one's.
    Raises UserError where a norm or grouping is not understood.
    """

    def __init__(
        self,
        network: Network,
        space: Space,
        reset: Callable[[nn.Module], None],
        shortcut: Literal["project", "pad"] = "project",
        mix: Literal["interpolate", "pad"] = "interpolate",
        norms: Literal["own", "shared"] = "own",
    ) -> None:
        super().__init__()
        self.network, self.space, self.shortcut, self.mix, self.norms = network, space, shortcut, mix, norms
        self.capacity = _capacity(network, space, pad=shortcut == "pad")
        self.body = copy.deepcopy(network.module)
        self.projections = nn.ModuleDict()
        self._nodes = {node.name: node for node in network.nodes}
        self._producer = {node.norm: node for node in network.nodes if node.kind == "conv" and node.norm}
        self._identities: dict[tuple[int, int, int, torch.device], Tensor] = {}
        for node in network.nodes:
            self._allocate(node)
        self._block = BLOCK if all(self._keeps_zeros(node) for node in network.nodes if node.kind == "map") else 1
        reset(self)

    # -- weights -----------------------------------------------------------------------------------------------------

    def _allocate(self, node: Node) -> None:
        if node.again:
            return
        if node.kind in ("conv", "grouped"):
            self.body.set_submodule(node.module, self._wide(node))
        elif node.kind in ("norm", "layer_norm"):
            self.body.set_submodule(node.module, self._norms(node))
        elif node.kind == "scale":
            self._set_scale(node)
        elif node.kind == "project" and self.shortcut == "project":
            inputs, outputs = self._channels(node.inputs[0]), self._channels(node.name)
            norms = self._by_width(nn.BatchNorm2d, self._widths_at(node.inputs[1]) if node.normed else ())
            self.projections[_key(node.name)] = nn.ModuleDict(
                {"conv": nn.Conv2d(inputs, outputs, 1, bias=False), "norm": norms}
            )

    def _wide(self, node: Node) -> nn.Module:
        old = self.network.module.get_submodule(node.module)
        inputs, outputs = self._channels(node.inputs[0]), self._channels(node.name)
        shape: dict[str, Any]
        if isinstance(old, nn.Linear):
            return nn.Linear(inputs, outputs, old.bias is not None)
        if isinstance(old, nn.ConvTranspose2d):
            shape = {name: getattr(old, name) for name in (*WINDOW, "output_padding")}
            return nn.ConvTranspose2d(inputs, outputs, bias=old.bias is not None, **shape)
        assert isinstance(old, nn.Conv2d)
        groups = (
            outputs // (node.layer.inputs // node.layer.groups)
            if node.kind == "grouped" and node.layer is not None
            else 1
        )
        shape = {name: getattr(old, name) for name in WINDOW}
        return nn.Conv2d(inputs, outputs, groups=groups, bias=old.bias is not None, **shape)

    def _norms(self, node: Node) -> nn.ModuleDict:
        """One norm per width that may stand here; after a concatenation one for all."""
        old = self.network.module.get_submodule(node.module)
        made: Callable[[int], nn.Module]
        if isinstance(old, nn.GroupNorm):
            made = partial(nn.GroupNorm, old.num_groups, eps=old.eps)
        elif isinstance(old, nn.LayerNorm):
            made = partial(nn.LayerNorm, eps=old.eps, bias=old.bias is not None)
        else:
            assert isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d)
            made = partial(type(old), eps=old.eps)
        if len(node.segments) > 1:  # for every combination of widths one of its own would be too many
            return nn.ModuleDict({ALL: made(self._channels(node.name))})
        channels = [width * node.segments[0].repeat for width in self._widths_at(node.inputs[0])]
        return self._by_width(made, channels)

    def _set_scale(self, node: Node) -> None:
        """The parameter as wide as it may be; what the base has not, has the mean."""
        owner, _, name = node.param.rpartition(".")
        own = self.body.get_submodule(owner)
        old, axis = getattr(own, name), node.param_axis
        most = self._channels(node.name)
        wide = old.detach().mean().expand([most if dim == axis else 1 for dim in range(old.dim())]).clone()
        setattr(own, name, nn.Parameter(wide, old.requires_grad) if isinstance(old, nn.Parameter) else wide)

    @staticmethod
    def _get(module: nn.Module, path: str) -> Tensor:
        owner, _, name = path.rpartition(".")
        tensor: Tensor = getattr(module.get_submodule(owner), name)
        return tensor

    def _by_width(self, made: Callable[[int], nn.Module], channels: Sequence[int]) -> nn.ModuleDict:
        if self.norms == "own" or not channels:
            return nn.ModuleDict({str(count): made(count) for count in channels})
        whole = made(max(channels))
        return nn.ModuleDict({str(n): whole if n == max(channels) else FirstOf(whole, n) for n in channels})

    def _channels(self, name: str) -> int:
        segments = self._node(name).segments
        return sum(w * s.repeat for w, s in zip(self.capacity[name], segments, strict=True))

    def _node(self, name: str) -> Node:
        return self._nodes[name]

    def _widths_at(self, name: str) -> tuple[int, ...]:
        """Every width that the (one segment of the) output of a node may have."""
        node = self._node(name)
        match node.kind:
            case "conv":
                return self.space.widths[node.site] if node.site else (node.segments[0].base,)
            case "input" | "fixed":
                return (node.segments[0].base,)
            case "depth" | "join":
                return tuple(sorted({w for source in node.inputs for w in self._widths_at(source)}))
            case "project":
                return self._widths_at(node.inputs[1])
            case _:
                return self._widths_at(node.inputs[0])

    @torch.no_grad()
    def _keeps_zeros(self, node: Node) -> bool:
        """Whether channels of zeros stay zeros; not where it cannot be tried."""
        for shape in ((1, self._channels(node.inputs[0]), 4, 4), (1, self._channels(node.inputs[0]))):
            try:
                out = node.run(self.body.get_submodule, (torch.zeros(shape),))
            except Exception:  # whatever a network of the user's does with an input of another shape
                continue
            return isinstance(out, Tensor) and not out.any()
        return False

    @torch.no_grad()
    def inherit(self, trained: nn.Module) -> None:
        """Start from a trained base network: every slice and norm takes what it has in common with it."""
        for node in self.network.nodes:
            if node.kind in ("conv", "grouped"):
                self._inherit_conv(node, trained.get_submodule(node.module))
            elif node.kind in ("norm", "layer_norm"):
                self._inherit_norm(node, trained.get_submodule(node.module))
            elif node.kind == "scale":
                scale, given = self._get(self.body, node.param), self._get(trained, node.param)
                axis = node.param_axis
                there, here = self._common(node, scale.device)
                scale.index_copy_(axis, there, given.to(scale.device).index_select(axis, here))
            elif node.module:
                self.body.get_submodule(node.module).load_state_dict(trained.get_submodule(node.module).state_dict())
        into, out = self.body.state_dict(), trained.state_dict()
        for name in self._direct & into.keys() & out.keys():  # parameters and buffers that forward uses by itself
            into[name].copy_(out[name])

    @property
    def _direct(self) -> set[str]:
        """Tensors of the network that no module that is resized has."""
        resized = {node.module for node in self.network.nodes if node.kind in ("conv", "grouped", "norm", "layer_norm")}
        scaled = {node.param for node in self.network.nodes if node.param}
        names = {name for name in self.network.module.state_dict() if name.rpartition(".")[0] not in resized}
        return names - scaled

    def _inherit_norm(self, node: Node, source: nn.Module) -> None:
        own = self.body.get_submodule(node.module)
        for norm in own.children():
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(source, name, None) is None:
                    continue
                tensor, given = getattr(norm, name), getattr(source, name).to(getattr(norm, name).device)
                if len(node.segments) > 1:
                    there, here = self._common(node, given.device)
                    tensor[there] = given[here]
                else:
                    common = min(len(tensor), len(given))
                    tensor[:common] = given[:common]

    def _inherit_conv(self, node: Node, source: nn.Module) -> None:
        own = self.body.get_submodule(node.module)
        there, here = self._common(node, own.weight.device)  # type: ignore[arg-type]
        weight, given = by_outputs(own), by_outputs(source).to(own.weight.device)  # type: ignore[arg-type]
        if node.kind == "grouped":
            weight[there] = given[here]
            rows = there, here
        else:
            count = min(len(weight), len(given))
            weight[torch.arange(count)[:, None], there] = given[:count][:, here]
            rows = (torch.arange(count),) * 2
        if isinstance(own.bias, Tensor) and isinstance(source.bias, Tensor):
            own.bias[rows[0]] = source.bias.to(own.bias.device)[rows[1]]

    def _common(self, node: Node, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of the channels that a node takes in, those of the base network: where they stand here, and there."""
        room, base = self.capacity[node.inputs[0]], tuple(segment.base for segment in node.consumed)
        common = tuple(min(one, two) for one, two in zip(room, base, strict=True))
        return columns(node.consumed, room, common, device), columns(node.consumed, base, common, device)

    # -- forward -----------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor | tuple[Tensor, ...], draw: Draw) -> Any:
        """[N, C, H, W], or a tensor for each input, to the network's output, under one draw."""
        values: dict[str, Any] = {}
        widths: dict[str, tuple[int, ...]] = {}
        deepest = {site: max(k for k, p in enumerate(weights) if _positive(p)) for site, weights in draw.depths.items()}
        given = iter((images,) if isinstance(images, Tensor) else images)
        for node in self.network.nodes:
            if any(block > deepest[site] for site, block in node.blocks):
                continue
            if node.kind == "input":
                values[node.name], widths[node.name] = next(given), tuple(s.base for s in node.segments)
            else:
                values[node.name], widths[node.name] = self._step(node, values, widths, draw)
        return self.network.result(tuple(values[name] for name in self.network.outputs))

    def _step(
        self, node: Node, values: dict[str, Any], widths: dict[str, tuple[int, ...]], draw: Draw
    ) -> tuple[Any, tuple[int, ...]]:
        if node.kind == "depth":
            return self._mix_depths(node, values, widths, draw.depths[node.site])
        inputs = tuple(values[name] for name in node.inputs)
        before = tuple(widths[name] for name in node.inputs)
        if node.kind not in ROOMY or node.axis != 1 or self._node(node.inputs[0]).axis != 1:
            named = zip(node.inputs, inputs, before, strict=True)
            inputs = tuple(self._narrowed(name, value, own) for name, value, own in named)
        match node.kind:
            case "conv":
                return self._conv(node, inputs[0], before[0], draw)
            case "grouped":
                return self._grouped(node, inputs[0], before[0]), before[0]
            case "norm":
                return self._norm(node, inputs[0], before[0], draw)
            case "layer_norm":
                return self._layer_norm(node, inputs[0], before[0]), before[0]
            case "scale":
                axis, own = node.param_axis, self._own(node, before[0], inputs[0].device)
                param = inputs[1].movedim(axis, 0)[own].movedim(0, axis)
                return node.run(self.body.get_submodule, (inputs[0], param)), before[0]
            case "project":
                return self._project(node, inputs[0], before, draw)
            case "join":
                return self._join(node, inputs, before)
            case "concat":
                return node.run(self.body.get_submodule, inputs), tuple(w for one in before for w in one)
            case "fixed":
                return node.run(self.body.get_submodule, inputs), tuple(s.base for s in node.segments)
            case "value":
                return node.run(self.body.get_submodule, inputs), ()
            case _:
                return node.run(self.body.get_submodule, inputs), before[0]

    def _conv(self, node: Node, inputs: Tensor, before: tuple[int, ...], draw: Draw) -> tuple[Tensor, tuple[int, ...]]:
        module = self.body.get_submodule(node.module)
        chosen, weights = draw.widths[node.site] if node.site else ((node.segments[0].base,), (1.0,))
        width = max(chosen)
        rows = self._rows(node, width) if node.norm and len(chosen) > 1 else width
        bias = module.bias[:rows] if module.bias is not None else None  # type: ignore[index]
        given = inputs.shape[self._node(node.inputs[0]).axis]
        weight = self._sliced(by_outputs(module), rows, node, before, given)
        if isinstance(module, nn.Linear):
            out = F.linear(inputs, weight, bias)
        elif isinstance(module, nn.ConvTranspose2d):
            window: Any = (module.stride, module.padding, module.output_padding, 1, module.dilation)
            out = F.conv_transpose2d(inputs, weight.transpose(0, 1), bias, *window)
        else:
            assert isinstance(module, nn.Conv2d)
            out = conv2d(inputs, weight, bias, module)
        if not node.norm and len(chosen) > 1:
            out = self._combine(out, chosen, weights, None, node.axis)
        return out, (width,)

    def _rows(self, node: Node, width: int) -> int:
        """Channels that are computed for so many: whole blocks, as far as there are weights. What is too much is left
        out by the interpolation, which makes zeros of it for all that follows."""
        return min(-(-width // self._block) * self._block, self.capacity[node.name][0])

    def _sliced(self, weight: Tensor, width: int, node: Node, before: tuple[int, ...], given: int) -> Tensor:
        """Rows of the outputs; columns of the `given` inputs by index map."""
        room = self.capacity[node.inputs[0]]
        if len(before) == 1:
            return weight if weight.shape[:2] == (width, given) else weight[:width, :given]
        return weight[:width].index_select(1, columns(node.consumed, room, before, weight.device))

    def _grouped(self, node: Node, inputs: Tensor, before: tuple[int, ...]) -> Tensor:
        module = self.body.get_submodule(node.module)
        assert isinstance(module, nn.Conv2d)
        own = self._own(node, before, inputs.device)
        bias = module.bias[own] if module.bias is not None else None
        groups = inputs.shape[1] // module.weight.shape[1]
        return conv2d(inputs, module.weight[own], bias, module, groups)

    def _own(self, node: Node, widths: tuple[int, ...], device: torch.device) -> Any:
        """Where the channels of a node of these widths stand among all that it may have: an index."""
        if len(widths) == 1:
            return slice(widths[0] * node.segments[0].repeat)
        return columns(node.segments, self.capacity[node.name], widths, device)

    def _norm(self, node: Node, inputs: Tensor, before: tuple[int, ...], draw: Draw) -> tuple[Tensor, tuple[int, ...]]:
        norms = self.body.get_submodule(node.module)
        assert isinstance(norms, nn.ModuleDict)
        if len(before) > 1:
            return self._part(norms[ALL], inputs, self._own(node, before, inputs.device), draw.momentum), before
        source = self._producer.get(node.name)
        if source is None or not source.site or len(draw.widths[source.site][0]) == 1:
            inputs = self._narrowed(node.inputs[0], inputs, before)
            return self._one(norms[str(inputs.shape[1])], inputs, draw.momentum), before
        chosen, weights = draw.widths[source.site]
        pair = [norms[str(width)] for width in chosen]
        return self._two(inputs, chosen, weights, pair, draw.momentum), before

    def _one(self, norm: nn.Module, inputs: Tensor, momentum: float) -> Tensor:
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | FirstOf)
        return F.batch_norm(
            inputs, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, momentum, norm.eps
        )

    def _part(self, norm: nn.Module, inputs: Tensor, own: Tensor, momentum: float) -> Tensor:
        """Some channels of a norm, by their numbers."""
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        mean, var, eps = norm.running_mean[own], norm.running_var[own], norm.eps
        out = F.batch_norm(inputs, mean, var, norm.weight[own], norm.bias[own], self.training, momentum, eps)
        if self.training:
            with torch.no_grad():
                norm.running_mean[own], norm.running_var[own] = mean, var
        return out

    def _two(
        self, inputs: Tensor, chosen: tuple[int, ...], weights: Any, norms: Sequence[nn.Module], momentum: float
    ) -> Tensor:
        """Two candidates' norms, interpolated and mixed. In training they share the statistics of the batch."""
        if not self.training:
            return self._combine(inputs, chosen, weights, [_affine(norm) for norm in norms])
        eps: float = norms[0].eps  # type: ignore[assignment]
        affine = [(norm.weight, norm.bias) for norm in norms]
        if self.mix == "pad":
            mean, var = inputs.new_zeros(2, inputs.shape[1], dtype=norms[0].weight.dtype)  # type: ignore[arg-type]
            scale, shift = _padded(affine, chosen, weights, inputs.shape[1])
            out = F.batch_norm(inputs, mean, var, scale, shift, True, 1.0, eps)
        else:
            narrow = chosen.index(min(chosen))
            wide = max(chosen)
            stretch = self._stretch(chosen[narrow], wide, inputs.device, inputs.shape[1])
            shares = _stacked(weights, inputs.device)
            affines = (*affine[narrow], *affine[1 - narrow])
            out, mean, var = NormMix.apply(inputs, shares, stretch, narrow, *affines, eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for norm, width in zip(norms, chosen, strict=True):
                norm.running_mean.lerp_(mean[:width], momentum)  # type: ignore[operator]
                norm.running_var.lerp_(var[:width], momentum)  # type: ignore[operator]
        return out

    def _layer_norm(self, node: Node, inputs: Tensor, before: tuple[int, ...]) -> Tensor:
        """Of the channels that are there, whatever widths were mixed to make them."""
        norms = self.body.get_submodule(node.module)
        assert isinstance(norms, nn.ModuleDict)
        if len(before) == 1:
            norm = norms[str(inputs.shape[node.axis])]
            weight, bias = norm.weight, norm.bias
        else:
            norm, own = norms[ALL], self._own(node, before, inputs.device)
            weight, bias = (None if each is None else each[own] for each in (norm.weight, norm.bias))  # type: ignore[index]
        eps: float = norm.eps  # type: ignore[assignment]
        old = self.network.module.get_submodule(node.module)
        if isinstance(old, nn.GroupNorm):
            return F.group_norm(inputs, old.num_groups, weight, bias, eps)  # type: ignore[arg-type]
        moved = inputs.movedim(node.axis, -1)
        return F.layer_norm(moved, moved.shape[-1:], weight, bias, eps).movedim(-1, node.axis)  # type: ignore[arg-type]

    def _combine(
        self,
        inputs: Tensor,
        chosen: tuple[int, ...],
        weights: Any,
        affine: Sequence[tuple[Any, Any]] | None,
        axis: int = 1,
    ) -> Tensor:
        """Two candidates interpolated and mixed."""
        matrix, shift = self._mixture(inputs, chosen, weights, affine, axis)
        if axis == inputs.dim() - 1:
            return F.linear(inputs, matrix, shift)
        return F.conv2d(inputs, matrix[:, :, None, None], shift)

    def _mixture(
        self, inputs: Tensor, chosen: tuple[int, ...], weights: Any, affine: Sequence[tuple[Any, Any]] | None, axis: int
    ) -> tuple[Any, Any]:
        """sum_j weights_j x interpolate(scale_j x prefix_j + shift_j), as one matrix and one vector; zeros in channels
        beyond the widest."""
        width, room = max(chosen), inputs.shape[axis]
        matrix: Any = 0.0
        shift: Any = 0.0 if affine else None
        for index, candidate in enumerate(chosen):
            part = weights[index] * self._stretch(candidate, width, inputs.device, room)
            if affine is not None:
                scale, offset = affine[index]
                shift = shift + part @ offset
                part = part * scale
            matrix = matrix + (F.pad(part, (0, room - candidate)) if candidate < room else part)
        return matrix, shift

    def _stretch(self, narrow: int, wide: int, device: torch.device, room: int) -> Tensor:
        """The [room, narrow] matrix that makes a narrow candidate's output as wide as the wide one's; zeros below."""
        key = (narrow, wide, room, device)
        if key not in self._identities:
            made = interpolation(narrow, wide) if self.mix == "interpolate" else torch.eye(wide)[:, :narrow]
            self._identities[key] = F.pad(made, (0, 0, 0, room - wide)).to(device)
        return self._identities[key]

    def _project(
        self, node: Node, inputs: Tensor, before: tuple[tuple[int, ...], ...], draw: Draw
    ) -> tuple[Tensor, tuple[int, ...]]:
        """The shortcut as wide as what it is added to: per candidate the input itself, or its projection."""
        if self.shortcut == "pad":
            return inputs, before[0]
        chosen, weights = self._candidates(node.inputs[1], before[1], draw)
        parts = self.projections[_key(node.name)]
        assert isinstance(parts, nn.ModuleDict)
        width, have = max(chosen), before[0][0]
        if all(candidate == have for candidate in chosen):
            return inputs, before[1]
        conv, norms = parts["conv"], parts["norm"]
        assert isinstance(norms, nn.ModuleDict)
        projected = F.conv2d(inputs, conv.weight[:width, :have])  # type: ignore[index]
        total: Any = 0.0
        for index, candidate in enumerate(chosen):
            if candidate == have:
                part = inputs
            else:
                part = projected[:, :candidate]
                part = self._one(norms[str(candidate)], part, draw.momentum) if node.normed else part
            total = total + weights[index] * self._widen(part, part.shape[1], width, width)
        return total, before[1]

    def _candidates(self, name: str, widths: tuple[int, ...], draw: Draw) -> tuple[tuple[int, ...], Any]:
        """The draw behind the output of a branch: that of its convolution."""
        node = self._node(name)
        while node.kind in ("norm", "map"):
            node = self._node(node.inputs[0])
        return draw.widths[node.site] if node.kind == "conv" and node.site else (widths, (1.0,))

    def _join(
        self, node: Node, inputs: tuple[Any, ...], before: tuple[tuple[int, ...], ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        first = node.axis == 1 and all(self._node(name).axis == 1 for name in node.inputs)
        if first and (self.shortcut == "pad" or len(set(before)) == 1):
            width = max(value.shape[1] for value in inputs)
            inputs = tuple(_padded_to(value, width) for value in inputs)
        return node.run(self.body.get_submodule, inputs), _widest(before)

    def _mix_depths(
        self, node: Node, values: dict[str, Any], widths: dict[str, tuple[int, ...]], weights: Any
    ) -> tuple[Tensor, tuple[int, ...]]:
        used = [(p, name) for p, name in zip(weights, node.inputs, strict=True) if _positive(p)]
        wide = max(widths[name] for _, name in used)
        if len(used) == 1:
            return values[used[0][1]], wide
        shares = _stacked([p for p, _ in used], values[used[0][1]].device)
        if len(wide) > 1:  # ends that are concatenated have one width each
            parts = [self._concatenated(name, values[name], widths[name]) for _, name in used]
            return WeightedSum.apply(shares, *parts), wide  # type: ignore[no-untyped-call]
        width = max(values[name].shape[1] for _, name in used)
        tensors = [self._widen(values[name], max(widths[name]), wide[0], width) for _, name in used]
        return WeightedSum.apply(shares, *tensors), wide  # type: ignore[no-untyped-call]

    def _concatenated(self, name: str, value: Tensor, widths: tuple[int, ...]) -> Tensor:
        """A value of several segments, without channels of zeros behind the others."""
        segments = self._node(name).segments
        width = sum(own * segment.repeat for own, segment in zip(widths, segments, strict=True))
        return value[:, :width]

    def _widen(self, inputs: Tensor, narrow: int, wide: int, room: int) -> Tensor:
        """A tensor of `narrow` channels, and maybe zeros behind, as one of `wide`, and zeros to fill the room."""
        if narrow == wide:
            return _padded_to(inputs, room)
        matrix = F.pad(self._stretch(narrow, wide, inputs.device, room), (0, inputs.shape[1] - narrow))
        return F.conv2d(inputs, matrix[:, :, None, None].to(inputs.dtype))

    def _narrowed(self, name: str, value: Any, widths: tuple[int, ...]) -> Any:
        """Without the channels of zeros behind the others."""
        if len(widths) != 1 or not isinstance(value, Tensor) or value.dim() < 2:
            return value
        width, axis = widths[0] * self._node(name).segments[0].repeat, self._node(name).axis
        return value.narrow(axis, 0, width) if value.shape[axis] > width else value


def _capacity(network: Network, space: Space, *, pad: bool) -> dict[str, tuple[int, ...]]:
    """The widest that each segment of each node's output can be."""
    found: dict[str, tuple[int, ...]] = {}
    for node in network.nodes:
        inputs = [found[name] for name in node.inputs if name in found]
        match node.kind:
            case "conv":
                found[node.name] = (max(space.widths[node.site]),) if node.site else (node.segments[0].base,)
            case "input" | "fixed":
                found[node.name] = tuple(segment.base for segment in node.segments)
            case "depth" | "join":
                found[node.name] = _widest(inputs)
            case "project":
                found[node.name] = inputs[0] if pad else inputs[1]
            case "concat":
                found[node.name] = tuple(w for widths in inputs for w in widths)
            case "value":
                continue
            case _:
                found[node.name] = inputs[0]
    return found


def _widest(inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The most channels of each segment; of inputs that are not laid out alike, which are frozen, the first's."""
    if len({len(widths) for widths in inputs}) > 1:
        return inputs[0]
    return tuple(max(widths) for widths in zip(*inputs, strict=True))


def _key(name: str) -> str:
    return name.replace(".", "/")
