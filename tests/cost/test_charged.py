"""Layers are charged for the channels that they have where the trace cannot tell the channels of tokens."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.flop_counter import FlopCounterMode

from htas.cost.counts import CountCost
from htas.cost.tables import ParameterSum, pairs
from htas.graph import Arch, Network, resize, trace
from htas.graph.network import Step
from htas.spaces.space import Space


class Tokens(nn.Module):
    """Two linear layers on tokens [N, tokens, C], and a head over their mean."""

    def __init__(self, outputs: int = 12) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 20), nn.Linear(20, outputs)
        self.head = nn.Linear(outputs, 5)

    def tokens(self, x: Tensor) -> Tensor:
        """The pixels of an image, four to a token."""
        pixels = x.flatten(2).transpose(1, 2)
        return pixels.reshape(len(x), -1, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(torch.relu(self.one(self.tokens(x)))).mean(1))


class OfLayer(Tokens):
    """Tokens of a convolution whose channels a step in their order binds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)

    def tokens(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.stem(x).flatten(2).transpose(1, 2).cumsum(-1)
        return tokens


class Residual(Tokens):
    """The layers beside a shortcut from the images, which binds what the second makes."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        return self.head((tokens + self.two(torch.relu(self.one(tokens)))).mean(1))


class Scored(Tokens):
    """A layer with one output, which has no label."""

    def __init__(self) -> None:
        super().__init__(1)


NETWORKS: dict[str, Callable[[], Tokens]] = {
    "of images": Tokens,
    "of a layer": OfLayer,
    "beside a shortcut": Residual,
    "one output": Scored,
}


def archs(network: Network) -> list[Arch]:
    rng = random.Random(0)
    drawn = ({name: rng.randint(2, site.base) for name, site in network.widths.items()} for _ in range(3))
    return [network.base, *(Arch(widths, {}) for widths in drawn)]


def multiply_adds(module: nn.Module) -> float:
    """Those of a pass, with a bias as one for each output."""
    biases: list[int] = []
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.register_forward_hook(lambda _, __, out: biases.append(out.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, 3, 16, 16))
    return counter.get_total_flops() / 2 + sum(biases)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_on_tokens_are_charged_for_what_a_pass_takes(name: str) -> None:
    network = trace(NETWORKS[name](), torch.zeros(1, 3, 16, 16))
    for arch in archs(network):
        small = resize(network, arch)
        layers = [template.at(read, made) for template, read, made in ParameterSum(network).layers(arch)]
        assert layers == [step.layer for step in network.steps(arch) if step.layer is not None]
        assert sum(layer.macs for layer in layers) == network.macs(arch) == multiply_adds(small)
        assert ParameterSum(network).cost(arch) == sum(each.numel() for each in small.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_over_certain_widths_is_the_count_of_the_arch(name: str) -> None:
    network = trace(NETWORKS[name](), torch.zeros(1, 3, 16, 16))
    space = Space("all", {site: tuple(range(1, one.base + 1)) for site, one in network.widths.items()}, {})
    for arch in archs(network):
        certain = {
            site: one_hot(torch.tensor(width - 1), network.sites[site].base).double()
            for site, width in arch.widths.items()
        }
        expected = CountCost(network).expected(space, certain, {})
        assert float(expected) == multiply_adds(resize(network, arch))


def test_layers_are_calibrated_at_the_channels_that_they_read() -> None:
    network = trace(Residual(), torch.zeros(1, 3, 16, 16))
    space = Space("halves", {"one": (10, 20)}, {})
    linear = {key: value for key, value in pairs(network, [space], 9).items() if key.op == "linear"}
    assert list(linear.values()) == [({12}, {10, 20}), ({10, 20}, {12}), ({12}, {5})]


def test_a_trace_fails_where_it_charges_a_layer_for_other_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    before = property(
        lambda step: (
            (step.node.consumed, step.inputs[0]) if step.inputs else (step.node.segments, step.outputs),
            (step.node.segments, step.outputs),
        )
    )
    monkeypatch.setattr(Step, "charged", before)
    with pytest.raises(AssertionError, match=r"one is charged for \(64, 20\) channels as Layer\("):
        trace(Tokens(), torch.zeros(1, 3, 16, 16))
