"""A stage of a run: its needs, its key, and whether its files can still be used."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from htas.console.progress import say
from htas.errors import UserError
from htas.files import from_json, need_not_below, read_json, read_record, write_record
from htas.run.run import Run
from htas.run.sole import sole
from htas.run.writable import need_writable
from htas.text import duration, listing
from htas.training import ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One step of a run, from files to files; it is finished when its files were made from the present inputs."""

    name: str
    """The verb that runs it."""
    needs: tuple["Stage", ...]
    """Stages whose files it is made from."""
    files: Callable[[Run], list[Path]]
    """The files that it writes."""
    key: Callable[[Run], str]
    """A hash of everything that its files depend on; each file stores it."""
    make: Callable[[Run, bool], None]
    """Writes the files that are not finished; with True, each of them."""
    complete: Callable[[Run], bool] = lambda run: True
    """Whether everything next to its files, such as weights, exists too."""
    measures: bool = False
    """Whether its file holds layers' readings of one device, runtime and load."""
    lasting: bool = False
    """Whether its file stays usable when its inputs change, as readings of a network do."""
    outdated: Callable[[Run, dict[str, Any]], bool] | None = None
    """Whether its file, by its content, was made from others than are there now; by default its key tells. A key with
    the machine in it would refuse the files of another one."""
    together: bool = False
    """Whether all processes that train together take part; otherwise the first makes its files alone."""
    unfinished: Callable[[Run], Iterable[Path]] | None = None
    """Files of its unfinished work, which a process leaves that is killed when it has written the outcome."""
    beside: bool = False
    """Whether its files may be made while another command works in the folder."""

    @property
    def before(self) -> tuple["Stage", ...]:
        """Every stage that must be finished first, in order."""
        return tuple(dict.fromkeys(each for stage in self.needs for each in (*stage.before, stage)))


def ensure(run: Run, stage: Stage, again: bool = False) -> bool:
    """Make the files of a stage, unless they are finished; with `again`, in any case. Returns whether it made them.

    Raises UserError, naming the verb to run, where a file of the stages before is missing or made from older ones,
    where the folder cannot be written, and where another command works in it.
    """

    def to_do() -> bool:
        for before in stage.before:
            need(run, before)
        return again or not finished(run, stage)

    def alone() -> bool:
        making = to_do()
        if making:
            need_writable(run.folder)
            stage.make(run, again)
        return making

    with nullcontext() if stage.beside else working(run):
        makes = ranks.of_first(to_do if stage.together else alone)
        if stage.together and makes:
            ranks.of_first(lambda: prepare(run))
            stage.make(run, again)
        ranks.of_first(lambda: _sweep(run, stage))
    return makes


@contextmanager
def working(run: Run) -> Iterator[None]:
    """Work in the folder of a run, which is made; raises UserError where it cannot be, and where another command works
    there."""

    def begin() -> None:
        if not run.folder.is_dir():
            need_writable(run.folder)
        stack.enter_context(sole(run.folder))

    with ExitStack() as stack:
        ranks.of_first(begin)
        yield


def _sweep(run: Run, stage: Stage) -> None:
    for path in stage.unfinished(run) if stage.unfinished else ():
        path.unlink(missing_ok=True)


def prepare(run: Run) -> None:
    """Read data and network, so that what they download is there before other processes need it, and raise UserError
    where the run's folder has no room for what is trained."""
    assert run.network and run.data
    need_writable(run.folder, sum(each.numel() for each in run.network.module.parameters()))


def finished(run: Run, stage: Stage) -> bool:
    """Whether the files of a stage were made from the present inputs."""
    return all(made_from(path, stage.key(run)) for path in stage.files(run)) and stage.complete(run)


def need(run: Run, stage: Stage) -> None:
    """Raise UserError, naming the verb to run, where a file of a stage is missing or made from older ones."""
    for path in stage.files(run):
        if reason := unusable(run, stage, path):
            raise UserError(reason)


def unusable(run: Run, stage: Stage, path: Path) -> str:
    """Why a file of a stage cannot be used, and the verb to run; empty where it can.

    Readings of another machine can be used: only measuring again depends on the machine.
    """
    if not path.exists():
        return f"{path} does not exist; run `htas {stage.name} {path.parent}` first"
    if stage.measures and (other := _other_target(run, stage, path)):
        return other
    if stage.lasting:
        return ""
    for before in stage.needs:
        if gone := next((source for source in before.files(run) if not source.exists()), None):
            return f"{path} was made from {gone}, which does not exist; run `htas {before.name} {path.parent}` first"
    content = read_json(path)
    if stage.outdated(run, content) if stage.outdated else content.get("inputs") != stage.key(run):
        return f"{path} was made from other files than are there now; run `htas {stage.name} {path.parent}`"
    return ""


def made_from(path: Path, key: str) -> bool:
    """Whether a stage's file exists and has this key."""
    return path.exists() and read_json(path).get("inputs") == key


@dataclass(frozen=True)
class StageHeader:
    """The fields that the file of every stage begins with."""

    inputs: str
    """The key of the stage: a hash of everything that the file depends on."""
    took: float
    """Seconds."""

    def __post_init__(self) -> None:
        need_not_below(0, self, "took")


@dataclass(frozen=True)
class TargetHeader:
    """What the file of a stage that measures says of the target."""

    context: Mapping[str, str] = field(default_factory=dict)
    borrowed_from: str = ""
    """In words another device, whose layers these are."""


def write_stage(path: Path, key: str, seconds: float, record: Any) -> None:
    """Write a record as the file of a stage, with the key and how long it took, and say so."""
    write_record(path, record, inputs=key, took=seconds)
    say(f"{path.stem}: {duration(seconds)}")


def stored(path: Path, key: str, kind: type[T], make: Callable[[], T]) -> T:
    """The record of a file that has this key; without such a file `make` gives the record, which is written."""
    if not made_from(path, key):
        started = time.monotonic()
        record = make()
        write_stage(path, key, time.monotonic() - started, record)
    return read_record(path, kind)


def _other_target(run: Run, stage: Stage, path: Path) -> str:
    """Why not, where a file's readings are of another device, runtime or load than this run asks for."""
    record = from_json(read_json(path), TargetHeader, path)
    if record.borrowed_from:  # asked for, and judged by networks of this run's device
        return ""
    context = record.context
    names = ("device", "runtime", "precision", "threads", "batch")
    target = {name: str(getattr(run.target, name)) for name in names}
    if not run.target.threads:  # all cores of a device, whose number only the device knows
        del target["threads"]
    other = [name for name, value in target.items() if context.get(name, value) != value]
    if not other:
        return ""
    there, here = (listing(f"{name} {values[name]}" for name in other) for values in (context, target))
    return (
        f"{path} was measured with {there}, and this run asks for {here}; take a folder that was measured so, or "
        f"measure anew: htas {stage.name} {path.parent} --again"
    )
