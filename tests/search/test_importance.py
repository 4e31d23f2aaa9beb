"""What channels are worth, by gates and by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.data.task import CLASSIFY
from htas.errors import UserError
from htas.graph import Arch, trace
from htas.models.cifar_resnet import CifarResNet
from htas.search import importance
from htas.search.importance import POWER, _scale, derivatives, losses
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
    with pytest.raises(UserError, match=r"importance of .* is not finite"):
        derivatives(network, net, [batch()], CLASSIFY)


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
