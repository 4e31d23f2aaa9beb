"""Every arch of a space in one network (section 3.3; TAS).

Candidates are slices, by index map, of one tensor; each candidate has its own norm; the outputs of two candidates are
brought to the wider one's channels and mixed; the outputs of a stage's candidate depths are mixed in the same way.

This is faster than the plain formulation, and equal to it: in training mode both norms of a layer see the same batch
statistics on their common channels, so one norm without weights is computed, and the two affine maps, the
interpolation and the mixture become one small matrix, applied together with the norm as a 1x1 convolution (NormMix).
Convolutions compute whole blocks of 8 channels; the matrix drops the surplus.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.files import BUFFERS, put_buffer, state_of
from htas.graph import Network, Node
from htas.graph.network import times, total_channels
from htas.graph.resize import by_outputs, copy_common
from htas.graph.steps import learning
from htas.search.allocation import ALL, NORMS_NAME, Allocation, Walk, Widths, joined, key
from htas.search.draw import Draw
from htas.search.mixing import (
    TURNED,
    FirstOf,
    NormMix,
    WeightedSum,
    channelwise,
    interpolation,
    padded,
    padded_to,
    positive,
    scale_and_shift,
    stacked,
)
from htas.search.slices import Slices
from htas.spaces.space import Space
from htas.training.layout import conv2d

BLOCK = 8
"""Channels that processors compute together: a tensor of 14 channels takes longer than one of 16
(docs/decisions.md)."""
ROOMY = ("conv", "norm", "map", "join", "flatten")
"""Kinds of nodes that accept tensors with channels of zeros after the others."""


class Supernet(nn.Module):
    """All archs of `space` over `network`, with weights drawn by `reset`.

    `shortcut` replaces the identity where added widths differ (`adds="project"`): a sliced 1x1 convolution with norm,
    as in the derived network, or TAS's padding with zeros. `mix` brings a narrow candidate to a wide one's channels:
    TAS's channel-wise interpolation, or padding with zeros, after which channel c means the same in both. `norms` gives
    every width a norm of its own, as in TAS, or the first channels of the widest one's.
    Raises UserError if a norm or grouping is not supported.
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
        self.network, self.space, self.shortcut, self.mix = network, space, shortcut, mix
        allocation = Allocation(network, space, shortcut, norms)
        self.widest, self._walks = allocation.widest, allocation.walks
        self.body, self.projections = allocation.body, allocation.projections
        self.evaluated = False
        """Whether it returns in training what it returns in eval mode, without auxiliary outputs."""
        self._identities: dict[tuple[int, int, int, torch.device], Tensor] = {}
        self._block = BLOCK if allocation.keeps_zeros() else 1
        self._slices = Slices(network, self.body, self.widest)
        for part in (self.body, self.projections):  # apart, so that modules have the names of the network
            reset(part)

    # -- start -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def inherit(self, trained: nn.Module) -> None:
        """Copy the weights of a trained base network into every slice and norm that they fit."""
        into, out, before = (state_of(each) for each in (self.body, trained, self.network.module))
        nodes = chain(*(walk.network.nodes for walk in self._walks))
        for node in {node.module: node for node in nodes if node.kind in ("norm", "layer_norm")}.values():
            self._inherit_norm(node, trained.get_submodule(node.module))
        for name, values in out.items():
            if name not in into or name not in before:
                continue
            layouts = self.network.layouts.get(name.removeprefix(BUFFERS))
            tensor, values = into[name], values.to(into[name].device)
            if name.startswith(BUFFERS) and tensor.shape == values.shape:
                put_buffer(self.body, name.removeprefix(BUFFERS), values)
            elif tensor.shape == values.shape:
                tensor.copy_(values)
            elif layouts is not None:
                copy_common(tensor, values, layouts, self.network.base_widths, self.widest)

    def _inherit_norm(self, node: Node, source: nn.Module) -> None:
        for norm in self._norms(node).children():
            for name in ("weight", "bias", "running_mean", "running_var"):
                values = getattr(source, name, None)
                if values is None:
                    continue
                tensor = getattr(norm, name)
                if len(node.layout.runs) > 1:
                    copy_common(tensor, values.to(tensor.device), (node.layout,), self.network.base_widths, self.widest)
                else:
                    common = min(len(tensor), len(values))
                    tensor[:common] = values[:common]

    def _norms(self, node: Node) -> nn.ModuleDict:
        """The norms of a node, by width."""
        owner = self.body.get_submodule(node.module)
        norms = owner if node.called else owner.get_submodule(NORMS_NAME)
        assert isinstance(norms, nn.ModuleDict)
        return norms

    # -- forward -----------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor | tuple[Tensor, ...], draw: Draw) -> Any:
        """The network's output for [N, C, H, W], or a tensor for each input, under one draw."""
        steps = self._walk.network
        values = self.values(images, draw, steps.outputs)
        return steps.result(tuple(values[name] for name in steps.outputs))

    def values(self, images: Tensor | tuple[Tensor, ...], draw: Draw, names: Sequence[str]) -> dict[str, Any]:
        """What some nodes compute under one draw, by name, without the channels of zeros after the others."""
        values: dict[str, Any] = {}
        widths: dict[str, Widths] = {}
        deepest = {site: max(k for k, p in enumerate(weights) if positive(p)) for site, weights in draw.depths.items()}
        now = {site: max(candidates) for site, (candidates, _) in draw.widths.items()}
        inputs = iter((images,) if isinstance(images, Tensor) else images)
        for node in self._walk.network.nodes:
            if any(block > deepest[site] for site, block in node.blocks):
                continue
            if node.kind == "input":
                values[node.name], widths[node.name] = next(inputs), tuple(s.base for s in node.segments)
                continue
            with learning(node.run):
                values[node.name], widths[node.name] = self._step(node, values, widths, draw, now)
            if node.kind == "depth" and node.segments[0].site not in draw.widths:
                now[node.segments[0].site] = max(widths[node.name])
        return {name: self._narrowed(name, values[name], widths[name]) for name in names if name in values}

    @property
    def _walk(self) -> Walk:
        return self._walks[self.training * (1 + self.evaluated)]

    def _step(
        self, node: Node, values: dict[str, Any], widths: dict[str, Widths], draw: Draw, now: dict[str, int]
    ) -> tuple[Any, Widths]:
        if node.kind == "depth":
            return self._mix_depths(node, values, widths, draw.depths[node.site])
        if node.kind == "value" and node.param:
            return self._slices.tensor(node.param, now), ()
        inputs = tuple(values[name] for name in node.inputs)
        before = tuple(widths[name] for name in node.inputs)
        if node.kind not in ROOMY or node.axis != 1 or self._walk.nodes[node.inputs[0]].axis != 1 or not node.called:
            named = zip(node.inputs, inputs, before, strict=True)
            inputs = tuple(self._narrowed(name, value, sizes) for name, value, sizes in named)
        if node.name in self._walk.plain:
            if node.kind == "conv":
                return self._conv(node, inputs[0], before[0], draw)
            return self._grouped(node, inputs[0], before[0]), before[0]
        match node.kind:
            case "norm":
                return self._norm(node, inputs[0], before[0], draw, now)
            case "layer_norm":
                return self._layer_norm(node, inputs[0], before[0], now), before[0]
            case "project":
                return self._project(node, inputs[0], before, draw)
            case "join":
                return self._join(node, inputs, before)
        if node.kind not in ("map", "flatten", "concat"):
            inputs = tuple(self._fitted(name, value, now) for name, value in zip(node.inputs, inputs, strict=True))
        if node.kind == "value":
            return self._run(node, inputs, now), ()
        if node.kind == "concat":
            after = tuple(chain(*before))
            whole = len(after) == len(node.segments)
        else:
            whole = node.segments == node.consumed
            after = before[0] if whole and before else ()
        if not whole:
            after = tuple(now[segment.site] if segment.site else segment.base for segment in node.segments)
        out = self._run(node, inputs, now)
        if node.kind in ("conv", "grouped"):
            out = self._mixed(node, out, draw)
        return out, after

    def _run(self, node: Node, inputs: tuple[Any, ...], now: Mapping[str, int]) -> Any:
        """A step at the widths of now; a module that is called with the parameters that these leave it."""
        if not node.module or not node.called or node.module not in self._slices.changing:
            return node.run(self.body.get_submodule, inputs, now)
        twin = self._slices.module(node.module, now)
        out = node.run(lambda path: twin if path == node.module else self.body.get_submodule(path), inputs, now)
        if self.training:
            self._keep(node, twin, now)
        return out

    @torch.no_grad()
    def _keep(self, node: Node, twin: nn.Module, now: Mapping[str, int]) -> None:
        """Write into the supernet the buffers of a twin that are copies, not views."""
        for name, buffer in twin.named_buffers(recurse=False):
            layouts, whole = self.network.layouts.get(f"{node.module}.{name}"), attrgetter(name)
            tensor = whole(self.body.get_submodule(node.module))
            if layouts and layouts[0] is not None and len(layouts[0].runs) > 1 and buffer.dim() == 1:
                tensor[layouts[0].common(self.widest, now)[0].to(tensor.device)] = buffer

    def _fitted(self, name: str, value: Any, now: Mapping[str, int]) -> Any:
        """A value with as many channels as its layout has now: without those of zeros at its end, or with more."""
        node = self._walk.nodes[name]
        if not isinstance(value, Tensor) or node.kind == "value" or node.axis >= value.dim() or not node.layout.free:
            return value
        size = node.layout.size(now)
        if value.shape[node.axis] > size:
            return value.narrow(node.axis, 0, size)
        return value if value.shape[node.axis] == size else padded_to(value, size)

    def _mixed(self, node: Node, out: Tensor, draw: Draw) -> Tensor:
        """The outputs of a layer whose channels are of several sites, or of several runs of one, each mixed."""
        parts, start, changed = [], 0, False
        for run in node.layout.runs:
            if not run.site or run.site not in draw.widths:
                count = run.atoms * run.repeat
                parts.append(out.narrow(node.axis, start, count))
            else:
                candidates, weights = draw.widths[run.site]
                count = max(candidates) // run.multiple * run.repeat
                part = out.narrow(node.axis, start, count)
                if len(candidates) > 1:
                    sizes = tuple(width // run.multiple * run.repeat for width in candidates)
                    part, changed = self._combine(part, sizes, weights, None, node.axis), True
                parts.append(part)
            start += count
        return torch.cat(parts, node.axis) if changed else out

    def _conv(self, node: Node, inputs: Tensor, before: Widths, draw: Draw) -> tuple[Tensor, Widths]:
        module = self.body.get_submodule(node.module)
        candidates, weights = draw.widths[node.site] if node.site else ((node.segments[0].base,), (1.0,))
        width = max(candidates) if node.layout.free else len(by_outputs(module))
        rows = self._rows(node, width) if node.norm and len(candidates) > 1 else width
        bias = module.bias[:rows] if module.bias is not None else None  # type: ignore[index]
        channels = inputs.shape[self._walk.nodes[node.inputs[0]].axis]
        weight = self._sliced(by_outputs(module), rows, node, before, channels)
        if isinstance(module, nn.Linear):
            out = F.linear(inputs, weight, bias)
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            window: Any = (module.stride, module.padding, module.output_padding, 1, module.dilation)
            out = TURNED[weight.dim() - 2](inputs, weight.transpose(0, 1), bias, *window)
        elif isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
            out = conv2d(inputs, weight, bias, module)
        else:
            assert isinstance(module, nn.modules.conv._ConvNd)
            out = module._conv_forward(inputs, weight, bias)
        if not node.norm and len(candidates) > 1:
            out = self._combine(out, candidates, weights, None, node.axis)
        return out, (width,)

    def _rows(self, node: Node, width: int) -> int:
        """Number of channels to compute for a width: whole blocks, while there are weights. The mixture turns the
        surplus into zeros."""
        return min(-(-width // self._block) * self._block, self._walk.capacity[node.name][0])

    def _sliced(self, weight: Tensor, width: int, node: Node, before: Widths, channels: int) -> Tensor:
        """Rows of the outputs; columns of the input channels by index map: [width, channels, ...]."""
        layout = self._walk.nodes[node.inputs[0]].layout
        if not layout.free:
            return weight[:width]
        if len(layout.runs) == 1:
            return weight if weight.shape[:2] == (width, channels) else weight[:width, :channels]
        return weight[:width].index_select(1, self._index(self._walk.nodes[node.inputs[0]], before, weight.device))

    def _grouped(self, node: Node, inputs: Tensor, before: Widths) -> Tensor:
        module = self.body.get_submodule(node.module)
        assert isinstance(module, nn.modules.conv._ConvNd)
        index = slice(inputs.shape[1] * module.out_channels // module.in_channels)
        bias = module.bias[index] if module.bias is not None else None
        groups = inputs.shape[1] // module.weight.shape[1]
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
            return conv2d(inputs, module.weight[index], bias, module, groups)
        out: Tensor = _like(module, groups)._conv_forward(inputs, module.weight[index], bias)
        return out

    def _index(self, node: Node, widths: Widths, device: torch.device) -> Tensor:
        """Index of the channels of a node of these widths, one a segment, among the channels of its widest output."""
        now = {segment.site: width for segment, width in zip(node.segments, widths, strict=True) if segment.site}
        return node.layout.common(self.widest, now)[0].to(device)

    def _norm(
        self, node: Node, inputs: Tensor, before: Widths, draw: Draw, now: Mapping[str, int]
    ) -> tuple[Tensor, Widths]:
        norms = self._norms(node)
        if ALL in norms:
            inputs = self._fitted(node.inputs[0], inputs, now)
            index = node.layout.common(self.widest, now)[0].to(inputs.device)
            return self._part(norms[ALL], inputs, index, draw.momentum), before
        source = self._walk.producers.get(node.name)
        if source is None or not source.site or len(draw.widths[source.site][0]) == 1:
            inputs = self._narrowed(node.inputs[0], inputs, before)
            return self._one(norms[str(inputs.shape[1])], inputs, draw.momentum), before
        candidates, weights = draw.widths[source.site]
        pair = [norms[str(width)] for width in candidates]
        return self._two(inputs, candidates, weights, pair, draw.momentum), before

    def _one(self, norm: nn.Module, inputs: Tensor, momentum: float) -> Tensor:
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm | FirstOf)
        return F.batch_norm(
            inputs, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, momentum, norm.eps
        )

    def _part(self, norm: Any, inputs: Tensor, index: Tensor, momentum: float) -> Tensor:
        """Norm of some channels, by their numbers."""
        mean, var, eps = norm.running_mean[index], norm.running_var[index], norm.eps
        out = F.batch_norm(inputs, mean, var, norm.weight[index], norm.bias[index], self.training, momentum, eps)
        if self.training:
            with torch.no_grad():
                norm.running_mean[index], norm.running_var[index] = mean, var
        return out

    def _two(
        self, inputs: Tensor, candidates: Widths, weights: Any, norms: Sequence[nn.Module], momentum: float
    ) -> Tensor:
        """Norms of two candidates, mixed. In training mode they share the statistics of the batch."""
        if not self.training:
            return self._combine(inputs, candidates, weights, [scale_and_shift(norm) for norm in norms])
        eps: float = norms[0].eps  # type: ignore[assignment]
        affine = [(norm.weight, norm.bias) for norm in norms]
        if self.mix == "pad":
            mean, var = inputs.new_zeros(2, inputs.shape[1], dtype=norms[0].weight.dtype)  # type: ignore[arg-type]
            scale, shift = padded(affine, candidates, weights, inputs.shape[1])
            out = F.batch_norm(inputs, mean, var, scale, shift, True, 1.0, eps)
        else:
            narrow = candidates.index(min(candidates))
            wide = max(candidates)
            stretch = self._stretch(candidates[narrow], wide, inputs.device, inputs.shape[1])
            shares = stacked(weights, inputs.device)
            affines = (*affine[narrow], *affine[1 - narrow])
            out, mean, var = NormMix.apply(inputs, shares, stretch, narrow, *affines, eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for norm, width in zip(norms, candidates, strict=True):
                norm.running_mean.lerp_(mean[:width], momentum)  # type: ignore[operator]
                norm.running_var.lerp_(var[:width], momentum)  # type: ignore[operator]
        return out

    def _layer_norm(self, node: Node, inputs: Tensor, before: Widths, now: Mapping[str, int]) -> Tensor:
        """Layer norm over the channels at hand, regardless of the widths that were mixed."""
        norms = self._norms(node)
        inputs = self._fitted(node.inputs[0], inputs, now)
        norm: Any = norms[ALL] if ALL in norms else norms[str(inputs.shape[node.axis])]
        weight, bias = norm.weight, getattr(norm, "bias", None)
        if ALL in norms:
            index = node.layout.common(self.widest, now)[0].to(inputs.device)
            weight, bias = (None if each is None else each[index] for each in (weight, bias))
        old = self.network.module.get_submodule(node.module)
        if isinstance(old, nn.GroupNorm):
            groups = self.network.counted.get(("attribute", node.module, "num_groups", None))
            return F.group_norm(inputs, groups.size(now) if groups else old.num_groups, weight, bias, norm.eps)
        moved = inputs.movedim(node.axis, -1)
        if isinstance(old, nn.RMSNorm):
            return F.rms_norm(moved, moved.shape[-1:], weight, norm.eps).movedim(-1, node.axis)
        return F.layer_norm(moved, moved.shape[-1:], weight, bias, norm.eps).movedim(-1, node.axis)

    def _combine(
        self, inputs: Tensor, candidates: Widths, weights: Any, affine: Sequence[tuple[Any, Any]] | None, axis: int = 1
    ) -> Tensor:
        """sum_j weights_j x interpolate(scale_j x prefix_j + shift_j), by one matrix and one vector: [N, room, ...];
        zeros in channels beyond the widest."""
        width, room = max(candidates), inputs.shape[axis]
        matrix: Any = 0.0
        shift: Any = 0.0 if affine else None
        for index, candidate in enumerate(candidates):
            part = weights[index] * self._stretch(candidate, width, inputs.device, room)
            if affine is not None:
                scale, offset = affine[index]
                shift = shift + part @ offset
                part = part * scale
            matrix = matrix + (F.pad(part, (0, room - candidate)) if candidate < room else part)
        return channelwise(inputs, matrix, shift, axis)

    def _stretch(self, narrow: int, wide: int, device: torch.device, room: int) -> Tensor:
        """The [room, narrow] matrix that brings a narrow candidate to the wide one's channels; zeros below."""
        key = (narrow, wide, room, device)
        if key not in self._identities:
            matrix = interpolation(narrow, wide) if self.mix == "interpolate" else torch.eye(wide)[:, :narrow]
            self._identities[key] = F.pad(matrix, (0, 0, 0, room - wide)).to(device)
        return self._identities[key]

    def _project(self, node: Node, inputs: Tensor, before: tuple[Widths, ...], draw: Draw) -> tuple[Tensor, Widths]:
        """The shortcut at the widths of the other branch: for each candidate the input itself, or its projection."""
        if self.shortcut == "pad":
            return inputs, before[0]
        candidates, weights = self._candidates(node.inputs[1], before[1], draw)
        parts = self.projections[key(node.name)]
        assert isinstance(parts, nn.ModuleDict)
        width, have = max(candidates), before[0][0]
        if all(candidate == have for candidate in candidates):
            return inputs, before[1]
        conv, norms = parts["conv"], parts["norm"]
        assert isinstance(norms, nn.ModuleDict) and isinstance(conv, nn.modules.conv._ConvNd)
        projected = conv._conv_forward(inputs, conv.weight[:width, :have], None)
        total: Any = 0.0
        for index, candidate in enumerate(candidates):
            if candidate == have:
                part = inputs
            else:
                part = projected[:, :candidate]
                part = self._one(norms[str(candidate)], part, draw.momentum) if node.normed else part
            total = total + weights[index] * self._widen(part, part.shape[1], width, width)
        return total, before[1]

    def _candidates(self, name: str, widths: Widths, draw: Draw) -> tuple[Widths, Any]:
        """Candidates and weights of a branch: those of its last convolution."""
        node = self._walk.nodes[name]
        while node.kind in ("norm", "map") or (node.kind == "move" and node.segments == node.consumed):
            node = self._walk.nodes[node.inputs[0]]
        return draw.widths[node.site] if node.kind == "conv" and node.site else (widths, (1.0,))

    def _join(self, node: Node, inputs: tuple[Any, ...], before: tuple[Widths, ...]) -> tuple[Tensor, Widths]:
        first = node.axis == 1 and all(self._walk.nodes[name].axis == 1 for name in node.inputs)
        if first and (self.shortcut == "pad" or len(set(before)) == 1):
            width = max(value.shape[1] for value in inputs)
            inputs = tuple(padded_to(value, width) for value in inputs)
        return node.run(self.body.get_submodule, inputs), joined(before, max)

    def _mix_depths(
        self, node: Node, values: dict[str, Any], widths: dict[str, Widths], weights: Any
    ) -> tuple[Tensor, Widths]:
        used = [(p, name) for p, name in zip(weights, node.inputs, strict=True) if positive(p)]
        wide = max(widths[name] for _, name in used)
        if len(used) == 1:
            return values[used[0][1]], wide
        shares = stacked([p for p, _ in used], values[used[0][1]].device)
        if len(wide) > 1:  # ends that are concatenated have one width each; channels of zeros may follow
            parts = [
                values[name][:, : int(total_channels(self._walk.nodes[name].segments, widths[name]))]
                for _, name in used
            ]
            return WeightedSum.apply(shares, *parts), wide  # type: ignore[no-untyped-call]
        width = max(values[name].shape[1] for _, name in used)
        tensors = [self._widen(values[name], max(widths[name]), wide[0], width) for _, name in used]
        return WeightedSum.apply(shares, *tensors), wide  # type: ignore[no-untyped-call]

    def _widen(self, inputs: Tensor, narrow: int, wide: int, room: int) -> Tensor:
        """A tensor of `narrow` channels (zeros may follow), brought to `wide` channels and padded to `room`."""
        if narrow == wide:
            return padded_to(inputs, room)
        matrix = F.pad(self._stretch(narrow, wide, inputs.device, room), (0, inputs.shape[1] - narrow))
        return channelwise(inputs, matrix.to(inputs.dtype), None, 1)

    def _narrowed(self, name: str, value: Any, widths: Widths) -> Any:
        """A value without the channels of zeros at its end."""
        node = self._walk.nodes[name]
        if (
            len(widths) != 1
            or not isinstance(value, Tensor)
            or value.dim() < 2
            or len(node.layout.runs) > 1
            or not node.layout.free
        ):
            return value
        width = times(widths[0], node.segments[0].repeat)
        return value.narrow(node.axis, 0, width) if value.shape[node.axis] > width else value


def _like(module: Any, groups: int) -> Any:
    """A convolution with the same options and tensors, but another number of groups."""
    twin = copy.copy(module)
    twin.groups = groups
    return twin
