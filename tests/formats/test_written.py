"""Programs that an engine of the agent opens on this machine."""

import pytest
import torch

from htas.errors import UserError
from htas.formats.onnx import layer_graph
from htas.formats.written import Opened, Written
from htas.graph.layer import Layer
from htas.timing.remote import engines

CONV = Layer("conv", 3, 5, (6, 6), (3, 3), padding=(1, 1))


def test_a_program_computes_what_its_module_does():
    module, images = CONV.build().eval(), torch.randn(2, 3, 6, 6)
    program = Opened("onnxruntime", Written(layer_graph(CONV, module, 2), CONV.example(2)))
    with torch.no_grad():
        assert torch.allclose(program.outputs((images,))[0], module(images), atol=1e-5)


def test_what_cannot_run_is_refused_when_it_is_opened(monkeypatch):
    def refuse(self):
        raise engines.Refused("run", "a step has no kernel for these sizes")

    monkeypatch.setattr(engines.OnnxRuntime, "run", refuse)
    with pytest.raises(UserError, match="a step has no kernel for these sizes"):
        Opened("onnxruntime", Written(layer_graph(CONV, CONV.build(), 2), CONV.example(2)))
