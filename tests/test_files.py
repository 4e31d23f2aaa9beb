"""Files written whole or not at all, and what is said of those that cannot be used."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from htas.errors import UserError
from htas.files import (
    FORMAT,
    MOST_TOML,
    digest,
    path_of,
    read_json,
    read_record,
    read_tensors,
    read_toml,
    read_weights,
    state_of,
    write_bytes,
    write_json,
    write_record,
    write_tensors,
    write_text,
)


def test_json_reads_back_and_carries_its_format(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"x": [1, 2.5, None], "name": "é"})
    assert read_json(path) == {"format": FORMAT, "x": [1, 2.5, None], "name": "é"}
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_content_and_no_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left on device; free some space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "file" / "below" / "a", b"")


def test_values_that_json_does_not_know_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1, "x"', "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[1, 2]", "has format None, this version reads 1"),
        (b'{"x": 1}', "has format None"),
        (b'{"format": 99}', "has format 99"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_json_that_cannot_be_used_says_so(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path)
    assert "run its stage again" in str(caught.value)


def test_a_missing_file_names_the_way_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run the stage that makes it first"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "a.safetensors")


def test_tensors_read_back_with_what_is_said_about_them(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(2, 3).T, "b": torch.tensor(7), "c": torch.zeros(0)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"epoch": 3})
    found, about = read_tensors(tmp_path / "a.safetensors")
    assert about == {"epoch": 3}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_truncated_tensors_are_unusable(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_tensors(path)


def test_tensors_that_share_storage_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    write_tensors(tmp_path / "a.safetensors", {"whole": whole, "same": whole, "part": whole[:2]})
    found, _ = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(found["same"], whole)
    assert torch.equal(found["part"], whole[:2])


def test_a_digest_depends_on_values_order_and_the_content_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    first = digest({"x": 1, "y": 2}, path)
    assert first == digest({"y": 2, "x": 1}, path)
    assert len(first) == 16
    path.write_text("two")
    assert first != digest({"x": 1, "y": 2}, path)
    assert digest("ab", "c") != digest("a", "bc")


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...]
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    more: Inner | None = None


def test_a_record_reads_back_from_its_file(tmp_path: Path) -> None:
    record = Outer("one", Inner((1, 2), {"a": 0.5, "b": 1.0}))
    write_record(tmp_path / "some.json", record, took=3.0)
    assert read_record(tmp_path / "some.json", Outer) == record


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": None}, "name must be text, got None"),
        ({"inner": {"sizes": [1]}}, "inner.shares is missing"),
        ({"inner": {"sizes": [1, 2.5], "shares": {}}}, "inner.sizes[1] must be a whole number, got 2.5"),
        ({"inner": {"sizes": [True], "shares": {}}}, "inner.sizes[0] must be a whole number, got True"),
        ({"inner": {"sizes": [], "shares": {"a": "much"}}}, "inner.shares['a'] must be a number, got 'much'"),
        ({"inner": {"sizes": 3, "shares": {}}}, "inner.sizes must be a list, got 3"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_the_way_out(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "some.json"
    write_json(path, {"name": "one", "inner": {"sizes": [], "shares": {}}, **changes})
    with pytest.raises(UserError) as error:
        read_record(path, Outer)
    assert str(error.value) == f"{path} cannot be used ({reason}); delete it and run its stage again"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = " + "[" * 2000 + "]" * 2000, "tables or lists lie in each other too deep"),
        ("[" + ".".join("a" * 2000) + "]", "tables or lists lie in each other too deep"),
        ("seed = " + "9" * 5000, "it has a number of too many digits"),
        ("a = 1\n" * 2, "Cannot overwrite a value"),
    ],
)
def test_toml_that_cannot_be_read_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_toml(path, "another")
    assert str(caught.value).startswith(f"{path} is not valid TOML")


def test_what_is_no_file_is_not_read_as_toml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/dev/zero is no file; name another$"):
        read_toml(Path("/dev/zero"), "another")
    (tmp_path / "large.toml").write_bytes(b"#" * (MOST_TOML + 1))
    with pytest.raises(UserError, match=r"large.toml has 10 MB, and a TOML file 10 MB at most; name another$"):
        read_toml(tmp_path / "large.toml", "another")


@pytest.mark.parametrize(
    "text", ["~nosuch/x", "a\0b", "\ud800", "a" * 256, "/a" * 2050, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 128]
)
def test_what_can_be_no_path_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^some\.option"):
        path_of(text, "some.option")


def test_a_path_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert path_of("~/x", "some.option") == Path("/somewhere/x") and path_of("x/~", "some.option") == Path("x/~")


def test_a_write_that_is_stopped_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a", "b")
    assert list(tmp_path.iterdir()) == []


class Buffers(nn.Module):
    """A linear layer with buffers that its state_dict leaves out, one of them one number, expanded."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.full((2,), mean), persistent=False)
        self.layer.register_buffer("shift", torch.tensor(mean).expand(3), persistent=False)


def test_buffers_that_a_state_dict_leaves_out_are_weights_too_and_older_files_lack_them(tmp_path: Path) -> None:
    trained, path = Buffers(3.0), tmp_path / "a.safetensors"
    trained.register_buffer("later", torch.ones(1), persistent=False)  # as a forward pass makes one
    write_tensors(path, state_of(trained))
    module = Buffers(0.0)
    read_weights(path, module)
    buffers = dict(module.named_buffers())
    assert sorted(buffers) == ["later", "layer.shift", "mean"] and "mean" not in module.state_dict()
    assert all(torch.equal(buffers[name], each) for name, each in trained.named_buffers())
    assert torch.equal(module.layer.weight, trained.layer.weight)
    write_tensors(path, trained.state_dict())
    older = Buffers(5.0)
    read_weights(path, older)
    assert dict(older.named_buffers())["mean"].tolist() == [5.0, 5.0]
    write_tensors(path, {**state_of(trained), "buffer/other.mean": torch.ones(1)})
    with pytest.raises(UserError, match=r"it has a tensor 'buffer/other\.mean'"):
        read_weights(path, module)
