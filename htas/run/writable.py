"""Whether the files of a stage can be written, before hours go into what they are to hold."""

import os
import shutil
import tempfile
from pathlib import Path

from htas.errors import UserError

STAGE = 8 * 2**20
"""Bytes that the file of a stage may take; of the largest networks a survey takes 2 MB, a report 6."""
COPIES = 5
"""Of a network in training: two checkpoints with weights and momenta, while one takes the other's place, and its
weights."""
WEIGHT = 4
"""Bytes."""


def need_writable(folder: Path, weights: int = 0) -> None:
    """Raise UserError where a folder cannot be written, or has no room for the files of a stage, which trains a network
    of so many weights; the folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # it has no name, so that a kill leaves nothing
            os.posix_fallocate(file.fileno(), 0, STAGE)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write {folder}: {reason}; free {STAGE / 1e6:.0f} MB or name another folder with --out"
        ) from error
    if free < (needed := STAGE + COPIES * WEIGHT * weights):
        raise UserError(
            f"{folder} lies on a disk with {free / 1e6:.0f} MB of room, and trainings of {weights / 1e6:.3g} M weights "
            f"take {needed / 1e6:.0f} MB; free some space or name another folder with --out"
        )
