"""A comparison trains every arm alike, goes on where it was stopped, and says what differs and what does not."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_device import scripted_device

from htas.cli import main
from htas.errors import UserError
from htas.experiments import arm_tables, compare
from htas.experiments import arms as arms_of_tests
from htas.experiments.arms import Arm, Entry, NamedArm, PrunedArm, SearchedArm, arm_of
from htas.experiments.table import table
from htas.files import from_json, read_json, read_record, read_tensors, to_json, write_json, write_tensors
from htas.graph.arch import Arch
from htas.report.result import Result
from htas.run import rows as run_rows
from htas.run.config import load
from htas.run.run import Sources
from htas.search.record import SearchRecord
from htas.text import TextTable
from htas.timing.measurement import Measurement

pytestmark = pytest.mark.timeout(300)  # whole runs

OPTIONS = [
    "family.depth=14", "split.limit=60", "target.threads=1", "survey.rounds=1", "survey.store=none",
    "survey.undecided=1", "calibrate.networks=8", "design.groups=4", "design.spaces=[grid]", "constraints.latency=60%",
    "strategy.epochs=1", "strategy.batch=30", "strategy.precision=fp32",
    "train.epochs=1", "train.warmup=0", "train.rest=0", "train.batch=30", "train.precision=fp32",
]  # fmt: skip
ARMS = """
[found]
[scaled.strategy]
name = "scaled"
[base]
network = "base"
["plain 8"]
network = "cifar_resnet:8"
"""


def arms_in(path: Path) -> list[Arm]:
    """The arms of a file."""
    return [arm_of(each) for each in arm_tables.read_arms(path)]


def compared(
    source: Path | None, options: Sequence[str], arms: Sequence[Arm], seeds: int, folder: Path, **more: Any
) -> tuple[Path, TextTable]:
    """A comparison of these."""
    return compare.compare(compare.Trials(source, tuple(options), tuple(arms), seeds, folder), **more)


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


def arms(folder: Path, text: str = ARMS) -> Path:
    path = folder / "arms.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of all arms."""
    folder = tmp_path_factory.mktemp("compare")
    compared(None, OPTIONS, arms_in(arms(folder)), 2, folder / "out")
    return folder / "out"


def test_every_arm_and_seed_is_trained_once_and_measured_with_the_others(finished):
    content = read_json(finished / "compare.json")["arms"]
    assert [(each["arm"], each["seed"]) for each in content] == [
        (arm, seed) for seed in (0, 1) for arm in ("found", "scaled", "base", "plain 8")
    ]
    rows = [from_json(each["result"], Result, "row") for each in content]
    assert all(row.accuracy is not None and row.measured is not None for row in rows)
    assert len({row.measured.survey for row in rows}) == 1
    found, scaled, base, plain = rows[:4]
    assert found.predicted and base.predicted and plain.predicted is None
    assert (found.teacher, base.teacher, plain.teacher) == ("base", "base", "base")
    assert found.strategy.startswith("differentiable") and scaled.strategy.startswith("scaled")
    assert plain.params < base.params and plain.family == "cifar_resnet:8"
    assert base.arch.widths and content[0]["search_seconds"] > 0 and content[2]["search_seconds"] is None


def test_arms_share_a_survey_a_calibration_and_the_teacher(finished):
    for name in ("survey.json", "cost.json"):
        assert len({(finished / arm / name).read_text() for arm in ("found-0", "scaled-1", "base-0")}) == 1
    weights = [(finished / arm / "networks" / "base.safetensors").read_bytes() for arm in ("found-0", "scaled-0")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_strategies_that_judge_archs_afterwards_share_a_supernet(tmp_path):
    alike = 'epochs = 1, batch = 30, archs = 3, precision = "fp32"'
    text = f"""
    [random]
    strategy = {{ name = "random", {alike} }}
    [evolution]
    strategy = {{ name = "evolution", population = 2, {alike} }}
    """
    compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 2, tmp_path / "out")
    records = [
        read_record(tmp_path / "out" / f"{name}-{seed}" / "search-grid.json", SearchRecord)
        for seed in range(2)
        for name in ("random", "evolution")
    ]
    assert records[0].epochs == records[1].epochs != records[2].epochs == records[3].epochs
    assert len(list((tmp_path / "out" / "supernets").iterdir())) == 2


def test_a_search_that_has_not_converged_is_named(finished, tmp_path):
    """One epoch of two steps is too short for any."""
    why = read_record(finished / "found-1" / "search-grid.json", SearchRecord).why
    _, shown = compared(None, OPTIONS, arms_in(arms(tmp_path)), 2, finished, only=True)
    page = (finished / "compare.html").read_text()
    assert '<figure class="live">' in page and "found" in page
    for text in (str(shown), page, (finished / "compare.md").read_text()):
        assert f"Not converged: found, seed 1: {why}" in text and "Not converged: base" not in text


def test_a_comparison_says_that_accuracies_are_in_fp32():
    assert compare.precision_notes("fp32") == []
    for precision in ("int8", "bf16"):
        (note,) = compare.precision_notes(precision)
        assert note.startswith(f"Latencies are in {precision}, and accuracies in fp32")


def test_a_network_that_breaks_its_limit_when_measured_is_named(finished, tmp_path):
    """Also where another arm trains it."""
    out = shutil.copytree(finished, tmp_path / "out")
    record = read_json(out / "found-0" / "search-grid.json")
    limit = record["limits"][0]
    limit["measured"] = 1.309 * limit["limit"]
    write_json(out / "found-0" / "search-grid.json", record)
    (out / "found-0" / "result.json").unlink()
    text = '[found]\n["found, alone"]\nlike = "found"\n[base]\nnetwork = "base"\n'
    _, shown = compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 1, out)
    for name in ("found", "found, alone"):
        note = f"Above its limit: {name}, seed 0: latency is 130.9 % of what '60%' allows"
        assert note in str(shown) and note in (out / "compare.md").read_text()
    assert str(shown).count("Above its limit") == 2


@pytest.mark.slow
def test_arms_may_differ_in_expansion_cost_and_adds(tmp_path):
    """Each has a space or a network of its own, and its own survey where its layers are others."""
    text = """
    [e2]
    [e1.design]
    expand = 1
    [projected.design]
    adds = "project"
    [macs]
    strategy = { cost = "macs" }
    constraints = { latency = "", macs = "60%" }
    """
    compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 1, tmp_path / "out")
    content = read_json(tmp_path / "out" / "compare.json")["arms"]
    rows = {each["arm"]: from_json(each["result"], Result, "row") for each in content}
    assert set(rows) == {"e2", "e1", "projected", "macs"} and all(row.accuracy for row in rows.values())
    assert rows["projected"].adds == "project" and rows["macs"].cost != rows["e2"].cost
    base = compare._job(None, OPTIONS, SearchedArm("e1"), 0, tmp_path, Sources()).network.widths
    assert all(width <= base[site].base for site, width in rows["e1"].arch.widths.items())


def test_what_is_finished_is_not_done_again(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(arms_of_tests, "ensure", None)
    monkeypatch.setattr(run_rows, "train_row", None)
    before = (finished / "latencies.json").stat().st_mtime_ns
    path, shown = compared(None, OPTIONS, arms_in(arms(tmp_path)), 2, finished)
    assert (finished / "latencies.json").stat().st_mtime_ns == before
    arms_part, each_part = path.with_suffix(".md").read_text().split("## Every network")
    assert arms_part.count("\n| ") == 6 and "plain 8" in str(shown)
    rows = {tuple(line.split(" | ")[:2]): line for line in each_part.splitlines() if line.startswith("| ")}
    found = from_json(read_json(finished / "found-1" / "result.json")["result"], Result, "row")
    cells = rows["| found", "1"].strip("| ").split(" | ")
    assert len(rows) == 2 + 8 and cells[2] == f"{100 * found.accuracy:.2f}"
    assert rows["| base", "0"].split(" | ")[4] == "1.000" and rows["| plain 8", "1"].endswith("| - | - |")
    used = {
        use.site
        for use in compare._job(None, OPTIONS, SearchedArm("found"), 0, finished, Sources()).network.uses(found.arch)
    }
    assert cells[-1] == ", ".join(str(width) for site, width in found.arch.widths.items() if site in used)
    assert cells[-2] == ", ".join(map(str, found.arch.depths.values()))


def test_results_alone_are_enough_to_go_on_with(finished, tmp_path, monkeypatch):
    """As when only the small files were carried to another machine: nothing is trained, everything is measured."""
    monkeypatch.setattr(arms_of_tests, "ensure", None)
    monkeypatch.setattr(run_rows, "train_row", None)
    for path in finished.glob("*/result.json"):
        (tmp_path / path.parent.name).mkdir()
        shutil.copy(path, tmp_path / path.parent.name)
    compared(None, OPTIONS, arms_in(arms(tmp_path)), 2, tmp_path)
    before, after = (read_json(folder / "compare.json")["arms"] for folder in (finished, tmp_path))
    assert before == after and len(after) == 8


def test_where_the_data_lie_is_not_part_of_a_result(tmp_path):
    jobs = [
        compare._job(None, ["data.name=cifar10", f"data.path=/{name}"], SearchedArm("a"), 0, tmp_path, Sources())
        for name in "bc"
    ]
    basis = SearchedArm("a").basis(jobs[0])
    assert compare._difference(basis, jobs[1], SearchedArm("a")) == ""
    other = compare._difference(basis, jobs[0], NamedArm("a"))
    assert other == "network = '' there, 'base' here"


def test_a_result_of_an_earlier_version_lacks_options_that_came_since(tmp_path):
    """They were, then, what they are by default now, whatever the defaults of others were."""
    job = compare._job(None, ["strategy.epochs=3"], SearchedArm("a"), 0, tmp_path, Sources())
    basis = SearchedArm("a").basis(job)
    del basis["strategy.arch_lr"], basis["design.widths"]
    assert compare._difference(basis, job, SearchedArm("a")) == ""
    moved = compare._job(None, ["strategy.epochs=3", "strategy.arch_lr=0.5"], SearchedArm("a"), 0, tmp_path, Sources())
    assert compare._difference(basis, moved, SearchedArm("a")) == "strategy.arch_lr = 0.001 there, 0.5 here"
    usual = compare._job(None, [], SearchedArm("a"), 0, tmp_path, Sources())
    assert compare._difference(basis, usual, SearchedArm("a")) == "strategy.epochs = 3 there, 600 here"


def test_a_comparison_shows_what_there_is_and_marks_the_rest(finished, tmp_path):
    some = shutil.copytree(finished, tmp_path / "some")
    shutil.rmtree(some / "scaled-0")
    shutil.rmtree(some / "scaled-1")
    shutil.rmtree(some / "base-1")
    _, shown = compared(None, OPTIONS, arms_in(arms(tmp_path)), 2, some, only=True)
    lines = {line.split("  ")[0]: line for line in str(shown).splitlines()}
    assert "0 of 2" in lines["scaled"] and lines["scaled"].split()[1:-3] == ["-"] * 11
    assert "1 of 2" in lines["base"] and "plain 8" in lines
    for name in ("found-1", "plain-8-1"):
        shutil.rmtree(some / name)
    _, shown = compared(None, OPTIONS, arms_in(arms(tmp_path)), 2, some, only=True)
    lines = {line.split("  ")[0]: line for line in str(shown).splitlines()}
    assert "-  too few trainings" in lines["base"]


def test_an_arm_that_cannot_be_run_is_said_and_the_others_go_on(finished, tmp_path, capsys):
    some = shutil.copytree(finished, tmp_path / "some")
    text = ARMS + '[shrunk.strategy]\nname = "morphnet"\n'
    _, shown = compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 2, some)
    assert "strategy morphnet does not search depths" in capsys.readouterr().err
    lines = {line.split("  ")[0]: line for line in str(shown).splitlines()}
    assert "0 of 2" in lines["shrunk"] and "Left out: shrunk, seed 0; shrunk, seed 1: strategy morphnet" in str(shown)
    assert "Left out: shrunk, seed 0; shrunk, seed 1: strategy morphnet" in (some / "compare.md").read_text()


@pytest.mark.slow
def test_a_network_is_trained_again_where_the_arm_that_it_is_of_has_found_another(finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished, tmp_path / "out")
    text = '[found]\n["found, alone"]\nlike = "found"\ndistill = { alpha = 0.0 }\n'
    given = arms_in(arms(tmp_path, text))
    compared(None, OPTIONS, given, 1, out)
    before = (out / "found--alone-0" / "result.json").read_text()
    compared(None, OPTIONS, given, 1, out)
    assert (out / "found--alone-0" / "result.json").read_text() == before
    content = read_json(out / "found-0" / "result.json")
    site = next(iter(content["result"]["arch"]["widths"]))
    content["result"]["arch"]["widths"][site] += 1
    write_json(out / "found-0" / "result.json", content)
    shutil.rmtree(out / "found-0" / "networks")
    _, shown = compared(None, OPTIONS, given, 1, out, only=True)
    assert "0 of 1" in {line.split("  ")[0]: line for line in str(shown).splitlines()}["found, alone"]
    compared(None, OPTIONS, given, 1, out)
    first, other = (from_json(each["result"], Result, "row") for each in read_json(out / "compare.json")["arms"])
    assert first.arch == other.arch and to_json(first.arch) == content["result"]["arch"]


@pytest.mark.slow
def test_a_network_that_does_not_fit_the_arms_own_is_said_and_the_others_go_on(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    text = '[found]\n[deeper]\nlike = "found"\nfamily = { depth = 20 }\n[base]\nnetwork = "base"\n'
    _, shown = compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 1, out)
    assert "Left out: deeper, seed 0: the arch lacks the width site" in str(shown) and "1 of 1" in str(shown)


def test_a_reading_is_that_of_a_network_and_not_of_an_arms_name(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    content = read_json(out / "base-0" / "result.json")
    content["result"]["accuracy"] = 0.125
    write_json(out / "base-0" / "result.json", content)
    weights = out / "base-0" / "networks" / "base-network.safetensors"
    tensors, about = read_tensors(weights)
    write_tensors(weights, tensors, {**about, "accuracy": 0.125})
    compared(None, OPTIONS, arms_in(arms(tmp_path)), 2, out, only=True)
    rows = {(each["arm"], each["seed"]): each["result"] for each in read_json(out / "compare.json")["arms"]}
    assert rows["base", 0]["measured"] is None and rows["base", 1]["measured"] and rows["found", 0]["measured"]


# -- the table ---------------------------------------------------------------------------------------------------------


def entry(accuracy: float, milliseconds: float) -> Entry:
    row = Result("x", "f", Arch({"a": 8}), "join", "s", "y", "z", {}, 2_000_000, 1_000_000, accuracy=accuracy)
    return Entry(replace(row, measured=Measurement((milliseconds / 1e3,) * 3, "s"), predicted=1e-3), 60.0)


def test_a_difference_within_the_interval_is_none():
    """Accuracies of a and b: 90, 91, 92 and 91.3, 91.9, 92.8, in pairs +1.3, +0.9, +0.8; c is far above both."""
    there = {("a", s): entry(0.90 + s / 100, 2.0) for s in range(3)}
    there |= {("b", s): entry(value, 1.0) for s, value in enumerate((0.913, 0.919, 0.928))}
    there |= {("c", s): entry(0.95 + s / 100, 4.0) for s in range(3)}
    _, first, second, third = table(there, ["a", "b", "c"], 3, "a")
    assert first[1:8] == ("91.00 ± 1", "-", "-", "-", "2 ± 0", "-", "-")
    assert second[2:5] == ("+1.00 ± 0.35", "+0.73", "more accurate") and second[6:8] == (
        "2.00 (2.00 to 2.00)",
        "faster",
    )
    assert third[4] == "more accurate" and third[6:8] == ("0.50 (0.50 to 0.50)", "slower")
    unlike = {**there, **{("b", s): entry(0.93 - s / 100, 1.0) for s in range(3)}}
    assert table(unlike, ["a", "b", "c"], 3, "a")[2][4] == "no difference"


def test_a_speed_has_the_interval_of_its_logarithms():
    """2, 4, 8 and 1, 2, 4 ms: log 2 with a standard error of 0.566 and 4 degrees of freedom: exp(0.693 ± 1.571)."""
    there = {("a", s): entry(0.9, 2.0 ** (s + 1)) for s in range(3)} | {("b", s): entry(0.9, 2.0**s) for s in range(3)}
    assert table(there, ["a", "b"], 3, "a")[2][6:8] == ("2.00 (0.42 to 9.63)", "no difference")


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must hold two arms or more"),
        ("[one]\n", "must hold two arms or more"),
        ("one = 1\n", r"one must be a table, \[one\] with the options of an arm, got 1"),
        ('[one]\nnetwork = "tas:x"\n[two]\n', "arms.toml: network of the arm one: no TAS network called 'x'"),
        ('[one]\nnetwork = "resnt"\n[two]\n', "arms.toml: network of the arm one: no model family called 'resnt'"),
        ("[one]\nnetwork = 3\n[two]\n", "network of the arm one must be the name of one, got 3"),
        ("[one]\nspaces = 3\n[two]\n", "the arm one has spaces = 3, which is no table of options; write spaces.OPTION"),
        ("[one]\n[two]\nlike = 'three'\n", "must be an arm above it that searches, of which there are one, without"),
        ("[one]\nnetwork = 'base'\n[two]\nlike = ['one']\n", r"of which there are none, without .* got \['one'\]"),
        ("[one]\n[two]\nprune = ['l1']\n", r"prune of the arm two must be one of .*, got \['l1'\]"),
        ("[one]\n[two]\nprune = { round = 8 }\n", "or a table of criterion, round_to, scope, weights, without"),
        ("[one]\n[two]\nprune = { round_to = 1.5 }\n", "arm two: round_to of prune must be a whole number"),
        ("[one\n", "is not valid TOML"),
    ],
)
def test_a_file_of_arms_that_is_none_is_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        arms_in(arms(tmp_path, text))


def test_arms_may_stand_in_several_files(tmp_path):
    one, two, other = (tmp_path / f"{name}.toml" for name in ("one", "two", "other"))
    one.write_text("[first.train]\nlr = 0.2\n[second]\n")
    two.write_text("[first]\ntrain = { lr = 0.2 }\n[third]\nlike = 'second'\n")
    other.write_text("[second.train]\nlr = 0.3\n")
    assert [arm.name for arm in arm_tables.read_arms(one, two)] == ["first", "second", "third"]
    with pytest.raises(UserError, match=r"other.toml: the arm second has other options in .*one.toml; give it another"):
        arm_tables.read_arms(one, other)
    with pytest.raises(UserError, match=r"other.toml must hold two arms or more, each a table of another name, got s"):
        arm_tables.read_arms(other, other)


def test_a_wrong_option_names_its_arm(tmp_path, capsys):
    path = arms(tmp_path, "[one.design]\ngroup = 3\n[two]\n")
    config = tmp_path / "config.toml"
    config.write_text("")
    assert main(["compare", str(config), str(path), "--out", str(tmp_path / "out")]) == 2
    assert "arm one: design has no option 'group'; did you mean 'groups'?" in capsys.readouterr().err
    assert main(["compare", str(config), str(path), str(tmp_path / "none.toml")]) == 2
    assert "none.toml does not exist" in capsys.readouterr().err


def test_options_of_the_command_line_are_for_an_arm_that_takes_another_strategy_where_it_has_them(finished, capsys):
    given = ["--strategy.arch_lr=0.3", "strategy.epochs=2", "train.lr=0.3"]
    scaled, tas = SearchedArm("scaled", ("--strategy.name=scaled",)), SearchedArm("tas", ('--design.spaces=["tas"]',))
    job = compare._job(None, given, scaled, 0, finished, Sources())
    assert (job.config.strategy.epochs, job.config.train.lr) == (2, 0.3)
    assert compare._job(None, given, tas, 0, finished, Sources()).config.strategy.arch_lr == 0.3
    own = SearchedArm("own", ("--strategy.name=differentiable", "--strategy.epochs=5"))
    strategy = compare._job(None, given, own, 0, finished, Sources()).config.strategy
    assert (strategy.epochs, strategy.arch_lr) == (5, 0.3)
    with pytest.raises(UserError, match="another configuration"):
        compared(None, [*OPTIONS, given[0]], [SearchedArm("found"), scaled], 1, finished)
    assert "not for the arm scaled, by what it names itself: --strategy.arch_lr=0.3" in capsys.readouterr().err


def test_an_arm_may_have_tables_and_lists_as_options(tmp_path):
    text = """
    [one.design]
    spaces = ["explicit"]
    widths = { "16" = [8, 16], "32" = [24], "64" = [32, 64] }
    [two]
    """
    (arm, _) = arms_in(arms(tmp_path, text))
    design = compare._job(None, OPTIONS, arm, 0, tmp_path, Sources()).config.design
    assert design.spaces == ("explicit",) and design.widths == {"16": [8, 16], "32": [24], "64": [32, 64]}


def test_another_configuration_in_the_same_folder_is_refused(finished, tmp_path):
    with pytest.raises(
        UserError, match=r"result of another configuration \(train.lr = 0.1 there, 0.2 here\); name another folder"
    ):
        compared(None, [*OPTIONS, "train.lr=0.2"], arms_in(arms(tmp_path)), 2, finished)


def test_arms_of_different_targets_are_refused():
    other = SearchedArm("two", ("--target.batch=8",))
    with pytest.raises(ValueError, match="the arms one and two have different targets"):
        arm_tables.check(None, OPTIONS, [SearchedArm("one"), other], 1)


def test_a_seed_of_its_own_is_refused():
    with pytest.raises(ValueError, match="has seeds from 0 on: leave --seed out, and give their number with --seeds=2"):
        arm_tables.check(None, [*OPTIONS, "--seed=5"], [SearchedArm("found"), SearchedArm("other")], 2)


def test_an_unknown_arm_to_set_others_beside_is_refused():
    with pytest.raises(ValueError, match="no arm called 'foun'; did you mean 'found'"):
        arm_tables.check(None, OPTIONS, [SearchedArm("found"), SearchedArm("other")], 1, against="foun")


# -- pruning -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pruned_network_is_the_least_pruned_one_within_the_measured_limit(finished, tmp_path, monkeypatch):
    """The scripted device takes as long as there are parameters, so 60 % of the latency is 60 % of those."""
    text = '[found]\n[pruned]\nprune = "l1"\n'
    some = shutil.copytree(finished, tmp_path / "some")
    compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 1, some)
    (row,) = [
        from_json(e["result"], Result, "row") for e in read_json(some / "compare.json")["arms"] if e["arm"] == "pruned"
    ]
    base = from_json(read_json(finished / "base-0" / "result.json")["result"], Result, "row")
    assert 0.5 < row.params / base.params <= 0.6
    assert row.strategy == "torch-pruning, l1" and row.teacher == "base" and row.predicted
    (some / "pruned-0" / "result.json").unlink()
    monkeypatch.setattr("htas.experiments.pruning.candidates", None)  # the network that was picked is kept
    compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 1, some)
    (again,) = [
        from_json(e["result"], Result, "row") for e in read_json(some / "compare.json")["arms"] if e["arm"] == "pruned"
    ]
    assert again.arch == row.arch


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["l1", "thinet"])
def test_pruned_weights_are_kept_rounded_and_trained_on(criterion, finished, tmp_path, monkeypatch):
    """The first weights that the training sees are those that Torch-Pruning left, of widths of multiples of four."""
    how = f'criterion = "{criterion}", scope = "local", round_to = 4, weights = "kept"'
    text = f"[found]\n[pruned]\nprune = {{ {how} }}\n"
    some, firsts = shutil.copytree(finished, tmp_path / "some"), []
    begin = run_rows.Training

    def training(model, *args, **options):
        firsts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return begin(model, *args, **options)

    monkeypatch.setattr(run_rows, "Training", training)
    compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 1, some)
    row = from_json(read_json(some / "pruned-0" / "result.json")["result"], Result, "row")
    left, _ = read_tensors(some / "pruned-0" / "pruned.safetensors")
    assert row.strategy == f"torch-pruning, {criterion}, local, widths of multiples of 4, weights kept"
    assert all(width % 4 == 0 for width in row.arch.widths.values())
    assert len(firsts) == 1 and all(torch.equal(firsts[0][name], left[name]) for name in left)


def test_a_network_may_start_from_the_trained_base_network(finished, tmp_path, monkeypatch):
    """Its widest arch begins as the trained base network does: equal outputs, its channels in another order."""
    job = compare._job(None, [*OPTIONS, "train.start=base"], PrunedArm("pruned"), 0, tmp_path, Sources())
    job = replace(job, folder=shutil.copytree(finished / "base-0", tmp_path / "run"))
    base = run_rows.base_network(job)
    row = run_rows.new_row(job, "same", job.network.base, space="-", strategy="-", cost="-")
    images = torch.randn(4, *job.config.data.shapes[0])
    model = run_rows._untrained(job, row, None, None).eval()
    assert torch.allclose(model(images), base(images), atol=1e-5)
    other = replace(job, config=job.config.changed({"train.start": "random"}))
    assert not torch.allclose(run_rows._untrained(other, row, None, None).eval()(images), base(images), atol=1e-2)
    assert job.training(row.arch, taught=True) != other.training(row.arch, taught=True)
    assert job.training(row.arch, taught=False) == other.training(row.arch, taught=False)


@pytest.mark.slow
def test_a_pruned_network_keeps_other_limits_too_and_a_second_reading(finished, tmp_path, monkeypatch):
    """The first reading, of all, says that every network is as fast as can be; the second tells the truth."""
    job = compare._job(None, [*OPTIONS, "constraints.macs=70%"], PrunedArm("pruned"), 0, tmp_path, Sources())
    job = replace(job, folder=shutil.copytree(finished / "base-0", tmp_path / "run"))
    monkeypatch.setattr(run_rows, "base_network", lambda job: job.config.family.build(10))
    read = run_rows.measure_rows
    asked = []

    def measured(job, rows, modules, what):
        asked.append(len(rows))
        readings = read(job, rows, modules, what)
        return (
            [replace(readings[0]), *(replace(r, values=(1e-9,) * 3) for r in readings[1:])]
            if not asked[1:]
            else readings
        )

    monkeypatch.setattr(run_rows, "measure_rows", measured)
    monkeypatch.setattr(arms_of_tests, "REPEATS", 30)
    row = PrunedArm("pruned").untrained(job, lambda name: None).result
    assert asked[0] > 10 and asked[1] > 1
    assert row.macs <= 0.7 * job.network.macs(job.network.base)
    assert row.params <= 0.6 * job.network.params(job.network.base) < row.params * 1.3


@pytest.mark.slow
def test_pruning_needs_a_latency_and_a_criterion_that_there_is(tmp_path, capsys):
    with pytest.raises(UserError, match="prune of the arm two must be one of l1, bn-scale, fpgm, group-norm"):
        arms_in(arms(tmp_path, '[one]\n[two]\nprune = "l3"\n'))
    free = [option for option in OPTIONS if not option.startswith("constraints")]
    text = '[one]\nnetwork = "base"\n[two]\nprune = "l1"\n'
    compared(None, free, arms_in(arms(tmp_path, text)), 1, tmp_path / "out")
    assert "a pruned network needs a latency to be pruned to" in capsys.readouterr().err


def test_the_base_network_without_a_teacher_is_the_teacher_of_others(finished, tmp_path, monkeypatch):
    some = shutil.copytree(finished, tmp_path / "some")
    monkeypatch.setattr(run_rows, "Training", None)  # nothing is left to train
    text = '[found]\n["base, alone"]\nnetwork = "base"\ndistill = { alpha = 0.0 }\n'
    compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 2, some)
    rows = [
        from_json(e["result"], Result, "row")
        for e in read_json(some / "compare.json")["arms"]
        if e["arm"] == "base, alone"
    ]
    for seed, row in enumerate(rows):
        _, about = read_tensors(finished / f"found-{seed}" / "networks" / "base.safetensors")
        assert (row.accuracy, row.teacher) == (about["accuracy"], "")


def test_a_search_is_shared_by_arms_that_differ_in_distillation_alone(finished, tmp_path, monkeypatch):
    some = shutil.copytree(finished, tmp_path / "some")
    text = '[found]\n["found, alone"]\ndistill = { alpha = 0.0 }\n'
    monkeypatch.setattr(type(load(None, OPTIONS).strategy), "search", None)
    compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 1, some)
    rows = [from_json(each["result"], Result, "row") for each in read_json(some / "compare.json")["arms"]]
    assert rows[0].arch == rows[1].arch and (rows[0].teacher, rows[1].teacher) == ("base", "")


@pytest.mark.slow
def test_what_an_arm_has_found_is_trained_otherwise_with_no_search(finished, tmp_path, monkeypatch):
    """From its result alone; nothing else of it is there."""
    out = tmp_path / "out"
    (out / "found-0").mkdir(parents=True)
    shutil.copy(finished / "found-0" / "result.json", out / "found-0")
    text = '[found]\n["found, alone"]\nlike = "found"\ndistill = { alpha = 0.0 }\n'
    monkeypatch.setattr(arms_of_tests, "ensure", None)
    compared(None, OPTIONS, arms_in(arms(tmp_path, text)), 1, out)
    first, other = (from_json(each["result"], Result, "row") for each in read_json(out / "compare.json")["arms"])
    assert first.arch == other.arch and first.space == other.space and (first.teacher, other.teacher) == ("base", "")
    times = [each["search_seconds"] for each in read_json(out / "compare.json")["arms"]]
    assert times[0] == times[1] > 0
