"""The keys of the stages: hashes of everything that their files depend on."""

import dataclasses
from dataclasses import replace
from typing import Any

from htas.files import digest
from htas.run.run import Run
from htas.training.distill import Distill


def survey_key(run: Run) -> str:
    """The layers, the target on this machine, and how the layers are timed."""
    return digest(_basis(run), run.place, result_options(run.config.survey), _widths(run))


def design_key(run: Run) -> str:
    """The survey, and how widths are chosen."""
    return digest(_basis(run), dataclasses.asdict(run.config.design), run.folder / "survey.json")


def calibrate_key(run: Run) -> str:
    """The spaces, the target on this machine, and how layers and networks are measured."""
    options = dataclasses.asdict(run.config.calibrate)
    return digest(_basis(run), run.place, options, _widths(run), run.folder / "design.json", *run.fitted_metrics)


def search_key(run: Run) -> str:
    """The configuration, but for distilling, which comes later; spaces, costs, and the weights a search starts from."""
    files = [run.folder / f"{name}.json" for name in ("design", "survey", "cost")]
    config = replace(run.config, distill=Distill())
    return digest(config.key_options(), *files, *config.strategy.files)


def train_key(run: Run) -> str:
    """The configuration, and the searches."""
    return digest(run.config.key_options(), *(run.search_file(name) for name in run.config.design.spaces))


def measure_key(run: Run) -> str:
    """The configuration, the networks, and the target on this machine."""
    return digest(run.config.key_options(), run.place, run.folder / "networks.json")


def _basis(run: Run) -> list[Any]:
    return [*run.family, run.config.data.classes]


def _widths(run: Run) -> list[Any]:
    design = run.config.design
    return [design.expand, design.inputs, design.adds, *design.ignored]


def result_options(options: Any) -> dict[str, object]:
    """The options of a table that results depend on: all that are not marked `metadata={"key": False}`."""
    values = dataclasses.asdict(options)
    return {each.name: values[each.name] for each in dataclasses.fields(options) if each.metadata.get("key", True)}
