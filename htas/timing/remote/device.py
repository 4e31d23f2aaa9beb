"""A device and its agent: connected when needed, and again where the connection broke."""

import atexit
import getpass
import platform
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from hashlib import sha256
from math import inf
from signal import SIGKILL
from typing import Any, TypeVar
from weakref import finalize

from htas.console.progress import say
from htas.errors import UserError
from htas.text import duration
from htas.timing.remote.address import Address, address
from htas.timing.remote.agent import MOST_LOOPS
from htas.timing.remote.facts import Facts, Readings, State, checked, checked_readings
from htas.timing.remote.needs import broken, lacking, old, outdated
from htas.timing.remote.pipe import Header, Lost, Pipe, printable
from htas.timing.remote.reasons import reason

T = TypeVar("T")

TRIES = 3
"""Times that the same request may lose the agent."""
PAUSE = 0.5, 8.0
"""Seconds between two attempts to reach a device again: at first, and at most."""
COOLING, COOLER = 120.0, 2.0
"""Most seconds of waiting, in all, until a device is cooler, and seconds between two looks."""
SLOWEST = 10_000
"""Bytes a second of the slowest network that is waited for."""
TRIP = 0.01
"""Seconds of the network that count as time of the measurement, as the building of layers does; no more than these."""
PIECE = 32
"""Programs that are opened and read in one go after a new start, so that frequent losses do not stop all progress."""
PATIENCE = 20
"""Times as long as expected that a reading may take."""
AHEAD = 1.25, 0.1
"""Share and seconds by which readings may exceed the time that their request took here."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds after which an answer is not waited for any longer."""

    connect: float = 20.0
    open: float = 120.0
    """Of a program, without the time to send it."""
    read: float = 60.0
    """Of a round, above what it is expected to take."""
    away: float = 120.0
    """In which a device that was reached before must be back."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The bytes of a program, known by their digest."""

    content: bytes

    @cached_property
    def digest(self) -> str:
        """In hexadecimal digits."""
        return sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Settings:
    """How a program is opened."""

    threads: int
    spin: int
    """Microseconds that an idle thread waits busily."""
    reading: float
    """Seconds of a reading."""
    warmup: float
    """Most seconds of warming up."""
    runtime: str = "onnxruntime"
    """Name of the engine."""
    half: bool = False
    """Whether it computes in fp16, where the program does not say so itself."""


Inputs = Sequence[tuple[tuple[int, ...], str]]
"""The shape of each input and numpy's name of its type."""


@dataclass(eq=False)
class RemoteProgram:
    """A program on a device; it is opened there again after a broken connection."""

    device: "Device"
    graph: Graph
    settings: Settings
    inputs: Inputs | None
    """None for those of an ONNX graph."""
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
        self._versions: dict[str, tuple[str, str]] = {}
        """Of each runtime that was asked for, and how its threads spin where it is not as asked."""
        self._loaded: set[str] = set()
        """Runtimes of this agent."""
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

    def check(self, runtime: str) -> None:
        """Raise UserError where the device cannot be reached, or lacks what a runtime needs."""
        if runtime not in self._versions:
            with self.connected():
                self._persist(lambda: self._load(runtime))

    def version(self, runtime: str) -> str:
        """Of a runtime there; raises UserError as `check` does."""
        self.check(runtime)
        return self._versions[runtime][0]

    def differences(self, runtime: str) -> dict[str, str]:
        """Settings of a runtime there that are not as asked: how its threads spin."""
        self.check(runtime)
        spinning = self._versions[runtime][1]
        return {"spinning": spinning} if spinning else {}

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
        self._opened, self._graphs, self._loaded, self._holding = set(), set(), set(), False
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def open(self, graph: Graph, settings: Settings, inputs: Inputs | None) -> RemoteProgram:
        """Open a program there and warm it up; raises Failed where the runtime there cannot."""
        self._count += 1
        program = RemoteProgram(self, graph, settings, inputs, self._count)
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
        self._load(settings.runtime)
        header = {
            "do": "open", "program": program.number, "graph": graph.digest, "inputs": program.inputs, **asdict(settings)
        }  # fmt: skip
        reply: Header = {}
        began, outage, again = time.monotonic(), self.outage, bool(program.loops)
        if graph.digest in self._graphs:
            reply, _ = self._ask(header, b"", self.deadlines.open)
        if not reply.get("known"):
            seconds = self.deadlines.open + len(graph.content) / SLOWEST
            reply, _ = self._ask(header, graph.content, seconds)
            self._graphs.add(graph.digest)
        loops, fastest = reply.get("loops"), reply.get("seconds")
        if type(loops) is not int or not 1 <= loops <= MOST_LOOPS or type(fastest) is not float or not fastest >= 0:
            raise Lost("opened a program without reading it")
        _check_clock(fastest, began)
        if again:  # after a loss; it was paid for before
            self.outage = outage + time.monotonic() - began
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
        readings = checked_readings(reply, len(turns), repeat)
        _check_clock(sum(sum(seconds) for seconds, _ in readings), began)
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
        header = {"do": "lock", "token": self._token, "who": f"{_user()}@{platform.node()}"}
        reply, _ = self._ask(header, b"", self.deadlines.connect)
        self.raised = bool(reply.get("raised"))
        self._holding = True

    def _load(self, runtime: str) -> None:
        """Let the agent import a runtime; raises UserError where it lacks, is too old or is not as it was."""
        if runtime in self._loaded:
            return
        assert self._facts is not None
        if words := lacking(self._facts, runtime):
            raise self._refusal(words)
        reply, _ = self._ask({"do": "load", "runtime": runtime}, b"", self.deadlines.open)
        version, spinning = (printable(str(reply.get(name, ""))) for name in ("version", "spinning"))
        if words := outdated(self._facts, runtime, version):
            raise self._refusal(words)
        if self._versions.setdefault(runtime, (version, spinning)) != (version, spinning):
            before = self._versions[runtime][0]
            raise AnotherDevice(f"{self._refusal(f'has {runtime} {version} now, and had {before}')}; begin again")
        self._loaded.add(runtime)

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
        kind, words = reply.get("error"), printable(str(reply.get("words", "")))
        match kind:
            case None:
                return reply, content
            case "busy":
                raise self._refusal(f"is read by another program: {words}; wait until that has ended, or end it there")
            case "full":
                raise self._refusal(f"has no room on its disk for a lock ({words}); free some space there")
            case "lock":
                where = "that" if words.startswith("HTAS_LOCK") else "/tmp"
                raise self._refusal(f"has no folder for a lock ({words}); make {where} writable there")
            case "broken" | "old" if self._facts is not None:
                sentence = broken if kind == "broken" else old
                raise self._refusal(sentence(self._facts, str(header.get("runtime")), words))
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
            began, outage = time.monotonic(), self.outage
            try:
                if loss is not None or (self._pipe is None and self._facts is not None):
                    self._begin_again(loss)
                elif self._pipe is None:
                    self._begin()
                self._cool()
                return work()
            except Lost as error:
                loss = error
                self.outage = outage + time.monotonic() - began
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
                raise Lost(f"cannot say what it is ({printable(str(reply.get('words')))})")
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
            names = (each.machine["measured on"] for each in (facts, self._facts))
            raise AnotherDevice(
                f"target.host {self}: another device answers now, {' in place of '.join(names)}, or it was changed; "
                f"begin again with the right one{', and give the container a --hostname' if facts.container else ''}"
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


def _check_clock(lasted: float, began: float) -> None:
    """Raise Lost where readings lasted longer than their request, which began then."""
    elapsed = time.monotonic() - began
    if not lasted <= AHEAD[0] * elapsed + AHEAD[1]:
        words = f"read {lasted:.3g} s in what took {duration(elapsed)} here"
        raise Lost(f"{words}, so its clock jumps; let nothing set it")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "someone"
