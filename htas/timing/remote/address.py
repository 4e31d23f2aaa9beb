"""`ssh://user@board:2222` or `exec:COMMAND` as the words of a command that starts Python on the device."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from htas.errors import UserError
from htas.files import slug

FORMS = (
    "ssh://user@board, ssh://user@board:2222, or exec:COMMAND that starts its Python, such as exec:adb shell python3"
)
SSH = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<name>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?/?"
)
BOOTSTRAP = (
    'import sys;sys.version_info<(3,8)and sys.exit("htas needs Python 3.8 there, this is "+sys.version.split()[0]);'
    "b=sys.stdin.buffer;w=b.readline().strip();"
    'exec(compile(b.read(int(b.readline())),"htas-agent","exec"),{"__name__":"__main__","WORD":w})'
)
"""What Python is started with; it reads the agent from the pipe."""
BETWEEN = re.compile(r"\s*,\s*(?=ssh://|exec:)")
"""The comma between two hosts; other commas belong to a command, as in taskset -c 2,3."""
SHELLS = ("ssh", "adb")
"""Commands that hand their words to a shell on the other side."""
CONNECT = 15
"""Seconds that ssh may take for a connection."""


@dataclass(frozen=True)
class Address:
    """How a device is reached."""

    written: str
    """As the user wrote it."""
    words: tuple[str, ...]
    """The command; it is run without a shell."""
    remedy: str
    """The command by which a person reaches the device, for sentences."""


def separated(host: str) -> tuple[str, ...]:
    """The hosts of a target, one a device; none for this machine."""
    return tuple(BETWEEN.split(host)) if host else ()


def short_names(hosts: Sequence[str]) -> list[str]:
    """What a folder and a column are called by: the name behind ssh://, the command behind exec:; alike ones have a
    number."""
    names: list[str] = []
    for host in hosts:
        match = SSH.fullmatch(host)
        if match:
            name = "-".join(filter(None, (match["name"].strip("[]"), match["port"])))
        else:
            name = Path(shlex.split(host.removeprefix("exec:"))[0]).name
        numbered = (slug(name if number == 1 else f"{name}-{number}") for number in count(1))
        names.append(next(each for each in numbered if each not in names))
    return names


def address(host: str) -> Address:
    """The address that a target's host names; raises UserError for another form, and for several devices."""
    if len(separated(host)) > 1:
        raise UserError(
            f"target.host names {len(separated(host))} devices, which only htas run, survey, measure and report take; "
            f"name one of them, such as {separated(host)[0]}"
        )
    if host.startswith("exec:"):
        try:
            words = shlex.split(host.removeprefix("exec:"))
        except ValueError as error:
            raise UserError(f"target.host {host!r} is no command ({error}); quote its words as for a shell") from error
        if not words:
            raise UserError(f"target.host {host!r} has no command; write {FORMS}")
        code = shlex.quote(BOOTSTRAP) if Path(words[0]).name in SHELLS else BOOTSTRAP
        return Address(host, (*words, "-u", "-c", code), shlex.join(words))
    match = SSH.fullmatch(host)
    port = int(match["port"]) if match and match["port"] else 0
    if match is None or port > 65535:
        raise UserError(f"target.host must be {FORMS}; got {host!r}")
    name = match["name"].strip("[]")
    where = f"{match['user']}@{name}" if match["user"] else name
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT}", "-o", "ServerAliveInterval=5"]
    ports = ["-p", str(port)] if port else []
    words = ["ssh", *options, "-o", "ServerAliveCountMax=3", *ports, "--", where]
    remote = f"exec python3 -u -c {shlex.quote(BOOTSTRAP)}"
    return Address(host, (*words, remote), shlex.join(["ssh", *ports, where]))
