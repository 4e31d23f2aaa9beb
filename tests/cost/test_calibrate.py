"""The fit of whole networks on their layers, with planted figures."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from htas import runtimes
from htas.cost.calibrate import (
    MEMORY_SHARE,
    UNSTEADY,
    WEIGHT_BYTES,
    WEIGHT_COPIES,
    Calibrate,
    _pending,
    calibrate,
    cells,
    cost_model,
    fit_metric,
    lots,
    mended,
    sparing,
    spread,
    table,
    whole,
)
from htas.graph import Network, trace
from htas.graph.arch import Arch
from htas.graph.layer import Layer, Template
from htas.metrics import Case, Metric, OnRound, Pending
from htas.models.cifar_resnet import CifarResNet
from htas.plugins import find
from htas.runtimes import Runtime
from htas.spaces.space import Space
from htas.timing.measurement import Measurement
from htas.timing.target import Target


@cache
def network() -> Network:
    return trace(CifarResNet(14).build(10), torch.zeros(1, 3, 32, 32))


TRACED: dict[tuple[tuple[int, ...], ...], Network] = {}


def same_shapes(shapes: tuple[tuple[int, ...], ...], module: nn.Module) -> Network:
    """The trace of a network that is network() at other widths and depths; one for all whose parameters are alike."""
    if shapes not in TRACED:
        TRACED[shapes] = trace(module, torch.zeros(1, 3, 32, 32))
    return TRACED[shapes]


def space() -> Space:
    net = network()
    widths = {name: (site.base // 2, site.base, site.base * 2) for name, site in net.widths.items()}
    return Space("some", widths, {name: (1, 2) for name in net.depths})


def seconds(layer: Layer) -> float:
    return 1e-5 + 1e-9 * layer.macs if layer.macs else 2e-6


@dataclass(frozen=True)
class Planted(Metric):
    """A network takes a scale for every kind of operator, more for each layer, and a constant."""

    unit: ClassVar[str] = "s"
    strided: float = 1.4
    each: float = 3e-6
    constant: float = 1e-4
    noise: float = 0.0

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        rng = np.random.default_rng(0)
        return [Measurement((self.figure(case) * (1 + self.noise * rng.normal()),), self.unit) for case in cases]

    def figure(self, case: Case) -> float:
        if isinstance(case, Layer):
            return self.layer(case)
        return self.whole(case)

    def layer(self, layer: Layer) -> float:
        return seconds(layer)

    def whole(self, module: nn.Module) -> float:
        traced = same_shapes(tuple(tuple(each.shape) for each in module.parameters()), module)
        return self.of(traced, traced.base)

    def of(self, net: Network, arch: Arch) -> float:
        total = self.constant
        for use in net.uses(arch):
            scale = self.strided if max(use.layer.stride) > 1 else 0.8
            total += scale * seconds(use.layer) + self.each
        return total


@pytest.mark.slow
def test_a_planted_fit_is_recovered_on_archs_it_has_not_seen() -> None:
    net, metric = network(), Planted(Target(threads=1))
    content = calibrate(net, [space()], (metric, metric), Calibrate(networks=20), seed=0)
    cost = cost_model(net, content)
    rng = random.Random(5)
    for _ in range(20):
        arch = space().sample(rng)
        assert cost.cost(arch) == pytest.approx(metric.of(net, arch), rel=0.02)
    assert content.worst_error < 0.03
    assert cost.cost(net.base) == content.networks[0].measured == pytest.approx(metric.of(net, net.base))
    assert content.calibration.scales["conv 3x3 /2"] == pytest.approx(1.4, rel=0.1)


@pytest.mark.slow
def test_the_error_on_networks_left_out_grows_with_the_noise() -> None:
    net = network()
    exact, noisy = (
        calibrate(net, [space()], (metric, metric), Calibrate(), seed=0).mean_error
        for metric in (Planted(Target(threads=1), noise=noise) for noise in (0.0, 0.05))
    )
    assert exact < 0.01 < noisy < 0.10


@dataclass(frozen=True)
class Moody(Planted):
    """Every run is at another level."""

    runs: list[int] = field(default_factory=list)

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        self.runs.append(len(cases))
        return [each.scaled(1.0 + 0.1 * len(self.runs)) for each in super().measure(cases)]


@pytest.mark.slow
def test_networks_that_do_not_fit_into_memory_are_measured_in_parts_brought_to_one_level() -> None:
    net = network()
    archs = spread(net, [space()], 12, seed=0)
    bytes_of = WEIGHT_BYTES * WEIGHT_COPIES * sum(map(net.params, archs))
    for free, runs in ((10 * bytes_of, [12]), (bytes_of / MEMORY_SHARE / 2.5, [5, 5, 4]), (1.0, [2] * 11)):
        metric, plain = Moody(Target(threads=1)), Planted(Target(threads=1))
        found = whole(net, archs, metric, free=free)
        assert metric.runs == runs
        pending = [1.1 * plain.of(net, arch) for arch in archs]
        assert [each.estimate for each in found] == pytest.approx(pending)
    (one, other, last) = lots(net, archs, bytes_of / MEMORY_SHARE / 2.5)
    assert one[0] == other[0] == last[0] == net.base
    assert sorted(map(net.macs, one[1:] + other[1:] + last[1:])) == sorted(map(net.macs, archs[1:]))
    assert max(map(net.macs, last[1:])) > 2 * min(map(net.macs, last[1:]))  # large and small ones in each


@pytest.mark.slow
def test_one_scale_is_enough_where_nothing_more_is_planted() -> None:
    net = network()
    plain = Planted(Target(threads=1), strided=0.8, each=0.0, constant=0.0, noise=0.01)
    assert calibrate(net, [space()], (plain, plain), Calibrate(), seed=0).form == ("scale",)


@dataclass(frozen=True)
class Remote(Planted):
    """Weights beyond those of a small network are read from memory, which a layer that is timed alone never shows."""

    def of(self, net: Network, arch: Arch) -> float:
        held = sum(use.layer.params for use in net.uses(arch))
        return super().of(net, arch) + 4e-9 * max(0.0, held - 2e5)


@pytest.mark.slow
def test_weights_that_leave_the_cache_are_seen_in_whole_networks() -> None:
    net = network()
    metric = Remote(Target(threads=1), noise=0.003)
    content = calibrate(net, [space()], (metric, metric), Calibrate(), seed=0)
    assert content.form[-1] == "beyond_cache"
    assert 3e-9 < content.calibration.beyond_cache < 5e-9
    cost, rng = cost_model(net, content), random.Random(5)
    unseen = {space().sample(rng, rng.uniform(-5, 5)) for _ in range(30)}
    off = [abs(cost.cost(arch) / metric.of(net, arch) - 1) for arch in unseen - {net.base}]
    assert np.mean(off) < 0.01


@pytest.mark.slow
def test_a_calibration_that_foretells_badly_has_a_doubt() -> None:
    net = network()
    quiet, noisy = (Planted(Target(threads=1), noise=noise) for noise in (0.002, 0.15))
    assert calibrate(net, [space()], (quiet, quiet), Calibrate(networks=8), seed=0).doubts == ()
    record = calibrate(net, [space()], (quiet, noisy), Calibrate(networks=8), seed=0)
    (doubt,) = record.doubts
    assert f"are foretold {100 * record.mean_error:.1f} % off on average" in doubt and record.mean_error > 0.05


@dataclass(frozen=True)
class Disturbed(Planted):
    """Two networks were read while something else ran."""

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        found = super().measure(cases)
        if isinstance(cases[0], Layer):
            return found
        times = np.random.default_rng(0).uniform(1, 4, size=24)
        return [
            replace(each, values=tuple(each.estimate * times)) if number in (2, 3) else each
            for number, each in enumerate(found)
        ]


@pytest.mark.slow
def test_a_calibration_whose_networks_were_disturbed_has_a_doubt() -> None:
    net = network()
    metric = Disturbed(Target(threads=1), noise=0.002)
    record = calibrate(net, [space()], (metric, metric), Calibrate(networks=8), seed=0)
    worst = max(each.error / each.measured for each in record.networks)
    assert worst > UNSTEADY
    words = (
        f"readings of 2 of {len(record.networks)} networks differ so much that they are known to {100 * worst:.1f} %"
    )
    assert any(words in doubt for doubt in record.doubts)


def test_layers_are_measured_at_every_pair_of_choices_and_of_base_widths() -> None:
    net = network()
    found = cells(net, [space()], 12)
    for _ in range(20):
        arch = space().sample(random.Random(0))
        for use in net.uses(arch):
            assert use.layer in found[use.layer.template]
    strided = Template("conv", (32, 32), (3, 3), (2, 2), (1, 1), norm=True, activation="relu")
    assert {(layer.inputs, layer.outputs) for layer in found[strided]} == {(i, o) for i in (8, 16, 32) for o in (16, 32, 64)}  # fmt: skip  # noqa: E501


@pytest.mark.slow
def test_a_kind_that_is_little_of_every_network_takes_up_no_errors() -> None:
    net = network()
    noisy = Planted(Target(threads=1), noise=0.03)
    scales = calibrate(net, [space()], (noisy, noisy), Calibrate(networks=12), seed=0).calibration.scales
    assert max(scales.values()) < 2 * min(scales.values())


@dataclass(frozen=True)
class Spoilt(Planted):
    """Of one network the readings are three times too high."""

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        found = super().measure(cases)
        if not isinstance(cases[0], Layer):
            found[7] = Measurement((3 * found[7].estimate,), "s")
        return found


@pytest.mark.slow
def test_a_spoilt_reading_hardly_moves_the_fit() -> None:
    net = network()
    plain = Planted(Target(threads=1), noise=0.005)
    spoilt = Spoilt(Target(threads=1), noise=0.005)
    content = calibrate(net, [space()], (plain, spoilt), Calibrate(networks=20), seed=0)
    cost, rng = cost_model(net, content), random.Random(5)
    for _ in range(20):
        arch = space().sample(rng)
        assert cost.cost(arch) == pytest.approx(plain.of(net, arch), rel=0.03)
    assert content.worst_error > 0.5


@pytest.mark.slow
def test_another_metric_is_fitted_on_the_same_layers() -> None:
    """Networks that draw 20 watts, strided convolutions 30: joules by kinds of operators."""
    net, metric = network(), Planted(Target(threads=1))
    content = calibrate(net, [space()], (metric, metric), Calibrate(networks=20), seed=0)

    @dataclass(frozen=True)
    class Joules(Planted):
        unit: ClassVar[str] = "J"

        def figure(self, case: Case) -> float:
            return 20 * super().figure(case)

    drawing = Joules(Target(threads=1), strided=1.2)
    content = replace(content, fits={"energy": fit_metric(net, content, drawing)})
    cost, rng = cost_model(net, content, "energy"), random.Random(6)
    assert cost.unit == content.fits["energy"].unit == "J"
    for _ in range(20):
        arch = space().sample(rng)
        assert cost.cost(arch) == pytest.approx(20 * drawing.of(net, arch), rel=0.03)
    assert cost.cost(net.base) == pytest.approx(20 * drawing.of(net, net.base))
    assert content.fits["energy"].worst_error < 0.03


@pytest.mark.slow
def test_few_widths_stand_for_many() -> None:
    net = network()
    many = Space("many", {name: tuple(range(1, site.base + 1)) for name, site in net.widths.items()}, space().depths)
    found = cells(net, [many], 4)
    assert max(len({layer.outputs for layer in layers}) for layers in found.values()) == 4
    bases = {node.base for node in net.nodes if node.kind == "conv" and node.site}
    assert bases <= {layer.outputs for layers in found.values() for layer in layers}
    metric = Planted(Target(threads=1))
    content = calibrate(net, [many], (metric, metric), Calibrate(networks=12, widths=4), seed=0)
    arch = many.sample(random.Random(0))
    assert cost_model(net, content).cost(arch) == pytest.approx(metric.of(net, arch), rel=0.02)


def test_where_building_is_dear_few_input_widths_are_measured() -> None:
    net = network()
    many = Space("many", {name: tuple(range(1, site.base + 1)) for name, site in net.widths.items()}, space().depths)
    plain, dear = cells(net, [many], 16), cells(net, [many], 16, building=0.02)
    convs = [template for template in plain if template.op == "conv" and template.kernel == (3, 3)]
    assert {len({layer.inputs for layer in dear[each]}) for each in convs} == {5}
    assert all({own.outputs for own in dear[each]} == {own.outputs for own in plain[each]} for each in convs)
    assert Calibrate().limits(100) == pytest.approx((5.0, 24.0))
    assert Calibrate().limits(100, 0.02) == pytest.approx((9.0, 24.0))
    assert Calibrate().limits(100, 5.0) == pytest.approx((505.0, 24.0))  # building is within the limit
    assert Calibrate().limits(100, base=0.1) == pytest.approx((10.0, 144.0))
    assert Calibrate().limits(100, base=0.005) == pytest.approx((5.0, 24.0))
    assert Calibrate(seconds=58).limits(100) == pytest.approx((10.0, 48.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "runtime, depth, widths, networks",
    [("eager", 56, 16, 24), ("onnxruntime", 20, 16, 24), ("onnxruntime", 110, 16, 24), ("openvino", 110, 16, 16),
     ("openvino", 20, 16, 16), ("compiled", 20, 4, 8)],
)  # fmt: skip
def test_few_networks_are_measured_where_they_take_long_to_make(
    runtime: str, depth: int, widths: int, networks: int
) -> None:
    found = spared(plain(depth), runtime)
    assert (found.widths, found.networks) == (widths, networks)
    assert spared(plain(depth), runtime, networks=4).networks == 4


class Odd(nn.Module):
    """A ResNet with a step that only PyTorch's exporter writes."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.body = CifarResNet(depth).build(10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images.sort(1).values)
        return logits


@pytest.mark.parametrize(
    "runtime, depth, networks",
    [("onnxruntime", 20, 24), ("onnxruntime", 56, 14), pytest.param("onnxruntime", 110, 8, marks=pytest.mark.slow),
     ("openvino", 110, 8), ("openvino", 20, 16), ("eager", 110, 24)],
)  # fmt: skip
def test_fewer_still_where_they_have_to_be_exported(runtime: str, depth: int, networks: int) -> None:
    assert abs(spared(odd(depth), runtime).networks - networks) <= 1


@cache
def plain(depth: int) -> Network:
    return trace(CifarResNet(depth).build(10), torch.zeros(1, 3, 32, 32))


@cache
def odd(depth: int) -> Network:
    return trace(Odd(depth), torch.zeros(1, 3, 32, 32))


def spared(net: Network, runtime: str, **options: int) -> Calibrate:
    return sparing(Calibrate(**options), net, find(runtimes, Runtime, runtime)(Target(threads=1)))  # type: ignore[arg-type, type-abstract]


def test_layers_that_are_odd_beside_their_neighbours_are_read_on() -> None:
    template = Template("conv", (8, 8), (3, 3), (1, 1), (1, 1))
    layers = [template.at(i, o) for i in (3, 8, 16, 24, 32) for o in (8, 12, 16)]

    def read(slow: Collection[Layer], unsure: Collection[Layer] = ()) -> dict[Case, Measurement]:
        """A constant and what grows with the inputs, twice that where it is slow."""
        figures = [(1e-6 + 1e-6 * layer.inputs * layer.outputs / 8) * (2 if layer in slow else 1) for layer in layers]
        spreads = [1.0 if layer in unsure else 0.0 for layer in layers]
        rng = np.random.default_rng(0)
        return {
            layer: Measurement(tuple(figure * (1 + spread * rng.random(60))), "s")
            for layer, figure, spread in zip(layers, figures, spreads, strict=True)
        }

    assert _pending({template: layers}, read(())) == set()
    for slow in (0, 7, 14):
        assert layers[slow] in _pending({template: layers}, read({layers[slow]}))
    assert _pending({template: layers}, read((), {layers[4]})) == {layers[4]}
    whole, slow = (table(layers, read(each)) for each in ((), {layers[7]}))
    assert mended(whole) == (whole, 0)
    again, count = mended(slow)
    assert count == 1 and slow.values[2][1] == 2 * whole.values[2][1]
    assert again.values[2][1] == pytest.approx(whole.values[2][1], rel=0.1)
    assert again.values[:2] == whole.values[:2] and again.values[3:] == whole.values[3:]


def test_networks_are_spread_evenly_and_the_same_every_time() -> None:
    net = network()
    found = spread(net, [space()], 12, seed=3)
    assert found == spread(net, [space()], 12, seed=3)
    assert found[0] == net.base and len(found) > 8
    macs = sorted(map(net.macs, found))
    assert max(np.diff(macs)) < 0.35 * (macs[-1] - macs[0])


@pytest.mark.parametrize(
    "wrong, words",
    [({"networks": 3}, "networks must be 4 or more, got 3"), ({"widths": 1}, "widths must be 2 or more, got 1"),
     ({"seconds": -1.0}, "seconds must be 0 .the default. or more, got -1.0")],
)  # fmt: skip
def test_impossible_options_are_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=f"calibrate.{words}"):
        Calibrate(**wrong)
