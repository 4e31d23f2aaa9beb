"""What the tests of the runtimes for phones and boards share."""

import torch

from htas.graph.layer import Layer
from htas.runtimes import Runtime, open_runtime
from htas.testing import RuntimeContract
from htas.testing.runtime import LAYERS, spread_norms
from htas.timing.target import Target

LINEAR_ON_PIXELS = Layer("linear", 8, 6, (4, 5), bias=True, activation="relu")
POINTWISE_WITH_STRIDE = Layer("conv", 8, 16, (8, 8), (1, 1), (2, 2))
WIDE_POOL = Layer("avg_pool", 20, 20, (9, 7), (2, 3), (2, 1), (1, 0))
NCNN_LACKS = ("dilated max pool",)
LITERT_LACKS = ("dilated max pool", *(name for name in LAYERS if name.startswith(("1-d", "3-d"))))
"""Names of layers that they must refuse."""


def opened(runtime: str, **fields: object) -> Runtime:
    """For images of 3x8x8 at batch 2 with one thread, or as the fields say."""
    usual = {"batch": 2, "threads": 1, "shapes": ((3, 8, 8),)}
    return open_runtime(Target(runtime=runtime, **{**usual, **fields}))  # type: ignore[arg-type]


def computes(runtime: Runtime, layer: Layer, monkeypatch) -> None:
    """Assert that the layer computes what its module does, and that its chain runs."""
    module = spread_norms(layer.build()).eval()
    monkeypatch.setattr(Layer, "build", lambda _: module)
    example = layer.example(runtime.target.batch)
    with torch.no_grad():
        RuntimeContract.close(runtime.compile_layer(layer).outputs(*example), module(*example), runtime)
    for program in runtime.chain(layer) or ():
        program.run()
