"""Every runtime computes what PyTorch computes, and leaves the model and the process as they were."""

import os
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import htas.runtimes
from htas.bench import CudaTimer, HostTimer
from htas.layer import ACTIVATIONS, Layer
from htas.plugins import names
from htas.runtimes import Runtime, open_runtime
from htas.runtimes._onnx import layer_graph
from htas.runtimes._parity import largest_difference
from htas.target import Target

RUNTIMES = names(htas.runtimes)

CONV = Layer("conv", 3, 5, (9, 8), (3, 3), padding=(1, 1))
LAYERS = {
    "conv": CONV,
    "conv with bias": Layer("conv", 3, 5, (9, 8), (3, 3), bias=True),
    "conv, norm and relu": Layer("conv", 3, 5, (9, 8), (3, 3), (2, 2), (1, 1), norm=True, activation="relu"),
    "uneven conv": Layer("conv", 4, 6, (9, 8), (1, 3), (1, 2), (0, 2), (1, 2), groups=2),
    "depthwise conv": Layer("conv", 6, 6, (8, 8), (3, 3), padding=(1, 1), groups=6, norm=True, activation="relu6"),
    "linear": Layer("linear", 7, 5, (1, 1), bias=True),
    "linear without bias, norm": Layer("linear", 7, 5, (1, 1), norm=True, activation="relu"),
    "max pool": Layer("max_pool", 4, 4, (9, 8), (3, 3), (2, 2), (1, 1)),
    "dilated max pool": Layer("max_pool", 4, 4, (9, 8), (2, 2), (1, 1), (0, 0), (2, 2)),
    "average pool": Layer("avg_pool", 4, 4, (9, 8), (3, 3), (2, 2), (1, 1)),
    "global pool": Layer("global_pool", 4, 4, (9, 8)),
    "add": Layer("add", 4, 4, (9, 8)),
    "add, norm and relu": Layer("add", 4, 4, (9, 8), norm=True, activation="relu"),
    **{f"conv and {name}": Layer("conv", 3, 5, (6, 6), (3, 3), norm=True, activation=name) for name in ACTIVATIONS},
}


class Residual(nn.Module):
    """Small, but with all that a residual network has; dropout and norms tell eval mode from training."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        out = self.norm(self.first(images)).relu()
        out = self.dropout(out) + out
        return self.last(out.mean((2, 3)))


def spread_norms(module: nn.Module) -> nn.Module:
    """Norms that change something: fresh ones are the identity in eval mode."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return module


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return spread_norms(Residual())


def opened(name: str, **fields: object) -> Runtime:
    return open_runtime(Target(runtime=name, **{"batch": 2, "threads": 1, "image": (3, 8, 8), **fields}))


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_program_computes_what_pytorch_computes(name, network):
    example, other = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    program = opened(name).compile(network, (example,))
    program.run()
    with torch.no_grad():
        expected = network.eval()(other)
    torch.testing.assert_close(program.outputs(other), expected)


@pytest.mark.parametrize("name", RUNTIMES)
def test_compiling_leaves_the_model_as_it_was(name, network):
    network.train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    program = opened(name).compile(network, (torch.randn(2, 3, 8, 8),))
    program.run()
    assert all(part.training for part in network.modules())
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", RUNTIMES)
def test_training_on_does_not_change_a_program(name, network):
    images = torch.randn(2, 3, 8, 8)
    program = opened(name).compile(network, (images,))
    before = program.outputs(images)
    with torch.no_grad():
        network.last.weight.zero_()
    assert torch.equal(program.outputs(images), before)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("layer", [CONV, LAYERS["linear"], LAYERS["add"]], ids=lambda layer: layer.op)
def test_a_layer_compiles_at_the_targets_batch(name, layer):
    program = opened(name).compile_layer(layer)
    program.run()
    assert program.outputs(*layer.example(2)).shape[:2] == (2, layer.outputs)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_describes_itself_in_words(name):
    about = opened(name).describe()
    assert about["torch"] == torch.__version__
    assert all(isinstance(key, str) and isinstance(value, str) and value for key, value in about.items())


@pytest.mark.parametrize("name", RUNTIMES)
def test_on_the_cpu_the_hosts_clock_is_read(name):
    assert isinstance(opened(name).timer(), HostTimer)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_session_restores_the_number_of_threads(name):
    before = torch.get_num_threads()
    with pytest.raises(KeyError), opened(name, threads=before + 1).session():
        raise KeyError
    assert torch.get_num_threads() == before


def test_eager_computes_with_the_targets_threads():
    with opened("eager", threads=3).session():
        assert torch.get_num_threads() == 3


def test_a_runtime_that_does_not_exist_names_those_that_do():
    with pytest.raises(ValueError, match="no runtime called 'onxruntime'; did you mean 'onnxruntime'"):
        opened("onxruntime")


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_written_directly_computes_what_the_module_does(layer):
    from onnxruntime import InferenceSession

    torch.manual_seed(0)
    module, example = spread_norms(layer.build()), layer.example(2)
    session = InferenceSession(layer_graph(layer, module, 2), providers=["CPUExecutionProvider"])
    fed = [argument.name for argument in session.get_inputs()]
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(fed, example, strict=True)})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), module(*example), rtol=1e-4, atol=1e-5)
    assert found.shape[2:] == (() if layer.op == "linear" else layer.output_size)


def test_a_layers_norm_and_activation_are_fused_into_its_convolution(tmp_path):
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    layer = LAYERS["conv, norm and relu"]
    options = SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    InferenceSession(layer_graph(layer, layer.build(), 2), options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}
    assert not operators & {"BatchNormalization", "Relu"}


def test_hundreds_of_programs_live_side_by_side():
    runtime = opened("onnxruntime", threads=2)
    programs = [runtime.compile_layer(CONV) for _ in range(300)]
    for program in programs:
        program.run()
    assert programs[0].outputs(*CONV.example(2)).shape == (2, 5, 9, 8)


def test_onnxruntime_computes_with_the_targets_threads():
    runtimes = [opened("onnxruntime", threads=threads) for threads in (1, 2, 3)]
    runtimes[0].compile_layer(CONV)
    keep, counts = [], [len(os.listdir("/proc/self/task"))]
    for runtime in runtimes:
        keep.append(runtime.compile_layer(CONV))
        counts.append(len(os.listdir("/proc/self/task")))
    assert [after - before for before, after in pairwise(counts)] == [0, 1, 2]  # the caller is one of them


def test_a_network_that_onnx_cannot_hold_is_refused_in_a_sentence():
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2 if images.sum() > 0 else images

    with pytest.raises(
        ValueError, match=r"PyTorch cannot export this Branching to ONNX \(.*\); keep forward"
    ) as caught:
        opened("onnxruntime").compile(Branching(), (torch.randn(2, 3, 8, 8),))
    assert "\n" not in str(caught.value)


def test_onnxruntime_refuses_cuda_where_it_has_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"needs ONNX Runtime's CUDAExecutionProvider, this build has CPU.*; install"):
        opened("onnxruntime", device="cuda")


def test_equal_outputs_have_no_difference_and_close_ones_a_small_one():
    outputs = torch.tensor([[1.0, -100.0]])
    assert largest_difference(outputs, outputs, "it") == 0
    assert largest_difference(outputs, outputs + 0.0078125, "it") == 0.0078125  # 1e-4 x 100 is allowed


@pytest.mark.parametrize("found", [[[1.02, -100.0]], [[float("nan"), -100.0]], [[1.0]]])
def test_other_outputs_are_refused(found):
    with pytest.raises(ValueError, match="PyTorch"):
        largest_difference(torch.tensor([[1.0, -100.0]]), torch.tensor(found), "it")


@pytest.mark.gpu
def test_eager_on_cuda_computes_what_the_cpu_computes(network):
    runtime = opened("eager", device="cuda")
    images = torch.randn(2, 3, 8, 8)
    program = runtime.compile(network, (images,))
    program.run()
    with torch.no_grad():
        torch.testing.assert_close(program.outputs(images), network.eval()(images), rtol=1e-2, atol=1e-2)
    assert isinstance(runtime.timer(), CudaTimer)
    assert runtime.describe()["gpu"]
