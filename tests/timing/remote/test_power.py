"""The energy of a device whose meter lies in a tree of files: counters of a processor, and the sensors of a Jetson."""

import shlex
import sys
from pathlib import Path

import pytest

from htas.errors import UserError
from htas.graph.layer import Layer
from htas.metrics.energy import Energy
from htas.timing.remote import kernel, power
from htas.timing.remote.device import device
from htas.timing.remote.pipe import Lost
from htas.timing.target import Target

CONV = Layer("conv", 3, 5, (6, 6), (3, 3), padding=(1, 1))
FAKES = Path(__file__).with_name("fakes.py")
RAPL = "sys/class/powercap/intel-rapl:0"
INA = "sys/class/hwmon/hwmon3"
JETSON = {
    f"{INA}/name": "ina3221",
    f"{INA}/in1_label": "VDD_IN",
    f"{INA}/in1_input": "5000",
    f"{INA}/curr1_input": "2400",
    f"{INA}/in2_label": "VDD_CPU_GPU_CV",
    f"{INA}/in2_input": "5000",
    f"{INA}/curr2_input": "800",
    f"{INA}/in3_label": "NC",
    f"{INA}/in3_input": "0",
    f"{INA}/curr3_input": "0",
    f"{INA}/in7_label": "sum of shunt voltages",
    f"{INA}/in7_input": "3",
}
OLD = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
NANO = {
    f"{OLD}/rail_name_0": "POM_5V_IN",
    f"{OLD}/in_power0_input": "3500",
    f"{OLD}/rail_name_1": "POM_5V_GPU",
    f"{OLD}/in_power1_input": "900",
}
INTEL = {f"{RAPL}/name": "package-0", f"{RAPL}/max_energy_range_uj": "262143328850", f"{RAPL}/energy_uj": "0"}


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def energy(root: Path, **options: float) -> Energy:
    """The energy of a device whose system lies there."""
    host = f"exec:{shlex.join([sys.executable, str(FAKES), f'meter {root}'])}"
    return Energy(Target(runtime="onnxruntime", host=host, batch=1, threads=1), **options)


@pytest.fixture(autouse=True)
def _lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTAS_LOCK", str(tmp_path / "lock"))


@pytest.mark.parametrize(
    ("files", "watts", "name"),
    [
        (INTEL, 30.0, "RAPL (package-0)"),
        (JETSON, 12.0, "power of VDD_IN"),
        (NANO, 3.5, "power of POM_5V_IN"),
    ],
)
def test_joules_are_watts_times_seconds(files: dict[str, str], watts: float, name: str, tmp_path: Path):
    write(tmp_path, files)
    metric = energy(tmp_path, rounds=2, reading=0.5)
    metric.check()
    (found,) = metric.measure([CONV])
    assert found.values == pytest.approx([watts * 1e-4] * 2, rel=0.01) and found.unit == "J"
    assert found.context["meter"] == name and found.context["measured on"]
    assert device(metric.target.host)._pipe is None


def test_rails_without_a_total_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "ROOT", str(tmp_path))
    write(tmp_path, {name: "VIN_SYS" if words == "VDD_IN" else words for name, words in JETSON.items()})
    write(tmp_path, {"sys/class/hwmon/hwmon1/name": "ina226", "sys/class/hwmon/hwmon1/power1_input": "1500000"})
    name, look, ranges = kernel.meter()
    assert name == "power of ina226, VIN_SYS, VDD_CPU_GPU_CV" and look() == [1.5, 12.0, 4.0] and ranges == []


def test_what_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"energy needs a meter, and exec:.* shows none: neither a processor package"):
        energy(tmp_path).check()
    write(tmp_path / "locked", {f"{RAPL}/name": "package-0"})  # no energy_uj that can be read
    with pytest.raises(UserError, match=r"energy_uj may be read by root alone; .* there: sudo chmod a\+r"):
        energy(tmp_path / "locked").check()


def test_a_meter_that_stands_still_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, {**INTEL, f"{RAPL}/energy_uj": "7"})
    monkeypatch.setattr(power, "STILL", 0.1)
    with pytest.raises(UserError, match=r"needs a meter that moves, and RAPL .* has stood still"):
        energy(tmp_path, rounds=1, reading=0.1).measure([CONV])


def test_a_counter_that_starts_again_is_followed():
    reply = {"looks": [[2_900_000, 10], [100_000, 30]], "ranges": [3_000_000, 50], "calls": 10, "lasted": 1.0}
    assert power.joules(reply) == pytest.approx(200_020 / 1e6 / 10)
    assert power.joules({**reply, "looks": [[5, 5]]}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"looks": None}, {"looks": [[1.0], ["2"]]}, {"looks": [[1.0], [1.0, 2.0]]}, {"looks": [[-1.0], [2.0]]},
        {"calls": "many"}, {"ranges": None}, {"ranges": []  , "lasted": None}, {"ranges": [0]}, {"ranges": [5, 5]},
        {"looks": [[float("nan")], [2.0]]},
    ],
)  # fmt: skip
def test_an_answer_that_no_meter_gives_is_no_answer(change: dict[str, object]):
    reply = {"looks": [[1.0], [2.0]], "ranges": [100], "calls": 3, "lasted": 1.0}
    assert power.joules(reply) == pytest.approx(1e-6 / 3)
    with pytest.raises(Lost):
        power.joules({**reply, **change})
