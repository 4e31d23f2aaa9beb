"""Files that are written whole or not at all, each with a format number.

Format history (the number stands under "format" in every JSON file of a run):
1  the first one
"""

import hashlib
import json
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from math import isfinite
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin

from htas.errors import CallerError, PlaceError, UserError
from htas.text import quoted

if TYPE_CHECKING:
    from torch import Tensor, nn

__version__ = "0.1.0"
FORMAT = 1
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes of a file's name and of a path."""
MOST_TOML, DEEPEST_TOML = 10_000_000, 100
"""Bytes of a TOML file that is read, and tables and lists in each other."""
KINDS = {
    str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object"
}  # fmt: skip
T = TypeVar("T")
JsonObject = dict[str, Any]
"""A JSON object that is handed through."""
PART = re.compile(r"\..+\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.part")
"""The name of a file that is being written: hidden, with a hash of the machine and the process that writes."""
CLOCKS = 60.0
"""Seconds that the clock of a shared disk may differ from this machine's."""
LARGEST, MOST_DIGITS, DEEPEST = 1e30, 20, 60
"""Of numbers with a point, of whole numbers and of brackets in each other: no file of a run has more."""
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write_bytes(path: Path, content: bytes, *, wait: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; without `wait` the disk may be
    behind. Links are replaced and not followed, and the umask says who may read it.

    Raises PlaceError where the disk is full or read-only.
    """
    part = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            if wait:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise PlaceError(f"cannot write {path}: {reason}; free some space or name another folder") from error


@cache
def _machine() -> str:
    """A short hash of what numbers processes: this machine's name, and its container's."""
    numbering = Path("/proc/self/ns/pid")
    return digest(socket.gethostname(), os.readlink(numbering) if numbering.is_symlink() else "")[:8]


def is_part(path: Path) -> bool:
    """Whether a file is being written by write_bytes, or was when its process was killed."""
    return PART.fullmatch(path.name) is not None


def sweep_parts(folder: Path) -> None:
    """Remove what killed processes of this machine were writing in the folder of a run, or of several, and in the
    folders within."""
    for path in (each for inner in ("", "*/", "*/*/") for each in folder.glob(f"{inner}.*.part")):
        match = PART.fullmatch(path.name)
        if match and match[1] == _machine():
            with suppress(OSError):  # another process sweeps as well, or the folder is read-only
                if not _lives(int(match[2]), path.lstat().st_mtime):
                    path.unlink()


def _lives(number: int, since: float) -> bool:
    """Whether the process of this number is the one that had it then."""
    import psutil

    try:
        return bool(psutil.Process(number).create_time() <= since + CLOCKS)
    except (psutil.NoSuchProcess, OverflowError):
        return False
    except psutil.AccessDenied:
        return True


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: JsonObject) -> None:
    """Write a JSON object with the format number first."""
    write_text(path, json.dumps({"format": FORMAT, **content}, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> JsonObject:
    """Read a JSON object that write_json wrote; raises UserError with a way out."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run the stage that makes it first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); delete it and run its stage again") from error
    number = content.get("format") if isinstance(content, dict) else None
    if type(number) is not int or number != FORMAT:
        raise UserError(
            f"{path} has format {quoted(number)}, this version reads {FORMAT}; delete it and run its stage again"
        )
    return cast(JsonObject, content)


def parse_json(text: str) -> Any:
    """The value of a JSON text; raises ValueError for what is none, and for what no file here holds: numbers that are
    not finite or have too many digits, too many brackets in each other, text that is not Unicode."""
    try:
        content = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("its brackets lie too deep in each other") from None
    if SURROGATE.search(text):
        json.dumps(content, ensure_ascii=False).encode()
    level = [content]
    for _ in range(DEEPEST):
        level = [inner for each in level for inner in _inside(each)]
    if level:
        raise ValueError("its brackets lie too deep in each other")
    return content


def _inside(value: Any) -> Iterator[Any]:
    """The lists and objects right in a value."""
    inner = value.values() if isinstance(value, dict) else value
    return (each for each in inner if isinstance(each, dict | list)) if isinstance(value, dict | list) else iter(())


def _finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise ValueError(f"{quoted(text)} is no finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{quoted(text)} has {len(text)} digits")
    return int(text)


def read_toml(path: Path, what: str) -> JsonObject:
    """The tables of a TOML file; raises UserError, which ends with `what` to name in its place."""
    try:
        size = path.stat().st_size if path.is_file() or not path.exists() else None
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name {what}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name {what}") from error
    if size is None:
        raise UserError(f"{path} is no file; name {what}")
    if size > MOST_TOML:
        raise UserError(f"{path} has {size / 1e6:.3g} MB, and a TOML file {MOST_TOML / 1e6:g} MB at most; name {what}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if _depth(content) > DEEPEST:
            raise RecursionError
        return content
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name {what}") from error
    except RecursionError as error:
        raise UserError(
            f"{path} is not valid TOML here: its tables or lists lie in each other too deep to be read"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise UserError(f"{path} is not valid TOML here: it has a number of too many digits") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name {what}") from error


def path_of(path: str | Path, option: str) -> Path:
    """The path that an option names, `~` written out; raises UserError where nothing can be called so."""
    text = str(path)
    need_text(text, option)
    try:
        full = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{option}: this machine has no such user as {quoted(Path(text).parts[0])}, or no folder of theirs; write "
            "the path out"
        ) from error
    if len(os.fsencode(full)) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in full.parts):
        raise UserError(
            f"{option} must be a path of at most {LONGEST_PATH} bytes, {LONGEST_NAME} in each name, got "
            f"{quoted(text)}; name a shorter one"
        )
    return full


def need_text(text: str, option: str) -> None:
    """Raise UserError for what no file in UTF-8 and no path can hold."""
    if "\0" in text or (not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text)):
        raise UserError(f"{option} must be text in UTF-8, without a NUL character, got {quoted(text)}")


def _depth(content: object) -> int:
    """How many tables and lists lie in each other, at most."""
    depth, inner = 0, [content]
    while inner := [each for each in inner if isinstance(each, dict | list)]:
        depth += 1
        inner = [each for outer in inner for each in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


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
        raise wrong(source, f"{place.lstrip('.') or 'it'} {field}" if field else reason) from error


def wrong(source: Path | str, reason: str) -> RecordError:
    """What is raised for a file whose content cannot be right: the field, and what is wrong with it."""
    return RecordError(f"{source} cannot be used ({reason}); delete it and run its stage again", reason)


@contextmanager
def checking(source: Path | str) -> Iterator[None]:
    """While the content of a file is held against something else: what is refused then is refused as of the file."""
    try:
        yield
    except CallerError:
        raise
    except UserError as error:
        raise wrong(source, str(error)) from error


def need_as_many(record: object, first: str, *others: str) -> None:
    """Raise ValueError where these fields of a record have not as many entries as the first."""
    for name in others:
        if len(getattr(record, name)) != (count := len(getattr(record, first))):
            raise ValueError(f"must have as many {name} as {first}, got {len(getattr(record, name))} and {count}")


def need_some(record: object, *names: str) -> None:
    """Raise ValueError where one of these fields of a record is empty."""
    for name in names:
        if not getattr(record, name):
            raise ValueError(f"must have {name}, got none")


def need_over(least: float, record: object, *names: str) -> None:
    """Raise ValueError where one of these numbers of a record, or one of several in a field, is not above `least`."""
    for name in names:
        value = getattr(record, name)
        if not all(each > least for each in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"must have {name} above {least:g}, got {quoted(value)}")


def need_not_below(least: float, record: object, *names: str) -> None:
    """Raise ValueError where one of these numbers of a record, or one of several in a field, is below `least`."""
    for name in names:
        value = getattr(record, name)
        if not all(each >= least for each in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"must have {name} of {least:g} or more, got {quoted(value)}")


def need_rising(record: object, *names: str) -> None:
    """Raise ValueError where one of these fields of a record does not hold whole numbers from 1 on, each above the last
    one."""
    for name in names:
        value = getattr(record, name)
        if not value or value[0] < 1 or any(one >= other for one, other in pairwise(value)):
            raise ValueError(f"must have {name} of 1 or more, each above the one before it, got {quoted(value)}")


def read_record(path: Path, kind: type[T]) -> T:
    """The record in a file; raises UserError with a way out."""
    return from_json(read_json(path), kind, path)


def write_record(path: Path, record: Any, **more: Any) -> None:
    """Write a record as a JSON object, behind further fields."""
    write_json(path, {**more, **to_json(record)})


@cache
def _converter() -> Any:
    """The one converter between records and JSON; it coerces no value of one kind into another."""
    from cattrs import Converter, cols

    converter = Converter()
    for kind in (str, bool, int, float):
        converter.register_structure_hook(kind, _checked)
    converter.register_structure_hook(str | int, lambda value, _: _checked(value, str if type(value) is str else int))
    for suits, make in (
        (_is_row, cols.homogenous_tuple_structure_factory),
        (_is_list, cols.list_structure_factory),
        (cols.is_mapping, cols.mapping_structure_factory),
    ):
        converter.register_structure_hook_factory(suits, _checking(make, dict if suits is cols.is_mapping else list))
    return converter


def _is_row(kind: Any) -> bool:
    """Whether a kind is a tuple of any number of values that are alike."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is ...


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is list


def _checking(make: Any, needed: type[Any]) -> Any:
    """A factory of hooks that take a list, or an object, and not what can be gone through like one."""

    def factory(kind: Any, converter: Any) -> Any:
        hook = make(kind, converter)
        return lambda value, kind: hook(_checked(value, needed), kind)

    return factory


def _checked(value: Any, kind: type[Any]) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise TypeError(f"must be {KINDS[kind]}, got {quoted(value)}")
    if kind is float and not abs(value) <= LARGEST:
        raise TypeError(f"must be a number of at most {LARGEST:g}, got {value}")
    return value


def _reason(error: BaseException, kind: type[Any] | None) -> str:
    """What is wrong with a field, to stand behind its name."""
    if isinstance(error, KeyError):
        return "is missing"
    if isinstance(error, ValueError) or (isinstance(error, TypeError) and str(error).startswith("must be")):
        return str(error)
    return f"cannot be read ({error})"


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); delete it and run its stage again") from error
    return tensors, read_about(path)


def read_about(path: Path) -> JsonObject:
    """The `about` mapping alone of what write_tensors wrote; raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {}).get("about", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); delete it and run its stage again") from error
    if not isinstance(about, dict):
        raise wrong(path, f"what is said about its tensors must be an object, got {quoted(about)}")
    return about


def read_weights(path: Path, module: "nn.Module") -> JsonObject:
    """Load the tensors of a file into a module; what is said about them. Raises UserError for those of another one, and
    for weights that are not finite."""
    tensors, about = read_tensors(path)
    with checking(path):
        check_weights(tensors, module)
    load_state(module, tensors)
    return about


BUFFERS = "buffer/"
"""Prefix of the buffers of a network that its `state_dict` leaves out."""


def state_of(module: "nn.Module") -> dict[str, "Tensor"]:
    """All that a network learns and keeps: its `state_dict`, and under names of their own the buffers that this leaves
    out (`persistent=False`), which a training may change, too."""
    state = module.state_dict()
    others = {name: each for name, each in module.named_buffers(remove_duplicate=False) if name not in state}
    return {**state, **{f"{BUFFERS}{name}": each for name, each in others.items()}}


def load_state(module: "nn.Module", tensors: Mapping[str, "Tensor"]) -> None:
    """Load what `state_of` gave into a module; buffers that older files lack stay as they are."""
    module.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(BUFFERS)})
    owners = dict(module.named_modules(remove_duplicate=False))
    for name, tensor in tensors.items():
        if name.startswith(BUFFERS) and name.removeprefix(BUFFERS).rpartition(".")[0] in owners:
            put_buffer(module, name.removeprefix(BUFFERS), tensor)


def put_buffer(module: "nn.Module", path: str, tensor: "Tensor") -> None:
    """Write values into a buffer that `state_dict` leaves out, or in its place where it has another shape."""
    import torch

    owner, _, name = path.rpartition(".")
    part = module.get_submodule(owner)
    buffer = part._buffers.get(name)
    if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype) or not buffer.is_contiguous():
        # one that a forward pass makes anew for the images that it gets, or few numbers that are expanded
        like = next(module.parameters(), tensor) if buffer is None else buffer
        part.register_buffer(name, tensor.detach().clone().to(like.device), persistent=False)
        return
    with torch.no_grad():
        buffer.copy_(tensor)


def check_weights(tensors: Mapping[str, "Tensor"], module: "nn.Module") -> None:
    """Raise UserError, which names the tensor, where these are not the state of such a module, or not finite."""
    state, trained = module.state_dict(), dict(module.named_parameters(remove_duplicate=False))
    owners = {name for name, _ in module.named_modules(remove_duplicate=False)}
    apart = {name for name in tensors if name.startswith(BUFFERS)}
    if odd := sorted(name for name in apart if name.removeprefix(BUFFERS).rpartition(".")[0] not in owners):
        raise UserError(f"it has a tensor {quoted(odd[0])}")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in apart}
    if odd := sorted(state.keys() ^ tensors.keys()):
        raise UserError(f"it {'lacks' if odd[0] in state else 'has'} a tensor {quoted(odd[0])}")
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape or tensor.dtype.is_floating_point != state[name].dtype.is_floating_point:
            shapes = [f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in (state[name], tensor)]
            raise UserError(f"{name} must be {shapes[0]}, got {shapes[1]}")
        if name in trained and not bool(tensor.isfinite().all()):
            raise UserError(f"{name} has weights that are no finite numbers")


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
