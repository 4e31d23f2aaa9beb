"""A device and its agent: connected when needed, and again where the connection broke."""

import atexit
import getpass
import platform
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from math import inf, isfinite
from signal import SIGKILL
from typing import Any, TypeVar
from weakref import finalize

from htas.console.progress import say
from htas.errors import UserError
from htas.text import duration, listing
from htas.timing.remote.address import Address, address
from htas.timing.remote.facts import Facts, State, checked
from htas.timing.remote.pipe import Header, Lost, Pipe
from htas.timing.remote.reasons import reason

T = TypeVar("T")
Readings = tuple[tuple[float, ...], tuple[int, ...]]
"""Of one program in a row: the seconds of each, and its number of calls."""

TRIES = 3
"""Times that the same request may lose the agent."""
PAUSE = 0.5, 8.0
"""Seconds between two attempts to reach a device again: at first, and at most."""
OLDEST = (1, 17)
"""The first ONNX Runtime that reads the graphs sent (formats/onnx.py: OPSET)."""
COOLING, COOLER = 120.0, 2.0
"""Most seconds of waiting, in all, until a device is cooler, and seconds between two looks."""
SLOWEST = 10_000
"""Bytes a second of the slowest network that is waited for."""
TRIP = 0.01
"""Seconds of the network that count as time of the measurement, as the building of layers does; no more than these."""
PIECE = 32
"""Programs that are opened and read in one go after a new start, so that frequent losses do not stop all progress."""
MOST_LOOPS = 1_000_000
"""Calls of a reading, at most."""
PATIENCE = 20
"""Times as long as expected that a reading may take."""
AHEAD = 1.25, 0.1
"""Share and seconds by which readings may exceed the time that their request took here."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds after which an answer is not waited for any longer."""

    connect: float = 20.0
    open: float = 120.0
    """Of a graph, without the time to send it."""
    read: float = 60.0
    """Of a round, above what it is expected to take."""
    away: float = 120.0
    """In which a device that was reached before must be back."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The bytes of an ONNX file, known by their digest."""

    content: bytes
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", sha256(self.content).hexdigest())


@dataclass(frozen=True)
class Settings:
    """How a graph is opened."""

    threads: int
    spin: int
    """Microseconds that an idle thread waits busily."""
    reading: float
    """Seconds of a reading."""
    warmup: float
    """Most seconds of warming up."""


@dataclass(eq=False)
class RemoteProgram:
    """A program on a device; it is opened there again after a broken connection."""

    device: "Device"
    graph: Graph
    settings: Settings
    shapes: tuple[tuple[int, ...], ...] | None
    """Of the inputs; None for the graph's own."""
    number: int
    loops: int = 0
    """Calls of a reading."""
    seconds: float = inf
    """Of the fastest call so far."""

    def __call__(self) -> None:
        """One batch."""
        self.device.read([(self, 1)], 0.0, 1)


class Failed(RuntimeError):
    """What the device's runtime raised."""


class AnotherDevice(UserError):
    """What answers now is not what answered before."""


class Device:
    """A device by its address. Programs and facts may be used at any time: it is connected then."""

    def __init__(self, where: Address, deadlines: Deadlines | None = None) -> None:
        self.where, self.deadlines = where, deadlines or Deadlines()
        self.spinning = ""
        """In words how its threads wait for the next call, where it is not as asked."""
        self.raised = False
        """Whether the agent has priority over other programs there."""
        self.state: State | None = None
        """Of the last round."""
        self.restarts = 0
        """Times that the agent was started again."""
        self.reboots = 0
        """Times that the device was."""
        self.outage = 0.0
        """Seconds without a connection, and of waiting for the network."""
        self.on_state: Callable[[State], None] = lambda state: None
        """Gets the device's state of each round."""
        self._cooling = 0.0
        self._pipe: Pipe | None = None
        self._facts: Facts | None = None
        self._holding = False
        self._users = 0
        self._token = secrets.token_hex(16)
        self._count = self._starts = 0
        self._request: tuple[object, ...] = ()
        self._opened: set[int] = set()
        self._graphs: set[str] = set()
        self._closing: list[int] = []
        atexit.register(self.close)

    def __str__(self) -> str:
        return self.where.written

    # -- what is asked of it -------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What the device is; asked once. Raises UserError where it cannot be reached."""
        if self._facts is None:
            with self.connected():
                self._persist(lambda: None)
        assert self._facts is not None
        return self._facts

    def check(self) -> None:
        """Raise UserError where the device cannot be reached, or lacks what networks need."""
        facts = self.facts
        if facts.missing:
            install = f"{facts.executable} -m pip install {' '.join(facts.missing)}"
            broken = [why for why in facts.missing.values() if not why.startswith("ModuleNotFoundError")]
            why = f" ({'; '.join(broken)})" if broken else ""
            raise self._refusal(f"has no {listing(facts.missing)}{why}; install it there: {install}")
        version = facts.versions["onnxruntime"]
        if version_of(version) < OLDEST:
            newer = f"{facts.executable} -m pip install -U onnxruntime"
            raise self._refusal(
                f"has ONNX Runtime {version}, and graphs need {'.'.join(map(str, OLDEST))}; install a newer one there:"
                f" {newer}"
            )

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep the connection until the end, and none after it."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self.close()

    def close(self) -> None:
        """End the agent; nothing is left there."""
        self._opened, self._graphs, self._holding = set(), set(), False
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def open(self, graph: Graph, settings: Settings, shapes: tuple[tuple[int, ...], ...] | None) -> RemoteProgram:
        """Open a graph there and warm it up; raises Failed where the runtime there cannot."""
        self._count += 1
        program = RemoteProgram(self, graph, settings, shapes, self._count)
        finalize(program, self._closing.append, program.number)
        self._persist(lambda: self._ensure([program]))
        return program

    def read(self, turns: Sequence[tuple[RemoteProgram, int]], least: float, repeat: int) -> list[Readings]:
        """Read programs in this order, each `repeat` times after one call that is not timed.

        A reading that lasts less than half of `least` seconds is repeated with more calls.
        """
        if len(turns) > PIECE and any(program.number not in self._opened for program, _ in turns):
            pieces = [turns[start : start + PIECE] for start in range(0, len(turns), PIECE)]
            return [each for piece in pieces for each in self.read(piece, least, repeat)]
        starts = self._starts

        def read() -> list[Readings] | None:
            return None if self._starts != starts and len(turns) > PIECE else self._read(turns, least, repeat)

        readings = self._persist(read)
        return self.read(turns, least, repeat) if readings is None else readings

    def outputs(self, program: RemoteProgram, arrays: Sequence[Any]) -> tuple[bytes, tuple[int, ...], str]:
        """The first output for other inputs, numpy arrays: its bytes, shape and numpy's name of its type."""

        def read(reply: Header, content: bytes) -> tuple[bytes, tuple[int, ...], str]:
            shape, dtype = reply.get("shape"), reply.get("dtype")
            if not isinstance(shape, list) or not isinstance(dtype, str):
                raise Lost("sent outputs without a shape")
            return content, tuple(shape), dtype

        about = [[list(each.shape), str(each.dtype)] for each in arrays]
        body = b"".join(each.tobytes() for each in arrays)
        return self.ask(program, {"do": "outputs", "arrays": about}, body, self.deadlines.open, read)

    def ask(
        self, program: RemoteProgram, header: Header, body: bytes, seconds: float, read: Callable[[Header, bytes], T]
    ) -> T:
        """What `read` makes of the reply to a request about a program; it raises Lost where that makes no sense."""

        def work() -> T:
            self._ensure([program])
            return read(*self._ask({**header, "program": program.number}, body, seconds))

        return self._persist(work)

    def disturb(self, sizes: Sequence[int], remaining: Sequence[int]) -> None:
        """Allocate blocks of memory there, and free all but the `remaining` ones, by number."""
        header = {"do": "disturb", "sizes": list(sizes), "kept": list(remaining)}
        self._persist(lambda: self._ask(header, b"", self.deadlines.read))

    def now(self) -> float:
        """Seconds of a clock that stands still while the device is away, or the network is waited for."""
        return time.monotonic() - self.outage

    def look(self) -> State:
        """The state of the device at this moment."""

        def ask() -> State:
            reply, _ = self._ask({"do": "state"}, b"", self.deadlines.read)
            return checked(reply.get("state") or {}, State)

        return self._persist(ask)

    # -- requests ------------------------------------------------------------------------------------------------------

    def _ensure(self, programs: Sequence[RemoteProgram]) -> None:
        """Open those that this agent has not opened."""
        self._hold()
        for program in programs:
            if program.number not in self._opened:
                self._open(program)

    def _open(self, program: RemoteProgram) -> None:
        settings, graph = program.settings, program.graph
        header = {
            "do": "open", "program": program.number, "graph": graph.digest, "threads": settings.threads,
            "spin": settings.spin, "shapes": program.shapes, "reading": settings.reading, "warmup": settings.warmup,
        }  # fmt: skip
        reply: Header = {}
        if graph.digest in self._graphs:
            reply, _ = self._ask(header, b"", self.deadlines.open)
        if not reply.get("known"):
            seconds = self.deadlines.open + len(graph.content) / SLOWEST
            reply, _ = self._ask(header, graph.content, seconds)
            self._graphs.add(graph.digest)
        loops, fastest = reply.get("loops"), reply.get("seconds")
        if type(loops) is not int or not 1 <= loops <= MOST_LOOPS or type(fastest) is not float or not fastest >= 0:
            raise Lost("opened a program without reading it")
        program.loops, program.seconds = loops, min(fastest, program.seconds)
        self._opened.add(program.number)

    def _read(self, turns: Sequence[tuple[RemoteProgram, int]], least: float, repeat: int) -> list[Readings]:
        self._ensure([program for program, _ in turns])
        header = {
            "do": "read", "turns": [[program.number, loops] for program, loops in turns], "least": least,
            "repeat": repeat,
        }  # fmt: skip
        expected = sum((1 + loops * repeat) * program.seconds for program, loops in turns)
        began = time.monotonic()
        reply, _ = self._ask(header, b"", self.deadlines.read + PATIENCE * expected)
        elapsed = time.monotonic() - began
        readings = _readings(reply, len(turns), repeat)
        lasted = sum(sum(seconds) for seconds, _ in readings)
        if lasted > AHEAD[0] * elapsed + AHEAD[1]:
            raise Lost(
                f"read {duration(lasted)} in what took {duration(elapsed)} here, so its clock jumps; let nothing set it"
            )
        for (program, _), both in zip(turns, readings, strict=True):
            fastest = min(seconds / loops for seconds, loops in zip(*both, strict=True))
            program.seconds = min(program.seconds, fastest)
        self.state = checked(reply.get("state") or {}, State)
        self.on_state(self.state)
        return readings

    def hold(self) -> None:
        """Be the one reader of the device while connected; raises UserError, which names the other."""
        self._persist(self._hold)

    def _hold(self) -> None:
        if self._holding:
            return
        self.check()
        header = {"do": "lock", "token": self._token, "who": f"{_user()}@{platform.node()}"}
        reply, _ = self._ask(header, b"", self.deadlines.connect)
        self.spinning = "" if reply.get("spins") else "none"
        self.raised = bool(reply.get("raised"))
        self._holding = True

    def _ask(self, header: Header, body: bytes, seconds: float) -> tuple[Header, bytes]:
        """The reply to one request of a connected agent; raises UserError or Failed for what it refuses."""
        assert self._pipe is not None
        self._count += 1
        self._request = header["do"], header.get("program")
        closing, self._closing[:] = [number for number in self._closing if number in self._opened], []
        self._opened.difference_update(closing)
        began = time.monotonic()
        reply, content = self._pipe.ask({**header, "number": self._count, "close": closing}, body, seconds)
        took = reply.get("took")
        if isinstance(took, float) and took >= 0:
            self.outage += max(0.0, time.monotonic() - began - took - TRIP)
        kind, words = reply.get("error"), _printable(str(reply.get("words", "")))
        match kind:
            case None:
                return reply, content
            case "busy":
                raise self._refusal(f"is read by another program: {words}; wait until that has ended, or end it there")
            case "full":
                raise self._refusal(f"has no room on its disk for a lock ({words}); free some space there")
            case "lock":
                raise self._refusal(f"has no folder for a lock ({words}); make /tmp writable there")
            case "memory":
                raise Failed("out of memory")
            case "run":
                raise Failed(words)
        raise Lost(f"refused a request ({words})")

    def _cool(self) -> None:
        """Wait while a sensor says that heat slows the device down, COOLING seconds in all."""
        while self.state is not None and self.state.hot and self._cooling < COOLING:
            if not self._cooling:
                say(f"{self}: it is slowed down by heat; waiting until it is cooler")
            time.sleep(COOLER)
            self._cooling += COOLER
            self.outage += COOLER
            reply, _ = self._ask({"do": "state"}, b"", self.deadlines.read)
            self.state = checked(reply.get("state") or {}, State)

    # -- the connection ------------------------------------------------------------------------------------------------

    def _persist(self, work: Callable[[], T]) -> T:
        """Do the work while connected, and again after a new start where the agent was lost."""
        loss: Lost | None = None
        losses: Counter[tuple[object, ...]] = Counter()
        while True:
            began = time.monotonic()
            try:
                if loss is not None or (self._pipe is None and self._facts is not None):
                    self._begin_again(loss)
                elif self._pipe is None:
                    self._begin()
                self._cool()
                return work()
            except Lost as error:
                loss = error
                self.outage += time.monotonic() - began
                self.close()
                losses[self._request] += 1
                if losses[self._request] == TRIES:
                    break
            except (UserError, Failed):
                raise
            except BaseException:  # Ctrl-C: what the agent does now, it does for nobody
                self.close()
                raise
        raise self._refusal(f"lost its agent {TRIES} times at one request: it {loss}; see whether its memory suffices")

    def _begin(self) -> None:
        """Start the agent and ask what the device is; raises UserError that says why it cannot."""
        self.close()
        pipe = Pipe(self.where)
        try:
            pipe.greet(self.deadlines.connect)
            self._count += 1
            reply, _ = pipe.ask({"do": "describe", "number": self._count}, b"", self.deadlines.connect)
            if "error" in reply:
                raise Lost(f"cannot say what it is ({_printable(str(reply.get('words')))})")
            facts = checked(reply, Facts)
        except Lost as error:
            pipe.close()
            if str(error).startswith("closed") and pipe.code == -SIGKILL:  # somebody killed it
                raise
            raise self._refusal(reason(pipe, error)) from error
        except BaseException:
            pipe.close()
            raise
        if self._facts is not None and self._facts.machine != facts.machine:
            pipe.close()
            raise AnotherDevice(
                f"target.host {self}: another device answers now, {facts.machine['measured on']} in place of "
                f"{self._facts.machine['measured on']}, or it was changed; begin again with the right one"
            )
        if self._facts is not None and self._facts.boot != facts.boot:
            self.reboots += 1
        self._facts, self._pipe = facts, pipe
        self._starts += 1

    def _begin_again(self, loss: Lost | None) -> None:
        """Start the agent of a device that was reached before; raises UserError where it stays away."""
        began, pause = time.monotonic(), PAUSE[0]
        while True:
            try:
                self._begin()
                break
            except AnotherDevice:
                raise
            except (UserError, Lost) as error:
                rest = self.deadlines.away - (time.monotonic() - began)
                if rest <= 0:
                    why = f"it {loss} and stays away" if loss else "it was there before and stays away"
                    words = error if isinstance(error, UserError) else self._refusal(str(error))
                    raise UserError(f"{words} ({why}); the same command goes on from here once it is back") from error
                time.sleep(min(pause, rest))
                pause = min(2 * pause, PAUSE[1])
        self.outage += time.monotonic() - began
        if loss is not None:
            self.restarts += 1
            say(f"{self}: it {loss}; its agent was started again")

    def _refusal(self, words: str) -> UserError:
        return UserError(f"target.host {self}: the device {words}")


@cache
def device(host: str) -> Device:
    """The device that a target's host names, one for this process; raises UserError for no address."""
    return Device(address(host))


def version_of(version: str) -> tuple[int, ...]:
    """`(1, 17)` of `1.17.3`; nothing of what is no number."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _readings(reply: Header, count: int, repeat: int) -> list[Readings]:
    """Raises Lost where a reply has no readings for each turn."""
    lasted, loops = reply.get("lasted"), reply.get("loops")
    if not isinstance(lasted, list) or not isinstance(loops, list) or not len(lasted) == len(loops) == count:
        raise Lost("sent readings of other programs")
    for seconds, calls in zip(lasted, loops, strict=True):
        if not isinstance(seconds, list) or not isinstance(calls, list) or not len(seconds) == len(calls) == repeat:
            raise Lost("sent too few readings, or too many")
        if not all(isinstance(each, float) and isfinite(each) and each >= 0 for each in seconds):
            raise Lost(f"sent readings that no clock gives: {str(seconds)[:100]}")
        if not all(type(each) is int and each >= 1 for each in calls):
            raise Lost("sent readings of no calls")
    return [(tuple(seconds), tuple(calls)) for seconds, calls in zip(lasted, loops, strict=True)]


def _printable(words: str) -> str:
    """Words of another machine in one line."""
    return "".join(letter if letter.isprintable() else " " for letter in words)[:400].strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "someone"
