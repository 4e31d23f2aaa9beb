"""Every arch of a space in one network (section 3.3; TAS).

Candidates are slices, by index map, of one tensor; each candidate has its own norm; the outputs of two candidates are
brought to the wider one's channels and mixed; the outputs of a stage's candidate depths are mixed in the same way.

This is faster than the plain formulation, and equal to it: in training mode both norms of a layer see the same batch
statistics on their common channels, so one norm without weights is computed, and the two affine maps, the
interpolation and the mixture become one small matrix, applied together with the norm as a 1x1 convolution (NormMix).
Convolutions compute whole blocks of 8 channels; the matrix drops the surplus.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.graph import Arch, Network, Node
from htas.graph.network import total_channels
from htas.graph.resize import by_outputs
from htas.search import mixing
from htas.search.allocation import ALL, Allocation, Widths, joined, key
from htas.spaces.space import Space
from htas.training.layout import conv2d

MOMENTUM = 0.1
BLOCK = 8
"""Channels that processors compute together: a tensor of 14 channels takes longer than one of 16
(docs/decisions.md)."""
ROOMY = ("conv", "norm", "map", "join", "flatten")
"""Kinds of nodes that accept tensors with channels of zeros after the others."""


@dataclass(frozen=True)
class Draw:
    """The choices of one forward pass: one or two widths of every width site and the blocks of every depth site, each
    with a weight. Weights are scalars or tensors of one element; those of a site sum to 1."""

    widths: Mapping[str, tuple[Widths, Any]]
    depths: Mapping[str, Any]
    """Weights by block of the site: [k] is that of keeping k + 1 blocks; the mixture skips exact zeros."""
    momentum: float = MOMENTUM
    """Weight of this batch in the running statistics of norms, in training mode."""

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
        self.capacity, self._nodes = allocation.capacity, allocation.nodes
        self.body, self.projections = allocation.body, allocation.projections
        self._producer = {node.norm: node for node in network.nodes if node.kind == "conv" and node.norm}
        self._identities: dict[tuple[int, int, int, torch.device], Tensor] = {}
        self._block = BLOCK if all(self._keeps_zeros(node) for node in network.nodes if node.kind == "map") else 1
        reset(self)

    @torch.no_grad()
    def _keeps_zeros(self, node: Node) -> bool:
        """Whether channels of zeros stay zeros; False if the node cannot be run alone."""
        source = self._nodes[node.inputs[0]]
        channels = total_channels(source.segments, self.capacity[source.name])
        for shape in ((1, channels, 4, 4), (1, channels)):
            try:
                out = node.run(self.body.get_submodule, (torch.zeros(shape),))
            except Exception:  # a user's network may raise anything for an input of another shape
                continue
            return isinstance(out, Tensor) and not out.any()
        return False

    # -- start -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def inherit(self, trained: nn.Module) -> None:
        """Copy the weights of a trained base network into every slice and norm that they fit."""
        for node in self.network.nodes:
            if node.kind in ("conv", "grouped"):
                self._inherit_conv(node, trained.get_submodule(node.module))
            elif node.kind in ("norm", "layer_norm"):
                self._inherit_norm(node, trained.get_submodule(node.module))
            elif node.kind == "scale":
                scale, values = (attrgetter(node.param)(module) for module in (self.body, trained))
                there, here = self._common(node, scale.device)
                axis = node.param_axis
                scale.index_copy_(axis, there, values.to(scale.device).index_select(axis, here))
            elif node.module:
                self.body.get_submodule(node.module).load_state_dict(trained.get_submodule(node.module).state_dict())
        # parameters and buffers that `forward` uses by itself: those of no module that is resized
        resized = {node.module for node in self.network.nodes if node.kind in ("conv", "grouped", "norm", "layer_norm")}
        scaled = {node.param for node in self.network.nodes if node.param}
        into, out = self.body.state_dict(), trained.state_dict()
        for name in (self.network.module.state_dict().keys() & into.keys() & out.keys()) - scaled:
            if name.rpartition(".")[0] not in resized:
                into[name].copy_(out[name])

    def _inherit_norm(self, node: Node, source: nn.Module) -> None:
        for norm in self.body.get_submodule(node.module).children():
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(source, name, None) is None:
                    continue
                tensor, values = getattr(norm, name), getattr(source, name).to(getattr(norm, name).device)
                if len(node.segments) > 1:
                    there, here = self._common(node, values.device)
                    tensor[there] = values[here]
                else:
                    common = min(len(tensor), len(values))
                    tensor[:common] = values[:common]

    def _inherit_conv(self, node: Node, source: nn.Module) -> None:
        module = self.body.get_submodule(node.module)
        there, here = self._common(node, module.weight.device)  # type: ignore[arg-type]
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

    def _common(self, node: Node, device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices of the input channels that a node shares with the base network: here, and in the base."""
        room, base = self.capacity[node.inputs[0]], tuple(segment.base for segment in node.consumed)
        common = tuple(min(one, two) for one, two in zip(room, base, strict=True))
        return mixing.columns(node.consumed, room, common, device), mixing.columns(node.consumed, base, common, device)

    # -- forward -----------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor | tuple[Tensor, ...], draw: Draw) -> Any:
        """The network's output for [N, C, H, W], or a tensor for each input, under one draw."""
        values: dict[str, Any] = {}
        widths: dict[str, Widths] = {}
        deepest = {
            site: max(k for k, p in enumerate(weights) if mixing.positive(p)) for site, weights in draw.depths.items()
        }
        inputs = iter((images,) if isinstance(images, Tensor) else images)
        for node in self.network.nodes:
            if any(block > deepest[site] for site, block in node.blocks):
                continue
            if node.kind == "input":
                values[node.name], widths[node.name] = next(inputs), tuple(s.base for s in node.segments)
            else:
                values[node.name], widths[node.name] = self._step(node, values, widths, draw)
        return self.network.result(tuple(values[name] for name in self.network.outputs))

    def _step(self, node: Node, values: dict[str, Any], widths: dict[str, Widths], draw: Draw) -> tuple[Any, Widths]:
        if node.kind == "depth":
            return self._mix_depths(node, values, widths, draw.depths[node.site])
        inputs = tuple(values[name] for name in node.inputs)
        before = tuple(widths[name] for name in node.inputs)
        if node.kind not in ROOMY or node.axis != 1 or self._nodes[node.inputs[0]].axis != 1:
            named = zip(node.inputs, inputs, before, strict=True)
            inputs = tuple(self._narrowed(name, value, sizes) for name, value, sizes in named)
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
                axis, index = node.param_axis, self._channel_index(node, before[0], inputs[0].device)
                param = inputs[1].movedim(axis, 0)[index].movedim(0, axis)
                return node.run(self.body.get_submodule, (inputs[0], param)), before[0]
            case "project":
                return self._project(node, inputs[0], before, draw)
            case "join":
                return self._join(node, inputs, before)
            case "concat":
                after = tuple(chain(*before))
            case "fixed":
                after = tuple(segment.base for segment in node.segments)
            case _:
                after = () if node.kind == "value" else before[0]
        return node.run(self.body.get_submodule, inputs), after

    def _conv(self, node: Node, inputs: Tensor, before: Widths, draw: Draw) -> tuple[Tensor, Widths]:
        module = self.body.get_submodule(node.module)
        candidates, weights = draw.widths[node.site] if node.site else ((node.segments[0].base,), (1.0,))
        width = max(candidates)
        rows = self._rows(node, width) if node.norm and len(candidates) > 1 else width
        bias = module.bias[:rows] if module.bias is not None else None  # type: ignore[index]
        channels = inputs.shape[self._nodes[node.inputs[0]].axis]
        weight = self._sliced(by_outputs(module), rows, node, before, channels)
        if isinstance(module, nn.Linear):
            out = F.linear(inputs, weight, bias)
        elif isinstance(module, nn.ConvTranspose2d):
            window: Any = (module.stride, module.padding, module.output_padding, 1, module.dilation)
            out = F.conv_transpose2d(inputs, weight.transpose(0, 1), bias, *window)
        else:
            assert isinstance(module, nn.Conv2d)
            out = conv2d(inputs, weight, bias, module)
        if not node.norm and len(candidates) > 1:
            out = self._combine(out, candidates, weights, None, node.axis)
        return out, (width,)

    def _rows(self, node: Node, width: int) -> int:
        """Number of channels to compute for a width: whole blocks, while there are weights. The mixture turns the
        surplus into zeros."""
        return min(-(-width // self._block) * self._block, self.capacity[node.name][0])

    def _sliced(self, weight: Tensor, width: int, node: Node, before: Widths, channels: int) -> Tensor:
        """Rows of the outputs; columns of the input channels by index map: [width, channels, ...]."""
        room = self.capacity[node.inputs[0]]
        if len(before) == 1:
            return weight if weight.shape[:2] == (width, channels) else weight[:width, :channels]
        return weight[:width].index_select(1, mixing.columns(node.consumed, room, before, weight.device))

    def _grouped(self, node: Node, inputs: Tensor, before: Widths) -> Tensor:
        module = self.body.get_submodule(node.module)
        assert isinstance(module, nn.Conv2d)
        index = self._channel_index(node, before, inputs.device)
        bias = module.bias[index] if module.bias is not None else None
        groups = inputs.shape[1] // module.weight.shape[1]
        return conv2d(inputs, module.weight[index], bias, module, groups)

    def _channel_index(self, node: Node, widths: Widths, device: torch.device) -> Any:
        """Index of the channels of a node of these widths among the channels of its widest output."""
        if len(widths) == 1:
            return slice(widths[0] * node.segments[0].repeat)
        return mixing.columns(node.segments, self.capacity[node.name], widths, device)

    def _norm(self, node: Node, inputs: Tensor, before: Widths, draw: Draw) -> tuple[Tensor, Widths]:
        norms = self.body.get_submodule(node.module)
        assert isinstance(norms, nn.ModuleDict)
        if len(before) > 1:
            index = self._channel_index(node, before, inputs.device)
            return self._part(norms[ALL], inputs, index, draw.momentum), before
        source = self._producer.get(node.name)
        if source is None or not source.site or len(draw.widths[source.site][0]) == 1:
            inputs = self._narrowed(node.inputs[0], inputs, before)
            return self._one(norms[str(inputs.shape[1])], inputs, draw.momentum), before
        candidates, weights = draw.widths[source.site]
        pair = [norms[str(width)] for width in candidates]
        return self._two(inputs, candidates, weights, pair, draw.momentum), before

    def _one(self, norm: nn.Module, inputs: Tensor, momentum: float) -> Tensor:
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | mixing.FirstOf)
        return F.batch_norm(
            inputs, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, momentum, norm.eps
        )

    def _part(self, norm: nn.Module, inputs: Tensor, index: Tensor, momentum: float) -> Tensor:
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
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
            return self._combine(inputs, candidates, weights, [mixing.scale_and_shift(norm) for norm in norms])
        eps: float = norms[0].eps  # type: ignore[assignment]
        affine = [(norm.weight, norm.bias) for norm in norms]
        if self.mix == "pad":
            mean, var = inputs.new_zeros(2, inputs.shape[1], dtype=norms[0].weight.dtype)  # type: ignore[arg-type]
            scale, shift = mixing.padded(affine, candidates, weights, inputs.shape[1])
            out = F.batch_norm(inputs, mean, var, scale, shift, True, 1.0, eps)
        else:
            narrow = candidates.index(min(candidates))
            wide = max(candidates)
            stretch = self._stretch(candidates[narrow], wide, inputs.device, inputs.shape[1])
            shares = mixing.stacked(weights, inputs.device)
            affines = (*affine[narrow], *affine[1 - narrow])
            out, mean, var = mixing.NormMix.apply(inputs, shares, stretch, narrow, *affines, eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for norm, width in zip(norms, candidates, strict=True):
                norm.running_mean.lerp_(mean[:width], momentum)  # type: ignore[operator]
                norm.running_var.lerp_(var[:width], momentum)  # type: ignore[operator]
        return out

    def _layer_norm(self, node: Node, inputs: Tensor, before: Widths) -> Tensor:
        """Layer norm over the channels at hand, regardless of the widths that were mixed."""
        norms = self.body.get_submodule(node.module)
        assert isinstance(norms, nn.ModuleDict)
        if len(before) == 1:
            norm = norms[str(inputs.shape[node.axis])]
            weight, bias = norm.weight, norm.bias
        else:
            norm, index = norms[ALL], self._channel_index(node, before, inputs.device)
            weight, bias = (None if each is None else each[index] for each in (norm.weight, norm.bias))  # type: ignore[index]
        eps: float = norm.eps  # type: ignore[assignment]
        old = self.network.module.get_submodule(node.module)
        if isinstance(old, nn.GroupNorm):
            return F.group_norm(inputs, old.num_groups, weight, bias, eps)  # type: ignore[arg-type]
        moved = inputs.movedim(node.axis, -1)
        return F.layer_norm(moved, moved.shape[-1:], weight, bias, eps).movedim(-1, node.axis)  # type: ignore[arg-type]

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
        if axis == inputs.dim() - 1:
            return F.linear(inputs, matrix, shift)
        return F.conv2d(inputs, matrix[:, :, None, None], shift)

    def _stretch(self, narrow: int, wide: int, device: torch.device, room: int) -> Tensor:
        """The [room, narrow] matrix that brings a narrow candidate to the wide one's channels; zeros below."""
        key = (narrow, wide, room, device)
        if key not in self._identities:
            matrix = mixing.interpolation(narrow, wide) if self.mix == "interpolate" else torch.eye(wide)[:, :narrow]
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
        assert isinstance(norms, nn.ModuleDict)
        projected = F.conv2d(inputs, conv.weight[:width, :have])  # type: ignore[index]
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
        node = self._nodes[name]
        while node.kind in ("norm", "map"):
            node = self._nodes[node.inputs[0]]
        return draw.widths[node.site] if node.kind == "conv" and node.site else (widths, (1.0,))

    def _join(self, node: Node, inputs: tuple[Any, ...], before: tuple[Widths, ...]) -> tuple[Tensor, Widths]:
        first = node.axis == 1 and all(self._nodes[name].axis == 1 for name in node.inputs)
        if first and (self.shortcut == "pad" or len(set(before)) == 1):
            width = max(value.shape[1] for value in inputs)
            inputs = tuple(mixing.padded_to(value, width) for value in inputs)
        return node.run(self.body.get_submodule, inputs), joined(before, max)

    def _mix_depths(
        self, node: Node, values: dict[str, Any], widths: dict[str, Widths], weights: Any
    ) -> tuple[Tensor, Widths]:
        used = [(p, name) for p, name in zip(weights, node.inputs, strict=True) if mixing.positive(p)]
        wide = max(widths[name] for _, name in used)
        if len(used) == 1:
            return values[used[0][1]], wide
        shares = mixing.stacked([p for p, _ in used], values[used[0][1]].device)
        if len(wide) > 1:  # ends that are concatenated have one width each; channels of zeros may follow
            parts = [values[name][:, : total_channels(self._nodes[name].segments, widths[name])] for _, name in used]
            return mixing.WeightedSum.apply(shares, *parts), wide  # type: ignore[no-untyped-call]
        width = max(values[name].shape[1] for _, name in used)
        tensors = [self._widen(values[name], max(widths[name]), wide[0], width) for _, name in used]
        return mixing.WeightedSum.apply(shares, *tensors), wide  # type: ignore[no-untyped-call]

    def _widen(self, inputs: Tensor, narrow: int, wide: int, room: int) -> Tensor:
        """A tensor of `narrow` channels (zeros may follow), brought to `wide` channels and padded to `room`."""
        if narrow == wide:
            return mixing.padded_to(inputs, room)
        matrix = F.pad(self._stretch(narrow, wide, inputs.device, room), (0, inputs.shape[1] - narrow))
        return F.conv2d(inputs, matrix[:, :, None, None].to(inputs.dtype))

    def _narrowed(self, name: str, value: Any, widths: Widths) -> Any:
        """A value without the channels of zeros at its end."""
        if len(widths) != 1 or not isinstance(value, Tensor) or value.dim() < 2:
            return value
        width, axis = widths[0] * self._nodes[name].segments[0].repeat, self._nodes[name].axis
        return value.narrow(axis, 0, width) if value.shape[axis] > width else value
