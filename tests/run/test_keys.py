"""Each option of a configuration decides which stages are done again when it changes; none is left out by accident."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from scripted_device import scripted_device

from htas.run.config import Config
from htas.run.run import Run, open_run
from htas.run.stages import REPORT, STAGES
from htas.strategies.differentiable import Differentiable
from htas.strategies.knapsack import Knapsack

OTHER: dict[str, Any] = {
    "family.name": "vgg", "family.depth": 32, "family.block": "bottleneck", "data.name": "cifar10",
    "target.host": f"exec:{sys.executable}", "target.runtime": "onnxruntime", "target.precision": "bf16",
    "target.shapes": [[1, 8, 8]],
    "survey.store": "none", "design.alpha": "fit", "design.selection": "paper", "design.inputs": "expanded",
    "design.adds": "project", "design.spaces": ["tas"], "design.ignored": ["stages.0"],
    "design.widths": {"16": [8], "32": [8], "64": [8]}, "design.bounds": {"16": [4, 16]}, "constraints.latency": "50%",
    "constraints.macs": "50%", "constraints.params": "50%", "constraints.memory": "50%", "constraints.energy": "50%",
    "constraints.metrics": {"macs": "50%"}, "constraints.accuracy_floor": "-1", "strategy.name": "random",
    "strategy.shortcut": "pad", "strategy.norms": "shared", "strategy.start": "random", "strategy.precision": "fp32",
    "strategy.anneal": "epoch", "strategy.cost": "macs", "strategy.loss": "band", "strategy.mix": "interpolate",
    "train.recipe": "short", "train.anneal": "step", "train.fall": "line", "train.precision": "fp32",
    "train.start": "base",
}  # fmt: skip
"""Another value of options that are no numbers."""
WITH = {"design.widths": {"design.spaces": ["hardware", "explicit"]}}
"""What else such a value needs."""
BOTH = {"target.host": {"target.runtime": "onnxruntime"}}
"""What it needs before and after, so that it alone makes the difference."""
UNTRIED = ("target.device", "target.options")
"""They need a GPU, and a runtime with options."""
LATER = {"search", "train", "measure"}
ALL = {"survey", "design", "calibrate", *LATER}
CHANGES = {
    "seed": LATER, "family": ALL, "data": LATER, "split": LATER, "target": {"survey", "calibrate", *LATER},
    "survey": {"survey", *LATER}, "design": {"design", *LATER}, "calibrate": {"calibrate", *LATER},
    "constraints": LATER,
    "strategy": LATER, "train": LATER, "distill": {"train", "measure"},
}  # fmt: skip
"""By table, the stages whose keys change with its options."""
EXCEPTIONS: dict[str, set[str]] = {
    "survey.store": set(), "survey.undecided": set(),
    "design.expand": ALL, "design.inputs": ALL, "design.adds": ALL, "design.ignored": ALL,
    "constraints.energy": {"calibrate", *LATER},
    "train.start": {"train", "measure"}, "train.int8_epochs": {"train", "measure"},
    "target.shapes": LATER,  # what is measured has the shapes of the data set
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose files are there; only their bytes count."""
    place = tmp_path_factory.mktemp("runs") / "run"
    with scripted_device():
        run = open_run(Config.default(), place)
    for path in [*(path for stage in STAGES for path in stage.files(run)), run.search_file("explicit")]:
        path.write_text("{}")
    return place


def keys(config: Config, folder: Path) -> dict[str, str]:
    run = Run(config, folder)
    return {stage.name: stage.key(run) for stage in STAGES if stage is not REPORT}


def other(name: str, value: Any) -> Any:
    """Another value of an option."""
    if name in OTHER:
        return OTHER[name]
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 + 0.01
    raise AssertionError(f"{name} = {value!r}: give it another value in OTHER")


@pytest.mark.slow
def test_a_changed_option_changes_the_keys_of_the_stages_that_depend_on_it_and_no_others(folder: Path) -> None:
    config = Config.default()
    before = keys(config, folder)
    wrong = {}
    for name, value in config.options().items():
        if name in UNTRIED:
            continue
        both = config.changed(BOTH.get(name, {}))
        start = keys(both, folder) if name in BOTH else before
        after = keys(both.changed({name: other(name, value), **WITH.get(name, {})}), folder)
        changed = {stage for stage, key in after.items() if key != start[stage]}
        if changed != EXCEPTIONS.get(name, CHANGES[name.partition(".")[0]]):
            wrong[name] = changed
    assert wrong == {}


@dataclass(frozen=True)
class Marked(Differentiable):
    """A strategy with an option that no result depends on, and one whose name is that of such an option elsewhere."""

    undecided: int = 0
    """Matters."""
    verbose: bool = field(default=False, metadata={"key": False})
    """Does not."""


def test_an_option_is_left_out_of_keys_by_its_own_mark_and_not_by_its_name(folder: Path) -> None:
    config = replace(Config.default(), strategy=Marked())
    before = keys(config, folder)
    assert keys(replace(config, strategy=Marked(verbose=True)), folder) == before
    changed = keys(replace(config, strategy=Marked(undecided=1)), folder)
    assert {stage for stage in before if changed[stage] != before[stage]} == LATER


def test_a_search_that_tries_new_weights_is_made_again_where_networks_begin_with_old_ones(folder: Path) -> None:
    new = replace(Config.default(), strategy=Knapsack())
    old = replace(new, train=replace(new.train, start="base"))
    before, after = keys(new, folder), keys(old, folder)
    assert {stage for stage in before if after[stage] != before[stage]} == LATER
    new, old = (replace(each, strategy=Knapsack(trials=1)) for each in (new, old))
    assert keys(new, folder)["search"] == keys(old, folder)["search"]
