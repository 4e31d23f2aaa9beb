"""Files that are written whole or not at all, each with a format number.

Format history (the number stands under "format" in every JSON file of a run):
1  the first one
"""

import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from htas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__version__ = "0.1.0"
FORMAT = 1
KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
T = TypeVar("T")
JsonObject = dict[str, Any]
"""A JSON object that is handed through."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises UserError where the disk is full or read-only.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except OSError as error:
        if part is not None:
            Path(part).unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; free some space or name another folder with --out") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: JsonObject) -> None:
    """Write a JSON object with the format number first."""
    write_text(path, json.dumps({"format": FORMAT, **content}, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> JsonObject:
    """Read a JSON object that write_json wrote; raises UserError with a way out."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run the stage that makes it first") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); delete it and run its stage again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        number = content.get("format") if isinstance(content, dict) else None
        raise UserError(f"{path} has format {number}, this version reads {FORMAT}; delete it and run its stage again")
    return content


def read_toml(path: Path, what: str) -> JsonObject:
    """The tables of a TOML file; raises UserError, which ends with `what` to name in its place."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name {what}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name {what}") from error


class RecordError(UserError):
    """A file whose record lacks a field, or has one of another kind; `reason` says which, and what is wrong."""

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def to_json(record: Any) -> Any:
    """A record, a frozen dataclass, as plain JSON values."""
    return _converter().unstructure(record)


def from_json(content: Any, kind: type[T], source: Path | str) -> T:
    """The record that `to_json` gave; fields that it has not are left out.

    Raises RecordError that names the `source` and the field where one is missing or of another kind.
    """
    from cattrs import BaseValidationError, transform_error

    try:
        return cast(T, _converter().structure(content, kind))
    except (BaseValidationError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else transform_error(error, "file", _reason)[0]
        field, _, place = reason.rpartition(" @ file")
        words = f"{place.lstrip('.') or 'it'} {field}" if field else reason
        raise RecordError(f"{source} cannot be used ({words}); delete it and run its stage again", words) from error


def read_record(path: Path, kind: type[T]) -> T:
    """The record in a file; raises UserError with a way out."""
    return from_json(read_json(path), kind, path)


def write_record(path: Path, record: Any, **more: Any) -> None:
    """Write a record as a JSON object, behind further fields."""
    write_json(path, {**more, **to_json(record)})


@cache
def _converter() -> Any:
    """The one converter between records and JSON; it coerces no value of one kind into another."""
    from cattrs import Converter

    converter = Converter()
    for kind in (str, bool, int, float):
        converter.register_structure_hook(kind, _checked)
    converter.register_structure_hook(str | int, lambda value, _: _checked(value, str if type(value) is str else int))
    return converter


def _checked(value: Any, kind: type[Any]) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"must be {KINDS[kind]}, got {value!r}")
    return value


def _reason(error: BaseException, kind: type[Any] | None) -> str:
    """What is wrong with a field, to stand behind its name."""
    if isinstance(error, KeyError):
        return "is missing"
    expected = isinstance(error, TypeError) and str(error).startswith("must be")
    return str(error) if expected else f"cannot be read ({error})"


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], about: JsonObject | None = None) -> None:
    """Write named tensors as safetensors; `about` (JSON values) travels in the header of the same file."""
    import torch
    from safetensors.torch import save

    layout = torch.contiguous_format  # a copy each: safetensors refuses tensors that share storage
    plain = {name: tensor.detach().cpu().clone(memory_format=layout) for name, tensor in tensors.items()}
    write_bytes(path, save(plain, metadata={"about": json.dumps(about or {})}))


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], JsonObject]:
    """Read what write_tensors wrote: the tensors and the `about` mapping; raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); delete it and run its stage again") from error


def digest(*parts: Any) -> str:
    """A short hash of JSON values and of files (given as Path, by content)."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.read_bytes() if isinstance(part, Path) else json.dumps(part, sort_keys=True).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def slug(name: str) -> str:
    """A name as a file may have it: never a path, nor the folder around."""
    letters = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return letters if letters.strip(".") else "-" * max(1, len(letters))
