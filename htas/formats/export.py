"""A network as a file that others can run: ONNX, OpenVINO's, or PyTorch's own .pt2. Compared before it is written."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from htas.data.nests import tensors_in
from htas.errors import UserError
from htas.files import write_bytes
from htas.formats.onnx import cannot_export, network_graph, quiet
from htas.formats.parity import largest_difference
from htas.graph.modes import copied
from htas.plugins import needed
from htas.text import listing

PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO computes in bf16 by itself where the processor can."""
Run = Callable[..., object]
"""Gives a tensor, or several."""


def export(model: nn.Module, example: Tensor | Sequence[Tensor], path: Path) -> float:
    """The largest absolute difference between the file's outputs and PyTorch's, on random inputs of two batch sizes.

    The suffix of the path chooses the format: `.onnx`, `.pt2`, or `.xml` (OpenVINO's, with a `.bin` next to it). The
    example is a tensor, or one for each input, [batch, channels, height, width]; the file takes any batch. The model is
    exported in eval mode, and stays as it is.
    Raises UserError for another suffix, a network that cannot be exported, and outputs that differ by more than 1e-4
    of the largest; no file is written then.
    """
    if path.suffix not in _FORMATS:
        raise UserError(f"cannot export to {path.name!r}: the suffix must be one of {listing(_FORMATS)}")
    write, read = _FORMATS[path.suffix]
    network = copied(model).eval().cpu()
    inputs = tuple(each.detach().cpu() for each in ((example,) if isinstance(example, Tensor) else example))
    # an exporter takes a batch of one for a constant
    content = write(network, tuple(each.repeat(2, *[1] * (each.ndim - 1)) for each in inputs))
    difference = _check(network, read(content), inputs, str(path))
    if path.suffix == ".xml":
        _save_ir(content, path)
    else:
        write_bytes(path, content)
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


def _read_onnx(content: bytes) -> Run:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 3  # errors
    session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

    return run


def _read_ir(content: bytes) -> Run:
    compiled = _openvino().Core().compile_model(_openvino().Core().read_model(content), "CPU", PRECISE)

    def run(*inputs: Tensor) -> list[Tensor]:
        outputs = compiled([tensor.numpy() for tensor in inputs])
        return [torch.from_numpy(outputs[port].copy()) for port in compiled.outputs]

    return run


def _save_ir(content: bytes, path: Path) -> None:
    """The weights first: a reader looks for the .xml."""
    model = _openvino().Core().read_model(content)
    with TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        _openvino().save_model(model, str(draft), compress_to_fp16=False)
        write_bytes(path.with_suffix(".bin"), draft.with_suffix(".bin").read_bytes())
        write_bytes(path, draft.read_bytes())


def _openvino() -> Any:
    return needed("openvino", "openvino", "an .xml file")


def _write_pt2(network: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    buffer = io.BytesIO()
    with quiet():
        try:
            batch = {0: torch.export.Dim("batch")}
            shapes = tuple(batch for _ in example)
            torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), buffer)
        except Exception as error:  # the exporter raises many kinds
            raise UserError(cannot_export(network, "pt2", error)) from error
    return buffer.getvalue()


_write_onnx = partial(network_graph, dynamic=True)
_FORMATS: Mapping[str, tuple[Callable[[nn.Module, tuple[Tensor, ...]], bytes], Callable[[bytes], Run]]] = {
    ".onnx": (_write_onnx, _read_onnx),
    ".pt2": (_write_pt2, lambda content: torch.export.load(io.BytesIO(content)).module()),
    ".xml": (_write_onnx, _read_ir),
}
