"""Confidence intervals of the difference of two means: Welch's, and that of a block design."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np


def reach(samples: Sequence[Sequence[float]], confidence: float = 0.95) -> float:
    """Half of the interval of the difference of two means, or of one mean; endless where a sample has one value."""
    if min(map(len, samples)) < 2:
        return math.inf
    if not any(np.ptp(values) for values in samples):
        return 0.0
    from scipy.stats import ttest_1samp, ttest_ind

    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of values that are nearly equal
        test = ttest_ind(*samples, equal_var=False) if len(samples) > 1 else ttest_1samp(samples[0], 0.0)
        low, high = test.confidence_interval(confidence)
    return float(high - low) / 2


class Blocks:
    """Values of arms that come in blocks, such as seeds that share a teacher: an effect that a block has on all its
    arms is separated from random differences.

    The additive model of a randomised block design, value = arm + block + error, is fitted by least squares; the
    errors are taken to be alike in all arms. Cells may be missing: differences are those of shared blocks. Of two
    whole arms it is the paired t-test. Montgomery, Design and Analysis of Experiments, chapter 4.
    """

    def __init__(self, values: Mapping[tuple[str, int], float]) -> None:
        """`values` by arm and block."""
        self.arms = list(dict.fromkeys(arm for arm, _ in values))
        blocks = list(dict.fromkeys(block for _, block in values))
        design = np.zeros((len(values), len(self.arms) + len(blocks)))
        for row, (arm, block) in enumerate(values):
            design[row, self.arms.index(arm)] = design[row, len(self.arms) + blocks.index(block)] = 1
        observations = np.array(list(values.values()))
        self._square = design.T @ design
        self._inverse = np.linalg.pinv(self._square)
        self._effects = self._inverse @ design.T @ observations
        self.freedom = len(values) - int(np.linalg.matrix_rank(design))
        """Degrees of freedom of the errors."""
        errors = observations - design @ self._effects
        self.variance = float(errors @ errors) / self.freedom if self.freedom else math.inf
        """Of the errors."""

    def difference(self, arm: str, other: str) -> float:
        """How much more `arm` has than `other`, in the same blocks."""
        return float(self._contrast(arm, other) @ self._effects)

    def reach(self, arm: str, other: str, confidence: float = 0.95) -> float:
        """Half of the interval of the difference.

        Endless where nothing is left to tell errors by, or no block joins the two arms, not even over others.

        A one-sided bound at 95 % lies as far off as a two-sided interval of `confidence` 0.9 reaches.
        """
        from scipy.stats import t

        contrast = self._contrast(arm, other)
        if not self.freedom or not np.allclose(contrast @ self._inverse @ self._square, contrast):
            return math.inf
        error = math.sqrt(self.variance * float(contrast @ self._inverse @ contrast))
        return float(t.ppf((1 + confidence) / 2, self.freedom)) * error

    def _contrast(self, arm: str, other: str) -> np.ndarray:
        contrast = np.zeros(len(self._effects))
        contrast[self.arms.index(arm)], contrast[self.arms.index(other)] = 1, -1
        return contrast
