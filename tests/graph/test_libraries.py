"""Networks as torchvision and timm define them: traced, and right at other widths and depths.

`make test` has a few that are small, with small images; with their own, and all others of benchmarks/networks.txt, are
slow.
"""

import warnings
from typing import Any

import pytest

pytest.importorskip("torchvision", exc_type=ImportError)
pytest.importorskip("timm", exc_type=ImportError)

from benchmarks import networks

QUICK = (
    "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v3_small", "timm:regnetx_002", "timm:tinynet_e", "timm:ghostnet_100", "timm:convnextv2_atto",
    "timm:mobilevit_xxs", "timm:lcnet_100",
)  # fmt: skip
EXPORTED = ("torchvision:squeezenet1_1", "timm:lcnet_100")
"""Of those, the ones that are written to ONNX too: PyTorch's exporter takes longer than all else."""
PIXELS = 64
PARTLY: dict[str, float] = {"timm:edgenext_small": 0.5, "timm:mobilevit_xxs": 0.8}
"""Networks that are not free in 95 % of their multiply-adds, and the share that is; docs/models.md has the reasons."""
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("name", QUICK)
def test_a_library_network_is_free_and_right_at_other_widths_with_small_images(name: str) -> None:
    check(name, archs=2, pixels=PIXELS, export=name in EXPORTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.names_in(networks.NAMES))
def test_a_library_network_is_free_and_right_at_other_widths(name: str) -> None:
    check(name, archs=20)


def check(name: str, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        row = networks.examined(name, check=True, pruning=False, **options)
    assert row.faults == []
    assert row.free >= PARTLY.get(name, 0.95), row.reasons
