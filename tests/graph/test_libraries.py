"""Small networks as torchvision and timm define them, with small images: traced, and right at other widths and depths.

All of benchmarks/networks.txt are slow, and in a file for each library.
"""

import pytest
from graph.library_networks import check

QUICK = ("torchvision:mobilenet_v3_small", "timm:lcnet_100")
LONGER = (
    "torchvision:resnet18", "torchvision:squeezenet1_1",
    "torchvision:shufflenet_v2_x0_5", "timm:regnetx_002", "timm:tinynet_e", "timm:convnextv2_atto", "timm:ghostnet_100",
    "timm:mobilevit_xxs",
)  # fmt: skip
EXPORTED = ("torchvision:squeezenet1_1",)
"""Those that are written to ONNX too: PyTorch's exporter takes longer than all else."""
PIXELS = 64
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in LONGER)])
def test_a_library_network_is_free_and_right_at_other_widths_with_small_images(name: str) -> None:
    check(name, archs=2, pixels=PIXELS, export=name in EXPORTED)
