"""A run's survey for another device: a few networks are measured there, which say whether its layers will do.

If they will, the other device gets a folder like that of any run, whose survey, design and calibration say where each
comes from; the search goes on there. If not, it needs a survey of its own, and nothing but the readings is kept.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

from htas.console.progress import progress, say, shares
from htas.cost.calibrate import SECONDS_PER_NETWORK, fit_metric, whole
from htas.cost.fit import CalibrationRecord, FitRecord, NetworkRecord, read_calibration
from htas.cost.transfer import CLOSE, FAR, LEAST, MOST, error_differences, fit_elsewhere, holds, probes
from htas.errors import UserError
from htas.files import digest, read_record
from htas.graph import resize
from htas.metrics.latency import MAX_ROUNDS
from htas.run import keys
from htas.run.run import EnvironmentRecord, Run
from htas.run.stage import finished, need, stored, write_stage
from htas.run.stages import CALIBRATE, DESIGN, SURVEY
from htas.text import TextTable, millions, percent, plural, signed, significant
from htas.timing.remote.address import short_names

FILES = ("survey.json", "design.json", "cost.json")
"""What is written for the other device."""
NOISY = 0.02
"""Relative standard error of the networks' readings, in the median, above which they say little of the layers."""


@dataclass(frozen=True)
class TransferRecord:
    """transfer.json: networks of one device, predicted by the layers of another."""

    source: str
    """In words the device whose layers were measured."""
    device: str
    """... and the one of the networks."""
    fitted: FitRecord
    """Of the networks on the layers."""
    before: tuple[NetworkRecord, ...]
    """The same networks in the calibration of the source."""
    can: bool
    """Whether the device can use the survey of the source."""

    def __post_init__(self) -> None:
        if len(self.before) != len(self.fitted.networks):
            raise ValueError(f"must have as many networks before as fitted, got {len(self.before)}")

    @property
    def sentences(self) -> tuple[str, ...]:
        """The error, and what follows from it."""
        fitted = self.fitted
        there = [abs(each.held_out / each.measured - 1) for each in self.before]
        count = f"{plural(len(there), 'network')}, each predicted by a fit on the others"
        error = (
            f"Prediction error on {self.device}: mean {percent(fitted.mean_error, 1)}, worst "
            f"{percent(fitted.worst_error, 1)} ({count}). "
            f"On {self.source} the same networks have {percent(mean(there), 1)}, worst {percent(max(there), 1)}."
        )
        off = error_differences(fitted, self.before)
        if self.can:
            verdict = (
                f"{self.device} can use the survey of {self.source}: no error differs from that there by more than "
                f"{percent(off.max(), 1)}."
            )
        else:
            verdict = (
                f"{self.device} cannot use the survey of {self.source} and needs a survey of its own: the errors of "
                f"{int((off > CLOSE).sum())} of {len(off)} networks differ from those there by over "
                f"{percent(CLOSE, 0)}, where 1 in 10 may; the worst by {percent(off.max(), 0)}, where "
                f"{percent(FAR, 0)} is allowed."
            )
        noise = median(each.error / each.measured for each in fitted.networks)
        noisy = f"Its readings are uncertain by {percent(noise, 1)}; while it is idle the error may be smaller."
        return (error, verdict, *([noisy] if noise > NOISY else []))


def transfer(source: Run, run: Run, number: int = MOST, again: bool = False) -> tuple[Path, TextTable]:
    """Judge the layers of a calibrated run by networks on another device, the target of `run`, and write transfer.json
    into its folder; if they will do, also its survey, design and calibration, with which `htas run` goes on.

    Returns the path of transfer.json, and a table of the networks. Raises UserError where the source is not
    calibrated, or the folder has a survey that is its device's own.
    """
    if not LEAST <= number <= MOST:
        raise UserError(f"--networks must be {LEAST} to {MOST}, got {number}")
    check_source(source)
    path, survey = run.folder / "transfer.json", run.folder / "survey.json"
    if survey.exists() and not run.survey.borrowed_from:
        raise UserError(f"{survey} is a survey of that device itself; name another folder with --out")
    calibration = read_calibration(source.folder / "cost.json", run.network)
    before = probes(run.network, calibration, number)
    key = digest(run.place, source.folder / "cost.json", number)
    if again:
        path.unlink(missing_ok=True)

    def judge() -> TransferRecord:
        archs = [each.arch for each in before]
        (base,) = replace(run.latency(SECONDS_PER_NETWORK), rounds=1).measure([resize(run.network, archs[0])])
        seconds = replace(run.config.calibrate, networks=len(archs)).limits(0, base=base.estimate)[1]
        metric = replace(run.latency(seconds), rounds=MAX_ROUNDS)
        with progress(f"{plural(len(archs), 'network')} on {_device(run)}, %", 100) as bar:
            measured = whole(run.network, archs, metric, shares(bar))
        fitted = fit_elsewhere(run.network, calibration, before, measured)
        here, there = _device(source), _device(run, beside=source.target.host)
        return TransferRecord(here, there, fitted, tuple(before), holds(fitted, before))

    record = stored(path, key, TransferRecord, judge)
    if not record.can:
        for name in FILES:  # of a transfer before this one
            (run.folder / name).unlink(missing_ok=True)
        say(f"transfer: next: htas survey {run.folder}")
    elif not all(finished(run, stage) for stage in (SURVEY, DESIGN, CALIBRATE)):
        _write(source, run, calibration, record)
    return path, _table(run, record)


def check_source(source: Run) -> None:
    """Raise UserError for a run that is not calibrated, or whose survey is another device's."""
    for stage in (SURVEY, DESIGN, CALIBRATE):
        need(source, stage)
    if source.survey.borrowed_from:
        raise UserError(f"{source.folder} has the survey of {source.survey.borrowed_from}; transfer that one")


def _write(source: Run, run: Run, calibration: CalibrationRecord, record: TransferRecord) -> None:
    """Survey, design and calibration of the other device, each of which says where it comes from."""
    error = record.sentences[0]
    words = f"the layers were measured on {record.source}, not on {record.device}: {error}"
    survey = replace(source.survey, doubts=(words, *source.survey.doubts), borrowed_from=record.source)
    write_stage(run.folder / "survey.json", keys.survey(run), 0.0, survey)
    write_stage(run.folder / "design.json", keys.design(run), 0.0, source.design)
    started = time.monotonic()
    cost = replace(
        calibration,
        **vars(record.fitted),
        doubts=(words, *calibration.doubts),
        fits={},
        design=digest(run.folder / "design.json"),
        borrowed_from=record.source,
    )
    fits = {name: fit_metric(run.network, cost, metric) for name, metric in run.fitted_metrics.items()}
    cost = replace(cost, fits=fits)
    write_stage(run.folder / "cost.json", keys.calibrate(run), time.monotonic() - started, cost)
    say(f"transfer: next: htas run {run.folder}")


def _device(run: Run, beside: str = "") -> str:
    """The device of a run in words: `board (Cortex-A72)`; for this machine the name of the run's folder. It is called
    otherwise than the host `beside`."""
    machine = read_record(run.folder / "environment.json", EnvironmentRecord).machine
    hosts = [*filter(None, [beside]), run.target.host]
    name = short_names(hosts)[-1] if run.target.host else run.folder.resolve().name
    return f"{name} ({machine.get('processor', 'unknown')})"


def _table(run: Run, record: TransferRecord) -> TextTable:
    rows: list[tuple[str, ...]] = [("multiply-adds", "measured, ms", "predicted, ms", "off by", "where the layers are")]
    for each, there in zip(record.fitted.networks, record.before, strict=True):
        figures = (significant(1e3 * each.measured), significant(1e3 * each.held_out))
        off = [f"{signed(100 * (one.held_out / one.measured - 1), 1)} %" for one in (each, there)]
        rows.append((millions(run.network.macs(each.arch)), *figures, *off))
    return TextTable(rows, 0, before=record.sentences)
