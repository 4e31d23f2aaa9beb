"""A sample of benchmarks/faults/fuzz.py, by hypothesis: whatever bytes are read, only a UserError comes of them."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.faults import fuzz
from htas.errors import UserError


@pytest.mark.parametrize("kind", [pytest.param("configuration", marks=pytest.mark.slow), "store", "onnx", "parquet"])
def test_bytes_of_any_kind_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    fuzz.prepare()
    findings = fuzz.Findings(kind)
    fuzz.by_hypothesis(findings, fuzz.KINDS[kind].seeds(tmp_path), 60, seed=1, most=25)
    assert findings.tried >= 25 and findings.shortest == {}


@pytest.mark.slow
def test_files_of_a_run_are_read_or_refused(finished: Path, tmp_path: Path) -> None:
    fuzz.prepare()
    shutil.copytree(finished, tmp_path / "clean" / "whole")
    (tmp_path / "clean" / "sent").mkdir()
    seeds = fuzz.KINDS["run_file"].seeds(tmp_path)
    assert len(seeds) >= 10
    findings = fuzz.Findings("run_file")
    fuzz.by_hypothesis(findings, seeds, 60, seed=1, most=200)
    assert findings.tried >= 200 and findings.shortest == {}


def test_valid_bytes_are_read_and_other_errors_than_a_user_s_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(content: bytes, folder: Path) -> None:
        if content.startswith(b"a"):
            raise UserError("it begins with a")
        if b"b" in content:
            raise KeyError("b")
        if content.startswith(b"c"):
            raise SystemExit(3)

    monkeypatch.setitem(fuzz.KINDS, "store", fuzz.Kind(read, lambda out: [b"axb"]))
    findings = fuzz.Findings("store", tmp_path / "failures")
    for content in (b"abb", b"xxxb", b"xb", b"xxb", b"c", b"x"):
        findings.attempt(content)
    assert sorted(findings.shortest.values()) == [b"c", b"xb"] and findings.tried == 6
    kept = [file.read_bytes() for file in (tmp_path / "failures").iterdir() if not file.suffix]
    assert sorted(kept) == [b"c", b"xb"]


@pytest.mark.parametrize(
    "how, edited",
    [("cut", b"ab"), ("put", b"abXcd e"), ("over", b"abXd e"), ("drop", b"ab"), ("word", b"abX e")],
)
def test_an_edit_is_made_at_its_place(how: str, edited: bytes) -> None:
    assert fuzz.edited(b"abcd e", [(how, fuzz.PLACES * 2 // 6 + 1, b"X")]) == edited
