"""Several runs together: comparisons, sweeps, the fastest network, the paper's tables."""
