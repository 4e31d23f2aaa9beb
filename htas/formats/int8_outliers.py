"""Operators that stay in fp32 in a graph in int8, since 256 steps cannot hold what they read or do.

The steps of a tensor reach from its smallest to its largest value. Where padding or a mask puts -inf or -1e4 among
activations, no step is left between these.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Feed = Mapping[str, np.ndarray]
"""Inputs by name, [N, *shape]."""
WEIGHED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights, by which a network is quantized or not."""
MIXING = ("Pad", "Where", "Add", "Sub", "Concat", "ScatterElements", "ScatterND")
"""Operators that put constants among activations."""
MASKING = (
    "Shape", "Size", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "Xor", "IsNaN",
    "IsInf",
)  # fmt: skip
"""Operators whose outputs hold nothing of the values that they read: a mask of them is a constant, at any place."""
FAR = 16
"""A constant so many times as large as every activation leaves these fewer than four of eight bits."""


def fp32_nodes(model: Any, feeds: Sequence[Feed]) -> list[str]:
    """Names of the operators that the quantizer must leave in fp32; those without one of their own get it here."""
    counts = Counter(node.name for node in model.graph.node)
    nodes = [*_clips_beside_zero(model), *_around_outliers(model, feeds)]
    for number, node in enumerate(nodes):
        if not node.name or counts[node.name] > 1:
            node.name = f"{node.name or node.op_type}_fp32_{number}"
    return [node.name for node in nodes]


def _clips_beside_zero(model: Any) -> Iterator[Any]:
    """Clips of ranges without 0, or of unknown ones: steps begin at 0, and the quantizer removes a Clip as part of the
    steps."""
    from onnx import numpy_helper

    tensors = {each.name: each for each in model.graph.initializer}
    tensors |= {
        node.output[0]: attribute.t
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
    for node in model.graph.node:
        names = [*node.input[1:], "", ""][:2]
        if node.op_type == "Clip":
            if any(name and name not in tensors for name in names):
                yield node
                continue
            bounds = [numpy_helper.to_array(tensors[name]).item() if name else 0.0 for name in names]
            if bounds[0] > 0 or bounds[1] < 0:
                yield node


def _around_outliers(model: Any, feeds: Sequence[Feed]) -> list[Any]:
    """Operators that give or read tensors in which constants lie far outside the activations."""
    nodes = list(model.graph.node)
    mixing = dict(_mixing(model))
    names = {name for pair in mixing.values() for names in pair for name in names}
    magnitudes = _magnitudes(model, names, feeds) if mixing else {}
    outliers: dict[str, float] = {}
    sources: dict[int, float] = {}
    for place, pair in mixing.items():
        sizes, others = ([magnitudes[name] for name in names if name in magnitudes] for names in pair)
        largest, activation = max(sizes, default=0.0), max(others, default=0.0)
        if largest == np.inf or 0 < FAR * activation < largest:
            sources[place] = largest
            outliers |= {name: np.inf for name in pair[0] if magnitudes.get(name) == np.inf}
    if not sources:
        return []
    behind: set[str] = set()
    for place, node in enumerate(nodes):
        if place in sources or (node.op_type not in WEIGHED and behind & set(node.input)):
            behind |= set(node.output)
    magnitudes = _magnitudes(model, behind, feeds)
    for place, node in enumerate(nodes):
        least = max((outliers[name] for name in node.input if name in outliers), default=np.nan) / 2
        for name in node.output:
            if place in sources:
                outliers[name] = sources[place]
            elif magnitudes.get(name, -1.0) >= least:  # a Softmax, or the maximum of a window, has none of them left
                outliers[name] = magnitudes[name]
    return [node for node in nodes if outliers.keys() & {*node.input, *node.output}]


def _mixing(model: Any) -> Iterator[tuple[int, tuple[list[str], list[str]]]]:
    """Operators that may put constants of consequence among activations, by place: the names of both."""
    weights = {each.name: each for each in model.graph.initializer}
    activations = {each.name for each in model.graph.input if each.name not in weights}
    for place, node in enumerate(model.graph.node):
        if node.op_type in MASKING or not any(name in activations for name in node.input):
            continue
        activations |= set(node.output)
        if node.op_type in MIXING:
            constants = [name for name in node.input if name and name not in activations]
            constants = [name for name in constants if name not in weights or _counts(weights[name], node.op_type)]
            if constants:
                yield place, (constants, [name for name in node.input if name in activations])


def _counts(weight: Any, op: str) -> bool:
    """Whether an initializer may lie outside of activations: no whole numbers, no zeros, and no bias of channels."""
    from onnx import helper, numpy_helper

    if helper.tensor_dtype_to_np_dtype(weight.data_type).kind != "f":
        return False
    array = numpy_helper.to_array(weight)
    return bool(array.any()) and not (op == "Add" and array.ndim == 1 < array.size and bool(np.isfinite(array).all()))


def _magnitudes(model: Any, names: Collection[str], feeds: Sequence[Feed]) -> dict[str, float]:
    """The largest absolute value of each tensor of real numbers, infinity where any is not finite."""
    import onnx
    import onnxruntime as ort
    from onnx import numpy_helper

    weights = {each.name: each for each in model.graph.initializer if each.name in names}
    magnitudes = {name: _magnitude(numpy_helper.to_array(weight)) for name, weight in weights.items()}
    computed = [name for name in names if name not in weights and name not in feeds[0]]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        arrays = dict(zip(computed, session.run(computed, feed), strict=True))
        for name, array in (arrays | {name: feed[name] for name in names if name in feed}).items():
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                magnitudes[name] = max(magnitudes.get(name, 0.0), _magnitude(array))
    return magnitudes


def _magnitude(array: np.ndarray) -> float:
    largest = float(np.abs(array).max(initial=0.0))
    return np.inf if np.isnan(largest) else largest
