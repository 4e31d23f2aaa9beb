"""Separates how slow the machine is from how long a call takes.

On a shared machine readings rise and fall together, by a third and more, for milliseconds to minutes. Neighbours in
time see the same machine, so a reading is judged against them: the *level* at a moment is a low percentile of what the
readings around it take over what their calls usually take, and a call's own figure is a low percentile of its readings
over their levels. docs/decisions.md has the experiment that chose this over minimum, mean and median.
"""

import numpy as np
from numpy.typing import NDArray

from htas.timing.measurement import LOW

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PASSES = 4
"""Levels and the figures of calls depend on each other: how often each is computed from the other."""


def levels(seconds: Floats, calls: Ints, window: int) -> Floats:
    """How slow the machine was at each reading; 1 is usual, the median over all.

    `seconds` and `calls` (the number of the call that was read) are [readings] in order of time; `window` is how many
    neighbours see the same machine. A single call has no neighbours: its levels are 1.
    """
    numbers, calls = np.unique(calls, return_inverse=True)
    if len(numbers) < 2:
        return np.ones_like(seconds)
    from scipy.ndimage import percentile_filter

    logs = np.log(np.maximum(seconds, np.finfo(float).tiny))
    level = np.zeros_like(logs)
    for _ in range(PASSES):
        figures = percentiles(logs - level, calls, LOW)
        level = percentile_filter(logs - figures[calls], LOW, size=min(window, len(logs)), mode="nearest")
        level -= np.median(level)
    return np.exp(level)


def percentiles(values: Floats, calls: Ints, percentile: float) -> Floats:
    """The percentile of each call's values, as np.percentile gives it, for all calls at once: [calls]."""
    ordered = values[np.lexsort((values, calls))]
    sizes = np.bincount(calls)
    starts = np.cumsum(sizes) - sizes
    ranks = (sizes - 1) * percentile / 100
    low = np.floor(ranks).astype(int)
    below, above = ordered[starts + low], ordered[starts + np.minimum(low + 1, sizes - 1)]
    values_at: Floats = below + (above - below) * (ranks - low)
    return values_at
