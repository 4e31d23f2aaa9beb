"""Mixing the outputs of two widths: padded with zeros and weighted, or interpolated as in TAS."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FirstOf(nn.Module):
    """The first channels of a wider batch norm as a norm: views of the tensors of the wider one, and its options."""

    def __init__(self, whole: nn.Module, channels: int) -> None:
        super().__init__()
        self.__dict__["_whole"] = whole  # not a child module: its tensors would have two names
        self._channels = channels

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_whole"], name)
        return value[: self._channels] if isinstance(value, Tensor) else value


class NormMix(torch.autograd.Function):
    """Two norms of one tensor, interpolated and mixed: matrix @ z + shift, where z is x [N, C, ...] normalised by the
    batch's own mean and variance, in training mode; the rows of both beyond the wider candidate are zeros.

    z is never materialised, so the backward pass stores nothing but x: forward is one pass for the statistics and one
    small product, and backward reads the sums that a norm needs off the product's gradient. The statistics are returned
    too: mean [C], and unbiased variance [C], as running statistics use it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shares: Tensor,
        stretch: Tensor,
        first: int,
        gain: Tensor,
        offset: Tensor,
        wide_gain: Tensor,
        wide_offset: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`shares` [2]: the narrower candidate has shares[first], and `stretch` [C, narrow] interpolates it. `gain` and
        `offset` [narrow] belong to its norm, `wide_gain` and `wide_offset` [wide] to the wider one's."""
        count = x.numel() // x.shape[1]
        mean, var = (statistic.to(gain.dtype) for statistic in torch.batch_norm_update_stats(x, None, None, 1.0))
        inverse = torch.rsqrt(var + eps)
        narrow_share, wide_share = shares[first], shares[1 - first]
        narrow, wide = len(gain), len(wide_gain)
        matrix = stretch.new_zeros(len(stretch), len(stretch))
        torch.mul(stretch, narrow_share * gain, out=matrix[:, :narrow])
        matrix.diagonal()[:wide].addcmul_(wide_gain, wide_share)
        shift = stretch @ (narrow_share * offset)
        shift[:wide].addcmul_(wide_offset, wide_share)
        scaled = matrix * inverse
        weight, bias = scaled.to(x.dtype), shift.sub_(scaled @ mean).to(x.dtype)
        apply = (F.linear, F.conv1d, F.conv2d, F.conv3d)[x.dim() - 2]
        out = apply(x, weight.reshape(*weight.shape, *(1,) * (x.dim() - 2)), bias)
        unbiased = var * (count / max(1, count - 1))
        ctx.first = first
        ctx.save_for_backward(x, shares, stretch, gain, offset, wide_gain, wide_offset, matrix, mean, inverse)
        ctx.mark_non_differentiable(mean, unbiased)
        ctx.set_materialize_grads(False)
        return out, mean, unbiased

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        """d matrix = sum gradient z^T gives the others; dz = matrix^T gradient, then as for any batch norm."""
        x, shares, stretch, gain, offset, wide_gain, wide_offset, matrix, mean, inverse = ctx.saved_tensors
        narrow_share, wide_share = shares[ctx.first], shares[1 - ctx.first]
        narrow, wide = len(gain), len(wide_gain)
        rows, grads = _flat(x), _flat(gradient)
        total = grads.sum(0, dtype=matrix.dtype)
        product = torch.addr((grads.t() @ rows).to(matrix.dtype), total, mean, alpha=-1).mul_(inverse)
        slopes = ((product[:, :narrow] * stretch).sum(0), total @ stretch)
        wides = (product.diagonal()[:wide], total[:wide])
        parts = [slopes[0] @ gain + slopes[1] @ offset, wides[0] @ wide_gain + wides[1] @ wide_offset]
        d_shares = torch.stack(parts if ctx.first == 0 else parts[::-1])
        affines = (narrow_share * slopes[0], narrow_share * slopes[1], wide_share * wides[0], wide_share * wides[1])
        if not ctx.needs_input_grad[0]:
            return None, d_shares, None, None, *affines, None
        slope = (matrix * product).sum(0).mul_(inverse).mul_(inverse).div_(-len(rows))
        constant = (total @ matrix).mul_(inverse).div_(-len(rows)).addcmul_(slope, mean, value=-1)
        d_x = torch.addcmul(constant.to(x.dtype), rows, slope.to(x.dtype))
        d_x.addmm_(grads, (matrix * inverse).to(x.dtype))
        if x.dim() > 2:
            d_x = d_x.reshape(len(x), *x.shape[2:], -1).movedim(-1, 1)
        return d_x, d_shares, None, None, *affines, None


class WeightedSum(torch.autograd.Function):
    """sum_k shares[k] x tensors[k] for tensors of one shape, without intermediate tensors."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, *tensors: Tensor) -> Tensor:
        """shares [K] and K tensors of one shape."""
        ctx.save_for_backward(shares, *tensors)
        weights = shares.to(tensors[0].dtype)
        total = tensors[0] * weights[0]
        for share, tensor in zip(weights[1:], tensors[1:], strict=True):
            total.addcmul_(tensor, share)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of a share is the inner product of its tensor and the output's gradient."""
        shares, *tensors = ctx.saved_tensors
        d_shares = None
        if ctx.needs_input_grad[0]:
            d_shares = torch.stack([_product(gradient, tensor) for tensor in tensors]).to(shares.dtype)
        return d_shares, *(gradient * share for share in shares.to(gradient.dtype))


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of two tensors of one shape, a scalar."""
    if one.dtype == torch.bfloat16:  # a CPU's dot product takes forty times as long
        return (one * other).sum(dtype=torch.float32)
    return torch.dot(_flat(one).flatten(), _flat(other).flatten())


def stacked(weights: Any, device: torch.device) -> Tensor:
    """Weights of a draw as one tensor [candidates]."""
    return weights if isinstance(weights, Tensor) else torch.stack([torch.as_tensor(w, device=device) for w in weights])


def _flat(tensor: Tensor) -> Tensor:
    """[N, C, ...] as [N x ..., C]; a view of a tensor in channels_last."""
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


def interpolation(narrow: int, wide: int) -> Tensor:
    """Channel-wise interpolation as a [wide, narrow] matrix: row j averages channels floor(jn/w) to ceil((j+1)n/w)."""
    return F.adaptive_avg_pool1d(torch.eye(narrow), wide).t().contiguous()


def padded_to(value: Tensor, width: int) -> Tensor:
    """[N, C, ...] padded with channels of zeros to [N, width, ...]."""
    return F.pad(value, (0, 0) * (value.dim() - 2) + (0, width - value.shape[1])) if value.shape[1] < width else value


def padded(affine: Sequence[tuple[Any, Any]], widths: Sequence[int], weights: Any, room: int) -> tuple[Tensor, Tensor]:
    """Scale and shift [room] of a mixture whose narrower candidates are padded with zeros."""
    scale: Any = 0.0
    shift: Any = 0.0
    for index, ((gain, offset), width) in enumerate(zip(affine, widths, strict=True)):
        scale = scale + weights[index] * F.pad(gain, (0, room - width))
        shift = shift + weights[index] * F.pad(offset, (0, room - width))
    return scale, shift


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a norm in eval mode."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm | FirstOf)
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    assert norm.bias is not None
    return scale, norm.bias - norm.running_mean * scale


def positive(weight: Any) -> bool:
    """Whether a depth takes part in the mixture; a tensor always does, which saves waiting for the device."""
    return isinstance(weight, Tensor) or weight > 0


def channelwise(inputs: Tensor, matrix: Tensor, shift: Tensor | None, axis: int) -> Tensor:
    """A matrix [outputs, channels] times the channels of every pixel: `inputs` [N, channels, ...], or with the channels
    along another `axis`."""
    if axis != 1 or inputs.dim() > 5:
        return F.linear(inputs.movedim(axis, -1), matrix, shift).movedim(-1, axis)
    apply = (F.linear, F.conv1d, F.conv2d, F.conv3d)[inputs.dim() - 2]
    return apply(inputs, matrix.reshape(*matrix.shape, *(1,) * (inputs.dim() - 2)), shift)


TURNED: Mapping[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
"""Transposed convolutions by the number of dimensions of the pixels."""
