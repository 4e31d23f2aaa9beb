"""What cannot be used in the folder of a run is refused in a sentence, and the folder stays as it was."""

import errno
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scripted_device import scripted_device
from whole_run import do, options, sentence, times

from htas.errors import UserError
from htas.files import read_json, read_tensors, write_json
from htas.report import read as read_report
from htas.run import run
from htas.run import stages as pipeline

pytestmark = pytest.mark.timeout(300)  # whole runs


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


@pytest.mark.parametrize(
    "stage, missing, verb",
    [
        ("design", "survey.json", "survey"),
        ("search", "design.json", "design"),
        ("search", "survey.json", "survey"),
        ("train", "search-tas.json", "search"),
        ("train", "survey.json", "survey"),
        ("measure", "networks.json", "train"),
        ("report", "survey.json", "survey"),
    ],
)
def test_a_missing_predecessor_names_the_verb_to_run(stage, missing, verb, copied):
    (copied / missing).unlink()
    before = times(copied)
    with pytest.raises(UserError) as error:
        do(stage, options(), copied)
    assert sentence(error) == f"{copied / missing} does not exist; run `htas {verb} {copied}` first"
    assert times(copied) == before


def test_a_report_of_an_unfinished_run_has_what_is_there_and_names_what_is_missing(copied):
    for name in ("measure.json", "networks.json", "search-tas.json"):
        (copied / name).unlink()
    do("report", options(), copied)
    made = read_report(copied)
    assert [row.name for row in made.results] == ["base", "hardware", "grid"]
    assert all(row.accuracy is None and row.measured is None for row in made.results)
    assert made.curves and [search.space for search in made.searches] == ["hardware", "grid"]
    assert set(made.stages) == {"survey", "design", "calibrate", "search"} and made.predictions
    for name, verb in (("search-tas", "search"), ("networks", "train"), ("measure", "measure")):
        why = f"{copied / name}.json does not exist; run `htas {verb} {copied}` first"
        assert f"Not in this report: {why}." in made.remarks


def test_a_report_without_the_file_that_another_was_made_from_leaves_both_out(copied):
    (copied / "cost.json").unlink()
    do("report", options(), copied)
    made = read_report(copied)
    assert not made.predictions and not made.searches and made.curves
    why = f"search-tas.json was made from {copied / 'cost.json'}, which does not exist; run `htas calibrate {copied}`"
    assert any(why in remark for remark in made.remarks)


def test_a_report_leaves_out_what_was_made_from_other_files(copied):
    content = read_json(copied / "design.json")
    write_json(copied / "design.json", {**content, "curves": content["curves"][:1]})
    do("report", options(), copied)
    made = read_report(copied)
    assert len(made.curves) == 1 and not made.searches and made.results[0].name == "base"
    assert any("cost.json was made from other files than are there now" in remark for remark in made.remarks)


def test_runs_are_compared_on_one_page(finished, copied, tmp_path):
    page = pipeline.compared([finished, copied], tmp_path / "both")
    text = (tmp_path / "both" / "report.md").read_text()
    assert page == tmp_path / "both" / "report.html" and page.exists()
    assert "They differ in nothing that is recorded" in text
    assert text.count("| **searched network (measured widths)**") == 2
    for name in ("whole", "copied"):
        assert re.search(rf"^- \*\*{name}\*\*: .*searched network.* ResNet-14", text, re.MULTILINE), name


def test_a_folder_of_another_configuration_is_refused_with_the_option_that_differs(copied):
    before = times(copied)
    with pytest.raises(UserError) as error:
        run.open_run(options("family.depth=20"), copied)
    assert "depth = 14 there, depth = 20 here" in sentence(error) and "name another folder" in sentence(error)
    assert times(copied) == before


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: (path.mkdir(), (path / "y").touch())])
def test_what_is_no_folder_of_a_run_is_refused_and_left_alone(make, tmp_path):
    make(tmp_path / "x")
    before = times(tmp_path)
    with pytest.raises(UserError) as error:
        run.open_run(options(), tmp_path / "x")
    assert "is not the folder of a run; name another one with --out" in sentence(error)
    assert times(tmp_path) == before


def test_a_design_that_does_not_fit_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"design\.groups = 40 is more than the 32 widths"):
        run.open_run(options("design.groups=40"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, stage",
    [
        ("survey.json", "survey"),
        ("design.json", "design"),
        ("search-tas.json", "search"),
        ("networks.json", "train"),
        ("measure.json", "measure"),
        ("measure.json", "report"),
        ("environment.json", "report"),
    ],
)
@pytest.mark.parametrize("size", [0, 50])
def test_a_truncated_json_file_is_refused_in_a_sentence(name, stage, size, copied):
    path = copied / name
    path.write_bytes(path.read_bytes()[:size])
    before = times(copied)
    with pytest.raises(UserError) as error:
        do(stage, options(), copied)
    assert str(path) in sentence(error) and "delete it" in sentence(error)
    assert times(copied) == before


@pytest.mark.parametrize("size", [0, 50, 3000])
def test_truncated_weights_are_refused_in_a_sentence(size, copied):
    path = copied / "networks" / "base.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    (copied / "measure.json").unlink()
    before = times(copied)
    with pytest.raises(UserError) as error:
        do("measure", options(), copied)
    assert str(path) in sentence(error) and "delete it and run its stage again" in sentence(error)
    assert times(copied) == before


def test_after_deleting_truncated_weights_their_stage_makes_them_again(copied):
    """The advice of the sentence above works."""
    path = copied / "networks" / "tas.safetensors"
    wanted, _ = read_tensors(path)
    path.unlink()
    do("train", options(), copied)
    do("measure", options(), copied)
    found, _ = read_tensors(path)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "stage, owner, name, code",
    [
        ("survey", os, "replace", errno.ENOSPC),
        ("survey", os, "fsync", errno.ENOSPC),
        ("survey", os, "open", errno.EROFS),
        ("train", os, "open", errno.ENOSPC),
        ("measure", os, "replace", errno.EROFS),
    ],
)
def test_a_full_or_read_only_disk_leaves_the_old_file(stage, owner, name, code, copied, monkeypatch):
    if stage == "train":
        min((copied / "networks").glob("uniform-*.safetensors")).unlink()
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(UserError) as error:
        do(stage, options(), copied, stage != "train")
    assert os.strerror(code) in sentence(error) and "name another folder" in sentence(error)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name, verb", [("survey.json", "design"), ("cost.json", "search")])
def test_readings_of_another_target_are_refused_with_both(name, verb, copied):
    content = read_json(copied / name)
    content["context"] = {**content["context"], "runtime": "onnxruntime", "device": "cpu", "batch": "64"}
    write_json(copied / name, content)
    asked = options()
    with pytest.raises(UserError) as error:
        do(verb, asked, copied, True)
    assert f"{name} was measured with runtime onnxruntime, batch 64, and this run asks for runtime eager, batch" in str(
        error.value
    )
