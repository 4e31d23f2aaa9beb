"""ncnn computes what PyTorch computes; a layer written directly is what ncnn's own converter makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import mobile
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.export import export
from htas.formats.ncnn import NcnnModel, NcnnWriter, ncnn_network, ncnn_package
from htas.formats.onnx import Unknown, write_chain, write_layer
from htas.formats.written import Opened
from htas.graph.layer import Layer
from htas.models.cifar_resnet import CifarResNet
from htas.testing import RuntimeContract
from htas.testing.runtime import LAYERS, spread_norms

MORE = {
    "linear on pixels": mobile.LINEAR_ON_PIXELS,
    "linear on pixels without bias": Layer("linear", 8, 6, (4, 5)),
    "transposed conv": Layer("conv_transpose", 8, 6, (4, 5), (4, 4), (2, 2), (1, 1), bias=True, groups=2),
    "transposed conv with a norm": Layer(
        "conv_transpose", 8, 6, (4, 5), (3, 3), (2, 2), (1, 1), norm=True, activation="relu", output_padding=(1, 1)
    ),
    "3-d transposed conv": Layer("conv_transpose", 8, 6, (3, 4, 5), (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
    "odd size": Layer("conv", 3, 6, (7, 7), (3, 3), padding=(1, 1), norm=True, activation="leaky_relu"),
    "pointwise with stride": mobile.POINTWISE_WITH_STRIDE,
    "depthwise 3-d": Layer("conv", 6, 6, (4, 5, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1), groups=6),
    "wide pool": mobile.WIDE_POOL,
}


@pytest.fixture(scope="module", autouse=True)
def package():
    pytest.importorskip("ncnn")
    return pytest.importorskip("pnnx")


class TestNcnn(RuntimeContract):
    """What every runtime must keep."""

    runtime = "ncnn"
    lacks = mobile.NCNN_LACKS


@pytest.mark.parametrize("layer", MORE.values(), ids=MORE.keys())
@pytest.mark.parametrize("batch", [1, 3])
def test_further_layers_compute_what_their_modules_do(layer, batch, monkeypatch):
    mobile.computes(mobile.opened("ncnn", batch=batch), layer, monkeypatch)


@pytest.mark.parametrize(
    "layer",
    [layer for name, layer in {**LAYERS, **MORE}.items() if name not in mobile.NCNN_LACKS and "linear" not in name],
)
def test_a_layer_written_directly_has_the_steps_of_the_converter(layer):
    """By name and settings. A linear layer has others when it is a whole network, and the batch its rows."""
    if set(layer.size) == {1}:
        return  # inside a network, the converter makes a linear step of it
    module, writer = spread_norms(layer.build()).eval(), NcnnWriter()
    write_layer(writer, layer, module, 2)
    written, converted = writer.content(), ncnn_network(module, layer.example(2))

    def steps(model):
        lines = [line.split() for line in model.param.splitlines()[2:]]
        kept = [line for line in lines if line[0] != "Reshape"]  # of dimensions of one
        return [(line[0], settings(line[4 + int(line[2]) + int(line[3]) :])) for line in kept]

    def settings(words):
        pairs = dict(word.split("=") for word in words)
        numbers = {key: [round(float(each), 6) for each in value.split(",")] for key, value in pairs.items()}
        return {key: value for key, value in numbers.items() if value != [0]}

    assert steps(written) == steps(converted)
    if "BatchNorm" not in converted.param:  # a factor of the order of products
        assert len(written.weights) == len(converted.weights)


def test_a_chain_keeps_every_value_for_one_reader():
    writer, layer = NcnnWriter(), LAYERS["add"]
    write_chain(writer, layer, layer.build(), 2, first=False)
    lines = [line.split() for line in writer.content().param.splitlines()[2:]]
    read = [name for line in lines for name in line[4 : 4 + int(line[2])]]
    assert len(read) == len(set(read)) and [line[0] for line in lines].count("Split") == 1


def test_what_ncnn_lacks_is_unknown():
    writer = NcnnWriter()
    with pytest.raises(Unknown):
        writer.node("Resize", [writer.input("", (1, 3, 8, 8))])


class Dilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.pool = nn.MaxPool2d(2, dilation=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.first(images))


def test_a_network_with_a_step_that_ncnn_lacks_is_refused_by_its_layer():
    with pytest.raises(UserError, match=r"has no step nn.MaxPool2d.*the cause is layer 'pool' \(MaxPool2d\)"):
        mobile.opened("ncnn").compile(Dilated(), (torch.randn(2, 3, 8, 8),))


def test_a_network_that_cannot_be_traced_is_refused():
    class Whole(nn.Module):
        def forward(self, images):
            raise RuntimeError("no way")

    with pytest.raises(UserError, match="cannot export this Whole to TorchScript"):
        ncnn_network(Whole(), (torch.randn(1, 3, 8, 8),))


def test_whole_numbers_as_inputs_are_refused():
    with pytest.raises(UserError, match="ncnn gets inputs of real numbers"):
        ncnn_network(nn.Embedding(4, 3), (torch.zeros(1, 2, dtype=torch.long),))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_resnet_computes_the_same_at_every_batch(batch):
    model = spread_norms(CifarResNet(8).build(10)).eval()
    images = torch.randn(batch, 3, 32, 32)
    runtime = mobile.opened("ncnn", batch=batch, shapes=((3, 32, 32),))
    program = runtime.compile(model, (images,))  # compares the outputs
    assert program.outputs(images).shape == (batch, 10)
    assert torch.equal(program.rebuild().outputs(images), program.outputs(images))


class Two(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4)

    def forward(self, images: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        out = self.one(images) + self.two(words)[:, :, None, None]
        return out, F.relu(out).mean((2, 3))


def test_a_file_holds_all_inputs_and_outputs_and_takes_any_batch(tmp_path):
    difference = export(Two(), (torch.randn(1, 3, 8, 8), torch.randn(1, 5)), tmp_path / "two.param")
    assert difference < 1e-4 and sorted(path.name for path in tmp_path.iterdir()) == ["two.bin", "two.param"]
    assert (tmp_path / "two.param").read_text().startswith("7767517\n")


def test_the_threads_of_ncnn_sleep_soon_and_the_environment_stays(monkeypatch):
    script = (
        "import os; from htas.formats.ncnn import ncnn_package; import ctypes; ncnn_package();"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_DISPLAY_ENV": "verbose"}
    environment.pop("GOMP_SPINCOUNT", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None"]
    assert "GOMP_SPINCOUNT = '20000'" in done.stderr


def test_its_openmp_is_its_own_though_pytorch_has_one():
    """Else ncnn's calls would go to PyTorch's, whose threads spin: what one is told, the other must not know."""
    script = (
        "import ctypes, re, torch; from htas.formats.ncnn import ncnn_package; ncnn = ncnn_package();"
        "paths = set(re.findall(r'/\\S*torch/lib/lib\\S*omp\\S*', open('/proc/self/maps').read()));"
        "theirs = [ctypes.CDLL(path) for path in paths];"
        "ncnn.set_omp_dynamic(1); print(ncnn.get_omp_dynamic(), *(each.omp_get_dynamic() for each in theirs))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    mine, *theirs = map(int, done.stdout.split())
    assert mine == 1 and theirs and not any(theirs)


def test_without_the_package_a_sentence_says_how_to_get_it(monkeypatch):
    ncnn_package.cache_clear()
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(UserError, match=r"needs the package ncnn, .*pip install 'htas\[ncnn\]'"):
        mobile.opened("ncnn")
    monkeypatch.undo()
    ncnn_package.cache_clear()


def test_without_the_converter_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pnnx", None)
    with pytest.raises(UserError, match=r"a network for ncnn needs the package pnnx, .*pip install 'htas\[ncnn\]'"):
        mobile.opened("ncnn").compile(nn.ReLU(), (torch.randn(2, 3, 8, 8),))


def test_weights_that_are_too_short_are_refused():
    layer, writer = LAYERS["conv"], NcnnWriter()
    write_layer(writer, layer, layer.build(), 1)
    model = writer.content()
    with pytest.raises(UserError, match="cannot load what was written for it"):
        Opened("ncnn", NcnnModel(model.param, model.weights[:40]).program())
