"""What a plug-in must keep, as tests to inherit: one class a kind, one attribute that names the plug-in.

It needs pytest (`pip install pytest`); nothing else of the package imports it. docs/extending.md shows its use.
"""

from htas.testing.plugin import DatasetContract, FamilyContract, MetricContract
from htas.testing.runtime import RuntimeContract
from htas.testing.strategy import StrategyContract

__all__ = ["DatasetContract", "FamilyContract", "MetricContract", "RuntimeContract", "StrategyContract"]
