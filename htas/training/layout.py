"""Placing networks for training: on a device, with channels last, and around a fault of oneDNN."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)
NARROW = 8
"""On a CPU with AVX2, the backward pass of a strided 1x1 convolution with fewer inputs writes beyond its memory if
channels are last (PyTorch 2.13, docs/decisions.md)."""


class CopyingViews(TorchFunctionMode):
    """`x.view(...)` copies where it must, as `x.reshape(...)` does: with channels last, maps of several pixels have no
    view as vectors, which networks and losses of users may take of them."""

    copying: Mapping[Any, Callable[..., Tensor]] = {Tensor.view: Tensor.reshape, Tensor.view_as: Tensor.reshape_as}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The same function of torch; the copying one in place of a view of another shape."""
        kinds = [*args[1:2], *(kwargs or {}).values()]
        if func in self.copying and not any(isinstance(each, torch.dtype) for each in kinds):
            func = self.copying[func]
            kwargs = {"shape" if name == "size" else name: value for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def placed(model: M, device: Any) -> M:
    """The same module, moved to a device in the memory format in which convolutions are fastest."""
    flat = not any(tensor.dim() > 4 for tensor in model.parameters())  # a format for two-dimensional pixels alone
    layout = {"memory_format": torch.channels_last} if flat else {}
    moved: M = model.to(device, **layout)  # type: ignore[call-overload]
    if torch.device(device).type == "cpu":
        for part in moved.modules():
            if type(part) is nn.Conv2d and part.padding_mode == "zeros" and _is_narrow(part.weight, part):
                part.__class__ = Narrow
    return moved


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, module: nn.Conv2d, groups: int = 1) -> Tensor:
    """F.conv2d of x [N, C, H, W] with a module's stride, padding and dilation, and any weights; a strided 1x1
    convolution of few inputs reads only the pixels that it needs, with the same result."""
    if x.device.type == "cpu" and _is_narrow(weight, module):
        down, across = _pair(module.stride)
        return F.conv2d(x[:, :, ::down, ::across], weight, bias, groups=groups)
    return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, groups)


class Narrow(nn.Conv2d):
    """Class of such a convolution while it is trained."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(input, weight, bias, self, self.groups)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _is_narrow(weight: Tensor, module: nn.Conv2d) -> bool:
    is_strided = max(_pair(module.stride)) > 1 and module.padding in ("valid", 0, (0, 0))
    return is_strided and weight.shape[1] < NARROW and tuple(weight.shape[2:]) == (1, 1)
