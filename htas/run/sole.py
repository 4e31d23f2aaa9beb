"""One command at a time makes the files of a folder."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from htas.errors import UserError

TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
"""Errors where another process holds a lock; others are of a disk that has none."""
_held: dict[tuple[int, int], int] = {}
"""The folders that this process works in, by device and inode, with an open file each."""


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Be the only process that works in a folder, which exists; within itself it counts once.

    Raises UserError where another process does, and where the folder cannot be opened. The lock ends with this process,
    whatever ends it; a disk without locks on folders, as NFS is, lets all in.
    """
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot open {folder}: {error.strerror}; name another folder with --out") from error
    place = os.fstat(file)
    if (name := (place.st_dev, place.st_ino)) in _held:
        os.close(file)
        yield
        return
    _held[name] = file
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                raise UserError(
                    f"another htas command works in {folder}; stop it, wait until it has ended, or name another folder "
                    "with --out"
                ) from error
        yield
    finally:
        if _held.pop(name, None) is not None:  # a process that was forked meanwhile has closed it
            os.close(file)


def _let_go() -> None:
    """In a process that was forked: it does not keep the locks of the one that it is from."""
    for file in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
