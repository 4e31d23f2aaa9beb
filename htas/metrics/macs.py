"""Multiply-adds of one image, which many papers call FLOPs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from htas.graph.kinds import Convolution
from htas.graph.layer import Layer
from htas.graph.modes import copied
from htas.graph.steps import counting
from htas.metrics import Case, CountedMetric

if TYPE_CHECKING:
    from htas.cost.model import CostModel
    from htas.cost.source import NetworkCosts


@dataclass(frozen=True)
class Macs(CountedMetric):
    """Multiply-adds of convolutions, linear layers and products of matrices, attention's among them; the bias of a
    layer counts as one per output, as TAS counts it, and one within `nn.MultiheadAttention` is not counted.
    """

    unit: ClassVar[str] = "MACs"
    units: ClassVar[Mapping[str, float]] = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
    example: ClassVar[str] = "20M"
    whole: ClassVar[bool] = False

    @classmethod
    def cost(cls, costs: "NetworkCosts") -> "CostModel":
        """An exact sum over layers, projections included."""
        return costs.counted("macs")

    def count(self, case: Case) -> int:
        """Multiply-adds of one image."""
        return case.macs if isinstance(case, Layer) else count_macs(case, *self.target.shapes)


def count_macs(model: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Multiply-adds of a network for one image, with a shape for each input; counted while a copy runs."""
    network = copied(model).eval().cpu().requires_grad_(False)  # torch's counter fails where a module reads a parameter
    biases = _Biases()
    with counting() as macs, biases:
        network(*(torch.zeros(1, *shape) for shape in shapes))
    return macs() + biases.count


class _Biases(TorchFunctionMode):
    """Within it the biases that convolutions and linear layers add are counted, one for each output."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        """The same function of torch, whose bias is noted where it has one."""
        named = dict(kwargs or {})
        result = func(*args, **named)
        bias = args[2] if len(args) > 2 else named.get("bias")
        if getattr(func, "__name__", "") in Convolution.functions and isinstance(bias, Tensor):
            self.count += result.numel()
        return result
