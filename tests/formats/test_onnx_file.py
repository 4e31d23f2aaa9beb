"""An ONNX file is looked at before memory is taken: its constants, sizes and places of data."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htas.errors import UserError
from htas.formats.onnx_file import OnnxFile

onnx = pytest.importorskip("onnx")


def model(shape: tuple[int, ...] = (1, 3), **changes: Any) -> Any:
    """One matrix product."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", kind, [3, 2], [0.5] * 6)
    weight.raw_data = b"\0\0\0\x3f" * 6
    weight.ClearField("float_data")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", kind, (1, 2))], [weight],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refused(path: Path, content: Any) -> str:
    path.write_bytes(content.SerializeToString())
    with pytest.raises(UserError) as caught:
        OnnxFile(path, 1).example()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    file = OnnxFile(tmp_path / "m.onnx", 1)
    assert (file.count, file.macs, file.example()[0].shape) == (6, 6, (1, 3))


def test_a_constant_of_a_trillion_numbers_is_refused_by_its_figure(tmp_path: Path) -> None:
    content = model()
    content.graph.initializer[0].dims[:] = [10**12, 1]
    assert "w is of shape [1000000000000, 1], 4,000,000,000,000 bytes" in refused(tmp_path / "m.onnx", content)


@pytest.mark.parametrize("shape", [(10**12, 3), (1, 3 * 10**12)])
def test_an_input_that_no_memory_holds_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert "000,000 numbers, and" in refused(tmp_path / "m.onnx", model(shape))


def test_a_file_without_outputs_or_steps_is_refused(tmp_path: Path) -> None:
    content = model()
    del content.graph.output[:]
    assert "has no outputs" in refused(tmp_path / "m.onnx", content)


@pytest.mark.parametrize("place", ["../x.bin", "/etc/passwd", "a/../../x.bin", "link.bin", ""])
def test_data_outside_of_its_folder_are_refused(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "x.bin").write_bytes(bytes(24))
    (folder / "link.bin").symlink_to("../x.bin")
    content = model()
    tensor = content.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    assert "outside of the model's folder" in refused(folder / "m.onnx", content)


def test_data_that_are_missing_or_short_are_refused(tmp_path: Path) -> None:
    content = model()
    tensor = content.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    assert "w needs 24 bytes of w.bin, which is missing" in refused(tmp_path / "m.onnx", content)
    (tmp_path / "w.bin").write_bytes(bytes(20))
    assert "which has 20 bytes" in refused(tmp_path / "m.onnx", content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("strides", [0, 1]),
        ("dilations", [1, -1]),
        ("kernel_shape", [2**40, 1]),
        ("group", 0),
        ("pads", [0, 0, 0, 2**40]),
    ],
)
def test_a_step_of_which_a_runtime_would_crash_is_refused(name: str, value: object, tmp_path: Path) -> None:
    content = model()
    content.graph.node.append(onnx.helper.make_node("Conv", ["x", "w"], ["z"], "odd", **{name: value}))
    assert f"odd has {name} = {value if isinstance(value, list) else [value]}" in refused(tmp_path / "m.onnx", content)


def test_a_step_without_ends_counts_nothing(tmp_path: Path) -> None:
    content = model()
    content.graph.node.append(onnx.helper.make_node("", ["x", "w"], []))
    (tmp_path / "m.onnx").write_bytes(content.SerializeToString())
    assert OnnxFile(tmp_path / "m.onnx", 1).macs == 6


CONTENT = model().SerializeToString()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), max_size=8), cut=st.booleans()
)
def test_other_bytes_are_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: bool
) -> None:
    content = bytearray(CONTENT)
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.onnx"
    path.write_bytes(content[: changes[0][0]] if cut and changes else content)
    small = SimpleNamespace(available=10**8)  # else a changed size may take minutes to be drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: small)
        try:
            file = OnnxFile(path, 1)
            assert file.count >= 0 and file.macs >= 0
            file.example()
        except UserError as error:
            assert str(error)
