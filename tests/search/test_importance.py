"""What channels are worth, by gates and by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.data.task import CLASSIFY
from htas.errors import UserError
from htas.graph import Arch, Network, trace
from htas.models.cifar_resnet import CifarResNet
from htas.search import importance
from htas.search.importance import POWER, _scale, derivatives, images_at_once, losses
from htas.search.inherited import settle
from htas.spaces.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (3, 8, 8)


class Gated(nn.Module):
    """Two convolutions and a head; the channels between them have gates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        x = F.gelu(self.one(x))
        x = x if gates is None else x * gates[:, :, None, None]
        return self.head(self.two(x).mean((2, 3)))


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *SHAPE, generator=generator), torch.arange(count) % 3


def test_derivatives_are_those_of_gates_on_channels_image_by_image() -> None:
    net = Gated().eval()
    network = trace(net, torch.zeros(1, *SHAPE))
    images, labels = batch()
    known = derivatives(network, net, [(images, labels)], CLASSIFY)
    gates = torch.ones(4, 6, requires_grad=True)
    F.cross_entropy(net(images, gates), labels, reduction="sum").backward()
    site = next(name for name, site in network.widths.items() if site.producers == ("one",))
    torch.testing.assert_close(known[site], gates.grad)


def test_a_channel_that_two_layers_read_counts_what_both_make_of_it() -> None:
    """The residual stream of a network with blocks: gates at every reader of it, as one."""
    family = CifarResNet(14)
    torch.manual_seed(0)
    net = family.build(3).eval()
    network = trace(net, torch.zeros(1, *SHAPE))
    images, labels = batch()
    known = derivatives(network, net, [(images, labels)], CLASSIFY)
    site = next(name for name, site in network.widths.items() if len(site.producers) > 1)
    readers = {name for name, _, _ in network.sites[site].consumers if not name.endswith("norm")}
    gate = torch.ones(network.sites[site].base, requires_grad=True)
    hooks = [
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, args: (args[0] * gate.view(1, -1, *[1] * (args[0].dim() - 2)),)
        )
        for name in readers
    ]
    F.cross_entropy(net(images), labels, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(known[site].sum(0), gate.grad, rtol=1e-4, atol=1e-6)


def test_losses_grow_with_what_is_left_out_and_cut_blocks_cost_once() -> None:
    net = CifarResNet(14).build(3).eval()
    network = trace(net, torch.zeros(1, *SHAPE))
    widths = {
        name: tuple(sorted({1, site.base // 2, site.base, 2 * site.base})) for name, site in network.widths.items()
    }
    space = Space("tiny", widths, {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()})
    loss = losses(network, space, derivatives(network, net, [batch()], CLASSIFY))
    assert loss(network.base) == pytest.approx(0)
    for site in widths:
        by_width = [
            loss(space.arch({**network.base.widths, **network.base.depths, site: width})) for width in widths[site]
        ]
        assert by_width == sorted(by_width, reverse=True) and by_width[0] > 0 > by_width[-1]
    inner, shallow = "stages.0.1.conv1.conv", {**network.base.depths, "stages.0": 1}
    one, two = (Arch({**network.base.widths, inner: width}, shallow) for width in (1, network.sites[inner].base))
    gates = derivatives(network, net, [batch()], CLASSIFY)
    assert loss(one) == loss(two) == pytest.approx(float(gates[inner].double().square().mean(0).sum() / 2))


def test_the_law_meets_the_sums_that_follow_it() -> None:
    """Channels whose sums are the law itself, and half as much of it."""
    atoms = 40
    sums = 0.5 * np.concatenate([[0.0], (np.arange(atoms - 1, 0, -1) / atoms) ** -POWER - 1])
    assert _scale(np.append(np.diff(sums), 9.0)) == pytest.approx(0.5)


def test_a_norm_that_a_function_computes_is_that_of_a_module() -> None:
    class Function(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
            ).relu()

    def gates(norm: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
        return derivatives(trace(net, torch.zeros(1, *SHAPE)), net, [batch()], CLASSIFY)

    one, other = gates(Function(6)), gates(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()))
    assert one.keys() == other.keys() and all(torch.equal(one[site], other[site]) for site in one)


def test_importance_that_is_not_finite_is_refused() -> None:
    net = Gated().eval()
    network = trace(net, torch.zeros(1, *SHAPE))
    with torch.no_grad():
        net.two.weight[0, 0, 0, 0] = math.inf
    with pytest.raises(UserError, match=r"importance of .* is not finite: its inputs are finite"):
        derivatives(network, net, [batch()], CLASSIFY)


def test_importance_of_inputs_that_are_no_numbers_is_not_blamed_on_the_network() -> None:
    net = Gated().eval()
    images, labels = batch()
    images[0, 0, 1, 1] = math.nan
    with pytest.raises(UserError, match=r"is not finite: inputs of the training data are NaN"):
        derivatives(trace(net, torch.zeros(1, *SHAPE)), net, [batch(), (images, labels)], CLASSIFY)


def test_norms_settle_to_the_statistics_of_the_images_they_see() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9)).eval()
    batches = [(torch.randn(8, *SHAPE) * scale + scale, None) for scale in (1.0, 3.0)]
    settle(net, batches)
    assert isinstance(net[1], nn.BatchNorm2d) and net[1].running_mean is not None
    expected = torch.stack([net[0](images).mean((0, 2, 3)) for images, _ in batches]).mean(0)
    torch.testing.assert_close(net[1].running_mean, expected)
    assert net[1].momentum == 0.1 and not net[1].training


def test_fewer_images_are_looked_at_together_where_maps_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    network = trace(CifarResNet(8).build(10), torch.zeros(2, 3, 32, 32))
    counts: list[int] = []
    model = network.module
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(lambda _, __, out: counts.append(out[0].numel()))
    model(torch.zeros(1, 3, 32, 32))
    monkeypatch.setattr(importance, "MEMORY", 12 * 12 * sum(counts))
    assert 6 <= importance.images_at_once(network, 32) <= 12, "layers without weights count, too"
    assert importance.images_at_once(network, 2) == 2
    monkeypatch.setattr(importance, "MEMORY", 1)
    assert importance.images_at_once(network, 32) == 1


def narrow_space(network: Network) -> Space:
    """Half of every width, and every depth."""
    widths = {name: (site.base // 2, site.base) for name, site in network.widths.items()}
    return Space("tiny", widths, {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()})


class One(nn.Module):
    """A block of one convolution, in which no channels are made but those of its output."""

    def __init__(self, width: int, *, residual: bool) -> None:
        super().__init__()
        self.conv, self.residual = nn.Conv2d(width, width, 3, padding=1), residual

    def forward(self, x: Tensor) -> Tensor:
        after = F.relu(self.conv(x))
        return x + after if self.residual else after


@pytest.mark.parametrize("residual", [True, False])
def test_a_block_without_channels_of_its_own_costs_what_it_adds_to_its_input(residual: bool) -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(One(6, residual=residual) for _ in range(3)))
    net = nn.Sequential(nn.Conv2d(3, 6, 3), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    network, (images, labels) = trace(net, torch.zeros(1, *SHAPE)), batch()
    loss = losses(network, narrow_space(network), derivatives(network, net, [(images, labels)], CLASSIFY))
    maps = [net[0](images)]
    for block in blocks:
        maps.append(block(maps[-1]))
        maps[-1].retain_grad()
    F.cross_entropy(net[2:](maps[-1]), labels, reduction="sum").backward()
    costs = []
    for before, after in itertools.pairwise(maps[1:]):
        assert after.grad is not None
        costs.append(float((after.grad * (after - before).detach()).sum((2, 3)).square().mean(0).sum() / 2))
    for depth in (1, 2, 3):
        assert loss(Arch(network.base.widths, {"1": depth})) == pytest.approx(sum(costs[depth - 1 :]), rel=1e-4)
    assert min(costs) > 0


def test_blocks_whose_change_passes_channels_of_their_own_cost_these() -> None:
    """Whatever leads around them: a shortcut, a norm, squeeze and excitation."""

    class Squeezed(nn.Module):
        def __init__(self, *, aside: bool) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
            self.down, self.up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
            self.aside = nn.Conv2d(6, 6, 1) if aside else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            y = self.two(F.relu(self.one(x)))
            return F.relu(self.aside(x) + y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True))))))

    for aside in (False, True):
        torch.manual_seed(0)
        blocks = nn.Sequential(*(Squeezed(aside=aside) for _ in range(3)))
        net = nn.Sequential(nn.Conv2d(3, 6, 3), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
        network = trace(net, torch.zeros(1, *SHAPE))
        assert ("1" in derivatives(network, net, [batch()], CLASSIFY)) == aside


def test_blocks_inside_blocks_cost_while_the_outer_one_is_kept() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
            self.chain = nn.Sequential(*(One(4, residual=True) for _ in range(3)))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.leave(self.chain(F.relu(self.enter(x))))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(Outer(), Outer()), nn.Flatten(), nn.Linear(216, 3)).eval()
    network = trace(net, torch.zeros(1, *SHAPE))
    loss = losses(network, narrow_space(network), derivatives(network, net, [batch()], CLASSIFY))

    def at(**depths: int) -> float:
        named = {"1.0.chain": 3, "1.1.chain": 3, "1": 2} | {name.replace("_", "."): n for name, n in depths.items()}
        return loss(Arch(network.base.widths, named))

    assert set(network.depths) == {"1", "1.0.chain", "1.1.chain"}
    assert at(**{"1.0.chain": 1}) > at(**{"1.0.chain": 2}) > 0 < at(**{"1.1.chain": 2}) < at(**{"1.1.chain": 1})
    assert at(**{"1.1.chain": 1}) <= at(**{"1": 1}) == at(**{"1": 1, "1.1.chain": 1})
    assert at(**{"1": 1, "1.0.chain": 1}) > at(**{"1": 1})


class Cosine(nn.Module):
    """An embedding compared with directions of classes, by no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv2d(3, 6, 3), nn.Linear(6, 8)
        self.classes = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor, gates: Tensor | float = 1.0) -> Tensor:
        x = F.normalize(self.embed(F.relu(self.conv(x)).mean((2, 3))), dim=1)
        return 4 * (x * gates) @ F.normalize(self.classes, dim=1).t()


class NonLocal(nn.Module):
    """Pixels that look at each other; channels of what they compare have gates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 3)
        self.query, self.key, self.value = (nn.Conv2d(6, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        x = F.relu(self.conv(x))
        query, key, value = (part(x).flatten(2) for part in (self.query, self.key, self.value))
        query = query if gates is None else query * gates[:, :, None]
        seen = torch.softmax(query.transpose(1, 2) @ key, -1) @ value.transpose(1, 2)
        return self.head((x + self.out(seen.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))).mean((2, 3)))


@pytest.mark.parametrize(("kind", "maker"), [(Cosine, "embed"), (NonLocal, "query")])
def test_channels_that_no_layer_reads_have_gates_where_they_end(kind: type[nn.Module], maker: str) -> None:
    torch.manual_seed(0)
    net, (images, labels) = kind().eval(), batch()
    network = trace(net, torch.zeros(1, *SHAPE))
    known = derivatives(network, net, [(images, labels)], CLASSIFY)
    gates = torch.ones(4, 8, requires_grad=True)
    F.cross_entropy(net(images, gates), labels, reduction="sum").backward()
    site = next(name for name, site in network.widths.items() if maker in site.producers)
    torch.testing.assert_close(known[site], gates.grad, rtol=1e-4, atol=1e-7)
    assert set(known) == set(network.widths)


def test_ends_of_blocks_with_widths_of_their_own_count_what_the_next_stage_reads() -> None:
    torch.manual_seed(0)
    net, (images, labels) = CifarResNet(14).build(3).eval(), batch()
    network = trace(net, torch.zeros(1, *SHAPE), adds="project")
    known = derivatives(network, net, [(images, labels)], CLASSIFY)
    assert set(known) == set(network.widths)
    gate = torch.ones(64, requires_grad=True)
    head = net.get_submodule(next(name for name, part in net.named_modules() if isinstance(part, nn.Linear)))
    with torch.enable_grad():
        hook = head.register_forward_pre_hook(lambda _, args: (args[0] * gate,))
        F.cross_entropy(net(images), labels, reduction="sum").backward()
        hook.remove()
    last = next(name for name in network.widths if name.startswith("stages.2.1.conv2"))
    torch.testing.assert_close(known[last].sum(0), gate.grad, rtol=1e-4, atol=1e-6)


class Steps(nn.Module):
    """Columns of an image as steps, before or behind the images."""

    def __init__(self, *, steps_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.hidden, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 8), nn.Linear(8, 3)
        self.steps_first = steps_first

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).mean(2)
        x = x.permute(2, 0, 1) if self.steps_first else x.permute(0, 2, 1)
        return self.head(F.relu(self.hidden(x))).mean(0 if self.steps_first else 1)


def test_images_that_are_not_the_first_dimension_are_looked_at_one_by_one() -> None:
    images, labels = batch(8)  # as many as there are steps
    found = []
    for net in (Steps(steps_first=False).eval(), Steps(steps_first=True).eval()):
        network = trace(net, torch.zeros(1, *SHAPE))
        count = images_at_once(network, 8)
        batches = zip(images.split(count), labels.split(count), strict=True)
        found.append((count, derivatives(network, net, batches, CLASSIFY)))
    (all_at_once, known), (alone, same) = found
    assert (all_at_once, alone) == (8, 1) and known.keys() == same.keys()
    for site in known:
        torch.testing.assert_close(known[site], same[site])


def test_a_network_whose_loss_does_not_change_is_refused() -> None:
    net = Gated().eval()
    with torch.no_grad():
        net.head.weight.zero_()
    with pytest.raises(UserError, match="the importance of every channel is 0"):
        derivatives(trace(net, torch.zeros(1, *SHAPE)), net, [batch()], CLASSIFY)


def test_a_network_of_which_only_blocks_are_free_has_their_losses() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(One(6, residual=True) for _ in range(3)))
    net = nn.Sequential(nn.Conv2d(3, 6, 3), blocks, nn.Flatten(), nn.Linear(216, 3)).eval()
    network = trace(net, torch.zeros(1, *SHAPE), ignored=("0",))
    known = derivatives(network, net, [batch()], CLASSIFY)
    assert not network.widths and set(known) == {"1"}
    by_depth = [losses(network, narrow_space(network), known)(Arch({}, {"1": depth})) for depth in (3, 2, 1)]
    assert 0 == by_depth[0] < by_depth[1] < by_depth[2]


def test_a_site_that_no_gate_tells_of_is_refused() -> None:
    net = Gated().eval()
    network = trace(net, torch.zeros(1, *SHAPE))
    gates = derivatives(network, net, [batch()], CLASSIFY)
    site = next(iter(network.widths))
    with pytest.raises(UserError, match=f"what channels of {site} are worth cannot be told"):
        losses(network, narrow_space(network), {name: each for name, each in gates.items() if name != site})
    fixed = Space("fixed", {name: (each.base,) for name, each in network.widths.items()}, {})
    assert losses(network, fixed, {})(network.base) == 0
