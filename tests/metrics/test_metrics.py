"""Counts by hand and by PyTorch's own counter; latencies and joules of a scripted runtime and a planted meter."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import htas.metrics
from htas.errors import UserError
from htas.graph.layer import Layer
from htas.metrics import Metric, energy
from htas.metrics.energy import Energy, Meter, meter
from htas.metrics.latency import Latency, crowded, rounds, too_short
from htas.metrics.macs import Macs, count_macs
from htas.metrics.memory import Memory, peak, peak_on_cuda
from htas.metrics.params import Params, count_params
from htas.plugins import find, names
from htas.runtimes import Program, Runtime
from htas.testing import MetricContract
from htas.timing.bench import REPEAT, SOONEST, STRETCHES, HostTimer, Readings, Timer
from htas.timing.target import Target, usable_cores

CONV = Layer("conv", 3, 8, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu")
TARGET = Target(batch=2, threads=1, shapes=((3, 8, 8),))
NETWORK = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False),
    nn.BatchNorm2d(8),
    nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
    nn.ReLU(),
    nn.ConvTranspose2d(8, 4, 2, stride=2),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(4, 10),
)
BIASES = 8 * 4 * 4 + 4 * 8 * 8 + 10  # one per output of the second, third and last operator


@dataclass(frozen=True)
class Scripted(Runtime):
    """A layer takes a millisecond per output channel; `ran` notes what was compiled."""

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        compiled.append(example[0].clone())
        return Program(lambda: tick(0.5), model)

    def compile_layer(self, layer: Layer) -> Program:
        compiled.append(layer)
        return Program(lambda: tick(layer.outputs / 1e3), layer.build())

    def describe(self) -> Mapping[str, str]:
        return {"scripted": "1.0"}

    def timer(self) -> Timer:
        return HostTimer(clock=lambda: now)


@dataclass(frozen=True)
class Chained(Runtime):
    """The same layers between two neighbours, which take 10 ms."""

    chained: ClassVar[tuple[str, ...]] = ("cpu",)

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        raise NotImplementedError

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        compiled.append(layer)
        return Program(lambda: tick(0.010 + layer.outputs / 1e3), layer.build), Program(
            lambda: tick(0.010), layer.build
        )

    def describe(self) -> Mapping[str, str]:
        return {}

    def timer(self) -> Timer:
        return HostTimer(clock=lambda: now)


now = 0.0
compiled: list[Layer | Tensor] = []
zones: list["Zone"] = []
"""What moves as the scripted clock does."""


def tick(seconds: float) -> None:
    global now
    now += seconds
    for zone in zones:
        zone.move()


@dataclass
class Zone:
    """A planted counter that draws so many watts, shown every `step` seconds."""

    folder: Path
    name: str
    watts: float
    most: int = 3_000_000
    step: float = 1e-9
    wraps: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "name").write_text(f"{self.name}\n")
        (self.folder / "max_energy_range_uj").write_text(f"{self.most}\n")
        self.shown = self.start = now
        self.show()

    def move(self) -> None:
        if now - self.shown >= self.step:
            self.shown = now
            self.show()

    def show(self) -> None:
        self.wraps, value = divmod(int(1e6 * self.watts * (self.shown - self.start)), self.most)
        (self.folder / "energy_uj").write_text(f"{value}\n")


@pytest.fixture
def powercap(tmp_path):
    """A processor of two packages, with memory beside the first: 30 + 20 + 5 W; the other zones are parts of these."""
    zones[:] = [
        Zone(tmp_path / "intel-rapl:0", "package-0", 30.0),
        Zone(tmp_path / "intel-rapl:0:0", "core", 25.0),
        Zone(tmp_path / "intel-rapl:0:1", "dram", 5.0, most=300_000),
        Zone(tmp_path / "intel-rapl:1", "package-1", 20.0),
        Zone(tmp_path / "intel-rapl:2", "psys", 90.0),
    ]
    yield tmp_path
    zones.clear()


def meters(powercap: Path, **options: float) -> Energy:
    """The metric on the scripted runtime and a planted meter."""
    target = Target(runtime=f"{__name__}:Scripted", batch=2, shapes=((3, 8, 8),))
    return Energy(target, powercap=powercap, **options)


@pytest.fixture
def scripted() -> Latency:
    compiled.clear()
    return Latency(Target(runtime=f"{__name__}:Scripted", batch=2, shapes=((3, 8, 8),)), rounds=4)


def wide(outputs: int) -> Layer:
    return Layer("conv", 3, outputs, (8, 8))


class TestEveryMetric(MetricContract):
    """All files of the folder; one without its meter says so in a sentence, and has a planted one."""

    @pytest.fixture(params=names(htas.metrics))
    def plugin(self, request, powercap):
        metric = find(htas.metrics, Metric, request.param)(TARGET)
        try:
            return self.present(metric)
        except pytest.skip.Exception as skipped:
            assert re.fullmatch(rf"{request.param} needs a meter, and .+; .+", str(skipped)), skipped
            return self.present(meters(powercap, rounds=2, reading=0.01))


def test_latencies_come_back_in_the_order_of_the_cases(scripted):
    found = scripted.measure([wide(7), wide(3), nn.Identity()])
    assert [each.median for each in found] == pytest.approx([0.007, 0.003, 0.5])
    assert [len(each.values) for each in found] == [4 * REPEAT] * 3


def test_a_target_is_called_by_its_device():
    assert Target(runtime="ncnn").title == "cpu, ncnn"
    assert Target(host="exec:ssh pi@board python3", runtime="ncnn").title == "board, ncnn"
    assert Target(host="ssh://pi@board,ssh://jetson", runtime="onnxruntime").title == "board and jetson, onnxruntime"


def test_more_threads_than_cores_are_a_doubt():
    cores = usable_cores()
    assert crowded(Target(threads=cores)) == crowded(Target(threads=1)) == ()
    (doubt,) = crowded(Target(threads=cores + 1))
    assert doubt.startswith(f"{cores + 1} threads shared {cores} core")
    assert crowded(Target(device="cuda", threads=cores + 1)) == ()


def test_a_batch_that_no_memory_holds_is_refused_before_it_is_made():
    target = Target(batch=10**9)
    with pytest.raises(UserError, match=r"batch of 1000000000 are 1\.23e\+04 GB, and this machine has .*lower target"):
        target.example()
    Target(batch=10).check_memory(3 * 10 * 3 * 32 * 32 * 4, "a device")
    Target(batch=10).check_memory(0, "a device that does not say")
    with pytest.raises(UserError, match=r"a device has 0\.000369 GB"):
        Target(batch=10).check_memory(3 * 10 * 3 * 32 * 32 * 4 - 1, "a device")


def test_short_readings_are_doubted_in_one_sentence_however_many_they_are():
    brief = [too_short(Readings((1e-5,), (1.0,), lasted), 1e-4, 0.0) for lasted in (1e-5, 4.9e-5)]
    assert brief[0] == brief[1]
    assert "less than 50 us" in brief[0][0] and "survey.reading" not in brief[0][0]
    assert "leave survey.reading at 0" in too_short(Readings((1e-5,), (1.0,), 1e-5), 1e-4, 1e-5)[0]
    assert too_short(Readings((5e-5,), (1.0,), 5e-5), 1e-4, 0.0) == ()


def test_whole_networks_are_read_for_six_seconds():
    """A turn is a call, and three readings as long as the clock needs: 0.1 ms."""
    assert rounds([0.01]) == 150  # 4 calls of 10 ms
    assert rounds([1e-5] * 45) == 431  # 6 s of turns of 0.31 ms each, not of 4 calls of 10 us
    assert rounds([1e-5]) == 1000 and rounds([1.0]) == rounds([]) == 20


def test_the_same_layer_given_twice_is_measured_once(scripted):
    first, _, second = scripted.measure([wide(7), wide(3), wide(7)])
    assert first is second
    assert set(compiled) == {wide(7), wide(3)}
    assert compiled.count(wide(7)) == compiled.count(wide(3)) <= STRETCHES


def test_a_network_is_given_images_of_the_targets_batch_drawn_from_the_seed(scripted):
    scripted.measure([nn.Identity()])
    again = len(compiled)
    scripted.measure([nn.Identity()])
    assert compiled[0].shape == (2, 3, 8, 8)
    assert torch.equal(compiled[0], compiled[again])


def test_a_survey_is_one_call_and_its_context_says_where_readings_come_from(scripted):
    first, second = scripted.measure([wide(7), wide(3)])
    (later,) = scripted.measure([wide(3)])
    assert first.survey == second.survey != later.survey
    assert len(first.survey) == 12
    date = first.context["date"]
    assert date.endswith("+00:00")
    assert first.context["priority"] in ("raised", "usual")  # as this system allows
    assert first.context == {
        "scripted": "1.0",
        "priority": first.context["priority"],
        "device": "cpu",
        "runtime": f"{__name__}:Scripted",
        "precision": "fp32",
        "batch": "2",
        "threads": str(scripted.target.threads),
        "shapes": "3x8x8",
        "options": "{}",
        "date": date,
    }


def test_rounds_are_announced(scripted):
    heard = []
    scripted.measure([wide(3)], on_round=lambda share, words: heard.append(share))
    assert heard == [0.25, 0.5, 0.75, 1.0]


def test_latency_is_read_on_where_it_is_pending(scripted):
    found = scripted.measure([wide(7), wide(3), wide(7)], pending=lambda found: {wide(3)})
    first = math.ceil(SOONEST * 4) * REPEAT  # of four rounds those before the first question
    assert [len(each.values) for each in found] == [first, 4 * REPEAT, first]


@pytest.mark.parametrize("runtime", ["Scripted", "Chained"])
def test_latency_samples_in_one_survey_and_builds_nothing_else(scripted, runtime):
    cases = [wide(number) for number in (1, 2, 3, 4, 5)]
    seen = []

    def pending(found):
        seen.append(set(found))
        return [wide(3), wide(1)]

    metric = replace(scripted, target=replace(scripted.target, runtime=f"{__name__}:{runtime}"), rounds=16)
    found = metric.sample(cases, [wide(1), wide(5)], pending=pending)
    assert seen[:2] == [{wide(1), wide(5)}, {wide(1), wide(3), wide(5)}]
    assert {layer: each.median for layer, each in found.items()} == pytest.approx(
        {wide(1): 0.001, wide(5): 0.005, wide(3): 0.003}
    )
    assert len({each.survey for each in found.values()}) == 1
    assert set(compiled) == set(found)
    assert len(found[wide(5)].values) < len(found[wide(1)].values)


def test_a_metric_that_samples_goes_on_where_readings_are_pending(powercap):
    cases = [wide(7), wide(3), wide(5)]
    metric = meters(powercap, rounds=3, reading=0.02)
    found = metric.sample(cases, cases[:2], pending=lambda found: [wide(3), wide(5)])
    assert {layer.outputs: len(each.values) for layer, each in found.items()} == {7: 1, 3: 3, 5: 3}


@pytest.mark.parametrize(("option", "value"), [("rounds", 0), ("reading", -1.0), ("limit", 0.0)])
def test_a_wrong_option_of_latency_is_refused(option, value):
    with pytest.raises(ValueError, match=rf"latency\.{option} must be .*, got {value}"):
        Latency(TARGET, **{option: value})


def test_macs_of_a_network_worked_out_by_hand():
    by_hand = (
        8 * 8 * 8 * 27  # 8x8 outputs of 8 channels, 3x3x3 weights each
        + 8 * 4 * 4 * (9 * 2)  # four groups of two channels
        + 8 * 4 * 4 * (4 * 4)  # transposed: every input meets 2x2 weights of 4 channels
        + 4 * 10
        + BIASES
    )
    assert count_macs(NETWORK, (3, 8, 8)) == by_hand


def test_macs_agree_with_pytorchs_own_counter_and_a_bias_per_output():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        NETWORK(torch.zeros(1, 3, 8, 8))
    assert count_macs(NETWORK, (3, 8, 8)) == counter.get_total_flops() // 2 + BIASES


def test_a_module_used_twice_counts_twice_and_its_parameters_once():
    linear = nn.Linear(3, 3)
    twice = nn.Sequential(linear, linear)
    assert count_macs(twice, (3,)) == 2 * (3 * 3 + 3)
    assert count_params(twice) == 3 * 3 + 3


@pytest.mark.parametrize(
    "layer",
    [
        CONV,
        Layer("conv", 6, 4, (9, 7), (3, 1), (2, 1), (1, 0), groups=2, bias=True),
        Layer("linear", 7, 5, (1, 1), bias=True),
        Layer("max_pool", 4, 4, (8, 8), (2, 2), (2, 2)),
    ],
    ids=lambda layer: layer.op,
)
def test_a_layer_counts_as_much_as_the_module_it_builds(layer):
    image = (layer.inputs,) if layer.op == "linear" else (layer.inputs, *layer.size)
    target = Target(shapes=(image,))
    for metric in (Macs(target), Params(target)):
        key, built = metric.measure([layer, layer.build()])
        assert key.values == built.values


def test_frozen_parameters_are_not_counted():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    network[0].requires_grad_(False)
    assert count_params(network) == 4 * 5 + 5


def test_joules_are_watts_times_seconds_whenever_the_counters_start_again(powercap):
    found = meters(powercap, rounds=6, reading=0.02).measure([wide(7), wide(3), wide(7)])
    watts = 30 + 20 + 5
    for each, seconds in zip(found, (0.007, 0.003, 0.007), strict=True):
        assert each.values == pytest.approx([watts * seconds] * 6, rel=1e-3)
    assert found[0] is found[2]
    assert all(zone.wraps > 1 for zone in zones)
    assert {each.unit for each in found} == {"J"}
    assert found[0].context["meter"] == "RAPL (package-0, dram, package-1)"


def test_a_meter_that_seldom_moves_is_read_from_one_move_to_another(tmp_path):
    zones[:] = [Zone(tmp_path / "intel-rapl:0", "package-0", 40.0, most=10**12, step=0.1)]
    (found,) = meters(tmp_path, rounds=3, reading=1.0).measure([wide(9)])
    zones.clear()
    assert found.values == pytest.approx([40 * 0.009] * 3, rel=0.02)  # from clock to clock it would be 10 % off


def test_rounds_of_energy_are_announced(powercap):
    heard = []
    meters(powercap, rounds=2, reading=0.02).measure(
        [wide(3)], on_round=lambda share, words: heard.append((share, words))
    )
    assert heard == [(0.5, "RAPL (package-0, dram, package-1)"), (1.0, "RAPL (package-0, dram, package-1)")]


def test_energy_is_read_on_where_it_is_pending(powercap):
    def pending(found):
        assert [len(each.values) for each in found.values()] == [1 + len(asked), 1]
        asked.append(found)
        return {wide(7)}

    asked = []
    found = meters(powercap, rounds=3, reading=0.02).measure([wide(7), wide(3), wide(7)], pending=pending)
    assert [len(each.values) for each in found] == [3, 1, 3]


def test_a_meter_that_stands_still_is_refused(powercap):
    zones.clear()
    with pytest.raises(ValueError, match=r"energy needs a meter that moves, and RAPL .* has stood still for 5 seconds"):
        meters(powercap).measure([wide(3)])


def test_a_machine_without_a_meter_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=rf"energy needs a meter, .* no processor package in {tmp_path}/intel-rapl:\*"):
        meters(tmp_path).measure([])


def test_a_meter_for_root_alone_says_how_to_allow_it(powercap, monkeypatch):
    def refused(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(energy, "_number", refused)
    with pytest.raises(ValueError, match=r"may be read by root alone; .* sudo chmod a\+r .*intel-rapl:\*/energy_uj"):
        meter("cpu", powercap)


def test_a_meter_that_writes_no_number_is_refused(powercap):
    (powercap / "intel-rapl:0/energy_uj").write_text("?")
    with pytest.raises(ValueError, match=r"energy needs a meter, and the one in .* cannot be read"):
        meter("cpu", powercap)


@pytest.mark.parametrize(("option", "value"), [("rounds", 0), ("reading", 0.0), ("reading", 61.0)])
def test_a_wrong_option_of_energy_is_refused(option, value):
    with pytest.raises(ValueError, match=rf"energy\.{option} must be .*, got {value}"):
        Energy(TARGET, **{option: value})


def test_a_counter_that_went_down_has_started_again_once():
    rapl = Meter("two", lambda: (), (1000, 5000), 1e6)
    assert rapl.joules((900, 10), (100, 30)) == pytest.approx((200 + 20) / 1e6)


class NVMLError(Exception):
    pass


def nvml(joules: float | None) -> SimpleNamespace:
    """A stand-in for pynvml whose only GPU is called GPU-1234."""

    def energy_of(handle: str) -> int:
        if joules is None:
            raise NVMLError("Not Supported")
        return {"handle of GPU-1234": int(joules * 1e3)}[handle]

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetTotalEnergyConsumption=energy_of,
    )


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Planted")


def test_a_gpus_meter_is_found_by_its_number_and_counts_millijoules(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(12.5))
    found = meter("cuda")
    assert found.name == "NVML (Planted)"
    assert found.read() == (12500,)
    assert found.joules((10000,), (12500,)) == 2.5


def test_a_gpu_without_a_meter_says_so(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(None))
    with pytest.raises(ValueError, match=r"energy needs a meter, and NVML shows none of this GPU \(Not Supported\); "):
        meter("cuda")


def test_energy_on_a_gpu_names_the_extra_to_install(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ValueError, match=r"energy needs a meter, .* pip install 'htas\[energy\]'"):
        meter("cuda")


class Residual(nn.Module):
    """x + the narrow end of a wide middle."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.relu(self.first(x)))


S = 2 * 4 * 8 * 8 * 4
"""Bytes of the input of these: two images of four channels, 8x8, fp32."""
X = torch.zeros(2, 4, 8, 8)


def test_the_memory_of_a_chain_is_its_input_and_two_neighbours():
    chain = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 4, 1))
    # the first and second outputs beside the input, which the caller holds; the third comes when the first is gone
    assert peak(chain, (X,)) == S + 2 * S + S // 2


@pytest.mark.parametrize(("inplace", "most"), [(False, 1 + 2 + 2), (True, 1 + 2 + 1)])
def test_the_memory_of_a_residual_block_worked_out_by_hand(inplace, most):
    # with a copy, the input and both sides of the ReLU are alive at once; in place, the input, the middle and the end
    assert peak(Residual(inplace), (X,)) == most * S


def test_views_and_slices_of_weights_take_no_memory():
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight[:4]).flatten(1).view(-1, 4)

    assert peak(Sliced(), (X,)) == S + S


def test_a_tensor_that_is_kept_counts_to_the_end():
    class Dense(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = [x]
            for _ in range(3):
                kept.append(kept[-1] + 1)
            return torch.cat(kept, 1)

    assert peak(Dense(), (X,)) == 4 * S + 4 * S


def test_memory_grows_with_the_batch_and_a_layer_takes_as_much_as_the_module_it_builds():
    image = (CONV.inputs, *CONV.size)
    found = [Memory(Target(batch=batch, shapes=(image,))).measure([CONV, CONV.build()]) for batch in (1, 3)]
    assert found[0][0].values == found[0][1].values
    assert found[1][0].values[0] == 3 * found[0][0].values[0]


@pytest.mark.gpu
def test_memory_on_cuda_is_what_the_count_says_where_there_are_no_workspaces():
    network = nn.Sequential(nn.ReLU(), nn.Sigmoid(), nn.Tanh())
    x = torch.zeros(8, 16, 32, 32)
    assert peak_on_cuda(network, (x,)) == peak(network.cpu(), (x,)) == 3 * x.nbytes


@pytest.mark.gpu
def test_joules_of_a_gpu_grow_with_the_work():
    pytest.importorskip("pynvml")
    metric = Energy(Target("cuda", batch=256, shapes=((3, 32, 32),)), rounds=2, reading=0.5)
    small, large = metric.measure([Layer("conv", 64, 64, (32, 32), (3, 3)), Layer("conv", 256, 256, (32, 32), (3, 3))])
    assert 0 < small.median < large.median


def test_memory_says_where_tensors_are_smaller_than_it_counts():
    layer = Layer("conv", 4, 8, (8, 8), (3, 3), padding=(1, 1))
    remarks = {}
    for precision in ("fp32", "fp16", "int8"):
        (reading,) = Memory(Target(runtime="onnxruntime", precision=precision, batch=2)).measure([layer])
        assert reading.values == (4.0 * 2 * 64 * (4 + 8),)
        remarks[precision] = reading.remarks
    assert remarks == {
        "fp32": (),
        "fp16": ("numbers count as fp32; in fp16 most tensors take half of these bytes",),
        "int8": ("numbers count as fp32; in int8 most tensors take a quarter of these bytes",),
    }
