"""What every model family owes, over every file of the folder; the CIFAR ResNets in particular."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from htas import models
from htas.models import ModelFamily
from htas.models.cifar_resnet import CifarResNet
from htas.models.custom import Custom
from htas.models.imagenet_resnet import ImageNetResNet
from htas.models.mobilenet_v2 import MobileNetV2
from htas.models.vgg import Vgg
from htas.plugins import find, names
from htas.run.networks import build
from htas.testing import FamilyContract

FAMILIES = names(models)


GIVEN: dict[str, dict[str, Any]] = {"custom": {"factory": f"{__name__}:own"}, "vgg": {"depth": 11}}
"""Options for the tests."""


def own(num_classes: int = 3, width: int = 8) -> nn.Module:
    """A user's network."""
    stem = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def default(name: str) -> ModelFamily:
    return find(models, ModelFamily, name)(**GIVEN.get(name, {}))  # type: ignore[type-abstract]


class TestEveryFamily(FamilyContract):
    """All files of the folder."""

    @pytest.fixture(params=FAMILIES)
    def plugin(self, request: pytest.FixtureRequest) -> ModelFamily:
        return default(request.param)

    def test_its_title_builds_it(self, plugin: ModelFamily) -> None:
        built, named = plugin.build(10), build(plugin.title, 10)
        assert [tuple(p.shape) for p in built.parameters()] == [tuple(p.shape) for p in named.parameters()]


def test_the_weights_are_drawn_as_tas_draws_them() -> None:
    module = CifarResNet(20).build(10)
    wide = module.get_submodule("stages.2.2.conv2.conv")
    assert isinstance(wide, nn.Conv2d)
    assert float(wide.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)  # fan out
    classifier = module.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    assert float(classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.15)
    assert not classifier.bias.any()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(bool((norm.weight == 1).all()) and not norm.bias.any() for norm in norms)


def test_the_base_shortcuts_are_those_of_tas() -> None:
    basic = CifarResNet(14).build(10)
    kinds = [type(part) for part in basic.get_submodule("stages.1.0.shortcut").children()]
    assert kinds == [nn.AvgPool2d, nn.Conv2d]
    assert isinstance(basic.get_submodule("stages.0.0.shortcut"), nn.Identity)
    deep = CifarResNet(11, "bottleneck").build(10)
    assert isinstance(deep.get_submodule("stages.0.0.shortcut.norm"), nn.BatchNorm2d)


def test_the_names_of_bottleneck_networks_say_so() -> None:
    assert CifarResNet(20).title == "cifar_resnet:20"
    assert CifarResNet(164, "bottleneck").title == "cifar_resnet:164:bottleneck"
    assert CifarResNet(20).member(2) == "cifar_resnet:14"
    assert CifarResNet(29, "bottleneck").member(2) == "cifar_resnet:20:bottleneck"


@pytest.mark.parametrize(
    ("depth", "block"), [(2, "basic"), (21, "basic"), (-4, "basic"), (2, "bottleneck"), (32, "bottleneck")]
)
def test_a_depth_that_does_not_fit_its_block_is_refused(depth: int, block: str) -> None:
    each = 6 if block == "basic" else 9
    with pytest.raises(ValueError, match=rf"must be {each}n \+ 2 with block = '{block}' .*got {depth}$"):
        CifarResNet(depth, block)  # type: ignore[arg-type]


# -- the families of large images, and the user's own ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "params"),
    [
        (ImageNetResNet(18), 11_689_512),
        (ImageNetResNet(34), 21_797_672),
        (ImageNetResNet(50), 25_557_032),
        (MobileNetV2(), 3_504_872),
        (Vgg(16, "large"), 138_365_992),
    ],
    ids=lambda value: value.title if isinstance(value, ModelFamily) else "",
)
def test_a_family_has_the_published_parameters(family: ModelFamily, params: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(type(family), "reset", lambda self, module: None)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in family.build(1000).parameters()) == params


@pytest.mark.parametrize(
    ("make", "given", "said"),
    [
        (lambda: ImageNetResNet(20), 20, "family.depth must be 18, 34, 50"),
        (lambda: MobileNetV2(0), 0, "family.percent must be 1 or more"),
        (lambda: Vgg(12), 12, "family.depth must be 11, 13, 16, 19"),
        (lambda: Vgg(11, "huge"), "'huge'", "family.head must be 'small' or 'large'"),  # type: ignore[arg-type]
        (lambda: Custom("nets"), "'nets'", "family.factory must be 'package.module:function'"),
    ],
)
def test_an_option_of_a_family_that_cannot_be_is_refused(make: Any, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}, got {given}$"):
        make()


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module `own_nets`, in a folder from which Python imports."""
    path = tmp_path / "own_nets.py"
    path.write_text(
        "from torch import nn\n"
        "def make(): return nn.Conv2d(3, 4, 1)\n"
        "def with_classes(classes): return nn.Conv2d(3, classes, 1)\n"
        "def two(classes, width): return nn.Conv2d(3, width, 1)\n"
        "def fails(classes):\n    return nn.Conv2d(3, 4, 1, groups=2)\n"
        "def number(): return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return path


def test_a_network_of_the_users_own_is_what_the_function_returns(nets: Path) -> None:
    plain, other = Custom("own_nets:make").build(7), Custom("own_nets:with_classes").build(7)
    assert isinstance(plain, nn.Conv2d) and plain.out_channels == 4
    assert isinstance(other, nn.Conv2d) and other.out_channels == 7
    assert isinstance(build("custom:own_nets:make", 2), nn.Conv2d)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("own_nets:two", "own_nets:two must take nothing or the number of classes; it takes classes, width: wrap it"),
        ("own_nets:number", "own_nets:number must return an nn.Module, it returned int"),
        ("own_nets:none", "own_nets has no function 'none'; it has make, with_classes, two, fails, number"),
        ("own_net:make", "there is no module 'own_net'; run where own_net.py lies"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_in_one_sentence(nets: Path, factory: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Custom(factory).build(7)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_factory_that_raises_is_named_with_the_users_file_and_line(nets: Path) -> None:
    with pytest.raises(ValueError, match=rf"^own_nets:fails raised ValueError: .* \({nets}, line 6\)$"):
        Custom("own_nets:fails").build(7)
    nets.with_name("broken_nets.py").write_text("import torch\nmake = torch.nothing\n")
    with pytest.raises(
        ValueError, match=r"^broken_nets cannot be imported: AttributeError: .*broken_nets.py, line 2\)$"
    ):
        Custom("broken_nets:make").build(7)


@pytest.mark.parametrize("factory", ["ending_nets:make", "ended_nets:make"])
def test_a_factory_that_ends_the_program_is_refused(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ending_nets.py").write_text("import sys\n\n\ndef make():\n    sys.exit(3)\n")
    (tmp_path / "ended_nets.py").write_text("import sys\n\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="SystemExit: 3"):
        Custom(factory).build(10)


def test_what_is_made_of_a_users_network_is_made_anew_when_its_file_changes(nets: Path) -> None:
    before = Custom("own_nets:make").source
    assert "groups=2" in before
    nets.write_text(nets.read_text() + "# changed\n")
    assert Custom("own_nets:make").source != before
    assert ImageNetResNet().source == ""


def test_a_factory_of_other_outputs_than_the_data_have_classes_is_refused(nets: Path) -> None:
    family, images = Custom("own_nets:with_classes"), (torch.zeros(2, 3, 8, 8),)
    with pytest.raises(ValueError, match=r"own_nets:with_classes must give logits \[N, 7\], as the data set has"):
        family.check(family.build(7), images, 7)
    with pytest.raises(ValueError, match=r"own_nets:make does not run on images of shape \(2, 1, 8, 8\): RuntimeError"):
        Custom("own_nets:make").check(Custom("own_nets:make").build(7), (torch.zeros(2, 1, 8, 8),), 7)
    default("custom").check(default("custom").build(7), images, 7)
