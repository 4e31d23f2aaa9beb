"""What a runtime must keep."""

import time
from collections.abc import Collection, Mapping

import pytest
import torch
from torch import Tensor, nn

from htas import runtimes
from htas.errors import UserError
from htas.formats.parity import tolerance
from htas.graph.layer import Layer
from htas.plugins import find
from htas.runtimes import Program, Runtime, open_runtime
from htas.timing.bench import Timer
from htas.timing.target import Target, Value

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SLOWER = 50
"""Times `build_seconds` that the quickest of a few layers may take to build: busy machines are slower, not so much."""
LAYERS = {
    "conv": Layer("conv", 3, 5, (9, 8), (3, 3), padding=(1, 1)),
    "conv, sigmoid": Layer("conv", 3, 5, (9, 8), (3, 3), bias=True, activation="sigmoid"),
    "conv, norm, relu": Layer("conv", 16, 24, (9, 8), (3, 3), (2, 2), (1, 1), norm=True, activation="relu"),
    "conv, norm, silu": Layer("conv", 16, 18, (6, 6), (3, 3), padding=(1, 1), norm=True, activation="silu"),
    "pointwise, strided, gelu": Layer("conv", 16, 32, (8, 8), (1, 1), (2, 2), activation="gelu"),
    "uneven conv, elu": Layer("conv", 4, 6, (9, 8), (1, 3), (1, 2), (0, 2), (1, 2), groups=2, activation="elu"),
    "depthwise, relu6": Layer("conv", 6, 6, (8, 8), (3, 3), padding=(1, 1), groups=6, norm=True, activation="relu6"),
    "one pixel, hardswish": Layer("conv", 16, 4, (1, 1), activation="hardswish"),
    "linear, tanh": Layer("linear", 7, 5, (1, 1), bias=True, activation="tanh"),
    "linear, norm, leaky relu": Layer("linear", 7, 5, (1, 1), norm=True, activation="leaky_relu"),
    "1-d conv, norm, relu": Layer("conv", 6, 8, (15,), (5,), (2,), (2,), (1,), norm=True, activation="relu"),
    "1-d transposed conv": Layer("conv_transpose", 6, 8, (7,), (4,), (2,), (1,), (1,), bias=True),
    "1-d max pool": Layer("max_pool", 4, 4, (16,), (3,), (2,), (1,), (1,)),
    "1-d average pool": Layer("avg_pool", 4, 4, (16,), (2,), (2,), (0,), (1,)),
    "1-d global pool": Layer("global_pool", 4, 4, (9,)),
    "1-d add": Layer("add", 4, 4, (9,), activation="relu"),
    "3-d conv, norm": Layer("conv", 3, 5, (4, 6, 7), (3, 3, 1), (1, 2, 1), (1, 1, 0), (1, 1, 1), norm=True),
    "3-d max pool": Layer("max_pool", 4, 4, (4, 6, 6), (1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1)),
    "max pool": Layer("max_pool", 4, 4, (9, 8), (3, 3), (2, 2), (1, 1)),
    "dilated max pool": Layer("max_pool", 4, 4, (9, 8), (2, 2), (1, 1), (0, 0), (2, 2)),
    "average pool": Layer("avg_pool", 4, 4, (9, 8), (3, 3), (2, 2), (1, 1)),
    "global pool": Layer("global_pool", 4, 4, (9, 8)),
    "add": Layer("add", 4, 4, (9, 8)),
    "add, norm, hardsigmoid": Layer("add", 4, 4, (9, 8), norm=True, activation="hardsigmoid"),
}
"""Every operator that is measured, and every activation once."""


class Residual(nn.Module):
    """Small, with all that a residual network has; dropout and norms tell eval mode from training."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in, [N, 5] out."""
        out = self.norm(self.first(images)).relu()
        out = self.dropout(out) + out
        logits: Tensor = self.last(out.mean((2, 3)))
        return logits


def spread_norms(module: nn.Module) -> nn.Module:
    """The module with norms that change something: fresh ones are the identity in eval mode."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return module


class RuntimeContract:
    """Inherit it in a class `TestMine` that sets `runtime`, as target.runtime names it: `module:Class`."""

    runtime: str
    options: Mapping[str, Value] = {}
    """target.options"""
    device: str = "cpu"
    lacks: Collection[str] = ()
    """Names of LAYERS that the runtime has nothing like: it must refuse them, and name the layer."""

    @pytest.fixture
    def plugin(self) -> str:
        """The runtime's name; a fixture of this name in a subclass may give several."""
        return self.runtime

    @pytest.fixture
    def network(self) -> nn.Module:
        """Takes [N, 3, 8, 8]."""
        torch.manual_seed(0)
        return spread_norms(Residual())

    def opened(self, plugin: str, **fields: object) -> Runtime:
        """The runtime for images of 3x8x8 at batch 2 with one thread, or as the fields say."""
        target = {"batch": 2, "threads": 1, "shapes": ((3, 8, 8),), "device": self.device, "options": self.options}
        return open_runtime(Target(runtime=plugin, **{**target, **fields}))  # type: ignore[arg-type]

    def precisions(self, plugin: str) -> tuple[str, ...]:
        """What it computes in on this machine."""
        kind: type[Runtime] = find(runtimes, Runtime, plugin)  # type: ignore[type-abstract]
        return kind.precisions(self.device)

    def is_refused(self, runtime: Runtime, layer: Layer) -> bool:
        """Whether the runtime lacks the layer; it must say so, then."""
        if layer not in [LAYERS[name] for name in self.lacks]:
            return False
        for build in (runtime.compile_layer, runtime.chain):
            with pytest.raises(UserError, match=f"the layer {layer.op}"):
                build(layer)
        return True

    @staticmethod
    def close(outputs: Tensor, expected: Tensor, runtime: Runtime) -> None:
        """Assert that outputs, fp32 on the CPU, are eager PyTorch's as closely as the precision allows."""
        assert outputs.shape == expected.shape and outputs.dtype == torch.float32 and outputs.device.type == "cpu"
        assert (outputs - expected).abs().max() <= tolerance(runtime.target) * expected.abs().max()

    def test_it_says_in_what_it_computes(self, plugin: str) -> None:
        precisions = self.precisions(plugin)
        assert precisions and set(precisions) <= set(PRECISIONS), f"it runs in nothing on {self.device}: {precisions}"
        for precision in PRECISIONS:
            if precision in precisions:
                self.opened(plugin, precision=precision)
            else:
                with pytest.raises(UserError, match=f"no {precision} on {self.device}"):
                    self.opened(plugin, precision=precision)

    def test_it_describes_itself_in_words(self, plugin: str) -> None:
        about = self.opened(plugin).describe()
        assert all(isinstance(key, str) and isinstance(value, str) and value for key, value in about.items())
        assert about, "readings must say which versions they depend on"

    def test_its_timer_reads_a_clock(self, plugin: str, network: nn.Module) -> None:
        runtime = self.opened(plugin)
        timer = runtime.timer()
        assert isinstance(timer, Timer) and timer.shortest > 0
        with runtime.session():
            assert timer.time(runtime.compile(network, (torch.randn(2, 3, 8, 8),)).run, 2) >= 0

    def test_its_session_restores_the_number_of_threads(self, plugin: str) -> None:
        before = torch.get_num_threads()
        with pytest.raises(KeyError), self.opened(plugin, threads=before + 1).session():
            raise KeyError
        assert torch.get_num_threads() == before

    def test_a_network_computes_what_pytorch_computes(self, plugin: str, network: nn.Module) -> None:
        images, others = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            expected = network.eval()(others)
        for precision in self.precisions(plugin):
            runtime = self.opened(plugin, precision=precision)
            with runtime.session():
                program = runtime.compile(network, (images,))
                program.run()
                outputs = program.outputs(others)
            self.close(outputs, expected, runtime)
            if precision != "fp32":
                assert not torch.equal(outputs, expected), f"it computes in fp32 where {precision} is meant"

    def test_a_program_is_a_copy(self, plugin: str, network: nn.Module) -> None:
        """The model stays as it was, what becomes of it changes no program, and neither do other inputs."""
        network.train()
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        images, others = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        example = images.clone()
        runtime = self.opened(plugin)
        with runtime.session():
            program = runtime.compile(network, (example,))
            program.run()
            assert all(part.training for part in network.modules())
            assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
            outputs = program.outputs(images)
            assert not torch.equal(program.outputs(others), outputs)
            with torch.no_grad():
                for weight in network.parameters():
                    weight.zero_()
            assert torch.equal(program.outputs(images), outputs), "training on changes the program"
            assert torch.equal(example, images), "the example was changed"

    def test_a_program_built_again_computes_the_same(self, plugin: str, network: nn.Module) -> None:
        images, runtime = torch.randn(2, 3, 8, 8), self.opened(plugin)
        with runtime.session():
            program = runtime.compile(network, (images,))
            outputs = program.outputs(images)
            runtime.renew()
            again = program.rebuild() if program.rebuild is not None else runtime.compile(network, (images,))
            again.run()
            self.close(again.outputs(images), outputs, runtime)
            self.close(program.outputs(images), outputs, runtime)

    @pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
    def test_a_layer_computes_what_its_module_does(
        self, plugin: str, layer: Layer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In every precision; its weights are those of `layer.build()`."""
        module, example = spread_norms(layer.build()).eval(), layer.example(2)
        monkeypatch.setattr(Layer, "build", lambda _: module)
        with torch.no_grad():
            expected = module(*example)
        for precision in self.precisions(plugin):
            runtime = self.opened(plugin, precision=precision)
            if self.is_refused(runtime, layer):
                continue
            with runtime.session():
                program = runtime.compile_layer(layer)
                program.run()
                self.close(program.outputs(*example), expected, runtime)
                if program.rebuild is not None:
                    self.close(program.rebuild().outputs(*example), expected, runtime)
            module.float()

    @pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
    def test_a_chain_is_the_layer_between_neighbours_where_the_runtime_has_one(self, plugin: str, layer: Layer) -> None:
        runtime = self.opened(plugin)
        if type(runtime).chain is Runtime.chain:
            assert runtime.chain(layer) is None and self.device not in runtime.chained
            return
        if self.is_refused(runtime, layer):
            return
        pair = runtime.chain(layer)
        assert pair is not None or self.device not in runtime.chained, "`chained` promises a chain of every layer"
        with runtime.session():
            for program in pair or ():
                assert isinstance(program, Program)
                program.run()

    def test_a_layer_takes_about_as_long_to_build_as_it_says(self, plugin: str) -> None:
        runtime, seconds = self.opened(plugin), []
        with runtime.session():
            for layer in (LAYERS["conv"], LAYERS["linear, tanh"], LAYERS["add"]):
                started = time.monotonic()
                runtime.compile_layer(layer).run()
                seconds.append(time.monotonic() - started)
        assert min(seconds) <= SLOWER * runtime.build_seconds, f"build_seconds is {min(seconds):.2g} here"
