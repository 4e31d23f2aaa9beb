"""The keys of stages: hashes of everything that the files of a stage depend on."""

from dataclasses import replace
from typing import Any

from htas.files import digest
from htas.run.controls import STEPS
from htas.run.run import Run
from htas.training.distill import Distill


def survey(run: Run) -> str:
    """The layers, the target on this machine, and how the layers are timed."""
    return digest(_basis(run), run.place, run.config.values("survey", keys=True), _widths(run))


def design(run: Run) -> str:
    """The survey, and how widths are chosen."""
    return digest(_basis(run), run.config.values("design"), run.folder / "survey.json")


def calibrate(run: Run) -> str:
    """The spaces and the controls, the target on this machine, and how layers and networks are measured."""
    options = [run.config.values("calibrate"), STEPS]
    return digest(_basis(run), run.place, options, _widths(run), run.folder / "design.json", *run.fitted_metrics)


def search(run: Run) -> str:
    """The configuration, but for distilling and, to most strategies, the start of networks found, which come later;
    spaces, costs, and the weights a search starts from."""
    files = [run.folder / f"{name}.json" for name in ("design", "survey", "cost")]
    start = "base" if run.config.strategy.trains_anew and not run.anew else "random"
    config = replace(run.config, distill=Distill(), train=replace(run.config.train, start=start, int8_epochs=0))
    return digest(config.options(keys=True), *files, *config.strategy.files)


def train(run: Run) -> str:
    """The configuration, and the searches."""
    return digest(run.config.options(keys=True), *(run.search_file(name) for name in run.config.design.spaces))


def measure(run: Run) -> str:
    """The configuration, the networks, and the target on this machine."""
    return digest(run.config.options(keys=True), run.place, run.folder / "networks.json")


def _basis(run: Run) -> list[Any]:
    return [*run.family, run.config.data.classes]


def _widths(run: Run) -> list[Any]:
    design = run.config.design
    return [design.expand, design.inputs, design.adds, *design.ignored]
