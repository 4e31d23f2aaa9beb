"""Networks as torchvision and timm define them: traced, and right at other widths and depths.

`make test` has a few that are small; the others, those of benchmarks/networks.txt, are slow.
"""

import sys
import types
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent with a torch for CPUs"))
pytest.importorskip("torchvision", exc_type=ImportError)
pytest.importorskip("timm", exc_type=ImportError)

import networks  # noqa: E402 - needs what is above

QUICK = (
    "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v3_small", "timm:regnetx_002", "timm:tinynet_e", "timm:ghostnet_100", "timm:convnextv2_atto",
    "timm:mobilevit_xxs", "timm:lcnet_100",
)  # fmt: skip
PARTLY: dict[str, float] = {"timm:edgenext_small": 0.5, "timm:mobilevit_xxs": 0.8}
"""Networks that are not free in 95 % of their multiply-adds, and the share that is; docs/models.md has the reasons."""
OTHERS = [name for name in networks.names_in(networks.NAMES) if name not in QUICK]

pytestmark = pytest.mark.timeout(900)
each = pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])


@each
def test_a_library_network_is_free_and_right_at_other_widths(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        row = networks.examined(name, check=True, archs=2 if name in QUICK else 20, pruning=False)
    assert row.faults == []
    assert row.free >= PARTLY.get(name, 0.95), row.reasons
