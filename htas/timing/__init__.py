"""Reading a clock: rounds, levels, measurements, and the store that keeps them."""
