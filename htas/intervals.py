"""How far the difference of two means may be off: Welch's interval."""

import math
from collections.abc import Sequence

import numpy as np


def reach(samples: Sequence[Sequence[float]], confidence: float = 0.95) -> float:
    """Half of the interval of the difference of two means, or of one mean; endless where a sample has one value.

    A one-sided bound at 95 % lies as far off as a two-sided interval of `confidence` 0.9 reaches.
    """
    if min(map(len, samples)) < 2:
        return math.inf
    from scipy.stats import t

    shares = [np.var(values, ddof=1) / len(values) for values in samples]
    if not sum(shares):
        return 0.0
    # Welch's degrees of freedom; of one sample, its own
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, samples, strict=True)
    )
    return float(t.ppf((1 + confidence) / 2, freedom) * math.sqrt(sum(shares)))
