"""The pipe to an agent: a process, frames with deadlines, and why it ended."""

import ast
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

from htas.errors import UserError
from htas.plugins.trust import need_trusted_command
from htas.timing.remote import agent
from htas.timing.remote.address import Address

MOST_NOISE = 1 << 16
"""Bytes that a login shell may print before the agent speaks."""
MOST_STDERR = 1 << 12
"""Bytes of stderr that are remembered, the last ones."""
MOST_HEADER = 1 << 24
MOST_BODY = 1 << 28
"""Bytes of a reply's header and body."""
CHUNK = 1 << 16
LEAVING = 2.0
"""Seconds in which a process may end by itself once its pipe is closed."""
Header = Mapping[str, Any]
"""The JSON object of a frame."""


@cache
def source() -> bytes:
    """The program that runs on the device: kernel.py, engines.py and agent.py as one file, without what only people
    read."""
    parts = [files(__package__).joinpath(f"{name}.py").read_text() for name in ("kernel", "engines", "agent")]
    program = re.sub(rf"^from {re.escape(__package__)}\..*\n", "", "".join(parts), flags=re.MULTILINE)
    remarks = {
        line
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # a docstring
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = [line for number, line in enumerate(program.splitlines(), 1) if number not in remarks]
    return "".join(f"{line}\n" for line in lines if line and not line.lstrip().startswith("#")).encode()


def printable(words: str, most: int = 400) -> str:
    """Words of another machine in one line, without what a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in words[: 2 * most]).strip()[:most]


class Lost(Exception):
    """The agent is gone, silent or says what no agent says: it may be started again."""


class Pipe:
    """A started agent. Raises UserError where the command does not exist, or may not run."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.stderr = b""
        self._unread = bytearray()
        self._closed = False
        if address.written.startswith("exec:"):
            need_trusted_command(address.written)
        try:
            self._process = subprocess.Popen(
                address.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                bufsize=0, start_new_session=True,  # Ctrl-C is ours to pass on
            )  # fmt: skip
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"target.host {address.written}: the command {address.words[0]!r} cannot be started ({why}); "
                "check its spelling, or install it"
            ) from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out, self._err = self._process.stdin, self._process.stdout, self._process.stderr
        self._selector = selectors.DefaultSelector()
        for stream in (self._in, self._out, self._err):
            os.set_blocking(stream.fileno(), False)
        self._selector.register(self._out, selectors.EVENT_READ)
        self._selector.register(self._err, selectors.EVENT_READ)

    def greet(self, seconds: float) -> None:
        """Send the agent, and wait until it speaks; what a login shell prints before is skipped.

        Raises Lost where it does not within `seconds`.
        """
        word = secrets.token_hex(16).encode()
        program = source()
        hello = b"\n" + agent.HELLO + word + b"\n"
        deadline = time.monotonic() + seconds
        self._write(b"%s\n%d\n%s" % (word, len(program), program), deadline)
        while hello not in self._unread:
            if len(self._unread) > MOST_NOISE:
                raise Lost(f"printed {len(self._unread)} bytes before the agent spoke")
            self._fill(deadline)
        del self._unread[: self._unread.index(hello) + len(hello)]

    def ask(self, header: Header, body: bytes, seconds: float) -> tuple[Header, bytes]:
        """Send a request and return its reply: header and body. Raises Lost where none comes within `seconds`."""
        deadline = time.monotonic() + seconds
        words = json.dumps(header).encode()
        self._write(agent.LENGTHS.pack(agent.MAGIC, len(words), len(body)) + words + body, deadline)
        magic, header_size, body_size = agent.LENGTHS.unpack(self._read(agent.LENGTHS.size, deadline))
        if magic != agent.MAGIC:
            raise Lost("sent something that is no answer")
        if header_size > MOST_HEADER or body_size > MOST_BODY:
            raise Lost(f"announced an answer of {header_size + body_size} bytes, which is too much")
        try:
            reply = json.loads(self._read(header_size, deadline))
        except (ValueError, RecursionError) as error:
            raise Lost("sent an answer that cannot be read") from error
        if not isinstance(reply, dict) or reply.get("number") != header["number"]:
            raise Lost("sent an answer to another question")
        return reply, self._read(body_size, deadline)

    def close(self) -> None:
        """End the agent, and all that its command started; nothing is left behind."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):
            self._in.close()  # the agent, and ssh, end by themselves
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVING)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(OSError):  # whatever else is in the session of the process
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVING / 4)
                break
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(OSError, Lost):
            while chunk := self._err.read(CHUNK):
                self._remember(chunk)
        self._selector.close()
        for stream in (self._out, self._err):
            stream.close()

    @property
    def code(self) -> int | None:
        """The exit status of the command; None while it runs."""
        return self._process.poll()

    @property
    def noise(self) -> str:
        """What came on stdout and was not understood, in one line."""
        return self._unread[-MOST_STDERR:].decode(errors="replace")

    def _write(self, content: bytes, deadline: float) -> None:
        """Write all, while reading what comes, so that neither side waits for the other."""
        rest = memoryview(content)
        self._selector.register(self._in, selectors.EVENT_WRITE)
        try:
            while rest:
                for key, _ in self._selected(deadline):
                    if key.fileobj is self._in:
                        try:
                            rest = rest[os.write(self._in.fileno(), rest[: 1 << 20]) :]
                        except BlockingIOError:
                            continue
                        except OSError as error:
                            self._ended(error)
                    else:
                        self._receive(key.fileobj)
                        if len(self._unread) > MOST_NOISE:
                            raise Lost(f"printed {len(self._unread)} bytes before it was asked")
        finally:
            self._selector.unregister(self._in)

    def _read(self, count: int, deadline: float) -> bytes:
        while len(self._unread) < count:
            self._fill(deadline)
        content = bytes(self._unread[:count])
        del self._unread[:count]
        return content

    def _fill(self, deadline: float) -> None:
        for key, _ in self._selected(deadline):
            self._receive(key.fileobj)

    def _selected(self, deadline: float) -> list[tuple[selectors.SelectorKey, int]]:
        rest = deadline - time.monotonic()
        events = self._selector.select(rest) if rest > 0 else []
        if not events:
            raise Lost("did not answer in time")
        return events

    def _receive(self, stream: object) -> None:
        if stream is self._err:
            chunk = self._err.read(CHUNK)
            if chunk:
                self._remember(chunk)
            elif chunk == b"":
                self._selector.unregister(self._err)
            return
        chunk = self._out.read(CHUNK)
        if chunk == b"":
            self._ended(None)
        self._unread += chunk or b""

    def _remember(self, chunk: bytes) -> None:
        self.stderr = (self.stderr + chunk)[-MOST_STDERR:]

    def _ended(self, error: OSError | None) -> None:
        raise Lost("closed the connection") from error
