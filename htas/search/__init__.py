"""Searching a space: the problem, the supernet, its training, and the choice of the arch in the end."""
