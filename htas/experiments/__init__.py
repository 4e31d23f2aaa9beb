"""Several runs beside each other: comparisons, sweeps, the fastest network, the paper's tables."""
