"""The seven stages of a run, files in and files out: survey, design, calibrate, search, train, measure, report.

A stage is finished when its files exist and have its key; otherwise it is done again. An interrupted search or training
continues from its last epoch.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from htas.console.progress import progress, say, shares
from htas.cost.calibrate import calibrate as fit_cost
from htas.cost.calibrate import cells, fit_metric, roomy_calibration
from htas.cost.fit import FitRecord, read_calibration
from htas.cost.limits import Limit
from htas.cost.paper import paper_cost
from htas.errors import UserError
from htas.files import digest, read_json, read_record, slug, write_record
from htas.formats.export import export
from htas.formats.int8 import in_fp32_sentence, needs_seven_bits
from htas.metrics.latency import MAX_ROUNDS
from htas.report import read as read_report
from htas.report import write
from htas.report.result import Prediction, Report
from htas.report.summary import breach
from htas.run import keys
from htas.run import plan as outlook
from htas.run import rows as run_rows
from htas.run.config import Config, load
from htas.run.controls import ends
from htas.run.deployed import calibration_images, deployed_rows
from htas.run.limits import judged_rows, limits
from htas.run.needs import need_memory, need_startable, need_supernet
from htas.run.rows import NetworksRecord
from htas.run.run import CommandRecord, Run, Sources, write_environment
from htas.run.stage import Stage, StageHeader, ensure, made_from, need, unusable, working, write_stage
from htas.run.tuned import int8_network, tuned_rows, weight_bits
from htas.runtimes import open_runtime
from htas.search import moves
from htas.search.finish import finish
from htas.search.oneshot import SearchOptions
from htas.search.problem import Problem, SearchOutcome, rivals, unfinished
from htas.search.record import SearchRecord
from htas.spaces.curve import CurveRecord
from htas.spaces.design import DECIDED, DesignRecord, records, spaces, undecided
from htas.spaces.layers import widths_at_most
from htas.spaces.space import Space
from htas.spaces.survey import survey as take_survey
from htas.text import TextTable, listing, milliseconds, no_such, percent
from htas.timing.target import machine
from htas.training import ranks

RIVALS = 20


def run_all(run: Run, command: str, *, quiet: bool = False) -> Path:
    """Do every stage in turn; returns the path of report.html. With `quiet` nothing is said of how long it takes."""
    with working(run):
        ranks.of_first(lambda: begin(run, command, shown=not quiet))
        for stage in STAGES:
            ensure(run, stage)
    return run.folder / "report.html"


def begin(run: Run, command: str, *, shown: bool = True) -> None:
    """Refuse what would fail after hours, and with `shown` say how long a run takes that is not finished yet."""
    need_startable(run)
    if shown and not (run.folder / "report.json").exists():
        outlook.show(run)
    need_supernet(run)
    write_record(run.folder / "command.json", CommandRecord(command))


def _survey(run: Run, again: bool) -> None:
    """Section 3.2: every distinct layer at every width -> survey.json."""
    started = time.monotonic()
    config = run.config
    runtime = open_runtime(run.target)
    building = runtime.build_seconds
    plan, less = config.design.roomy_survey(run.network, widths_at_most(building), runtime.free_memory())
    number = plan.at_most
    with progress(f"survey of {number} layers, %", 100) as bar:
        metric = run.remembering(run.latency(config.survey.limit(number, building)), again)
        record = take_survey(
            plan, metric, pending=lambda tables: undecided(run.network, tables, config.design), on_round=shares(bar)
        )
    record = replace(record, doubts=(*record.doubts, *filter(None, [less]), *_left_in_fp32(run)))
    for doubt in record.doubts:
        say(f"survey: doubt: {doubt}")
    write_environment(run)
    write_stage(run.folder / "survey.json", keys.survey(run), time.monotonic() - started, record)


def _left_in_fp32(run: Run) -> list[str]:
    """A sentence that names the layers which are surveyed in fp32, where the precision is int8."""
    runtime, uses = open_runtime(run.target), run.network.uses(run.network.base)
    in_fp32 = {layer for layer in {use.layer for use in uses} if runtime.in_fp32(layer)}
    sentence = in_fp32_sentence([use.node for use in uses if use.layer in in_fp32], runtime.what)
    return [sentence.rstrip(".")] if sentence else []


def survey_page(run: Run) -> tuple[Path, TextTable]:
    """Write survey.html; its path, and the table of choices (the paper's Table 2)."""
    from htas.report.survey import page

    need(run, SURVEY)
    config, record, curves = run.config, run.survey, surveyed_curves(run)
    title = f"Survey of {config.family.title}: {config.target.title}"
    layers = f"{record.cases}" + (f", and {record.interpolated} interpolated" if record.interpolated else "")
    seconds = round(read_record(run.folder / "survey.json", StageHeader).took, 1)
    here = {} if config.target.host else machine()
    facts = {**here, **record.context, "layers": layers, "seconds": seconds}
    return page(title, curves, record.doubts, decided(curves), facts, run.folder)


def surveyed_curves(run: Run) -> list[CurveRecord]:
    """The curves of survey.json, with the choices of the space `hardware` alone."""
    options = replace(run.config.design, spaces=("hardware",), widths={})
    return records(run.network, run.survey.layers, options, spaces(run.network, run.survey.layers, options))


def _design(run: Run, again: bool) -> None:
    """Eq. 1 to 4: curves, fits and choices -> design.json."""
    started = time.monotonic()
    config = run.config
    design_spaces = spaces(run.network, run.survey.layers, config.design)
    curves = records(run.network, run.survey.layers, config.design, design_spaces)
    for curve in curves:
        for doubt in curve.doubts:
            say(f"design: doubt: {doubt}")
        for name, choices in curve.choices.items():
            say(f"design: {name}: {curve.sites[0]} and {len(curve.sites) - 1} alike: {listing(map(str, choices))}")
        if curve.dominated:
            say(f"design: no faster than a wider choice: {listing(map(str, curve.dominated))} (design.drop_dominated)")
    say(f"design: {decided(curves)}")
    certain, most = [sure for curve in curves for sure in curve.certain], config.survey.undecided
    undecided_share = sum(each < DECIDED for each in certain) / max(1, len(certain))
    if "hardware" in design_spaces and undecided_share > most:
        raise UserError(
            f"{decided(curves)}, and {undecided_share:.0%} are not, where {most:.0%} may be (survey.undecided): "
            "this machine is too noisy to tell; stop other work (htas doctor names it) and survey again with --again, "
            "give --survey.seconds more in another folder, or accept choices made by noise with --survey.undecided=1"
        )
    record = DesignRecord(design_spaces, tuple(curves))
    write_stage(run.folder / "design.json", keys.design(run), time.monotonic() - started, record)


def _calibrate(run: Run, again: bool) -> None:
    """Layers at pairs of widths, whole networks, and the fit of one on the other -> cost.json."""
    started = time.monotonic()
    spaces, controls, runtime = list(run.design.spaces.values()), ends(run), open_runtime(run.target)
    building, free = runtime.build_seconds, runtime.free_memory()
    options, less = roomy_calibration(run.calibration, run.network, spaces, building, controls, free)
    number = sum(map(len, cells(run.network, spaces, options.widths, building, controls).values()))
    base = paper_cost(run.network, run.survey.layers, run.config.design).cost(run.network.base)
    limits = options.limits(number, building, base)
    with progress(f"calibration: {number} layers and {options.networks} networks, %", 100) as bar:
        metrics = run.latency(limits[0]), replace(run.latency(limits[1]), rounds=MAX_ROUNDS)
        record = fit_cost(
            run.network, spaces, metrics, options, seed=0, building=building, base=base, controls=controls,
            on_round=shares(bar),
        )  # fmt: skip
    record = replace(record, doubts=(*record.doubts, *filter(None, [less])))
    say(f"cost: {_held_out(record)}")
    for doubt in record.doubts:
        say(f"cost: doubt: {doubt}")
    fits = {}
    for name, metric in run.fitted_metrics.items():
        with progress(f"{name} of {options.networks} networks, %", 100) as bar:
            fits[name] = fit_metric(run.network, record, metric, shares(bar))
        say(f"cost: {name}: {_held_out(fits[name])}")
    record = replace(record, fits=fits, design=digest(run.folder / "design.json"))
    write_stage(run.folder / "cost.json", keys.calibrate(run), time.monotonic() - started, record)


def _held_out(fitted: FitRecord) -> str:
    return (
        f"networks that the fit has not seen are predicted with a mean error of {percent(fitted.mean_error, 1)}, at "
        f"worst {percent(fitted.worst_error, 1)} ({listing(fitted.form)})"
    )


def _search(run: Run, again: bool) -> None:
    """Section 3.3: one search per space -> search-SPACE.json, with its course and its random rivals.

    Of several processes all train; the first alone ends a search, and does the whole of one that trains no network in
    epochs, once the base network is trained.
    """
    key = ranks.of_first(lambda: keys.search(run))
    ranks.of_first(lambda: check_limits(run))  # of every space, before hours go into the first
    for space in run.design.spaces.values():
        if ranks.of_first(partial(_begin_search, run, space, key, again)):
            continue
        problem, strategy = _problem(run, space, key), run.config.strategy
        if isinstance(strategy, SearchOptions):
            outcome = strategy.outcome(problem)
            ranks.of_first(partial(_end_search, run, problem, key, outcome))
        else:
            if ranks.size() > 1:
                run_rows.base_network(run)
            ranks.of_first(partial(_search_alone, run, problem, key))


def _begin_search(run: Run, space: Space, key: str, again: bool) -> bool:
    """Whether the file of a search is there, or needs no search; with `again`, what a search left is removed."""
    path = run.search_file(space.name)
    if not again and made_from(path, key):
        return True
    for old in unfinished(run.checkpoint(f"search-{space.name}", key)) if again else ():
        old.unlink(missing_ok=True)
    if space.size == 1:
        write_stage(path, key, 0.0, _only(run.config, space))
    return space.size == 1


def _search_alone(run: Run, problem: Problem, key: str) -> None:
    _end_search(run, problem, key, run.config.strategy.outcome(problem))


def _end_search(run: Run, problem: Problem, key: str, outcome: SearchOutcome) -> None:
    """Measure what a search found, judge it next to others, and write its record."""
    config, name = run.config, problem.space.name
    judged = time.monotonic()
    finished = finish(problem, outcome, run.target)
    arch, latency = finished.arch, run.calibrated
    count = RIVALS if outcome.cheap and not outcome.estimates else 0
    others = rivals(replace(problem, cost=latency), arch, count, seed=config.seed)
    uniform = [] if finished.uniform is None else [finished.uniform]
    accuracy, *theirs = outcome.validate([arch, *uniform, *others])
    uniform_accuracy = theirs.pop(0) if uniform else None
    within = listing(f"{metric} {text}" for metric, text in config.constraints.by_metric.items())
    record = SearchRecord(
        space=name,
        strategy=f"{config.names['strategy']} within {within}" if within else config.strategy.title,
        cost=config.strategy.charged,
        arch=arch,
        epochs=outcome.epochs,
        converged=outcome.converged,
        why=outcome.why,
        accuracy=accuracy,
        rivals=tuple(theirs),
        rival_costs=tuple(latency.cost(other) / latency.cost(arch) for other in others),
        seconds=outcome.seconds,
        seed=config.seed,
        limits=finished.limits,
        measured_archs=finished.measured,
        uniform=uniform_accuracy,
        judge=f"{outcome.judge}, in simulated int8" if problem.weight_bits else outcome.judge,
    )
    state = "converged" if record.converged else "not converged"
    rank = f"; better than {record.beaten} of {len(theirs)} random archs of its latency" if theirs else ""
    say(f"search {name}: {state}{rank}")
    write_stage(run.search_file(name), key, outcome.seconds + time.monotonic() - judged, record)
    for done in unfinished(problem.checkpoint):
        done.unlink(missing_ok=True)


def _only(config: Config, space: Space) -> SearchRecord:
    """The record for a space with a single arch: there is nothing to search."""
    why = f"the space {space.name} has a single choice at every site, so its network is trained directly"
    say(f"search {space.name}: {why}")
    return SearchRecord(
        space=space.name, strategy="none", cost="-", arch=space.widest, epochs=(), converged=True, why=why,
        accuracy=None, rivals=(), rival_costs=(), seconds=0.0, seed=config.seed,
    )  # fmt: skip


def _train(run: Run, again: bool) -> None:
    """Section 4.1: train the base network, then all others, distilled from it -> networks.json."""
    rows = ranks.of_first(lambda: run_rows.untrained_rows(run))
    trained = [run_rows.train_row(run, row, again) for row in rows]
    if ranks.first():
        record = NetworksRecord(tuple(row for row, _ in trained), run_rows.images_counted(run.data))
        write_stage(run.folder / "networks.json", keys.train(run), sum(seconds for _, seconds in trained), record)


def _trained(run: Run) -> NetworksRecord:
    return run_rows.read_networks(run, "networks.json")


def _measure(run: Run, again: bool) -> None:
    """Whole networks in one interleaved run, and their predictions -> measure.json."""
    started = time.monotonic()
    trained = _trained(run)
    rows = [run_rows.predicted(run, row) for row in trained.results]
    modules = [run_rows.load_network(run, row) for row in rows]
    readings = run_rows.measure_rows(run, rows, modules, "measuring whole networks, %")
    rows = [replace(row, measured=reading) for row, reading in zip(rows, readings, strict=True)]
    if run.target.precision != "fp32":
        rows = tuned_rows(run, rows)
        rows = deployed_rows(run, rows, modules, [int8_network(run, row) for row in rows])
    rows = judged_rows(run, rows, next(row for row in rows if row.name == "base"))
    for row in rows:
        assert row.measured is not None
        say(f"measure: {row.name}: {milliseconds(row.measured.estimate)}, accuracy {percent(row.accuracy or 0)}")
        if row.deployed:
            say(f"measure: {row.name}: {row.deployed.sentence}")
        for remark in filter(None, (breach(row), row.outside)):
            say(f"measure: {row.name}: {remark}")
    write_environment(run)
    record = replace(trained, results=tuple(rows))
    write_stage(run.folder / "measure.json", keys.measure(run), time.monotonic() - started, record)


def _report(run: Run, again: bool) -> None:
    """report.json, report.md and report.html, from the files that exist; the report names those that are missing.

    Raises UserError where not even the survey is finished.
    """
    config, folder = run.config, run.folder
    lacking = {path.name: unusable(run, stage, path) for stage in STAGES[:-1] for path in stage.files(run)}
    if why := lacking["survey.json"]:
        raise UserError(why)
    missing = [why for why in lacking.values() if why]
    for why in missing:
        say(f"report: not there: {why}")
    present = {stage.name: [path for path in stage.files(run) if not lacking[path.name]] for stage in STAGES[:-1]}
    seconds = {
        name: sum(read_record(path, StageHeader).took for path in paths) for name, paths in present.items() if paths
    }
    command = folder / "command.json"
    searches = [run.search(name) for name in config.design.spaces if run.search_file(name) in present["search"]]
    networks = [run_rows.read_networks(run, path.name) for name in ("measure", "train") for path in present[name]]
    untrained = (run_rows.base_row(run), *(run_rows.searched_row(run, each) for each in searches))
    calibration = read_calibration(folder / "cost.json", run.network) if present["calibrate"] else None
    made_report = Report(
        title=f"{config.family.title} on {config.data.name}, {config.target.title}",
        command=read_record(command, CommandRecord).command if command.exists() else "htas run config.toml",
        results=networks[0].results if networks else untrained,
        curves=run.design.curves if present["design"] else (),
        searches=tuple(searches),
        machine=read_json(folder / "environment.json"),
        config=config.toml(),
        dataset=config.data.name,
        stages=seconds,
        remarks=tuple(dict.fromkeys((
            *config.data.doubts, *run.survey.doubts, *(calibration.doubts if calibration else ()),
            *(f"Not in this report: {why}." for why in missing),
        ))),
        test_images=networks[-1].test_images if networks else 0,
        classes=config.data.classes if networks and networks[-1].test_images else 0,
        predictions=tuple(
            Prediction(each.held_out, each.measured, each.error) for each in calibration.networks
        ) if calibration else (),
        blocks={name: site.producers for name, site in run.network.depths.items()},
    )  # fmt: skip
    if not again and _reported(made_report, folder):
        return
    write(made_report, folder)
    say(f"report: {folder / 'report.html'}")


def _file(name: str) -> Callable[[Run], list[Path]]:
    return lambda run: [run.folder / name]


SURVEY = Stage("survey", (), _file("survey.json"), keys.survey, _survey, measures=True, lasting=True)
DESIGN = Stage("design", (SURVEY,), _file("design.json"), keys.design, _design)
CALIBRATE = Stage(
    "calibrate", (DESIGN,), _file("cost.json"), keys.calibrate, _calibrate, measures=True,
    outdated=lambda run, content: content.get("design") != digest(run.folder / "design.json"),
)  # fmt: skip
SEARCH = Stage(
    "search", (SURVEY, DESIGN, CALIBRATE),
    lambda run: [run.search_file(name) for name in run.config.design.spaces], keys.search, _search, together=True,
    unfinished=lambda run: unfinished(
        *(run.checkpoint(f"search-{name}", keys.search(run)) for name in run.config.design.spaces)),
)  # fmt: skip
TRAIN = Stage(
    "train", (SEARCH,), _file("networks.json"), keys.train, _train,
    complete=run_rows.weights_complete,
    together=True,
)  # fmt: skip
MEASURE = Stage("measure", (TRAIN,), _file("measure.json"), keys.measure, _measure, lasting=True)
REPORT = Stage("report", (), _file("report.json"), lambda run: "the report compares itself", _report, beside=True)
STAGES = (SURVEY, DESIGN, CALIBRATE, SEARCH, TRAIN, MEASURE, REPORT)
"""In the order of a run."""


def compared(folders: Sequence[Path], out: Path, unchanged: Sequence[Path] = ()) -> Path:
    """The reports of several runs on one page, those `unchanged` as they are; its path. Raises UserError."""
    from htas.report.runs import page

    runs = {}
    for folder in folders:
        if folder not in unchanged and (folder / "config.toml").exists():
            ensure(Run(load(folder / "config.toml"), folder), REPORT)
        name = folder.resolve().name
        runs[name if name not in runs else str(folder)] = read_report(folder)
    return page(runs, out)


def export_network(
    folder: Path, suffix: str, network: str = "", file: Path | None = None, *, int8: bool = False
) -> tuple[Path, float]:
    """Write a trained network for another runtime, or quantized to int8 with images of its training split; its path,
    which ends in `suffix`, and the largest absolute difference from PyTorch."""
    config = load(folder / "config.toml")
    if len(config.target.hosts) > 1:
        found = sorted(str(each.parent) for each in folder.glob("*/networks.json"))
        raise UserError(
            f"{folder} holds the runs of {len(config.target.hosts)} devices; name the folder of one: "
            f"{listing(found) or 'none is trained yet'}"
        )
    run = Run(config, folder)
    need(run, TRAIN)
    rows = {row.name: row for row in _trained(run).results}
    name = network or config.design.spaces[0]
    if name not in rows:
        raise UserError(no_such("network of this run", name, rows))
    path = file or folder / f"{slug(name)}{'-int8' if int8 else ''}{suffix}"
    images = calibration_images(run.data, config.seed) if int8 else ()
    trained = int8_network(run, rows[name]) if int8 else run_rows.load_network(run, rows[name])
    seven_bits = int8 and needs_seven_bits(run.target.instructions())
    return path, export(trained, run.target.example(), path, images, seven_bits=seven_bits)


def check_limits(run: Run) -> None:
    """Print the range of each limited metric in each space; raises UserError where no arch of a space keeps a limit, or
    its supernet has no room."""
    for name, space in run.design.spaces.items():
        need_memory(run, space.widest)
        for line in moves.check(limits(run), space, run.network.base):
            say(f"{name}: {line}")


def shares_possible(run: Run) -> tuple[float, float]:
    """Predicted latency of the leanest and the widest arch of the first space, as fractions of the base network's."""
    space, base = next(iter(run.design.spaces.values())), run.calibrated.cost(run.network.base)
    whole = [Limit("latency", "100%", run.calibrated, base)]
    return moves.over(whole, moves.leanest(whole, space)), moves.over(whole, space.widest)


def _problem(run: Run, space: Space, key: str) -> Problem:
    shared = run.supernets and run.supernet_key(space)
    return Problem(
        network=run.network,
        reset=run.reset,
        data=run.data,
        space=space,
        cost=run.cost,
        device=run.device,
        seed=run.config.seed,
        checkpoint=run.checkpoint(f"search-{space.name}", key),
        base=lambda: run_rows.base_network(run),
        title=f"search {space.name}",
        limits=limits(run),
        anew=run.anew,
        trained=run.supernets / f"{shared}.safetensors" if run.supernets and shared else None,
        weight_bits=ranks.of_first(lambda: weight_bits(run.target)),
        again=partial(_problem_again, run.supernets, run.in_memory, space.name, run.folder) if run.elsewhere else None,
        anywhere=partial(_problem_again, None, Sources(), space.name) if run.elsewhere else None,
    )


def _problem_again(supernets: Path | None, sources: Sources, space: str, folder: Path) -> Problem:
    """The problem of a space, in another process."""
    run = Run(load(folder / "config.toml"), folder, supernets, sources)
    return _problem(run, run.design.spaces[space], keys.search(run))


def _reported(new: Report, folder: Path) -> bool:
    paths = [folder / f"report.{suffix}" for suffix in ("json", "md", "html")]
    with suppress(UserError):  # of another version
        return all(path.exists() for path in paths) and read_report(paths[0]) == new
    return False


def decided(curves: Sequence[CurveRecord]) -> str:
    """How many groups of the space `hardware` are decided."""
    sure = [each >= DECIDED for curve in curves for each in curve.certain]
    return f"{sum(sure)} of {len(sure)} groups decided: their choice is right with a probability of at least {DECIDED}"
