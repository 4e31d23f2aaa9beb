"""What a run left, and a hand or a disk has changed since, is used or is refused by its name."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from one_in import one_in
from scripted_device import scripted_device
from whole_run import STAGES, options

from htas.console.record import NAME, Progress
from htas.errors import UserError
from htas.files import is_part, read_tensors, sweep_parts, write_bytes, write_json, write_tensors
from htas.run import rows
from htas.run.run import Run, open_run

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "faults"))
import run_files
from campaign import called

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


@pytest.mark.slow
def test_a_hundred_damages_end_with_a_result_or_with_one_sentence(finished: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(finished, clean / "whole")
    (clean / "sent").mkdir()
    shutil.copy(finished / "report.json", clean / "sent")
    tally = run_files.damages(run_files.Copy.of(clean, tmp_path / "copy"), seed=1, count=100)
    assert not tally.failures, tally.table()


def changed(path: Path, *place: str | int, to: Any) -> None:
    """Write another value at a place of a JSON file."""
    content = json.loads(path.read_text())
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = to
    path.write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    """Why the report of a run is refused."""
    outcome = called(["report", str(folder)], 60)
    assert outcome.code == 2 and not outcome.trouble(), outcome.err
    return outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "place", "value", "reason"),
    one_in(
        2,
        [
            ("measure.json", ("results", 0, "macs"), 1, "macs of 'base' must be"),
            ("measure.json", ("results", 0, "arch", "depths"), {}, "the arch lacks the depth site"),
            (
                "measure.json",
                ("results", 0, "measured", "values"),
                [-1.0, -2.0],
                "measured of 0 seconds or more, got -",
            ),
            ("measure.json", ("results", 1, "name"), "base", "results must"),
            ("measure.json", ("results",), [], "it must have results, got none"),
            ("measure.json", ("results", 0, "target", "batch"), [4], "a whole number as batch of target"),
            ("measure.json", ("results", 0, "target", "shapes"), -1, "a list as shapes of target"),
            ("command.json", ("command",), 3, "command must be text, got 3"),
            ("search-tas.json", ("rivals",), [0.5], "as many rival_costs as rivals"),
            ("search-tas.json", ("took",), -1.0, "took of 0 or more"),
            ("cost.json", ("networks",), [], "it must have networks, got none"),
            ("cost.json", ("networks", 0, "measured"), 0, "networks[0] must have measured above 0, got 0"),
            ("cost.json", ("calibration", "each"), 1e308, "calibration.each must be a number of at most 1e+30"),
            ("cost.json", ("layers",), 10**12 + 0.5, "layers must be a whole number"),
            ("survey.json", ("context",), ["cpu"], "context must be an object, got"),
        ],
    ),
)
def test_a_value_that_cannot_be_right_is_refused_with_its_file(
    copied: Path, file: str, place: tuple[str | int, ...], value: Any, reason: str
) -> None:
    called(["report", str(copied)], 60)
    changed(copied / file, *place, to=value)
    said = refusal(copied)
    assert str(copied / file) in said and said.endswith("delete it and run its stage again"), said
    if reason != "results must":
        assert reason in said


@pytest.mark.parametrize(
    "text", ['{"format": 1, "x": %s}' % ("[" * 100_000), '{"format": 1, "x": NaN}', '{"format": true}']
)
def test_json_that_no_run_writes_is_refused(copied: Path, text: str) -> None:
    (copied / "command.json").write_text(text)
    assert f"{copied / 'command.json'} " in refusal(copied)


FILES = (
    "command.json", "controls.json", "cost.json", "design.json", "environment.json", "measure.json", "networks.json",
    "search-tas.json", "survey.json", "report.json",
)  # fmt: skip
"""Those of a run that hold words."""


def of_words(content: Any) -> dict[run_files.Place, list[run_files.Place]]:
    """The places of a document where words are, by shape."""
    by_shape: dict[run_files.Place, list[run_files.Place]] = {}
    for place in run_files.places(content):
        value = content
        for key in place:
            value = value[key]
        if isinstance(value, str):
            by_shape.setdefault(run_files.shape(place), []).append(place)
    return by_shape


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_no_word_in_a_file_is_obeyed_by_a_terminal(copied: Path, file: str, tmp_path: Path) -> None:
    before = (copied / file).read_text()
    damaged = copied / file
    if file == "report.json":  # read where it was sent, beside a run
        damaged = tmp_path / "sent" / file
        damaged.parent.mkdir()
    with run_files.untrained(), run_files.checked(False):
        for places in list(of_words(json.loads(before)).values())[:8]:
            content = holder = json.loads(before)
            for key in places[0][:-1]:
                holder = holder[key]
            holder[places[0][-1]] += "\x1b]0;x\x07"
            damaged.write_text(json.dumps(content))
            other = ["report", str(copied), str(tmp_path / "sent"), f"--out={tmp_path / 'both'}"]
            outcome = called(other if file == "report.json" else other[:2], 60)
            assert not outcome.trouble(), places[0]
            assert not set("\x1b\x07") & set(outcome.out + outcome.err), places[0]
            damaged.write_text(before)


def test_an_accuracy_that_its_weights_do_not_have_is_refused_and_by_a_run_mended(copied: Path) -> None:
    (copied / "measure.json").unlink()
    changed(copied / "networks.json", "results", 0, "accuracy", to=0.99)
    assert "accuracy of 'base' must be" in refusal(copied)
    assert called(["train", str(copied)], 60).code == 0
    assert json.loads((copied / "networks.json").read_text())["results"][0]["accuracy"] != 0.99


@pytest.mark.parametrize("damage", ["nan", "missing", "wide"])
def test_weights_of_another_network_are_refused(copied: Path, damage: str) -> None:
    path = copied / "networks" / "base.safetensors"
    tensors, about = read_tensors(path)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 4)
    whole = tensors.pop(name)
    if damage != "missing":
        tensors[name] = whole * float("nan") if damage == "nan" else whole.repeat(2, 1, 1, 1)
    write_tensors(path, tensors, about)
    run = Run(options(), copied)
    with pytest.raises(UserError, match="cannot be used") as caught:
        rows.load_network(run, rows.base_row(run))
    assert str(path) in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("text", ["", "seed = 0\n", 'seed = 0\n[family]\nname = "cifar_resnet"\n'])
def test_a_configuration_of_a_run_that_was_cut_is_not_all_defaults(copied: Path, text: str) -> None:
    (copied / "config.toml").write_text(text)
    assert f"{copied / 'config.toml'} lacks " in refusal(copied)


def test_a_search_of_another_space_is_refused(copied: Path) -> None:
    changed(copied / "search-tas.json", "space", to="grid")
    with pytest.raises(UserError, match=r"search-tas.json cannot be used \(space must be tas, got 'grid'\)"):
        Run(options(), copied).search("tas")


def test_a_design_of_other_sites_is_refused(copied: Path) -> None:
    changed(copied / "design.json", "curves", to=[])
    content = json.loads((copied / "design.json").read_text())
    content["spaces"]["tas"]["widths"].popitem()
    (copied / "design.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"design.json cannot be used \(the arch lacks the width site"):
        Run(options(), copied).design  # noqa: B018


def test_what_killed_processes_were_writing_is_swept_when_a_run_opens(copied: Path) -> None:
    alive, gone = part_of(copied / "networks" / "x", 1), part_of(copied / "networks" / "x", 2**22 + 1)
    foreign, users = gone.with_name(gone.name.replace(gone.name.split(".")[-2][:8], "0" * 8)), copied / ".mine.part"
    for path in (alive, gone, foreign, users):
        path.write_bytes(b"half")
    open_run(options(), copied)
    assert [path.exists() for path in (alive, gone, foreign, users)] == [True, False, True, True]
    assert is_part(gone) and not is_part(users)


def part_of(path: Path, process: int) -> Path:
    """A file that a process was writing."""
    names: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process)
        patch.setattr(os, "replace", lambda part, to: (names.append(str(part)), os.rename(part, to)))
        write_bytes(path, path.read_bytes() if path.exists() else b"")
    return Path(names[0])


def test_a_sweep_of_no_folder_is_nothing(tmp_path: Path) -> None:
    sweep_parts(tmp_path / "nothing")


def test_files_have_the_mode_of_the_umask_and_replace_links(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "other").write_text("mine")
    (tmp_path / "b.json").symlink_to(tmp_path / "other")
    write_json(tmp_path / "b.json", {})
    assert (tmp_path / "other").read_text() == "mine" and not (tmp_path / "b.json").is_symlink()


PROGRESS = {
    "state": "running", "why": "", "lines": ["a \x1b[31mred\x1b]0;t\x07 line"], "work": "\x1b[2J", "share": 0.5,
    "began": 1.0, "time": 2.0, "process": os.getpid(), "host": "elsewhere",
}  # fmt: skip


def test_no_terminal_obeys_what_a_progress_file_says(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps(PROGRESS))
    outcome = called(["watch", str(tmp_path), "--once"])
    assert outcome.code == 0 and "\x1b" not in outcome.out + outcome.err and r"a \x1b[31mred" in outcome.out


@pytest.mark.parametrize(
    "change",
    [{"state": "odd"}, {"process": 2**40}, {"process": 0}, {"time": 1e300}, {"lines": "abc"}, {"lines": [["x"]]}],
)
def test_progress_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / NAME).write_text(json.dumps({**PROGRESS, **change}))
    outcome = called(["watch", str(tmp_path), "--once"])
    assert outcome.code == 2 and NAME in outcome.err and not outcome.trouble()


def test_progress_is_not_written_through_a_link(tmp_path: Path) -> None:
    from htas.console import record

    (tmp_path / "other").write_text("mine")
    (tmp_path / f".{NAME}.part").symlink_to(tmp_path / "other")
    with record.recording():
        record.into(tmp_path)
    assert (tmp_path / "other").read_text() == "mine" and (tmp_path / NAME).exists()
    assert set(json.loads((tmp_path / NAME).read_text())) == set(Progress.__dataclass_fields__)


def test_every_stage_of_these_runs_is_there(finished: Path) -> None:
    assert all(
        (finished / path.name).exists() for stage in STAGES.values() for path in stage.files(Run(options(), finished))
    )
