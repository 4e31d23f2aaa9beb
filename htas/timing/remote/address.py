"""`ssh://user@board:2222` or `exec:COMMAND` as the words of a command that starts Python on the device."""

import re
import shlex
from collections.abc import Iterator, Sequence
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
    """What a folder and a column are called by: the name behind ssh://; of a command the machine, container or phone
    that it names, and otherwise its program, with the cores that taskset leaves to it; alike ones have a number."""
    names: list[str] = []
    for host in hosts:
        match = SSH.fullmatch(host)
        if match:
            name = "-".join(filter(None, (match["name"].strip("[]"), match["port"])))
        else:
            name = _named(shlex.split(host.removeprefix("exec:")))
        numbered = (slug(name if number == 1 else f"{name}-{number}") for number in count(1))
        names.append(next(each for each in numbered if each not in names))
    return names


def _named(words: Sequence[str]) -> str:
    """What the command of `exec:` reaches, in a word or two."""
    cores = next((words[at + 2] for at in range(len(words) - 2) if words[at : at + 2] == ["taskset", "-c"]), "")
    program, *rest = _unwrapped(words) or words
    program = Path(program).name
    if program == "ssh":
        place = next(_plain(rest, VALUED["ssh"]), program)
        name = re.sub(r"^(ssh://)?([^@]*@)?", "", place).rstrip("/").replace(":", "-")
    elif program in ("docker", "podman"):
        named = _value(rest, ("--hostname", "-h", "--name")) if rest[:1] == ["run"] else ""
        name = named or next(_plain(rest[1:], VALUED["docker"]), program)
    elif program == "adb":
        name = _value(rest, ("-s",)) or program
    else:
        name = program
    return f"{name}-cores-{cores}" if cores else name


VALUED = {
    "ssh": tuple(f"-{letter}" for letter in "BbcDEeFIiJLlmOopQRSWw"),
    "docker": ("-e", "--env", "--env-file", "-u", "--user", "-w", "--workdir", "-v", "--volume", "--cpus", "--network"),
    "taskset": (), "env": ("-u", "-C", "-S"), "nice": ("-n",), "sudo": ("-u", "-g"), "numactl": ("-C", "-m", "-N"),
}  # fmt: skip
"""Options of commands that have a value in the next word."""
WRAPPERS = ("env", "nice", "sudo", "numactl", "taskset")
"""Commands that start the command behind their own words."""


def _unwrapped(words: Sequence[str]) -> list[str]:
    """The command that others start: `python3` of `env NAME=value taskset -c 0 python3`."""
    rest = list(words)
    while rest and Path(rest[0]).name in WRAPPERS:
        wrapper = Path(rest.pop(0)).name
        while rest and (rest[0].startswith("-") or (wrapper == "env" and "=" in rest[0])):
            del rest[: 2 if rest[0] in VALUED[wrapper] else 1]
        if wrapper == "taskset":  # a list of cores, or a mask
            del rest[:1]
    return rest


def _plain(words: Sequence[str], valued: Sequence[str]) -> Iterator[str]:
    """Words that are neither options nor their values."""
    before = ""
    for word in words:
        if not word.startswith("-") and before not in valued:
            yield word
        before = word


def _value(words: Sequence[str], options: Sequence[str]) -> str:
    """The value of the first of these options; empty where there is none."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in options:
            return value if equals else following
    return ""


def address(host: str) -> Address:
    """The address that a target's host names; raises UserError for another form, and for several devices."""
    if len(separated(host)) > 1:
        raise UserError(
            f"target.host names {len(separated(host))} devices, which only htas run, survey, measure, doctor and "
            f"report take; name one of them, such as {separated(host)[0]}"
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
