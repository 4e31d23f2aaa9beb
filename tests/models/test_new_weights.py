"""New weights of a user's network: whatever its modules compute them from, and what nobody draws."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from htas.graph.draws import draw_again
from htas.models import ModelFamily
from htas.run.user import UserNetwork

IMAGES = torch.zeros(2, 3, 8, 8)


class Attending(nn.Module):
    """Attention over patches, with parameters that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 5, 16))
        self.scale = nn.Parameter(torch.full((16,), 1e-4))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.patches(images).flatten(2).transpose(1, 2)
        rows = torch.cat([self.first.expand(len(rows), -1, -1), rows], 1) + self.places
        return self.head((rows + self.scale * self.attention(rows, rows, rows)[0])[:, 0])


class Halved(nn.Module):
    """A parametrization that only goes one way."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Exponential(nn.Module):
    """A parametrization of positive weights alone."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.exp()

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.log()


def halved(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrize.register_parametrization(layer, "weight", Halved())


def family(module: nn.Module) -> UserNetwork:
    return UserNetwork.of(module, (IMAGES,), trained=False)


def after_training(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(0.123)
    return module


@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm, orthogonal, halved])
def test_weights_that_a_layer_computes_are_drawn_like_those_of_the_layer(wrap, capsys) -> None:  # type: ignore[no-untyped-def]
    module = nn.Sequential(wrap(nn.Conv2d(3, 6, 3)), nn.Flatten(), wrap(nn.Linear(216, 5)))
    one = after_training(family(module).build(5))
    before = copy.deepcopy(one)
    other, names, modes = copy.deepcopy(one), list(one.state_dict()), [part.training for part in one.modules()]
    other.load_state_dict({name: each + 1 for name, each in one.state_dict().items()})
    for each in (one, other):
        torch.manual_seed(3)
        family(module).reset(each)
        assert list(each.state_dict()) == names and [part.training for part in each.modules()] == modes
    for tensor, twin, trained in zip(one.parameters(), other.parameters(), before.parameters(), strict=True):
        assert torch.equal(tensor, twin), "nothing of the values before is left"
        assert not torch.equal(tensor, trained) and tensor.requires_grad
    assert capsys.readouterr().err == ""


def test_a_norm_of_weights_begins_as_torch_begins_it() -> None:
    module = weight_norm(nn.Conv2d(3, 6, 3))
    torch.manual_seed(3)
    plain = nn.Conv2d(3, 6, 3)
    torch.manual_seed(3)
    assert draw_again(module) == []
    assert torch.allclose(module.weight, plain.weight) and torch.equal(module.bias, plain.bias)
    spectral = spectral_norm(nn.Conv2d(3, 6, 3)).eval()
    after_training(spectral)
    draw_again(spectral)
    largest = torch.linalg.matrix_norm(spectral.weight.flatten(1), 2)
    assert float(largest.detach()) == pytest.approx(1, abs=0.05)


def test_attention_is_drawn_and_what_no_layer_draws_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    mine = family(Attending().eval())
    network = after_training(mine.build(3))
    before = {name: each.detach().clone() for name, each in network.named_parameters()}
    mine.reset(network)
    same = [name for name, each in network.named_parameters() if torch.equal(each, before[name])]
    assert same == ["first", "places", "scale"]
    assert not network.get_parameter("attention.out_proj.bias").any(), "as attention itself begins"
    assert "new weights: no module draws first, places, scale, so" in capsys.readouterr().err
    mine.reset(network)
    assert capsys.readouterr().err == ""


def test_a_parameter_is_named_by_its_whole_path(capsys: pytest.CaptureFixture[str]) -> None:
    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.Parameter(torch.ones(3))

    class Holding(Bank):
        def __init__(self) -> None:
            super().__init__()
            self.body = Bank()

    family(Attending().eval()).reset(Holding())
    assert "no module draws bank, body.bank, so" in capsys.readouterr().err


def test_what_a_module_draws_by_itself_is_not_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.Parameter(torch.ones(3))
            self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)

        def reset_parameters(self) -> None:
            self.bank.data.fill_(2)

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.Parameter(torch.ones(3))

        def reset_parameters(self, std: float) -> None:
            raise AssertionError

    layer = nn.Linear(2, 64)
    nn.init.ones_(layer.bias)
    positive = nn.utils.parametrize.register_parametrization(layer, "bias", Exponential())
    module = nn.ModuleDict({"own": Own(), "asking": Asking(), "norm": nn.BatchNorm2d(3), "positive": positive})
    assert draw_again(module) == ["asking.bank", "positive.parametrizations.bias.original"]


def test_a_plain_network_draws_what_it_drew(capsys: pytest.CaptureFixture[str]) -> None:
    class Plain(UserNetwork):
        def reset(self, module: nn.Module) -> None:
            ModelFamily.reset(self, module)

    module, states = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)), []
    for reset in (Plain("plain", "").reset, lambda net: [net[place].reset_parameters() for place in (0, 1, 3)]):
        torch.manual_seed(0)
        reset(module)
        states.append([each.clone() for each in (*module.state_dict().values(), torch.get_rng_state())])
    assert all(map(torch.equal, *states)) and capsys.readouterr().err == ""
