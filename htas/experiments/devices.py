"""One configuration on several devices: surveyed at the same time, searched for each, all networks measured on all.

Every device has the folder of a run like any other, below the folder of the command; it can be continued and reported
alone. The base network is trained once.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from htas.console.progress import say
from htas.console.record import into
from htas.errors import UserError
from htas.experiments.shared import share_base
from htas.files import digest, read_record, to_json, write_record, write_text
from htas.report.devices import CrossedNetwork, DevicesReport, SurveyedDevice, write
from htas.report.result import Result
from htas.run import rows as run_rows
from htas.run import stages as pipeline
from htas.run.config import Config, load
from htas.run.run import CommandRecord, Run, Sources, open_run
from htas.run.stage import StageHeader, ensure, finished, made_from
from htas.run.stages import CALIBRATE, DESIGN, MEASURE, REPORT, SEARCH, SURVEY, TRAIN
from htas.runtimes import open_runtime
from htas.text import TextTable, duration, listing
from htas.timing.measurement import Measurement
from htas.timing.remote.address import short_names
from htas.timing.remote.device import device
from htas.timing.remote.several import check_all

LEAVING = 15.0
"""Seconds that the command of a device has to end after Ctrl-C."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
"""What Linux calls the time since this machine was started."""
SENTENCE = "htas: "
"""How the line of a command begins that says why it ended."""


@dataclass(frozen=True)
class CrossedRecord:
    """crossed-DEVICE.json: the networks of all devices, measured on one in one interleaved run."""

    networks: tuple[tuple[str, float, Measurement], ...]
    """A hash of the network, its predicted seconds, and its readings."""

    def __post_init__(self) -> None:
        if any(predicted < 0 or not reading.estimate > 0 for _, predicted, reading in self.networks):
            raise ValueError("must have networks that take more than 0 seconds")


def run(config: Config, folder: Path, command: str) -> tuple[Path, TextTable]:
    """Every stage for every device of target.host, then all networks on all devices: devices.html and its table.

    Raises UserError, which names the device, where one is missing or another one twice, before anything is done; and
    where one is lost meanwhile, after the other has finished what they do at the same time. What is finished is not
    done again.
    """
    runs = _arranged(config, folder)
    for number, job in enumerate(runs.values()):
        pipeline.begin(job, command, shown=not number)
    say(
        f"that is for each of {len(runs)} devices: surveys and calibrations at the same time, searches and trainings "
        "one after the other; the base network is trained once"
    )
    _survey(runs)
    for name, job in runs.items():
        with _about(name):
            ensure(job, DESIGN)
    _at_once("calibrate", {name: job for name, job in runs.items() if not finished(job, CALIBRATE)})
    for name, job in runs.items():
        say(f"{name}: search, training and measuring")
        into(job.folder)
        share_base(job)
        with _about(name):
            for stage in (SEARCH, TRAIN, MEASURE, REPORT):
                ensure(job, stage)
    into(folder)
    networks = _networks(runs)
    for name, job in runs.items():
        _cross(job, networks, _crossed_file(folder, name), f"all networks on {name}, %")
    return _page(runs, folder, command)


def survey(config: Config, folder: Path, command: str, again: bool = False) -> tuple[Path, TextTable]:
    """Survey every device of target.host at the same time: devices.html and its table. Raises UserError as `run`."""
    runs = _arranged(config, folder)
    _survey(runs, again)
    return _page(runs, folder, command)


def report(config: Config, folder: Path, again: bool = False) -> tuple[Path, TextTable]:
    """Write the pages of a folder of several devices, and of each, from what is there; no device is asked anything.

    Raises UserError where one has not even a survey.
    """
    runs = {name: Run(each, folder / name, sources=Sources()) for name, each in _configs(config).items()}
    for job in runs.values():
        ensure(job, REPORT, again)
    return _page(runs, folder, _command(folder))


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Raise a mistake with the name of the device in front."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


# -- the devices -------------------------------------------------------------------------------------------------------


def _configs(config: Config) -> dict[str, Config]:
    """The configuration for each device, by its short name."""
    hosts = config.target.hosts
    return {
        name: replace(config, target=replace(config.target, host=host))
        for name, host in zip(short_names(hosts), hosts, strict=True)
    }


def _arranged(config: Config, folder: Path) -> dict[str, Run]:
    """The run of each device, opened. Raises UserError where a device is missing, before a file is written."""
    path = folder / "config.toml"
    if path.exists():
        if len(load(path).target.hosts) < 2:
            raise UserError(f"{folder} holds a run; name another folder for several devices with --out")
    elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not the folder of several devices; name another one with --out")
    check_all(config.target.hosts)
    configs, sources = _configs(config), Sources()
    for each in configs.values():
        open_runtime(each.target)  # raises UserError where the device lacks it
    runs = {name: open_run(each, folder / name, sources=sources) for name, each in configs.items()}
    write_text(path, config.toml())
    into(folder)
    for name, job in runs.items():
        say(f"{name}: {job.target.host} ({job.target.machine()['processor']}), into {job.folder}")
    return runs


def _survey(runs: Mapping[str, Run], again: bool = False) -> None:
    todo = {name: job for name, job in runs.items() if again or not finished(job, SURVEY)}
    _at_once("survey", todo, "--again" if again else "")


# -- what happens at the same time -------------------------------------------------------------------------------------


def _at_once(verb: str, runs: Mapping[str, Run], *options: str) -> None:
    """Run a verb in the folder of each device at the same time, each as a command of its own.

    A process for each: readings, random draws and Ctrl-C belong to a process. Raises UserError after all have ended,
    where one has failed.
    """
    reasons: dict[str, str] = {}
    with _started(verb, runs, [option for option in options if option]) as processes:
        readers = [
            threading.Thread(target=_forward, args=(name, process, reasons), daemon=True)
            for name, process in processes.items()
        ]
        for reader in readers:
            reader.start()
        for process in processes.values():
            process.wait()
        for reader in readers:
            reader.join()
    for name, process in processes.items():
        if process.returncode not in (0, 2, 129, 130, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP):
            raise RuntimeError(f"htas {verb} {runs[name].folder} ended with code {process.returncode}, see above")
    lost = {name: reasons.get(name, "it was stopped") for name, each in processes.items() if each.returncode}
    if lost:
        ready = [name for name in runs if name not in lost]
        rest = f"; {listing(ready)} finished, and is kept" if ready else ""
        raise UserError(
            "; ".join(f"{name}: {reason}" for name, reason in lost.items())
            + f"{rest}; the same command goes on from here"
        )


@contextmanager
def _started(verb: str, runs: Mapping[str, Run], options: Sequence[str]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The processes, none of which is left at the end."""
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, job in runs.items():
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "htas", verb, str(job.folder), *options],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )  # fmt: skip
            if cores := _cores(job):
                os.sched_setaffinity(processes[name].pid, cores)
        yield processes
    finally:
        alive = [process for process in processes.values() if process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGINT)  # it ends its agent, too
        deadline = time.monotonic() + LEAVING
        for process in alive:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _cores(job: Run) -> set[int]:
    """Those of a device that is part of this machine, none of another one: its command computes there as well.

    One of the two always waits for the other; on any core, a command would wait for the agent of another device.
    """
    facts = device(job.target.host).facts
    here = BOOT.exists() and facts.boot == BOOT.read_text().strip()
    return set(facts.affinity) if here else set()


def _forward(name: str, process: "subprocess.Popen[str]", reasons: dict[str, str]) -> None:
    """Say the lines of a device's command as they come; why it ended goes to `reasons`."""
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            if line.startswith(SENTENCE):
                reasons[name] = line.removeprefix(SENTENCE).strip()
            elif line.strip():
                say(f"{name}: {line.rstrip()}")


# -- the networks ------------------------------------------------------------------------------------------------------


def _networks(runs: Mapping[str, Run]) -> list[tuple[str, Run, Result]]:
    """The base network, then the one that was found for each device: the device, its run, the row."""
    first, *_ = runs.values()
    rows = {name: _rows(job) for name, job in runs.items()}
    if not all(rows.values()):
        return []
    base = rows[next(iter(runs))]["base"]
    others = [(name, job, rows[name][job.config.design.spaces[0]]) for name, job in runs.items()]
    return [("", first, base), *others]


def _rows(job: Run) -> dict[str, Result]:
    """The trained networks of a run by name; empty before they are."""
    path = job.folder / "networks.json"
    return {row.name: row for row in run_rows.read_networks(job, path.name).results} if path.exists() else {}


def _mark(row: Result) -> str:
    return digest(to_json(row.arch), row.accuracy)


def _crossed_file(folder: Path, name: str) -> Path:
    return folder / f"crossed-{name}.json"


def _cross(job: Run, networks: Sequence[tuple[str, Run, Result]], path: Path, title: str) -> None:
    """Measure the networks of all devices on one of them, in one interleaved run -> crossed-DEVICE.json."""
    marks = [_mark(row) for _, _, row in networks]
    key = digest(job.place, job.folder / "cost.json", marks)
    if made_from(path, key):
        return
    started = time.monotonic()
    rows = [replace(row, predicted=job.calibrated.cost(row.arch)) for _, _, row in networks]
    modules = [run_rows.load_network(home, row) for _, home, row in networks]
    readings = run_rows.measure_rows(job, rows, modules, title)
    pairs = zip(marks, rows, readings, strict=True)
    record = CrossedRecord(tuple((mark, row.predicted or 0.0, reading) for mark, row, reading in pairs))
    write_record(path, record, inputs=key, took=time.monotonic() - started)


# -- the page ----------------------------------------------------------------------------------------------------------


def _page(runs: Mapping[str, Run], folder: Path, command: str) -> tuple[Path, TextTable]:
    crossed = {
        name: {mark: (predicted, reading) for mark, predicted, reading in read_record(path, CrossedRecord).networks}
        for name in runs
        if (path := _crossed_file(folder, name)).exists()
    }
    networks = []
    for home, _, row in _networks(runs):
        there = {name: each[_mark(row)] for name, each in crossed.items() if _mark(row) in each}
        predicted = {name: seconds for name, (seconds, _) in there.items()}
        networks.append(CrossedNetwork(row, home, predicted, {name: reading for name, (_, reading) in there.items()}))
    first, *_ = runs.values()
    write_record(folder / "command.json", CommandRecord(command))
    devices = tuple(_device(name, job) for name, job in runs.items())
    family, runtime = first.config.family.title, first.config.target.runtime
    return write(DevicesReport(family, runtime, command, devices, tuple(networks)), folder)


def _command(folder: Path) -> str:
    """The command that made the folder."""
    path = folder / "command.json"
    return read_record(path, CommandRecord).command if path.exists() else "htas run config.toml"


def _device(name: str, job: Run) -> SurveyedDevice:
    curves, record = pipeline.surveyed_curves(job), job.survey
    seconds = read_record(job.folder / "survey.json", StageHeader).took
    facts = {**record.context, "layers measured": str(record.cases), "survey took": duration(seconds)}
    return SurveyedDevice(name, job.target.host, facts, tuple(curves), pipeline.decided(curves), record.doubts)
