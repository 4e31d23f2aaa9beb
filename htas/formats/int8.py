"""ONNX graphs in int8, by ONNX Runtime's own quantizer: QuantizeLinear and DequantizeLinear around every operator.

Runtimes fuse the pairs into integer operators. Weights are signed, with a scale for each output channel; activations
are unsigned, with one scale for each tensor, from the largest and smallest value among the images that calibrate.
Everything that the quantizer knows is quantized, the first and the last layer too, as it is by default, but for what
256 steps cannot hold (`int8_outliers.py`).
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from htas.errors import UserError
from htas.formats.int8_outliers import WEIGHED, Feed, fp32_nodes
from htas.formats.onnx import AFTER_PATH, without_logging
from htas.text import listing, plural

NORM = "BatchNormalization"
PAIR = ("QuantizeLinear", "DequantizeLinear")
OPSET = 13
"""The first version of ONNX in which a channel has a scale of its own."""
FULL_RANGE = ("avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni", "amx_int8", "asimddp")
"""Instructions, in the kernel's words, that add products of eight bits without overflow. Other processors of x86 add
pairs in sixteen bits, so that weights may have seven bits only."""


def needs_seven_bits(flags: Collection[str]) -> bool:
    """Whether weights must have seven bits (`reduce_range`) on a processor with these instructions."""
    return "sse2" in flags and not set(FULL_RANGE) & set(flags)


def quantize(graph: bytes, feeds: Sequence[Feed] = (), *, seven_bits: bool = False) -> bytes:
    """A graph in fp32 as one in int8, whose inputs and outputs stay fp32.

    `feeds` are the images that give activations their ranges; without them random numbers do, which is as good for
    latency and useless for accuracy. Raises UserError where the graph is quantized already, has weights of another
    precision than fp32, or is of an old version of ONNX that cannot be converted.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load_from_string(graph)
    operators = {node.op_type for node in model.graph.node}
    if operators & {*PAIR, "QLinearConv", "ConvInteger"}:
        raise UserError("this network is quantized already; name its file as it is, without a precision")
    if others := sorted(_kinds_of_weights(model) - {"float32"}):
        raise UserError(f"int8 starts from weights in fp32, and this network has some in {listing(others)}")
    model = _of_today(model)
    # it advises to prepare the graph, which this one is, and divides by the ranges of tensors that it leaves in fp32
    with TemporaryDirectory() as folder, without_logging(), np.errstate(invalid="ignore", over="ignore"):
        if NORM in operators:
            model = _with_norms_as_convolutions(_folded(model.SerializeToString(), Path(folder) / "folded.onnx"))
        path, feeds = Path(folder) / "quantized.onnx", feeds or [random_feed(model)]
        _copy_shared_weights(model)
        one_scale: dict[str, list[dict[str, object]]] = {
            node.input[1]: [{}] for node in model.graph.node if node.op_type in WEIGHED and _channel_axis(node) is None
        }
        quantize_static(
            model, path, _Feeds(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
            reduce_range=seven_bits, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax, nodes_to_exclude=fp32_nodes(model, feeds),
            extra_options={"TensorQuantOverrides": one_scale},
        )  # fmt: skip
        return path.read_bytes()


def left_in_fp32(graph: bytes, lacking: Collection[str] = ()) -> list[str]:
    """Layers with weights that a quantized graph computes in fp32, as the quantizer lacks them or the runtime does,
    which is `lacking` such operators: paths of modules, or names of nodes in a graph of the exporter's."""
    import onnx

    model = onnx.load_from_string(graph)
    made_by = {output: node for node in model.graph.node for output in node.output}
    return [
        node.name.rpartition(AFTER_PATH)[0] or node.name or node.op_type
        for node in model.graph.node
        if node.op_type in WEIGHED
        and not (
            node.op_type not in lacking
            and all(name in made_by and made_by[name].op_type == PAIR[1] for name in node.input[:2])
        )
    ]


def random_feed(model: Any) -> Feed:
    """Normal random inputs of a graph whose sizes are all known; integers are zero."""
    from onnx import helper

    feed, rng = {}, np.random.default_rng(0)
    for each in _inputs_of(model):
        kind = each.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [side.dim_value or 1 for side in kind.shape.dim]
        feed[each.name] = (rng.normal(size=shape) if dtype.kind == "f" else np.zeros(shape)).astype(dtype)
    return feed


def feeds_of(graph: bytes, batches: Sequence[Sequence[np.ndarray]]) -> list[Feed]:
    """Batches of inputs by the names of a graph's inputs."""
    import onnx

    names = [each.name for each in _inputs_of(onnx.load_from_string(graph))]
    return [dict(zip(names, batch, strict=True)) for batch in batches]


def _inputs_of(model: Any) -> list[Any]:
    """Those that are no weights, which files had to list as well before 2019."""
    weights = {each.name for each in model.graph.initializer}
    return [each for each in model.graph.input if each.name not in weights]


def check_images(arrays: Sequence[np.ndarray], example: Sequence[np.ndarray]) -> None:
    """Raise UserError where images, an array [N, *shape] for each input, cannot show how large activations become in a
    network that takes this example."""
    if len(arrays) != len(example):
        raise UserError(
            f"int8 needs images for each of the {plural(len(example), 'input')}, got them for {len(arrays)}; give one "
            "tensor for each input"
        )
    counts = [len(array) for array in arrays]
    if len(set(counts)) > 1 or not counts[0]:
        raise UserError(
            f"int8 needs equally many images for each input, and at least one, got {listing(map(str, counts))}"
        )
    for number, (array, one) in enumerate(zip(arrays, example, strict=True)):
        there, needed = (f"{list(each.shape[1:])} of {each.dtype}" for each in (array, one))
        if there != needed:
            raise UserError(f"images that calibrate int8 must be {needed} in input {number}, they are {there}")
        if not np.isfinite(array).all():
            raise UserError(f"an image that calibrates int8 has values that are not finite, in input {number}")
        if array.dtype.kind == "f" and len(array) > 1 and bool((array == array[:1]).all()):
            raise UserError(
                f"all {len(array)} images that calibrate int8 are alike in input {number}; they show no range of values"
            )


class _Feeds:
    """Batches in the order in which the quantizer asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next batch; None at the end."""
        return next(self.feeds, None)

    def __iter__(self) -> Iterator[Feed]:
        return self.feeds


def _kinds_of_weights(model: Any) -> set[str]:
    """NumPy's names for the types of weights that are quantized."""
    from onnx import helper

    kinds = {each.name: each.data_type for each in model.graph.initializer}
    names = {name for node in model.graph.node if node.op_type in WEIGHED for name in node.input if name in kinds}
    return {helper.tensor_dtype_to_np_dtype(kinds[name]).name for name in names}


def _of_today(model: Any) -> Any:
    """The graph in a version of ONNX that has what the quantizer writes, whose weights are no inputs."""
    from onnx import version_converter

    names = {each.name for each in _inputs_of(model)}
    for each in [each for each in model.graph.input if each.name not in names]:
        model.graph.input.remove(each)
    model.ir_version = max(model.ir_version, 7)
    version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if version >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises what its steps raise
        raise UserError(
            f"this network is in version {version} of ONNX's operators, int8 needs {OPSET}, and converting it failed "
            f"({type(error).__name__}); export it with opset {OPSET} or later"
        ) from error


def _folded(graph: bytes, path: Path) -> bytes:
    """The graph with norms as parts of the convolutions before them: between them, no pair may stand."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return path.read_bytes()


def _channel_axis(node: Any) -> int | None:
    """The dimension of an operator's weights in which channels have scales of their own; None where one scale is for
    all, as in groups of a transposed convolution, whose biases would need more scales than the weights have."""
    attributes = {each.name: each.i for each in node.attribute}
    match node.op_type:
        case "ConvTranspose" if attributes.get("group", 1) > 1 and len(node.input) > 2:
            return None
        case "Conv":
            return 0
        case "Gemm":
            return 0 if attributes.get("transB") else 1
    return 1


def _copy_shared_weights(model: Any) -> None:
    """Give weights that operators read by channels of different dimensions, as tied ones are, to each of these."""
    weights = {each.name: each for each in model.graph.initializer}
    axes: dict[str, list[int | None]] = {}
    for node in model.graph.node:
        if node.op_type in WEIGHED and node.input[1] in weights:
            name, axis = node.input[1], _channel_axis(node)
            readers = axes.setdefault(name, [])
            if axis not in readers:
                readers.append(axis)
                if readers[1:]:
                    copy = model.graph.initializer.add()
                    copy.CopyFrom(weights[name])
                    copy.name = f"{name}_by_{axis}"
            if axis != readers[0]:
                node.input[1] = f"{name}_by_{axis}"


def _with_norms_as_convolutions(graph: bytes) -> Any:
    """A graph whose norms behind something else than a convolution are depthwise convolutions 1x1.

    The quantizer lacks norms, and OpenVINO 2026.4 ends the process at one in fp32 behind an int8 concatenation. A norm
    of vectors stays: no convolution has no pixels.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    known = (*model.graph.input, *model.graph.value_info)
    ranks = {each.name: len(each.type.tensor_type.shape.dim) for each in known}
    weights = {each.name: each for each in model.graph.initializer}
    for place, node in enumerate(model.graph.node):
        x, *names = node.input
        if node.op_type == NORM and ranks.get(x, 0) > 2 and all(name in weights for name in names):
            scale, shift, mean, variance = (numpy_helper.to_array(weights[name]) for name in names)
            epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
            scale = scale / np.sqrt(variance + np.float32(epsilon))
            kernel, bias = f"{node.output[0]}_kernel", f"{node.output[0]}_bias"
            model.graph.initializer.extend(
                [
                    numpy_helper.from_array(scale.reshape(-1, *[1] * (ranks[x] - 1)), kernel),
                    numpy_helper.from_array(shift - mean * scale, bias),
                ]
            )
            conv = helper.make_node("Conv", [x, kernel, bias], node.output[:1], node.name, group=len(scale))
            model.graph.node[place].CopyFrom(conv)
    read = {name for node in model.graph.node for name in node.input}
    for each in [each for each in model.graph.initializer if each.name not in read]:
        model.graph.initializer.remove(each)  # ONNX Runtime warns of each
    return model


def in_fp32_sentence(names: Sequence[str], runtime: str) -> str:
    """A remark on what stays in fp32 in this runtime; empty where nothing does."""
    if not names:
        return ""
    others = f" and {len(names) - 5} more" if names[5:] else ""
    return f"Not quantized, since {runtime} has no such layer in int8: {listing(names[:5])}{others}."
