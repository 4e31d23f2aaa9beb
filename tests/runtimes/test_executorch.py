"""ExecuTorch computes what PyTorch computes. A program takes a second to export, so most tests are slow."""

import os
import sys

import mobile
import pytest
import torch
from torch import nn

from htas.errors import UserError
from htas.models.cifar_resnet import CifarResNet
from htas.testing import RuntimeContract
from htas.testing.runtime import LAYERS, Residual, spread_norms


@pytest.fixture(scope="module", autouse=True)
def package():
    return pytest.importorskip("executorch.exir")


@pytest.mark.slow
class TestExecuTorch(RuntimeContract):
    """What every runtime must keep."""

    runtime = "executorch"
    lacks = ("3-d conv, norm", "3-d max pool")


def test_a_network_computes_what_pytorch_computes_and_is_loaded_again():
    images, before = torch.randn(2, 3, 8, 8), dict(os.environ)
    program = mobile.opened("executorch").compile(spread_norms(Residual()).eval(), (images,))  # compares the outputs
    assert torch.equal(program.rebuild().outputs(images), program.outputs(images))
    assert {name: os.environ.get(name) for name in before} == before and "OPENVINO_LIB_PATH" not in os.environ


def test_a_chain_holds_the_layer_between_neighbours():
    one, other = mobile.opened("executorch").chain(LAYERS["add"])
    assert one.outputs(*torch.randn(2, 2, 1, 9, 8)).shape == other.outputs(*torch.randn(2, 2, 1, 9, 8)).shape


def test_its_pool_has_the_threads_of_the_target_and_then_those_of_before():
    mobile.opened("executorch")
    pool = sys.modules["executorch.extension.pybindings.portable_lib"]
    before = pool._threadpool_get_thread_count()
    with mobile.opened("executorch", threads=before + 1).session():
        assert pool._threadpool_get_thread_count() == before + 1
    assert pool._threadpool_get_thread_count() == before


def test_a_layer_that_it_lacks_is_refused_by_name():
    with pytest.raises(UserError, match=r"ExecuTorch cannot run the layer max_pool 1x2x2.*replace it, or use"):
        mobile.opened("executorch").compile_layer(LAYERS["3-d max pool"])


def test_a_network_that_cannot_be_exported_is_refused():
    class Branching(nn.Module):
        def forward(self, images):
            return images * 2 if images.sum() > 0 else images

    with pytest.raises(UserError, match="cannot export this Branching to ExecuTorch"):
        mobile.opened("executorch").compile(Branching(), (torch.randn(2, 3, 8, 8),))


@pytest.mark.slow
def test_a_resnet_computes_the_same():
    mobile.opened("executorch", shapes=((3, 32, 32),)).compile(
        CifarResNet(8).build(10).eval(), (torch.randn(2, 3, 32, 32),)
    )


def test_without_the_package_a_sentence_says_how_to_get_it(monkeypatch):
    mobile.opened("executorch")
    module = sys.modules["htas.runtimes.executorch"]
    module._package.cache_clear()
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(UserError, match=r"'executorch' needs the package executorch.*pip install 'htas\[executorch\]'"):
        mobile.opened("executorch")
    monkeypatch.undo()
    module._package.cache_clear()
