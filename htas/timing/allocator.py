"""Memory: the C library's, kept by the process once it has it, and Python's collector, kept out of what is timed.

glibc gives large blocks, and whatever is free at the top of the heap, back to the system as soon as they are freed.
Where an output happens to lie there, every call asks for its pages again: 84 page faults a call for one width of a
convolution and none for its neighbours, half as long again, in one process and not in the next (docs/decisions.md). A
process that runs a network for long does well to keep its memory (jemalloc, tcmalloc, or these two settings), so it is
measured that way.
"""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's names for the settings (malloc.h)."""
KEPT = 1 << 30
"""Bytes: blocks up to this size come from the heap, and so much may be free at its top."""
MOST = 1 << 25
"""The largest MMAP_THRESHOLD that older versions accept."""


@cache
def keep_memory() -> bool:
    """Keep freed memory in this process from now on; whether the C library can be told to.

    It is not undone: glibc would then stop adjusting itself, and training in the same process would be slower.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    blocks = library.mallopt(MMAP_THRESHOLD, KEPT) or library.mallopt(MMAP_THRESHOLD, MOST)
    return bool(blocks and library.mallopt(TRIM_THRESHOLD, KEPT))


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection meanwhile: of what is timed, and of an export, a tenth of which it would take."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
