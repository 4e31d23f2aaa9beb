"""LiteRT computes what PyTorch computes, from files that are written here step by step."""

import sys

import mobile
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.export import export
from htas.formats.onnx import write_layer
from htas.formats.onnx_network import write_network
from htas.formats.tflite import TfliteWriter
from htas.formats.written import Opened
from htas.graph.layer import Layer
from htas.models.cifar_resnet import CifarResNet
from htas.models.mobilenet_v2 import MobileNetV2
from htas.testing import RuntimeContract
from htas.testing.runtime import LAYERS, spread_norms

MORE = {
    "linear on pixels": mobile.LINEAR_ON_PIXELS,
    "pointwise with stride": mobile.POINTWISE_WITH_STRIDE,
    "wide pool": mobile.WIDE_POOL,
    "dilated": Layer("conv", 4, 6, (9, 9), (3, 3), padding=(2, 2), dilation=(2, 2), activation="relu6"),
    "more outputs than groups": Layer("conv", 4, 8, (9, 9), (3, 3), padding=(1, 1), groups=4, norm=True),
}


@pytest.fixture(scope="module", autouse=True)
def package():
    return pytest.importorskip("ai_edge_litert.interpreter")


class TestLiteRT(RuntimeContract):
    """What every runtime must keep."""

    runtime = "litert"
    lacks = mobile.LITERT_LACKS


@pytest.mark.parametrize("layer", MORE.values(), ids=MORE.keys())
@pytest.mark.parametrize("batch", [1, 3])
def test_further_layers_compute_what_their_modules_do(layer, batch, monkeypatch):
    mobile.computes(mobile.opened("litert", batch=batch), layer, monkeypatch)


def kinds(writer):
    writer.content()
    return [step.kind for step in writer.steps]


def test_layers_are_the_steps_of_the_converter():
    """Those that litert-torch 0.10.0 writes: norms and activations go into the convolution, padding only where SAME
    would pad one side more."""
    expected = {
        "conv, norm, relu": ["PAD", "CONV_2D"], "conv": ["CONV_2D"], "depthwise, relu6": ["DEPTHWISE_CONV_2D"],
        "linear, tanh": ["FULLY_CONNECTED", "TANH"], "add": ["ADD"], "global pool": ["MEAN"],
    }  # fmt: skip
    for name, steps in expected.items():
        writer = TfliteWriter(LAYERS[name])
        write_layer(writer, LAYERS[name], LAYERS[name].build(), 2)
        assert kinds(writer) == steps


def test_a_linear_layer_on_pixels_moves_nothing():
    layer = MORE["linear on pixels"]
    writer = TfliteWriter(layer)
    write_layer(writer, layer, layer.build(), 2)
    assert kinds(writer) == ["FULLY_CONNECTED"]


@pytest.mark.parametrize("model", [CifarResNet(8), MobileNetV2()], ids=["resnet", "mobilenet"])
def test_networks_are_written_without_a_change_of_layout(model):
    network, images = spread_norms(model.build(10)).eval(), torch.randn(2, 3, 32, 32)
    writer = TfliteWriter()
    write_network(writer, network, (images,))
    assert "TRANSPOSE" not in kinds(writer) and "RELU" not in kinds(writer)[:1]
    with torch.no_grad():
        expected = network(images)
    (output,) = Opened("litert", writer.program((images,))).outputs((images,))
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()


class Twice(nn.Module):
    """Reads a convolution before and after its activation, shuffles channels, and slices them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        before = self.conv(images)
        out = F.relu(before) + self.norm(before) * torch.sigmoid(before)
        batch, channels, *size = out.shape
        out = out.view(batch, 2, channels // 2, *size).transpose(1, 2).reshape(batch, channels, *size)
        one, two = out.chunk(2, 1)
        out = torch.cat([two, F.hardsigmoid(one)], 1)
        return self.linear(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_values_that_are_read_twice_stay_what_they_are():
    mobile.opened("litert").compile(spread_norms(Twice()).eval(), (torch.randn(2, 3, 8, 8),))  # compares the outputs


def test_a_file_takes_any_batch_and_gives_images_with_the_channels_last(tmp_path, package):
    assert export(spread_norms(Twice()).eval(), torch.randn(1, 3, 8, 8), tmp_path / "twice.tflite") < 1e-4
    interpreter = package.Interpreter(str(tmp_path / "twice.tflite"))
    (about,) = interpreter.get_input_details()
    assert list(about["shape"]) == [1, 8, 8, 3] and about["name"] == "input0"
    assert list(interpreter.get_output_details()[0]["shape"]) == [1, 4, 4, 4]


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.up(self.conv(images))


def test_a_step_that_is_not_written_is_refused_by_its_layer(tmp_path):
    with pytest.raises(UserError, match=r"not written for LiteRT yet \(ConvTranspose\); the cause is layer 'up'"):
        mobile.opened("litert").compile(Upsampled(), (torch.randn(2, 3, 8, 8),))
    with pytest.raises(UserError, match=r"not written for LiteRT yet \(ConvTranspose\); export to ONNX"):
        export(Upsampled(), torch.randn(1, 3, 8, 8), tmp_path / "up.tflite")
    assert not list(tmp_path.iterdir())


def test_without_the_package_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r"'litert' needs the package ai_edge_litert.*pip install 'htas\[litert\]'"):
        mobile.opened("litert")
