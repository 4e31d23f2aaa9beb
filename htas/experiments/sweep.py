"""Several budgets from one survey: a front of networks, and the fastest network at a given accuracy.

Each budget is a run of its own in a folder of its own, begun with the survey, the design, the calibration and the
trained base network of whichever was there before; so everything that a run can do, continuing above all, a sweep can.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from htas import files
from htas.console.progress import say
from htas.cost import limits as budget
from htas.errors import UserError
from htas.experiments.shared import SUPERNETS, _with, own_folder, prepared, share_files
from htas.files import digest, read_json, read_record, to_json, write_record
from htas.report import result, write
from htas.report.result import Report, Result
from htas.run import rows as run_rows
from htas.run import stages as pipeline
from htas.run.config import Config
from htas.run.rows import MeasureRecord, TrainingRecord
from htas.run.run import Run, Sources
from htas.run.stage import StageHeader, made_from
from htas.text import TextTable, milliseconds, percent, text_table

FRONT = "No other network of this sweep is both faster and more accurate."


def sweep(
    config: Config, folder: Path, budgets: Sequence[str], command: str, share: bool = False
) -> tuple[Path, TextTable]:
    """A run for every budget of latency, then all their networks in one interleaved run: the path of report.html, and
    the front. With `share`, every search but the first begins with the first one's supernet, in half
    the epochs; on digits no harm was found (docs/decisions.md).

    Raises UserError for a budget that is none or that cannot be kept, before anything is trained.
    """
    for text in budgets:
        budget.parse("latency", text, 1.0)
    if len(set(budgets)) < len(budgets) or not budgets:
        raise UserError(f"--budgets must name different budgets with commas between, got {','.join(budgets)!r}")
    places = {text: folder / f"latency-{files.slug(text)}" for text in budgets}
    configs = [_with(config, text) for text in budgets]
    supernet = places[budgets[0]] / f"supernet-{config.design.spaces[0]}.safetensors"
    if share and (pair := config.strategy.sharing(supernet)):
        configs = [replace(each, strategy=pair[min(number, 1)]) for number, each in enumerate(configs)]
    elif share:
        name = config.names["strategy"]
        say(f"sweep: --share is for the strategy differentiable; what {name} can share between budgets, it does anyway")
    own_folder(folder)
    sources = Sources()
    runs = {
        text: prepared(Run(budget_config, places[text], folder / SUPERNETS, sources))
        for text, budget_config in zip(budgets, configs, strict=True)
    }
    for job in runs.values():
        pipeline.check_limits(job)
    for job in runs.values():
        share_files(job)
        pipeline.run(job, command)
    rows = _measured(runs, folder)
    _write(config, runs, rows, folder, command)
    return folder / "report.html", _table(rows, budgets)


def _measured(runs: Mapping[str, Run], folder: Path) -> list[Result]:
    """The base network and what was found for each budget, measured together -> sweep.json."""
    first = next(iter(runs.values()))
    name = first.config.design.spaces[0]
    rows_measured: list[Result] = []
    models = []
    for text, job in runs.items():
        named = {row.name: row for row in read_record(job.folder / "measure.json", MeasureRecord).results}
        for row_name in ["base", name] if not rows_measured else [name]:
            rows_measured.append(replace(named[row_name], name=row_name if row_name == "base" else text))
            models.append(run_rows.load_network(job, named[row_name]))
    path = folder / "sweep.json"
    key = digest(first.place, *[[row.name, to_json(row.arch), row.accuracy] for row in rows_measured])
    if not made_from(path, key):
        started = time.monotonic()
        readings = run_rows.measure_rows(first, rows_measured, models, "measuring the networks of all budgets, %")
        rows = [replace(row, measured=reading) for row, reading in zip(rows_measured, readings, strict=True)]
        write_record(path, MeasureRecord(tuple(_fronted(rows))), inputs=key, took=time.monotonic() - started)
    return list(read_record(path, MeasureRecord).results)


def _fronted(rows: Sequence[Result]) -> list[Result]:
    """Rows that no other beats get the remark FRONT."""
    front = result.front([(row.measured.estimate if row.measured else math.inf, row.accuracy or 0.0) for row in rows])
    return [replace(row, remarks=(*row.remarks, FRONT)) if number in front else row for number, row in enumerate(rows)]


def _write(config: Config, runs: Mapping[str, Run], rows: Sequence[Result], folder: Path, command: str) -> None:
    name = config.design.spaces[0]
    searches = [job.search(name) for job in runs.values()]
    place = next(iter(runs.values())).folder
    swept = Report(
        title=f"{config.family.title} on {config.names['data']}, {config.target.device}, {config.target.runtime}: "
        f"{len(runs)} budgets",
        command=command,
        results=tuple(rows),
        curves=(),
        searches=tuple(replace(search, space=text) for search, text in zip(searches, runs, strict=True)),
        machine=read_json(place / "environment.json"),
        config=config.toml(),
        dataset=config.names["data"],
        stages={"measure": read_record(folder / "sweep.json", StageHeader).took},
        test_images=read_record(place / "networks.json", TrainingRecord).test_images,
    )
    write(swept, folder)


def _table(rows: Sequence[Result], budgets: Sequence[str]) -> TextTable:
    """One line for each network, the front marked."""
    base = rows[0].measured
    lines: list[tuple[str, ...]] = [("budget", "accuracy", "latency", "of the base", "predicted", "front")]
    for row in rows:
        assert row.measured is not None and base is not None
        seconds, marked = row.measured.estimate, "*" if FRONT in row.remarks else ""
        figures = (milliseconds(seconds), percent(seconds / base.estimate, 1), milliseconds(row.predicted or 0.0))
        lines.append((row.name, percent(row.accuracy or 0.0), *figures, marked))
    return text_table(lines, 1)
