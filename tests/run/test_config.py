"""TOML and overrides become objects, or one sentence that helps."""

import sys
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from htas.errors import UserError
from htas.files import digest
from htas.models import ModelFamily
from htas.plugins.values import allowed
from htas.run.config import NAMED, TABLES, WITHIN_LIMITS, Config, SplitOptions, configured_names, load
from htas.run.run import Run
from htas.run.stages import run_all
from htas.runtimes import open_runtime
from htas.spaces.design import Design
from htas.timing.target import Target
from htas.training.recipe import RECIPES


@dataclass(frozen=True)
class Own(ModelFamily):
    """A family outside the package."""

    weights: Path
    """A file."""
    hidden: int | None = None
    """Channels."""
    sizes: tuple[int, ...] = ()
    """More channels."""

    def build(self, classes: int) -> nn.Module:
        """Nothing."""
        return nn.Identity()

    @property
    def title(self) -> str:
        """Its name."""
        return "own"


OWN = f"--family.name={__name__}:Own"


def written(folder: Path, text: str) -> Path:
    path = folder / "some.toml"
    path.write_text(text)
    return path


def test_without_a_file_everything_has_its_default() -> None:
    config = load(None)
    assert config.seed == 0
    assert config.split == SplitOptions()
    assert config.train == RECIPES["paper"]
    assert config.names == {table: named.default for table, named in NAMED.items()}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "differentiable"),
        (["constraints.latency=50%"], WITHIN_LIMITS),
        (["constraints.macs=50%"], WITHIN_LIMITS),
        (["constraints.latency=50%", "strategy.seconds=5"], WITHIN_LIMITS),
        (["constraints.latency=50%", "strategy.epochs=2"], "differentiable"),
        (["constraints.latency=50%", "strategy.name=tas"], "tas"),
    ],
)
def test_the_strategy_that_nobody_names_follows_from_limits_and_options(overrides: list[str], name: str) -> None:
    assert load(None, overrides).names["strategy"] == name


def test_a_written_configuration_keeps_its_strategy_whatever_is_usual(tmp_path: Path) -> None:
    path = written(tmp_path, load(None).toml())
    assert load(path, ["constraints.latency=50%"]).names["strategy"] == "differentiable"


def test_a_file_and_then_overrides_decide(tmp_path: Path) -> None:
    path = written(tmp_path, 'seed = 3\n[family]\ndepth = 32\n[design]\ngroups = 4\nalpha = "fit"\nexpand = 3\n')
    config = load(path, ["--design.groups=6", "--seed=5", "--train.lr=1e-3", "--split.limit=100"])
    assert config.family.title == "cifar_resnet:32"
    assert (config.design.groups, config.design.alpha, config.design.expand) == (6, "fit", 3.0)
    assert (config.seed, config.train.lr, config.split.limit) == (5, 0.001, 100)


@pytest.mark.parametrize(
    ("override", "spaces"),
    [
        ("--design.spaces=tas", ("tas",)),
        ("--design.spaces=tas,grid", ("tas", "grid")),
        ("--design.spaces=[tas, grid]", ("tas", "grid")),
    ],
)
def test_a_list_on_the_command_line_needs_no_brackets(override: str, spaces: tuple[str, ...]) -> None:
    assert load(None, [override]).design.spaces == spaces


def test_a_recipe_is_a_name_and_what_is_changed_of_it(tmp_path: Path) -> None:
    config = load(written(tmp_path, '[train]\nrecipe = "short"\nepochs = 7\n'))
    assert config.names["train"] == "short"
    assert config.train == replace(RECIPES["short"], epochs=7)


def test_the_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    overrides = [
        "--seed=9",
        "--train.recipe=short",
        "--train.lr=1e-20",
        '--design.widths={"16": [8, 16], "stages.0": [4]}',
        "--design.spaces=explicit,tas",
        "--design.alpha=fit",
        '--target.runtime=my."odd"\\module:Üser',
    ]
    config = load(None, overrides)
    path = written(tmp_path, config.toml())
    assert load(path) == config
    assert load(path).toml() == config.toml()


def test_the_written_configuration_has_every_field_once() -> None:
    config = load(None)
    content = tomllib.loads(config.toml())
    assert list(content) == ["seed", *TABLES]
    for table in TABLES:
        key = [NAMED[table].key] if table in NAMED else []
        names = [field.name for field in fields(getattr(config, table))]
        assert sorted(content[table]) == sorted(key + names)


def test_a_class_of_ones_own_is_a_plug_in(tmp_path: Path) -> None:
    config = load(None, [OWN, "--family.weights=here/it.is", "--family.sizes=3,4"])
    assert config.family == Own(Path("here/it.is"), None, (3, 4))
    assert load(written(tmp_path, config.toml())) == config


def test_a_path_among_options_can_be_part_of_a_key(tmp_path: Path) -> None:
    keys = [digest(Run(load(None, [OWN, f"--family.weights={name}"]), tmp_path).family) for name in "aab"]
    assert keys[0] == keys[1] != keys[2]


@dataclass(frozen=True)
class Picky(Own):
    """A family that refuses."""

    def __post_init__(self) -> None:
        raise ValueError("weights must lie in this folder")


def test_a_class_of_ones_own_refuses_with_any_value_error() -> None:
    with pytest.raises(UserError, match=r"^family\.weights must lie in this folder$"):
        load(None, [f"--family.name={__name__}:Picky", "--family.weights=x"])


def test_a_value_error_of_the_packages_own_classes_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Design, "__post_init__", fail)
    with pytest.raises(ValueError, match=r"^a bug$") as error:
        load(None)
    assert not isinstance(error.value, UserError)


def test_an_option_without_a_default_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^family\.weights must be given: a path$"):
        load(None, [OWN])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "--design.group=4",
            "design has no option 'group'; did you mean 'groups'? "
            f"it has: {', '.join(field.name for field in fields(Design))}",
        ),
        (
            "--desing.groups=4",
            "the configuration has no table or option 'desing'; did you mean 'design'? "
            "it has: seed, family, data, split, target, survey, design, calibrate, constraints, strategy, train, "
            "distill",
        ),
        (
            "--target.image=[3,8,8]",
            "target has no option 'image': write shapes = [[3, 32, 32]], with a shape for each input",
        ),
        (
            "--target.more=[[8]]",
            "target has no option 'more': write shapes = [[3, 32, 32]], with a shape for each input",
        ),
        (
            "--constraints.accuracy_floor=-0.3",
            "constraints has no option 'accuracy_floor': htas fastest has it as --accuracy-floor",
        ),
        ("--constraints.tries=3", "constraints has no option 'tries': htas fastest has it as --tries"),
        ("--design.groups", "--design.groups has no value; write --design.groups=VALUE"),
        ("--design=4", "--design is no option; write --design.OPTION=VALUE"),
        ("--seed.x=4", "--seed.x is no option; write --seed=NUMBER"),
        ("--seed=-1", "seed must be a whole number, 0 or more, got -1"),
        ("--seed=one", "seed must be a whole number, 0 or more, got 'one'"),
        ("--design.groups=eight", "design.groups must be a whole number, got eight"),
        ("--design.groups=0", "design.groups must be 1 or more, got 0"),
        ("--design.expand=0.5", "design.expand must be 1 or more, got 0.5"),
        ("--design.alpha=best", "design.alpha must be a number or fit, got best"),
        ("--design.adds=jion", "design.adds must be one of join, project, got jion"),
        ("--split.validation=1", "split.validation must lie above 0 and below 1, got 1.0"),
        ("--split.limit=-1", "split.limit must be 0 (all images) or more, got -1"),
        ("--train.epochs=0", "train.epochs must be 1 or more, got 0"),
        (
            "--train.recipe=shrt",
            f"train.recipe: no recipe called 'shrt'; did you mean 'short'? choose one of {', '.join(RECIPES)}",
        ),
        (
            "--family.depth=21",
            "family.depth must be 6n + 2 with block = 'basic' (8, 14, 20, 32, 44, 56, 110, ...), got 21",
        ),
    ],
)
def test_a_wrong_override_gets_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load(None, [override])
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "option, what",
    [
        ("family.name", "model family"),
        ("data.name", "data set"),
        ("strategy.name", "strategy"),
        ("train.recipe", "recipe"),
        ("target.runtime", "runtime"),
    ],
)
@pytest.mark.parametrize("name", ["nosuch", "nosuch.module:Thing"])
def test_a_name_that_nothing_has_is_refused_with_its_option(option: str, what: str, name: str, tmp_path: Path) -> None:
    table, _, key = option.partition(".")
    file = tmp_path / "some.toml"
    file.write_text(f'[{table}]\n{key} = "{name}"\n')
    attempts = [lambda: load(None, [f"--{option}={name}"]), lambda: load(file)]
    attempts += [lambda: load(None).changed({option: name}), lambda: configured_names(file) and load(file)]
    if option == "target.runtime":
        attempts = [*(attempts if ":" not in name else []), lambda: open_runtime(Target(runtime=name))]
    said = "cannot import" if ":" in name and table != "train" else f"no {what} called"
    for attempt in attempts:
        with pytest.raises(UserError, match=f"^{option}: {said} '{name}'"):
            attempt()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[design]\ngroups = '8'", 'design.groups must be a whole number, got "8"'),
        ("[design]\ngroups = 8.0", "design.groups must be a whole number, got 8.0"),
        ("[design]\ngroups = true", "design.groups must be a whole number, got true"),
        ("[design]\nspaces = 'tas'", 'design.spaces must be a list of names, got "tas"'),
        (
            "[design.widths]\n16 = [8, 8.5]",
            'design.widths must be a table, each value a list of whole numbers, got {"16": [8, 8.5]}',
        ),
        ("[train]\nrecipe = 3", "train.recipe must be text, got 3"),
        ("seed = '1'", "seed must be a whole number, 0 or more, got '1'"),
        ("seed = true", "seed must be a whole number, 0 or more, got True"),
    ],
)
def test_a_wrong_value_in_a_file_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load(written(tmp_path, text))
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[desing]", "has no table or option 'desing'; did you mean 'design'?"),
        ("design = 3", "design must be a table, [design] with its options below, got 3"),
        ("[design]\ngroups =", "is not valid TOML: "),
        ("\0", "is not valid TOML: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, part: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert part in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; name a TOML file"):
        load(tmp_path / "no.toml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not valid TOML"):
        load(path)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (int | None, "a whole number"),
        (float | Literal["fit"], "a number or fit"),
        (Literal["a", "b"], "one of a, b"),
        (tuple[int, ...], "a list of whole numbers"),
        (dict[str, list[int]], "a table, each value a list of whole numbers"),
        (bool, "true or false"),
    ],
)
def test_types_are_put_in_words(hint: object, words: str) -> None:
    assert allowed(hint) == words


def test_another_class_on_the_command_line_leaves_out_what_the_file_says_for_its_own_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[data]\nname = "cifar10"\npath = "there"\n[strategy]\narch_lr = 0.3\nepochs = 7\n')
    config = load(path, ["data.name=digits", "strategy.name=random", "strategy.archs=9"])
    assert (config.names["data"], config.strategy.title.split(",")[0]) == ("digits", "random")
    assert (config.strategy.epochs, config.strategy.archs) == (7, 9)
    with pytest.raises(ValueError, match="strategy has no option 'arch_lr'"):
        load(path, ["strategy.name=random", "strategy.arch_lr=0.1"])
    with pytest.raises(ValueError, match="strategy has no option 'cost': it belongs to strategies that weigh archs"):
        load(path, ["strategy.name=random", "strategy.cost=macs"])
    with pytest.raises(ValueError, match="data has no option 'there'"):
        load(path, ["data.there=1"])


def test_another_class_or_recipe_has_its_own_defaults_beside_a_file_that_spells_every_option(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(load(None, ["strategy.batch=77", "train.momentum=0.8"]).toml())
    config = load(path, ["strategy.name=morphnet", "train.recipe=short"])
    usual = load(None, ["strategy.name=morphnet", "train.recipe=short"])
    assert config.strategy == replace(usual.strategy, batch=77)
    assert config.train == replace(usual.train, momentum=0.8)
    assert load(path, ["strategy.name=differentiable", "train.recipe=paper"]) == load(path)


def test_a_configuration_is_changed_by_python_values() -> None:
    config = Config.default().changed({"seed": 3, "strategy.epochs": 10, "design.spaces": ["tas"], "train.lr": 1})
    assert config == load(None, ["seed=3", "strategy.epochs=10", "design.spaces=tas", "train.lr=1"])
    assert config.changed({}) == config
    assert config.changed({"seed": 0}).strategy is config.strategy


def test_another_class_or_recipe_takes_over_what_it_has_as_options() -> None:
    config = Config.default().changed({"strategy.epochs": 10, "strategy.arch_lr": 0.3, "train.momentum": 0.8})
    other = config.changed({"strategy.name": "random", "train.recipe": "short"})
    assert other == load(
        None, ["strategy.name=random", "strategy.epochs=10", "train.recipe=short", "train.momentum=.8"]
    )


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("design.groups", 0, "design.groups must be 1 or more, got 0"),
        ("design.groups", "8", 'design.groups must be a whole number, got "8"'),
        ("design.spaces", "tas", 'design.spaces must be a list of names, got "tas"'),
        ("seed", -1, "seed must be a whole number, 0 or more, got -1"),
        ("groups", 1, "the configuration has no table or option 'groups'"),
    ],
)
def test_a_wrong_python_value_gets_one_sentence(name: str, value: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Config.default().changed({name: value})
    assert str(error.value).startswith(sentence)


def test_a_search_that_needs_a_limit_asks_for_one_before_the_survey(tmp_path: Path) -> None:
    run = Run(load(None, ["--strategy.name=evolution"]), tmp_path)
    with pytest.raises(
        UserError, match="evolution looks for the most accurate network within limits, and none is given"
    ):
        run_all(run, "htas run")
    assert not list(tmp_path.iterdir())


def test_a_search_whose_package_is_absent_is_refused_before_the_survey(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    run = Run(load(None, ["--strategy.name=amc", "--constraints.latency=50%"]), tmp_path)
    with pytest.raises(UserError, match=r"strategy amc needs the package stable_baselines3, .*'htas\[amc\]'"):
        run_all(run, "htas run")
    assert not list(tmp_path.iterdir())
