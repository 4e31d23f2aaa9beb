"""What only training does is done while a supernet trains, too."""

import copy
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from one_in import one_in
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from htas.graph import Arch, Network, resize, trace
from htas.search.draw import Draw
from htas.search.supernet import Supernet
from htas.spaces.space import Space

SHAPE = (4, 3, 8, 8)


def layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Path(nn.Module):
    """Stochastic depth, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.5)
        return x * mask.div_(0.5)


class Depth(nn.Module):
    """Stochastic depth, as torchvision has it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(0.5)
        noise.div_(0.5)
        return x * noise


class NormAct(nn.BatchNorm2d):
    """A norm with an activation inside, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        training = self.training
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1))


class Block(nn.Module):
    def __init__(self, width: int, drop: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.drop = layers(width, 2 * width), layers(2 * width, width), drop

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.two(self.one(x)))


class Net(nn.Module):
    """With something between its layers."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.last = layers(3, 8), middle, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.middle(self.stem(x)).mean((2, 3)))


class Dropped(Net):
    def forward(self, x: Tensor) -> Any:
        x = F.dropout2d(self.middle(self.stem(x)), 0.3, self.training)
        return self.last(F.dropout(x.mean((2, 3)), p=0.5, training=self.training))


class Noisy(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.middle(self.stem(x))
        if self.training:
            x = x + 0.5 * torch.randn_like(x)
        return self.last(x.mean((2, 3)))


class TwoHeads(Net):
    """With an auxiliary head, and outputs of another form in training, as GoogLeNet has it."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__(middle)
        self.aux = nn.Sequential(layers(8, 6), nn.Dropout(0.7), nn.Flatten(), nn.Linear(6 * 64, 5))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        aux = self.aux(x) if self.training else None
        x = self.last(self.middle(x).mean((2, 3)))
        return {"main": x, "aux": aux} if self.training else x


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (each(x).flatten(2).transpose(1, 2) for each in (self.query, self.key, self.value))
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5 if self.training else 0.0)
        return out.transpose(1, 2).reshape(x.shape)


def blocks(drop: type[nn.Module] | None) -> nn.Sequential:
    return nn.Sequential(*(Block(8, drop() if drop else nn.Identity()) for _ in range(3)))


NETWORKS = {
    "dropout by a function": lambda: Dropped(blocks(None)),
    "dropout by a module": lambda: Net(blocks(nn.Dropout)),
    "stochastic depth, timm": lambda: Net(blocks(Path)),
    "stochastic depth, torchvision": lambda: Net(blocks(Depth)),
    "norm by a function": lambda: Net(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), NormAct(8), Block(8, Path()))),
    "noise": lambda: Noisy(blocks(None)),
    "auxiliary head": lambda: TwoHeads(blocks(Path)),
    "attention": lambda: Net(nn.Sequential(layers(8, 8), Attention(8))),
}


def space_of(network: Network) -> Space:
    return Space(
        "all",
        {name: tuple(range(site.multiple, site.base + 1, site.multiple)) for name, site in network.widths.items()},
        {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()},
    )


def archs(network: Network) -> list[Arch]:
    rng = random.Random(0)
    return [network.base, *(space_of(network).sample(rng) for _ in range(4))]


@pytest.mark.parametrize("adds", ["join", "project"])
@pytest.mark.parametrize("name", one_in(2, NETWORKS))
def test_a_supernet_in_training_is_the_resized_network_in_training(name: str, adds: Any) -> None:
    torch.manual_seed(0)
    module = NETWORKS[name]()
    network = trace(module, torch.randn(1, *SHAPE[1:]), adds=adds)
    assert "without what only training does" not in network.checked
    supernet = Supernet(network, space_of(network), lambda module: None, norms="shared", mix="pad")
    supernet.inherit(module)
    inputs, state = torch.randn(SHAPE), copy.deepcopy(supernet.state_dict())
    for arch in archs(network):
        if any(step.node.kind == "project" and step.layer for step in network.steps(arch)):
            continue  # its projections have weights of their own
        for training in (True, False):
            outputs = []
            supernet.load_state_dict(state)
            small = resize(network, arch)
            for each in (small, supernet):
                torch.manual_seed(1)
                more = (Draw.of(arch, network),) if each is supernet else ()
                outputs.append(each.train(training)(inputs.clone(), *more))
            one, other = map(tree_leaves, outputs)
            assert type(outputs[0]) is type(outputs[1])
            for wanted, found in zip(one, other, strict=True):
                assert torch.allclose(wanted, found, atol=1e-5), (arch, training)


def test_a_supernet_learns_from_every_head() -> None:
    network = trace(TwoHeads(blocks(Path)), torch.randn(1, *SHAPE[1:]))
    supernet = Supernet(network, space_of(network), lambda module: None, norms="shared", mix="pad")
    supernet.train()(torch.randn(SHAPE), Draw.of(network.base, network))["aux"].sum().backward()
    assert all(part.grad is not None for part in supernet.body.get_submodule("aux").parameters())


@pytest.mark.parametrize("adds", ["join", "project"])
def test_a_projected_network_does_in_training_what_its_class_does(adds: Any) -> None:
    """Dropout of everything leaves the bias, in training alone."""
    module = Dropped(blocks(None))
    network = trace(module, torch.randn(1, *SHAPE[1:]), adds=adds)
    widths = {name: max(1, site.base // (2 + number % 2)) for number, (name, site) in enumerate(network.widths.items())}
    small = resize(network, Arch(widths, network.base.depths))
    outputs = [small.train(training)(torch.ones(SHAPE)) for training in (True, True, False, False)]
    assert not torch.allclose(outputs[0], outputs[1])
    assert torch.allclose(outputs[2], outputs[3])


def test_the_outputs_of_eval_mode_are_there_in_training_too() -> None:
    """With the dropout of training before them."""

    class Head(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            aux = self.aux(x) if self.training else None
            x = self.last(F.dropout(self.middle(x).mean((2, 3)), 0.5, self.training))
            return (x, aux) if self.training else x

    network = trace(Head(blocks(Path)), torch.randn(1, *SHAPE[1:]))
    supernet, draw = Supernet(network, space_of(network), lambda module: None), Draw.of(network.base, network)
    inputs = torch.randn(SHAPE)
    main, _ = supernet.train()(inputs, draw)
    supernet.evaluated = True
    assert supernet(inputs, draw).shape == main.shape
    assert not torch.equal(supernet(inputs, draw), supernet(inputs, draw))


class Skipped(Block):
    """Stochastic depth by Python's random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand(1).item() < 0.5 else super().forward(x)


class SkippedByPython(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.5 else super().forward(x)


@pytest.mark.parametrize("block, place", [(Skipped, "test_training.py, line "), (SkippedByPython, "random numbers")])
def test_what_python_decides_at_random_is_left_out_and_named(block: type[Block], place: str) -> None:
    network = trace(Net(block(8, nn.Identity())), torch.randn(1, *SHAPE[1:]))
    assert network.training is None
    assert place in network.checked.partition("without what only training does")[2]
