"""A network as a file that others can run: ONNX, PyTorch's .pt2, OpenVINO's, ncnn's. Compared before it is written."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from htas.data.nests import tensors_in
from htas.errors import UserError
from htas.files import write_bytes
from htas.formats.int8 import check_images, feeds_of, needs_seven_bits, quantize
from htas.formats.ncnn import NcnnModel, ncnn_network, ncnn_package
from htas.formats.onnx import Unknown, cannot_export, network_graph, quiet
from htas.formats.onnx_network import write_network
from htas.formats.parity import QUANTIZED, largest_difference
from htas.formats.tflite import TfliteLayout, TfliteWriter
from htas.formats.written import Opened, Written, cast
from htas.graph.modes import copied
from htas.plugins import needed
from htas.text import listing
from htas.timing.target import instructions

FEED = 32
"""Images of a batch that calibrates int8."""
PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO computes in bf16 by itself where the processor can."""
Run = Callable[..., object]
"""Gives a tensor, or several."""
Files = Mapping[str, bytes]
"""What is written, by suffix, in this order."""


def export(
    model: nn.Module, example: Tensor | Sequence[Tensor], path: Path, images: Sequence[Tensor] = (), *,
    seven_bits: bool = True,
) -> float:  # fmt: skip
    """The largest absolute difference between the file's outputs and PyTorch's, on random inputs of two batch sizes.

    The suffix of the path chooses the format: `.onnx`, `.pt2`, `.xml` (OpenVINO's, with a `.bin` next to it), `.param`
    (ncnn's, with a `.bin`) or `.tflite` (LiteRT's, images with the channels last). The example is a tensor, or one for
    each input, [batch, channels, height, width]; the file takes any batch. The model is exported in eval mode, and
    stays as it is. With `images`, one tensor [N, *shape] for each input, an ONNX or OpenVINO file is quantized to int8,
    calibrated on them, and compared on them; its weights have seven bits, which every processor adds without overflow,
    or eight, if the one that runs it can (`needs_seven_bits`).
    Raises UserError for another suffix, a network that cannot be exported, and outputs that differ by more than 1e-4
    of the largest; no file is written then.
    """
    if path.suffix not in _FORMATS:
        raise UserError(f"cannot export to {path.name!r}: the suffix must be one of {listing(_FORMATS)}")
    write, read = _FORMATS[path.suffix]
    network = copied(model).eval().cpu()
    inputs = tuple(each.detach().cpu() for each in ((example,) if isinstance(example, Tensor) else example))
    # an exporter takes a batch of one for a constant
    twice = tuple(each.repeat(2, *[1] * (each.ndim - 1)) for each in inputs)
    if images:
        images = cast([image.detach() for image in images], torch.float32)
        graph = _int8_graph(network, twice, path.suffix, images, seven_bits)
        files = {".onnx": graph} if path.suffix == ".onnx" else _write_ir_of(graph)
        run = read(files)
        if not seven_bits and needs_seven_bits(instructions()):
            run = _run_onnx(graph, optimized=False)  # as written it computes in fp32, here sums would overflow
        difference = _check_int8(network, run, images, str(path))
    else:
        files = write(network, twice)
        difference = _check(network, read(files), inputs, str(path))
    for suffix, content in files.items():
        write_bytes(path.with_suffix(suffix), content)
    return difference


@torch.inference_mode()
def _check(network: nn.Module, run: Run, example: tuple[Tensor, ...], what: str) -> float:
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch in (len(example[0]), len(example[0]) + 1):
        inputs = [torch.randn(batch, *each.shape[1:], generator=generator) for each in example]
        pairs = zip(tensors_in(network(*inputs)), tensors_in(run(*inputs)), strict=True)
        differences += [largest_difference(expected, output, what) for expected, output in pairs]
    return max(differences)


def _write_onnx(network: nn.Module, example: tuple[Tensor, ...]) -> Files:
    return {".onnx": network_graph(network, example, dynamic=True)}


def _read_onnx(files: Files) -> Run:
    return _run_onnx(files[".onnx"])


def _run_onnx(graph: bytes, *, optimized: bool = True) -> Run:
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 3  # errors
    if not optimized:
        options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

    return run


def _int8_graph(
    network: nn.Module, example: tuple[Tensor, ...], suffix: str, images: Sequence[Tensor], seven_bits: bool
) -> bytes:
    """The network quantized, as ONNX. Raises UserError for another format, and where the file is no smaller than that
    in fp32."""
    if suffix not in (".onnx", ".xml"):
        raise UserError(f"int8 is written to .onnx and .xml (OpenVINO) only, got {suffix}; choose one of these")
    arrays = [image.numpy() for image in images]
    check_images(arrays, [each.numpy() for each in example])
    graph = network_graph(network, example, dynamic=True)
    feeds = feeds_of(graph, [[array[at : at + FEED] for array in arrays] for at in range(0, len(arrays[0]), FEED)])
    try:
        content = quantize(graph, feeds, seven_bits=seven_bits)
    except UserError:
        raise
    except Exception as error:  # the quantizer raises what its steps raise
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"ONNX Runtime's quantizer fails with this network ({type(error).__name__}: {reason}); export it in fp32"
        ) from error
    if len(content) >= len(graph):
        raise UserError(
            f"in int8 this network takes {len(content):,} bytes, in fp32 {len(graph):,}; it is too small to quantize; "
            "export it in fp32"
        )
    return content


@torch.inference_mode()
def _check_int8(network: nn.Module, run: Run, images: Sequence[Tensor], what: str) -> float:
    """On images of the calibration, as random ones lie outside the ranges."""
    inputs = [image[:FEED] for image in images]
    pairs = zip(tensors_in(network(*inputs)), tensors_in(run(*inputs)), strict=True)
    return max(largest_difference(expected, output, what, QUANTIZED) for expected, output in pairs)


def _write_ir(network: nn.Module, example: tuple[Tensor, ...]) -> Files:
    return _write_ir_of(network_graph(network, example, dynamic=True))


def _write_ir_of(graph: bytes) -> Files:
    """The weights first: a reader looks for the .xml."""
    model = _openvino().Core().read_model(graph)
    with TemporaryDirectory() as folder:
        draft = Path(folder) / "network.xml"
        _openvino().save_model(model, str(draft), compress_to_fp16=False)
        return {suffix: draft.with_suffix(suffix).read_bytes() for suffix in (".bin", ".xml")}


def _read_ir(files: Files) -> Run:
    core = _openvino().Core()
    compiled = core.compile_model(core.read_model(files[".xml"], files[".bin"]), "CPU", PRECISE)

    def run(*inputs: Tensor) -> list[Tensor]:
        outputs = compiled([tensor.numpy() for tensor in inputs])
        return [torch.from_numpy(outputs[port].copy()) for port in compiled.outputs]

    return run


def _openvino() -> Any:
    return needed("openvino", "openvino", "an .xml file")


def _write_pt2(network: nn.Module, example: tuple[Tensor, ...]) -> Files:
    buffer = io.BytesIO()
    with quiet():
        try:
            batch = {0: torch.export.Dim("batch")}
            shapes = tuple(batch for _ in example)
            torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), buffer)
        except Exception as error:  # the exporter raises many kinds
            raise UserError(cannot_export(network, "pt2", error)) from error
    return {".pt2": buffer.getvalue()}


def _read_pt2(files: Files) -> Run:
    run: Run = torch.export.load(io.BytesIO(files[".pt2"])).module()
    return run


def _write_ncnn(network: nn.Module, example: tuple[Tensor, ...]) -> Files:
    """The weights first: a reader looks for the .param."""
    model = ncnn_network(network, example)
    return {".bin": model.weights, ".param": model.param.encode()}


def _write_tflite(network: nn.Module, example: tuple[Tensor, ...]) -> Files:
    """For the batch of the example, which is half of this one; a reader may ask for another."""
    writer = TfliteWriter()
    try:
        write_network(writer, network, tuple(tensor[: len(tensor) // 2] for tensor in example))
    except Unknown as error:
        raise UserError(f"a step of this network is not written for LiteRT yet ({error}); export to ONNX") from error
    return {".tflite": writer.content()}


def _read_tflite(files: Files) -> Run:
    needed("ai_edge_litert.interpreter", "litert", "a .tflite file")
    program = Opened("litert", Written(files[".tflite"], layout=TfliteLayout()))
    return lambda *inputs: program.outputs(inputs)


def _read_ncnn(files: Files) -> Run:
    ncnn_package()
    program = Opened("ncnn", NcnnModel(files[".param"].decode(), files[".bin"]).program())
    return lambda *inputs: program.outputs(inputs)


_FORMATS: Mapping[str, tuple[Callable[[nn.Module, tuple[Tensor, ...]], Files], Callable[[Files], Run]]] = {
    ".onnx": (_write_onnx, _read_onnx),
    ".pt2": (_write_pt2, _read_pt2),
    ".xml": (_write_ir, _read_ir),
    ".param": (_write_ncnn, _read_ncnn),
    ".tflite": (_write_tflite, _read_tflite),
}
