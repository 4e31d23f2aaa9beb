"""One function per stage, files in and files out: survey, design, calibrate, search, train, measure, report.

A stage is finished when its file exists and was made from the inputs that are there now; anything else is done again.
An interrupted search or training goes on from its last epoch.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from htas.console.progress import progress, say, shares
from htas.cost import limits as budget
from htas.cost.calibrate import calibrate as fit_cost
from htas.cost.calibrate import cells, fit_metric, held_out_error
from htas.cost.limits import Limit
from htas.cost.paper import paper_cost
from htas.errors import UserError
from htas.files import digest, read_json, slug, write_json
from htas.formats.export import export
from htas.metrics.latency import MAX_ROUNDS
from htas.report import read as read_report
from htas.report import write, write_runs, write_survey
from htas.report.result import Prediction, Report, Result
from htas.run import plan
from htas.run.config import Config, load
from htas.run.folder import STAGES, _finished, _lack, _need, _write, open_run, plain
from htas.run.rows import _known, _rows, _title, base_network, load_network, measure_rows, train_row
from htas.run.run import Run, _environment
from htas.runtimes import open_runtime
from htas.search import moves
from htas.search.finish import finish
from htas.search.problem import Problem, rivals
from htas.search.record import SearchRecord
from htas.spaces.curve import CurveRecord
from htas.spaces.design import DECIDED, records, spaces, undecided
from htas.spaces.sampling import at_most, widths_at_most
from htas.spaces.space import Space
from htas.spaces.survey import survey as take_survey
from htas.text import TextTable, listing, milliseconds, no_such, percent
from htas.timing.target import machine

RIVALS = 20


def run(config: Config, folder: Path, command: str, supernets: Path | None = None) -> Path:
    """Every stage in turn; returns the path of report.html. In `supernets` lie those that several runs share."""
    open_run(config, folder)
    job = Run(config, folder)
    open_runtime(job.target)
    if not (folder / "report.json").exists():
        plan.show(job.network, job.data, config, folder)
    write_json(folder / "command.json", {"command": command})
    for stage in (survey, design, calibrate, partial(search, supernets=supernets), train, measure, report):
        stage(config, folder)
    return folder / "report.html"


def survey(config: Config, folder: Path, again: bool = False) -> None:
    """Section 3.2: every distinct layer at every width -> survey.json."""
    job = Run(config, folder)
    path = folder / "survey.json"
    if _finished(path, job.made_from("survey"), again):
        return
    started = time.monotonic()
    options, most = config.design, widths_at_most(open_runtime(job.target).build_seconds)
    number = at_most(job.network, expand=options.expand, inputs=options.inputs, groups=options.groups, most=most)
    with progress(f"survey of {number} layers, %", 100) as bar:
        content = take_survey(
            job.network,
            job.remembering(job.latency(config.survey.limit(number)), again),
            expand=options.expand,
            inputs=options.inputs,
            groups=options.groups,
            most=most,
            wanted=lambda content: undecided(job.network, content, options),
            on_round=shares(bar),
        )
    for doubt in content["doubts"]:
        say(f"survey: doubt: {doubt}")
    _environment(job)
    _write(path, job.made_from("survey"), time.monotonic() - started, content)


def survey_page(config: Config, folder: Path) -> tuple[Path, TextTable]:
    """What the survey says by itself: the path of survey.html, and its table of choices (the paper's Table 2)."""
    job = Run(config, folder)
    _need(job, "survey")
    content = job.surveyed
    options = replace(config.design, spaces=("hardware",), widths={})
    curves = records(job.network, content, options, spaces(job.network, content, options))
    title = f"Survey of {config.family.title}: {config.target.device}, {config.target.runtime}"
    layers = f"{content['cases']}" + (f", and {more} interpolated" if (more := content.get("interpolated")) else "")
    facts = {**machine(), **content["context"], "layers": layers, "seconds": round(content["took"], 1)}
    told = {name: str(fact) for name, fact in facts.items()}
    return write_survey(title, curves, DECIDED, content["doubts"], _decided(curves), told, folder)


def design(config: Config, folder: Path, again: bool = False) -> None:
    """Eq. 1 to 4: curves, fits and choices -> design.json."""
    job = Run(config, folder)
    path = folder / "design.json"
    _need(job, "survey")
    if _finished(path, job.made_from("design"), again):
        return
    started = time.monotonic()
    made = spaces(job.network, job.surveyed, config.design)
    curves = records(job.network, job.surveyed, config.design, made)
    for curve in curves:
        for doubt in curve.doubts:
            say(f"design: doubt: {doubt}")
        for name, choices in curve.choices.items():
            say(f"design: {name}: {curve.sites[0]} and {len(curve.sites) - 1} alike: {listing(map(str, choices))}")
        if curve.dominated:
            say(f"design: no faster than a wider choice: {listing(map(str, curve.dominated))} (design.drop_dominated)")
    say(f"design: {_decided(curves)}")
    if "hardware" in made:
        _refuse_noise(curves, config.survey.undecided)
    content = {"spaces": {name: space.json() for name, space in made.items()}, "curves": [c.json() for c in curves]}
    _write(path, job.made_from("design"), time.monotonic() - started, content)


def calibrate(config: Config, folder: Path, again: bool = False) -> None:
    """Layers at pairs of widths, whole networks, and the fit of one on the other -> cost.json."""
    job = Run(config, folder)
    path = folder / "cost.json"
    _need(job, "design")
    if _finished(path, job.made_from("calibrate"), again):
        return
    started = time.monotonic()
    options = job.calibration
    spaces = list(job.spaces.values())
    building = open_runtime(job.target).build_seconds
    number = sum(map(len, cells(job.network, spaces, options.widths, building).values()))
    base = paper_cost(job.network, job.surveyed, config.design).cost(job.network.base)
    limits = options.limits(number, building, base)
    with progress(f"calibration: {number} layers and {options.networks} networks, %", 100) as bar:
        content = fit_cost(
            job.network,
            spaces,
            (job.latency(limits[0]), replace(job.latency(limits[1]), rounds=MAX_ROUNDS)),
            options,
            seed=0,
            building=building,
            base=base,
            on_round=shares(bar),
        )
    say(f"cost: {_held_out(content)}")
    for doubt in content["doubts"]:
        say(f"cost: doubt: {doubt}")
    for name, metric in job.fitted_metrics.items():
        with progress(f"{name} of {options.networks} networks, %", 100) as bar:
            content[name] = fit_metric(job.network, content, metric, shares(bar))
        say(f"cost: {name}: {_held_out(content[name])}")
    content["design"] = digest(folder / "design.json")
    _write(path, job.made_from("calibrate"), time.monotonic() - started, content)


def _held_out(fitted: Mapping[str, Any]) -> str:
    error = held_out_error(fitted)
    return (
        f"networks that the fit has not seen are predicted with a mean error of {percent(error['mean'], 1)}, at "
        f"worst {percent(error['worst'], 1)} ({listing(fitted['form'])})"
    )


def search(config: Config, folder: Path, again: bool = False, supernets: Path | None = None) -> None:
    """Section 3.3: one search per space -> search-SPACE.json, with its course and its random rivals.

    In `supernets` lie those that searches share which train them alike and judge archs afterwards.
    """
    job = Run(config, folder)
    _need(job, "survey", "design", "calibrate")
    check_limits(job)  # of every space, before hours go into the first
    for name, space in job.spaces.items():
        path = job.search_file(name)
        if _finished(path, job.made_from("search"), again):
            continue
        problem = _problem(job, space, supernets)
        unfinished = (problem.checkpoint, problem.checkpoint.with_suffix(".json"))  # a supernet's, and short trainings
        for old in unfinished if again else ():
            old.unlink(missing_ok=True)
        if space.size == 1:
            _write(path, job.made_from("search"), 0.0, _only(config, space).json())
            continue
        found = config.strategy.search(problem)
        judged = time.monotonic()
        taken = finish(problem, found, job.target)
        arch = taken.arch
        latency = job.calibrated
        count = RIVALS if found.cheap else 0
        others = rivals(replace(problem, cost=latency), arch, count, seed=config.seed)
        even = [] if taken.uniform is None else [taken.uniform]
        accuracy, *theirs = found.validate([arch, *even, *others])
        evenly = theirs.pop(0) if even else None
        took = found.seconds + time.monotonic() - judged
        record = SearchRecord(
            space=name,
            strategy=_title(config),
            cost=config.strategy.charged,
            arch=arch,
            epochs=found.epochs,
            converged=found.converged,
            why=found.why,
            accuracy=accuracy,
            rivals=tuple(theirs),
            rival_costs=tuple(latency.cost(other) / latency.cost(arch) for other in others),
            seconds=found.seconds,
            seed=config.seed,
            limits=taken.limits,
            measured_archs=taken.measured,
            uniform=evenly,
            judge=found.judge,
        )
        state = "converged" if record.converged else "not converged"
        beside = f"; better than {record.beaten} of {len(theirs)} random archs of its latency" if theirs else ""
        say(f"search {name}: {state}{beside}")
        _write(path, job.made_from("search"), took, record.json())
        for done in unfinished:
            done.unlink(missing_ok=True)


def _only(config: Config, space: Space) -> SearchRecord:
    """Of a space without a choice; it is said that nothing is searched."""
    why = f"the space {space.name} has a single choice at every site, so its network is trained directly"
    say(f"search {space.name}: {why}")
    return SearchRecord(
        space=space.name, strategy="none", cost="-", arch=space.widest, epochs=(), converged=True, why=why,
        accuracy=None, rivals=(), rival_costs=(), seconds=0.0, seed=config.seed,
    )  # fmt: skip


def train(config: Config, folder: Path, again: bool = False) -> None:
    """Section 4.1: the base network, then every found and control network, distilled from it -> networks.json."""
    job = Run(config, folder)
    _need(job, "survey", "design", "calibrate", "search")
    path = folder / "networks.json"
    if _finished(path, job.made_from("train"), again):
        names = [content["name"] for content in read_json(path)["results"]]
        if all(job.model_file(name).exists() for name in names):
            return
    trained = [train_row(job, row, again) for row in _rows(job)]
    content = {"results": [row.json() for row, _ in trained], "test_images": len(job.data.test)}
    _write(path, job.made_from("train"), sum(seconds for _, seconds in trained), content)


def measure(config: Config, folder: Path, again: bool = False) -> None:
    """Whole networks in one interleaved run, and their predictions -> measure.json."""
    job = Run(config, folder)
    _need(job, "train")
    path = folder / "measure.json"
    if _finished(path, job.made_from("measure"), again):
        return
    started = time.monotonic()
    rows = [Result.of(content) for content in read_json(folder / "networks.json")["results"]]
    rows = [replace(row, predicted=job.calibrated.cost(row.arch)) for row in rows]
    readings = measure_rows(job, rows, [load_network(job, row) for row in rows], "measuring whole networks, %")
    rows = [replace(row, measured=reading) for row, reading in zip(rows, readings, strict=True)]
    for row in rows:
        assert row.measured is not None
        say(f"measure: {row.name}: {milliseconds(row.measured.estimate)}, accuracy {percent(row.accuracy or 0)}")
    _environment(job)
    _write(path, job.made_from("measure"), time.monotonic() - started, {"results": [row.json() for row in rows]})


def report(config: Config, folder: Path, again: bool = False) -> None:
    """report.json, report.md and report.html, from the files of the stages that are there; what is missing is named.

    Raises UserError where not even the survey is finished.
    """
    job = Run(config, folder)
    lacking = {path.name: _lack(job, stage, path) for stage in STAGES[:-1] for path in job.files(stage)}
    if why := lacking["survey.json"]:
        raise UserError(why)
    missing = [why for why in lacking.values() if why]
    contents = {name: read_json(folder / name) for name, why in lacking.items() if not why}
    files = {stage: [path.name for path in job.files(stage) if path.name in contents] for stage in STAGES[:-1]}
    command = folder / "command.json"
    searches = [SearchRecord.of(plain(contents[name])) for name in files["search"]]
    made = Report(
        title=f"{config.family.title} on {config.names['data']}, {config.target.device}, {config.target.runtime}",
        command=read_json(command)["command"] if command.exists() else "htas run config.toml",
        results=tuple(_known(job, contents, searches)),
        curves=tuple(CurveRecord.of(each) for each in contents.get("design.json", {}).get("curves", ())),
        searches=tuple(searches),
        machine=read_json(folder / "environment.json"),
        config=config.toml(),
        dataset=config.names["data"],
        stages={stage: float(sum(contents[name]["took"] for name in own)) for stage, own in files.items() if own},
        remarks=(*contents["survey.json"]["doubts"], *(f"Not in this report: {why}." for why in missing)),
        test_images=contents.get("networks.json", {}).get("test_images", 0),
        predictions=tuple(
            Prediction(each["held_out"], each["measured"], each["error"])
            for each in contents.get("cost.json", {}).get("networks", ())
        ),
        blocks={name: site.producers for name, site in job.network.depths.items()},
    )
    for why in missing:
        say(f"report: not there: {why}")
    if not again and _reported(made, folder):
        return
    write(made, folder)
    say(f"report: {folder / 'report.html'}")


def compared(folders: Sequence[Path], out: Path) -> Path:
    """The reports of several runs on one page; its path. Raises UserError where one is no run, or is there twice."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"these are not {len(folders)} different runs: {listing(map(str, folders))}")
    runs = {}
    for folder in folders:
        if (folder / "config.toml").exists():
            report(load(folder / "config.toml"), folder)
        name = folder.resolve().name
        runs[name if name not in runs else str(folder)] = read_report(folder)
    return write_runs(runs, out)


def export_network(folder: Path, to: str, network: str = "", file: Path | None = None) -> tuple[Path, float]:
    """A trained network of a run as a file: its path, and how far its outputs are from PyTorch's at most."""
    config = load(folder / "config.toml")
    job = Run(config, folder)
    _need(job, "train")
    rows = {row.name: row for row in map(Result.of, read_json(folder / "networks.json")["results"])}
    name = network or config.design.spaces[0]
    if name not in rows:
        raise UserError(no_such("network of this run", name, rows))
    suffix = {"openvino": "xml"}.get(to, to)
    path = file or folder / f"{slug(name)}.{suffix}"
    if path.suffix != f".{suffix}":
        raise UserError(
            f"--to {to} writes a file that ends in .{suffix}, got --file {path}; name it so, or leave it out"
        )
    return path, export(load_network(job, rows[name]), job.target.example(), path)


def check_limits(job: Run) -> None:
    """Say what there is and what is asked; raises ValueError where the limits cannot be kept in one of the spaces."""
    for name, space in job.spaces.items():
        for line in moves.check(limits(job), space, job.network.base):
            say(f"{name}: {line}")


def shares_possible(job: Run) -> tuple[float, float]:
    """The least and the most latency of the first space, over the base network's, by cost.json."""
    space, base = next(iter(job.spaces.values())), job.calibrated.cost(job.network.base)
    whole = [Limit("latency", "100%", job.calibrated, base)]
    return moves.over(whole, moves.leanest(whole, space)), moves.over(whole, space.widest)


def limits(job: Run) -> tuple[Limit, ...]:
    """The constraints as numbers."""
    costs = {metric: job.costs.by(metric) for metric in job.config.constraints.given}
    return budget.limits(job.config.constraints, costs, job.network.base)


def _problem(job: Run, space: Space, supernets: Path | None = None) -> Problem:
    key = job.supernet_key(space) if supernets else ""
    trained = supernets / f"{key}.safetensors" if supernets and key else None
    return Problem(
        network=job.network,
        reset=job.reset,
        data=job.data,
        space=space,
        cost=job.cost,
        device=job.device,
        seed=job.config.seed,
        checkpoint=job.checkpoint(f"search-{space.name}", job.made_from("search")),
        base=lambda: base_network(job),
        title=f"search {space.name}",
        limits=limits(job),
        trained=trained,
    )


def _reported(made: Report, folder: Path) -> bool:
    """Whether the report that is there says the same."""
    paths = [folder / f"report.{suffix}" for suffix in ("json", "md", "html")]
    if not all(path.exists() for path in paths):
        return False
    try:
        return Report.of(read_json(paths[0])) == made
    except (KeyError, TypeError, ValueError):  # of another version
        return False


def _refuse_noise(curves: Sequence[CurveRecord], allowed: float) -> None:
    """Raise UserError where too many groups were chosen by noise."""
    certain = [sure for curve in curves for sure in curve.certain]
    left = sum(each < DECIDED for each in certain) / max(1, len(certain))
    if left > allowed:
        raise UserError(
            f"{_decided(curves)}, and {left:.0%} are not, where {allowed:.0%} may be (survey.undecided): this machine "
            "is too noisy to tell; stop other work (htas doctor names it) and survey again with --again, give "
            "--survey.seconds more in another folder, or accept choices made by noise with --survey.undecided=1"
        )


def _decided(curves: Sequence[CurveRecord]) -> str:
    """How many groups of the space `hardware` are decided."""
    certain = [sure for curve in curves for sure in curve.certain]
    sure = sum(each >= DECIDED for each in certain)
    return f"{sure} of {len(certain)} groups decided: their choice is right with a probability of at least {DECIDED}"
