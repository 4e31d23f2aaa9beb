"""What is written computes what PyTorch computes, at any batch, and lies in one file."""

from pathlib import Path

import pytest
import torch
from one_in import one_in
from torch import Tensor, nn

from htas.formats.export import export
from htas.formats.onnx_network import is_written
from htas.metrics.macs import count_macs
from htas.metrics.memory import Memory
from htas.timing.target import Target


class Small(nn.Module):
    """Dropout and a norm tell eval mode from training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.dropout(self.norm(self.conv(images)).relu()).mean((2, 3)))


class Random(nn.Module):
    """Computes something else every time."""

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.rand_like(images)


class Branching(nn.Module):
    """Looks at the values of a tensor."""

    def forward(self, images: Tensor) -> Tensor:
        return images * 2 if images.sum() > 0 else images


class FixedBatch(nn.Module):
    """Works for two images only."""

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.ones(2, 1, 1, 1)


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    network = Small()
    nn.init.uniform_(network.norm.running_var, 0.5, 1.5)
    return network.train()


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
@pytest.mark.parametrize("batch", one_in(2, [4, 1]))
def test_what_is_written_computes_what_pytorch_computes(network, tmp_path, suffix, batch):
    difference = export(network, torch.randn(batch, 3, 8, 8), tmp_path / f"net{suffix}")
    assert 0 <= difference < 1e-5
    assert network.training


def test_an_onnx_file_stands_alone_and_takes_any_batch(network, tmp_path):
    from onnxruntime import InferenceSession

    path = tmp_path / "net.onnx"
    export(network, torch.randn(2, 3, 8, 8), path)
    alone = path.rename(tmp_path / "moved.onnx")
    assert list(tmp_path.iterdir()) == [alone]
    session = InferenceSession(alone, providers=["CPUExecutionProvider"])
    images = torch.randn(7, 3, 8, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network.eval()(images))


def test_a_pt2_file_takes_any_batch(network, tmp_path):
    path = tmp_path / "net.pt2"
    export(network, torch.randn(2, 3, 8, 8), path)
    images = torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(path).module()(images), network.eval()(images))


@pytest.mark.parametrize("name", ["net.pt", "net", "net.tf"])
def test_another_suffix_is_refused(network, tmp_path, name):
    with pytest.raises(ValueError, match=rf"cannot export to '{name}': the suffix must be one of .onnx, .pt2, .xml"):
        export(network, torch.randn(2, 3, 8, 8), tmp_path / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_outputs_that_differ_are_refused_and_leave_no_file(tmp_path, suffix):
    with pytest.raises(ValueError, match=r"net.* differs from PyTorch by up to"):
        export(Random(), torch.randn(2, 3, 8, 8), tmp_path / f"net{suffix}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("model", [Branching(), FixedBatch()], ids=["branching", "fixed batch"])
def test_a_network_that_cannot_be_exported_is_refused_in_a_sentence(tmp_path, capfd, suffix, model):
    with pytest.raises(ValueError, match=rf"PyTorch cannot export this {type(model).__name__} to \w+ \(") as caught:
        export(model, torch.randn(2, 3, 8, 8), tmp_path / f"net{suffix}")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not any(tmp_path.iterdir())


class Pair(nn.Module):
    """Two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(images).relu()
        return self.last(x.mean((2, 3))), x


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "xml"])
def test_all_outputs_of_a_network_are_compared(suffix: str, tmp_path: Path) -> None:
    assert export(Pair(), torch.randn(2, 3, 8, 8), tmp_path / f"pair.{suffix}") < 1e-5


class Keeping(Small):
    """Keeps tensors of its last run on itself."""

    def forward(self, images: Tensor) -> Tensor:
        self.features = [self.conv(images)]
        self._last = super().forward(images)
        return self._last


def test_a_network_that_has_just_been_trained_is_copied_everywhere(tmp_path: Path) -> None:
    """What it has kept of its last step has gradients, which copy.deepcopy refuses."""
    network, images = Keeping(), torch.randn(2, 3, 8, 8)
    network(images).sum().backward()
    target = Target(runtime="onnxruntime", batch=2, shapes=((3, 8, 8),))
    assert export(network, images, tmp_path / "net.onnx") < 1e-4
    assert count_macs(network, (3, 8, 8)) == 2 * 4 * 27 * 36 + 5 * 5  # its convolution runs twice
    is_written(network, (images,))
    assert Memory(target).measure([network])[0].estimate > 0
    assert network._last.requires_grad
