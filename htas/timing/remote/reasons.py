"""Why a device could not be reached: one sentence from what its command left behind."""

import re
from pathlib import Path

from htas.timing.remote.pipe import Lost, Pipe, printable

PACKAGES = "sudo apt install python3 python3-venv; htas doctor --host then says what else it needs"

NO_PYTHON = ("syntax error", "--help", "option", "usage:")
"""How shells and other programs complain of what Python is started with."""


def reason(pipe: Pipe, loss: Lost) -> str:
    """What happened and what to do, to stand behind `the device`; the pipe is closed by now."""
    lines = [line for line in map(printable, pipe.stderr.decode(errors="replace").splitlines()) if line]
    text, last, remedy = "\n".join(lines).lower(), lines[-1] if lines else "", pipe.address.remedy
    over_ssh = Path(pipe.address.words[0]).name == "ssh"

    def says(*words: str) -> bool:
        return any(each in text for each in words)

    if old := re.search(r"^htas needs Python 3\.8 there, this is (\d\S*)$", "\n".join(lines), re.MULTILINE):
        return f"has Python {old[1]}, and the agent needs 3.8 or newer; install one there, and name it with exec:"
    if says("no space left"):
        return f"has no space left on its disk ({last}); free some there"
    if over_ssh and pipe.code == 255:
        if says("could not resolve hostname"):
            return f"has a name that nobody knows ({last}); check it, or its entry in ~/.ssh/config"
        if says("identification has changed"):
            return (
                "has another host key than the last time; if it was installed anew, remove the old one (ssh-keygen -R) "
                f"and connect by hand once: {remedy}"
            )
        if says("host key verification failed"):
            return f"has a host key that is not known yet; connect by hand once, and check it: {remedy}"
        if says("permission denied"):
            return f"refuses this user's key, and passwords are not asked for; put a key there with {_copy(pipe)}"
        if says("refused", "timed out", "no route", "unreachable", "closed", "reset"):
            return f"cannot be reached ({last}); check that it is on and lets ssh in: {remedy}"
    if pipe.code == 127:
        return f"has no Python by that name ({last or 'exit status 127'}); install it there: {PACKAGES}"
    if str(loss).startswith("printed"):
        return f"{loss}; its login shell must be silent: see ~/.bashrc there, and try by hand: {remedy}"
    if str(loss).startswith("closed"):
        noise = printable(pipe.noise)
        words = last or (f"it printed {noise[-200:]!r}" if noise else f"exit status {pipe.code}")
        python = "a command must start Python, as with python3 at its end; " if says(*NO_PYTHON) else ""
        return f"ended before the agent spoke ({words}); {python}try by hand: {remedy}"
    more = f", and said {last!r}" if last else ""
    return f"{loss}{more}; try by hand: {remedy}"


def _copy(pipe: Pipe) -> str:
    """`ssh-copy-id -p 22 pi@board`"""
    remedy = pipe.address.remedy if pipe.address.written.startswith("ssh://") else "ssh"  # else a command follows
    return remedy.replace("ssh", "ssh-copy-id", 1)
