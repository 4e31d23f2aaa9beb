"""A network as a file that others can run: ONNX, OpenVINO's, or PyTorch's own .pt2. Compared before it is written."""

import io
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from htas.files import write_bytes
from htas.runtimes._build import needed
from htas.runtimes._onnx import cannot_export, network_graph, quiet
from htas.runtimes._parity import largest_difference
from htas.text import listing

PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO computes in bf16 by itself where the processor can."""
Run = Callable[[Tensor], object]
"""Gives a tensor, or several."""


def export(model: nn.Module, example: Tensor, path: Path) -> float:
    """The largest absolute difference between the file's outputs and PyTorch's, on random inputs of two batch sizes.

    The suffix of the path chooses the format: `.onnx`, `.pt2`, or `.xml` (OpenVINO's, with a `.bin` beside it). The
    example is [batch, channels, height, width]; the file takes any batch. The model is exported in eval mode, and stays
    as it is.
    Raises ValueError for another suffix, a network that cannot be exported, and outputs that differ by more than 1e-4
    of the largest; no file is written then.
    """
    if path.suffix not in _FORMATS:
        raise ValueError(f"cannot export to {path.name!r}: the suffix must be one of {listing(_FORMATS)}")
    write, read = _FORMATS[path.suffix]
    network, example = deepcopy(model).eval().cpu(), example.detach().cpu()
    # an exporter takes a batch of one for a constant
    content = write(network, example.repeat(2, *[1] * (example.ndim - 1)))
    difference = _check(network, read(content), example, str(path))
    if path.suffix == ".xml":
        _save_ir(content, path)
    else:
        write_bytes(path, content)
    return difference


@torch.inference_mode()
def _check(network: nn.Module, run: Run, example: Tensor, what: str) -> float:
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch in (len(example), len(example) + 1):
        images = torch.randn(batch, *example.shape[1:], generator=generator)
        pairs = zip(tree_leaves(network(images)), tree_leaves(run(images)), strict=True)
        differences += [largest_difference(expected, found, what) for expected, found in pairs]
    return max(differences)


def _write_onnx(network: nn.Module, example: Tensor) -> bytes:
    return network_graph(network, (example,), dynamic=True)


def _read_onnx(content: bytes) -> Run:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 3  # errors
    session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: [torch.from_numpy(found) for found in session.run(None, {name: images.numpy()})]


def _read_ir(content: bytes) -> Run:
    compiled = _openvino().Core().compile_model(_openvino().Core().read_model(content), "CPU", PRECISE)

    def run(images: Tensor) -> list[Tensor]:
        found = compiled(images.numpy())
        return [torch.from_numpy(found[port].copy()) for port in compiled.outputs]

    return run


def _save_ir(content: bytes, path: Path) -> None:
    """The weights first: a reader looks for the .xml."""
    model = _openvino().Core().read_model(content)
    with TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        _openvino().save_model(model, str(made), compress_to_fp16=False)
        write_bytes(path.with_suffix(".bin"), made.with_suffix(".bin").read_bytes())
        write_bytes(path, made.read_bytes())


def _openvino() -> Any:
    return needed("openvino", "openvino", "openvino")


def _write_pt2(network: nn.Module, example: Tensor) -> bytes:
    buffer = io.BytesIO()
    with quiet():
        try:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), buffer)
        except Exception as error:  # the exporter raises many kinds
            raise ValueError(cannot_export(network, "pt2", error)) from error
    return buffer.getvalue()


def _read_pt2(content: bytes) -> Run:
    run: Run = torch.export.load(io.BytesIO(content)).module()
    return run


_FORMATS: Mapping[str, tuple[Callable[[nn.Module, Tensor], bytes], Callable[[bytes], Run]]] = {
    ".onnx": (_write_onnx, _read_onnx),
    ".pt2": (_write_pt2, _read_pt2),
    ".xml": (_write_onnx, _read_ir),
}
