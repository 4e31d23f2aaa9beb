"""The sshd of this machine, or Debian's own, unpacked into a folder."""

import os
import shlex
import shutil
from pathlib import Path

from debian import native, once, unpack

PLACE = Path.home() / ".cache" / "htas-sshd"
PACKAGES = ["openssh-server", "libwrap0"]
USER = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin"
"""Whom sshd is while it does not know yet who connects."""


def command() -> list[str]:
    """The words that start sshd: HTAS_SSHD, one that is installed, or one that is got now. Raises Missing."""
    if "HTAS_SSHD" in os.environ:
        return shlex.split(os.environ["HTAS_SSHD"])
    if found := shutil.which("sshd", path="/usr/sbin:/usr/local/sbin"):
        return [found]
    root = PLACE / "root"
    once(PLACE, "an sshd", lambda: unpack(PLACE, native(), ["download", *PACKAGES], root))
    libraries = next(path.parent for path in root.rglob("libwrap.so.0"))
    start = f"LD_LIBRARY_PATH={libraries} exec {root}/usr/sbin/sshd"
    if os.geteuid():
        return ["sh", "-c", f'{start} "$@"', "sh"]
    users = Path("/etc/passwd").read_text()
    (PLACE / "passwd").write_text(users if "sshd:" in users else f"{users.rstrip()}\n{USER}\n")
    mounts = f"mount --bind {PLACE}/passwd /etc/passwd && mount -t tmpfs none /run && mkdir /run/sshd"
    return ["unshare", "-m", "sh", "-c", f'{mounts} && {start} "$@"', "sh"]
