"""A network as torchvision or timm defines it: traced at the size of its images, and checked at other widths."""

import warnings
from typing import Any

import pytest

pytest.importorskip("torchvision", exc_type=ImportError)
pytest.importorskip("timm", exc_type=ImportError)

from benchmarks import networks

PARTLY: dict[str, float] = {"timm:edgenext_small": 0.5}
"""Networks that are not free in 95 % of their multiply-adds, and the share that is; docs/models.md has the reasons."""
LISTED = {
    library: [name for name in networks.names_in(networks.NAMES) if name.startswith(library)]
    for library in ("torchvision", "timm")
}
"""Names of benchmarks/networks.txt."""


def check(name: str, **options: Any) -> None:
    """Fail for a network that is wrong at other widths, or keeps more of its channels than PARTLY says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        row = networks.examined(name, check=True, pruning=False, **options)
    assert row.faults == []
    assert row.free >= PARTLY.get(name, 0.95), row.reasons


def check_listed(name: str) -> None:
    """Three random archs, and images of 96 pixels where they will do; benchmarks/networks.py takes twenty."""
    check(name, archs=3, smaller=96)
