"""Planted systems with known answers, planted noise, and this machine once."""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import htas.runtimes
from htas.cli import doctor
from htas.cli.doctor import _machine, examine, runtimes
from htas.cli.doctor._machine import Busy, Gpu, Load, Machine, Snapshot, between, gpus, machine, snapshot, throttled
from htas.cli.doctor._noise import LAYERS, Noise, Outlook, listen, outlook
from htas.plugins import names
from htas.runtimes import Program, Runtime
from htas.timing.bench import REPEAT, HostTimer, Timer
from htas.timing.contention import Usage
from htas.timing.measurement import Measurement
from htas.timing.target import Target

CPUS = (0, 1, 4, 5)
"""What this process may use of the planted machine: two cores, both threads of each."""
CPUINFO = """
processor\t: 0
model name\t: Planted 9000
cpu MHz\t\t: 2100.5
flags\t\t: fpu avx2{more}
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A Linux machine in files."""
    monkeypatch.setattr(_machine, "usable", lambda: CPUS)
    plant(tmp_path, "proc/cpuinfo", CPUINFO.format(more=""))
    for cpu in CPUS:
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        plant(tmp_path, f"{folder}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
        plant(tmp_path, f"{folder}/cpufreq/scaling_governor", "powersave\n")
        plant(tmp_path, f"{folder}/cpufreq/scaling_cur_freq", f"{1_000_000 + 400_000 * (cpu > 3)}\n")
        plant(tmp_path, f"{folder}/cpufreq/cpuinfo_max_freq", "3500000\n")
    return tmp_path


def plant(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


def shown(rows: list[tuple[str, str]]) -> dict[str, str]:
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_a_planted_machine_is_read_from_its_files(root):
    plant(root, "sys/devices/system/cpu/intel_pstate/no_turbo", "0\n")
    found = machine(root)
    assert (found.processor, found.usable, found.cores) == ("Planted 9000", 4, 2)
    assert (found.governor, found.megahertz, found.megahertz_most) == ("powersave", 1200.0, 3500.0)
    assert (found.turbo, found.virtual, found.container, found.quota) == (True, False, False, None)
    rows = shown(found.rows())
    assert rows["processor"] == "Planted 9000"
    assert rows["frequency"] == "1.20 GHz now, at most 3.50 GHz; governor powersave; turbo on"
    assert rows["cores"].startswith("4 usable, on 2 physical cores")
    assert rows["CPU quota"] == "no limit found"


def test_a_machine_without_files_is_unknown_and_not_a_crash(tmp_path):
    found = machine(tmp_path)
    assert (found.governor, found.megahertz, found.turbo, found.virtual, found.cores) == (None,) * 5
    assert (found.quota, throttled(tmp_path)) == (None, None)
    assert found.usable >= 1
    assert shown(found.rows())["frequency"] == "unknown now; governor unknown; turbo unknown"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("intel_pstate/no_turbo", "1\n", False),
        ("cpufreq/boost", "1\n", True),
        ("cpufreq/boost", "0\n", False),
    ],
)
def test_turbo_is_told_by_intels_file_or_by_amds(root, file, text, expected):
    plant(root, f"sys/devices/system/cpu/{file}", text)
    assert machine(root).turbo is expected


def test_a_virtual_machine_in_a_container_says_so(root):
    plant(root, "proc/cpuinfo", CPUINFO.format(more=" hypervisor"))
    plant(root, ".dockerenv", "")
    assert shown(machine(root).rows())["processor"] == "Planted 9000 (virtual machine, in a container)"


def test_without_the_governors_files_the_frequency_is_cpuinfos(tmp_path):
    plant(tmp_path, "proc/cpuinfo", CPUINFO.format(more=""))
    assert machine(tmp_path).megahertz == 2100.5


QUOTAS = {
    "version 2, the group above grants less": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            "sys/fs/cgroup/a/cpu.max": "150000 100000",
        },
        1.5,
    ),
    "version 2, in a container that shows the host's path": (
        {"proc/self/cgroup": "0::/docker/123\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "version 2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "version 1": (
        {
            "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/x/cpu.cfs_quota_us": "1\n",
        },
        3.0,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/\nwhat\n", "sys/fs/cgroup/cpu.max": "many few\n"}, None),
}


@pytest.mark.parametrize(("files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_the_quota_is_the_least_of_all_control_groups(tmp_path, files, expected):
    for file, text in files.items():
        plant(tmp_path, file, text)
    assert machine(tmp_path).quota == expected


def test_stops_by_the_quota_are_counted(tmp_path):
    plant(tmp_path, "proc/self/cgroup", "0::/a\n")
    plant(tmp_path, "sys/fs/cgroup/a/cpu.stat", "usage_usec 5\nnr_periods 9\nnr_throttled 7\nthrottled_usec 4\n")
    assert throttled(tmp_path) == 7


@pytest.fixture
def still(root) -> Machine:
    """The planted machine with nothing to complain about."""
    return replace(machine(root), governor="performance")


def test_a_machine_with_nothing_amiss_gets_no_advice(still):
    assert still.advice(threads=2, device="cpu") == []


@pytest.mark.parametrize(
    ("change", "threads", "expected"),
    [
        ({"governor": "powersave"}, 2, "the frequency governor is powersave"),
        ({"quota": 1.5}, 2, "the CPU quota is 1.50 cores, and 2 threads will be stopped .* use --threads 1$"),
        ({"quota": 0.5}, 1, "use --threads 1$"),
        ({}, 3, r"3 threads share 2 physical cores in pairs \(SMT\).*: use --threads 2$"),
        ({}, 5, "5 threads on 4 usable cores take turns: use --threads 4$"),
        ({"cores": None}, 5, "5 threads on 4 usable cores"),
    ],
)
def test_each_thing_amiss_gets_its_advice(still, change, threads, expected):
    (advice,) = replace(still, **change).advice(threads, "cpu")
    assert re.search(expected, advice)


def test_the_processor_is_left_alone_for_a_survey_on_a_gpu(still):
    assert replace(still, governor="powersave").advice(64, "cuda") == []


BEFORE = Snapshot(
    Usage(seconds=100.0, cores=4, others=50.0, stolen=2.0),
    {1: ("old", 9.0), 2: ("idle", 3.0)},
    5,
    (1.0, 2.0, 3.0),
)
AFTER = Snapshot(
    Usage(seconds=110.0, cores=4, others=65.0, stolen=4.0),
    {1: ("old", 17.0), 2: ("idle", 3.2), 3: ("new", 5.0)},
    9,
)


def test_the_load_between_two_snapshots_worked_out_by_hand():
    found = between(BEFORE, AFTER)
    assert found == Load((1.0, 2.0, 3.0), 1.5, 2 / 40, 4, (Busy("old", 1, 0.8), Busy("new", 3, 0.5)))
    assert [words.partition(":")[0] for words in found.advice(threads=4, usable=4)] == [
        "other programs take 1.50 cores, the most by old (pid 1) 0.800, new (pid 3) 0.500",
        "the threads of a layer wait for the slowest of them, and other programs leave too few cores for 4",
        "the host gave 5.0 % of the time to other virtual machines",
        "the CPU quota stopped this program 4 times during the test",
    ]
    assert found.advice(threads=4, usable=4)[1].endswith("use --threads 2 if they must go on")
    assert len(found.advice(threads=2, usable=4)) == 3
    assert shown(found.rows())["load average"] == "1.00, 2.00, 3.00 (over 1, 5 and 15 minutes)"


def test_a_quiet_system_has_nothing_to_say():
    found = between(replace(BEFORE, average=()), replace(BEFORE, usage=replace(BEFORE.usage, seconds=110.0)))
    assert found.advice(threads=4, usable=4) == []
    assert shown(found.rows())["load average"] == "unknown"


def test_a_snapshot_of_this_machine_leaves_this_process_out():
    found = snapshot()
    assert os.getpid() not in found.processes
    assert found.usage.seconds > 0


def steady(*values: float) -> Noise:
    """Three layers with the same readings, in units of a millisecond."""
    return Noise(LAYERS, (Measurement(tuple(value / 1e3 for value in values), "s"),) * 3)


def test_noise_worked_out_by_hand():
    found = steady(*[1.0] * 12, *[1.2] * 8)
    assert found.slow == pytest.approx(0.4)
    assert found.spread == pytest.approx(0.2)
    assert found.drift == pytest.approx(0.2)
    assert found.level == "noisy"
    assert found.verdict == (
        "noisy: 40 % of the readings are more than 10 % above their layer's minimum, the middle half of them spreads "
        "over 20.0 % of their median, and the second half of the test ran 20.0 % slower than the first"
    )


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ([1.0, 1.01] * 20, "quiet"),
        ([1.0] * 19 + [2.0], "quiet"),
        ([1.0] * 16 + [2.0] * 4, "restless"),
        ([1.0] * 10 + [1.05] * 10, "restless"),
        ([1.05] * 10 + [1.0] * 10, "restless"),
        ([1.0] * 10 + [1.15] * 10, "noisy"),
        ([1.0, 2.0] * 10, "noisy"),
        ([1.0] * 12, "quiet"),
        ([1.0] * 11, "noisy"),
        ([1.0], "noisy"),
    ],
)
def test_the_level_of_planted_noise(values, level):
    assert steady(*values).level == level


def test_the_forecast_of_an_error_is_what_repeated_surveys_show():
    rng = np.random.default_rng(0)

    def readings(count: int) -> Measurement:
        return Measurement(tuple(1e-3 * (1 + 0.05 * rng.standard_normal(count))), "s")

    cost = 1e-3 + 1e-3 / REPEAT
    found = [outlook([readings(600)], 0.04, widths=100, seconds=100 * 60.5 * cost) for _ in range(200)]
    assert {each.count for each in found} <= {60, 61}
    repeated = np.std([readings(60).estimate for _ in range(2000)]) / 1e-3
    assert np.mean([each.error for each in found]) == pytest.approx(repeated, rel=0.15)


@pytest.mark.parametrize(
    ("count", "error", "decided"), [(50, 0.01, "yes"), (50, 0.02, "partly"), (50, 0.03, "no"), (1, 0.0, "no")]
)
def test_a_survey_is_decided_where_differences_are_known_to_within_the_ties(count, error, decided):
    found = Outlook(224, 20.0, count, error, ties=0.04)
    assert found.uncertainty == pytest.approx(2 * 2**0.5 * error)
    assert found.decided == decided
    assert "forecast" in found.words


def test_too_few_readings_are_named():
    assert steady(1.0, 1.0).verdict.startswith("noisy: only 2 readings of a layer in the time of the test, and 0 % of ")


@dataclass(frozen=True)
class Scripted(Runtime):
    """Every layer takes a millisecond of a planted clock."""

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        return Program(tick, model)

    def describe(self) -> Mapping[str, str]:
        return {"scripted": "1.0"}

    def timer(self) -> Timer:
        return HostTimer(clock=lambda: now)


@dataclass(frozen=True)
class Missing(Scripted):
    """A runtime whose library is not installed."""

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        raise ImportError("No module named 'missing'")

    def describe(self) -> Mapping[str, str]:
        raise ImportError("No module named 'missing'")


@dataclass(frozen=True)
class Broken(Scripted):
    """A runtime whose library is installed and does not load."""

    def describe(self) -> Mapping[str, str]:
        raise OSError("libbroken.so: cannot open\n shared object")


now = 0.0


def tick() -> None:
    global now
    now += 0.001


def on(runtime: type[Runtime]) -> Target:
    return Target(runtime=f"{__name__}:{runtime.__name__}", threads=1)


def test_a_machine_that_never_changes_is_quiet_and_its_survey_decided():
    noise = listen(on(Scripted), seconds=5.0, now=lambda: now)
    assert [each.median for each in noise.readings] == pytest.approx([0.001] * 3)
    assert 4.0 < sum(map(len, (each.values for each in noise.readings))) * (0.001 + 0.001 / REPEAT) < 5.0
    assert (noise.level, noise.slow) == ("quiet", 0.0)
    assert outlook(noise.readings, 0.04).decided == "yes"
    assert [label for label, _ in noise.rows()] == [
        "conv 16 to 16, 32x32",
        "conv 32 to 32, 16x16",
        "conv 64 to 64, 8x8",
    ]


def test_every_runtime_is_found_or_says_how_to_get_it():
    found = {each.name: each for each in runtimes(on(Scripted))}
    assert list(found) == [*names(htas.runtimes), f"{__name__}:Scripted"]
    assert found["eager"].about["torch"] == torch.__version__
    assert found[f"{__name__}:Scripted"].words == "scripted 1.0"
    assert all(each.there != bool(each.trouble) for each in found.values())


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr(doctor.plugins, "names", lambda package: [])
    (found,) = runtimes(on(Missing))
    name = f"{__name__}:Missing"
    assert not found.there
    assert found.words == f"not here: No module named 'missing'; pip install 'htas[{name}]'"


def test_a_broken_runtime_is_one_line_and_not_a_crash(monkeypatch):
    monkeypatch.setattr(doctor.plugins, "names", lambda package: [])
    (found,) = runtimes(on(Broken))
    assert found.words == "not here: OSError: libbroken.so: cannot open shared object"


class NVMLError(Exception):
    pass


def refused(*_: object) -> None:
    raise NVMLError("Not Supported")


def nvml(**more: object) -> SimpleNamespace:
    """A stand-in for pynvml with one GPU."""
    return SimpleNamespace(
        **{
            "NVMLError": NVMLError,
            "NVML_CLOCK_SM": 1,
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: "Planted GPU",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 * 2**30),
            "nvmlSystemGetDriverVersion": lambda: "600.1",
            "nvmlDeviceGetClockInfo": lambda handle, clock: 345,
            "nvmlDeviceGetMaxClockInfo": lambda handle, clock: 1980,
            "nvmlDeviceGetPersistenceMode": lambda handle: 0,
            "nvmlDeviceGetMigMode": lambda handle: [1, 1],
            **more,
        }
    )


def test_a_gpu_is_described_by_its_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    monkeypatch.setattr(_machine.torch.cuda, "is_available", lambda: True)
    (found,) = gpus()
    assert found.words == "Planted GPU: 80.0 GiB, driver 600.1, clock 345 of 1980 MHz, persistence off, MIG on"
    assert [words.rpartition(": ")[2] for words in found.advice()] == [
        "sudo nvidia-smi -pm 1",
        "readings hold for this slice alone",
    ]


def test_what_a_gpu_does_not_support_is_unknown(monkeypatch):
    questions = ("PersistenceMode", "MigMode", "ClockInfo", "MemoryInfo", "MaxClockInfo", "Name")
    monkeypatch.setitem(sys.modules, "pynvml", nvml(**{f"nvmlDeviceGet{name}": refused for name in questions}))
    monkeypatch.setattr(_machine.torch.cuda, "is_available", lambda: False)
    (found,) = gpus()
    assert found == Gpu("unknown", 0, driver="600.1", usable=False)
    assert found.words.endswith("clock unknown, persistence unknown, MIG unknown")
    assert "install a CUDA build" in found.advice()[0]


@pytest.mark.parametrize("module", [None, nvml(nvmlInit=refused)], ids=["not installed", "no driver"])
def test_without_nvml_the_gpus_are_pytorchs(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    cuda = _machine.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    assert gpus() == ()
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda index: SimpleNamespace(name="Seen", total_memory=2**31), raising=False
    )
    assert gpus() == (Gpu("Seen", 2**31),)


def test_this_machine_is_examined_in_words_and_in_json():
    found = examine(Target(threads=1), seconds=0.2)
    assert found.trouble == ""
    content = json.loads(json.dumps(found.json(), allow_nan=False))
    assert content["machine"]["usable"] >= 1
    assert content["noise"]["level"] in ("quiet", "restless", "noisy")
    assert content["outlook"]["decided"] in ("yes", "partly", "no")
    assert content["advice"] == list(found.advice)
    lines = found.lines()
    assert all("\n" not in line for line in lines)
    assert [line for line in lines if line and not line.startswith((" ", "-"))][:3] == [
        "this machine",
        "runtimes",
        "energy meters",
    ]
    assert found.noise.verdict in lines
    assert found.outlook.words in lines


def test_a_runtime_that_is_missing_is_a_finding():
    found = examine(on(Missing), seconds=0.2)
    assert (found.noise, found.outlook) == (None, None)
    assert found.json()["outlook"] is None
    assert "the noise was not tested: No module named 'missing'" in found.lines()


def test_noise_that_nothing_explains_is_said_to_be_unexplained(still):
    found = examine(on(Scripted), seconds=0.1)
    calm = replace(found, machine=still, load=Load((), 0.0, 0.0, 0, ()), noise=steady(*[1.0] * 20))
    assert calm.advice == ()
    (advice,) = replace(calm, noise=steady(*[1.0, 2.0] * 10)).advice
    assert advice.startswith("nothing visible from here explains the noise")


def test_a_runtime_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="no runtime called 'eagr'; did you mean 'eager'"):
        examine(Target(runtime="eagr"))


def test_a_test_of_no_time_is_refused():
    with pytest.raises(ValueError, match="seconds must be above 0"):
        examine(Target(), seconds=0)
