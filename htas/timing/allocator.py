"""Memory while readings are taken: the C library keeps what it has, and Python's garbage collector is off.

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
"""Bytes: blocks up to this size come from the heap, and this much may be free at its top."""
MOST = 1 << 25
"""The largest MMAP_THRESHOLD that older versions accept."""


@cache
def keep_memory() -> bool:
    """Make this process keep freed memory from now on; returns whether the C library can.

    It is not undone: glibc would then stop adjusting itself, and training in the same process would be slower.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    blocks = library.mallopt(MMAP_THRESHOLD, KEPT) or library.mallopt(MMAP_THRESHOLD, MOST)
    return bool(blocks and library.mallopt(TRIM_THRESHOLD, KEPT))


@contextmanager
def collector_off() -> Iterator[None]:
    """Turn garbage collection off: it would disturb readings, and takes a tenth of the time of an export."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
