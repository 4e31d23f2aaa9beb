"""What an arch costs: counts, the paper's sum (eq. 7 and 8), and calibrated tables."""
