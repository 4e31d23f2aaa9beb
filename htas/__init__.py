"""HTAS: the fastest width and depth of a network, for one device."""

__version__ = "0.1.0"
