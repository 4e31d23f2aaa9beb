"""Simulated int8 is what a quantized file computes, and lets gradients pass."""

import pytest
import torch
import torch.nn.functional as F
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from torch import Tensor, nn

from htas.formats.int8 import feeds_of, quantize
from htas.formats.onnx_network import static_graph
from htas.training.int8 import SimulatedInt8, rounded, rounded_by_row, simulated


def test_values_by_hand() -> None:
    # from -1 to 4 there are 255 steps of 5 / 255; 0 is step 51
    x = torch.tensor([-1.0, 0.0, 0.013, 4.0])
    step = 5 / 255
    assert rounded(x).tolist() == pytest.approx([-1.0, 0.0, step, 4.0])
    # a row of largest value 2 has steps of 2 / 127, one of 0.5 others
    weight = torch.tensor([[2.0, 0.1], [-0.5, 0.1]])
    expected = [[2.0, round(0.1 * 127 / 2) * 2 / 127], [-0.5, round(0.1 * 127 / 0.5) * 0.5 / 127]]
    assert torch.allclose(rounded_by_row(weight, 127), torch.tensor(expected))


def test_only_positive_values_begin_at_zero() -> None:
    x = torch.tensor([1.0, 2.55])
    assert rounded(x).tolist() == pytest.approx([1.0, 2.55])  # steps of 0.01, and no step for what is below 1


@pytest.mark.parametrize("x", [torch.zeros(3), torch.full((3,), -2.0), torch.full((3,), 7.0)])
def test_tensors_of_one_value_stay(x: Tensor) -> None:
    assert torch.allclose(rounded(x), x, atol=1e-6)
    assert torch.allclose(rounded_by_row(x[None], 127), x[None], atol=1e-6)


def test_every_way_to_name_arguments_is_rounded() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = F.conv2d(rounded(x), rounded_by_row(weight, 127), bias, padding=1)
    with SimulatedInt8():
        found = [
            F.conv2d(x, weight, bias, padding=1),
            F.conv2d(x, weight=weight, bias=bias, padding=1),
            F.conv2d(input=x, weight=weight, bias=bias, padding=1),
        ]
    assert all(torch.equal(each, expected) for each in found)
    assert not torch.equal(expected, F.conv2d(x, weight, bias, padding=1))


def test_without_bits_nothing_is_rounded() -> None:
    x, layer = torch.randn(2, 3), nn.Linear(3, 2)
    with simulated(0):
        plain = layer(x)
    assert torch.equal(plain, layer(x))
    with simulated(7):
        seven = layer(x)
    assert torch.equal(seven, F.linear(rounded(x), rounded_by_row(layer.weight, 64), layer.bias))


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    with SimulatedInt8():
        outputs = F.linear(x, weight)
    outputs.sum().backward()
    assert x.grad is not None and weight.grad is not None
    # the derivative of a sum of products: the rounded other factor
    assert torch.allclose(x.grad, rounded_by_row(weight, 127).sum(0).expand(2, 3))
    assert torch.allclose(weight.grad, rounded(x).sum(0).expand(4, 3))


@pytest.mark.parametrize("train", [True, False])
def test_attention_rounds_what_its_products_with_weights_read(train: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).train(train), torch.randn(2, 5, 8)

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(rounded(x), rounded_by_row(weight, 127), bias)

    with torch.no_grad():
        plain = layer(x, x, x, need_weights=False)[0]
        with simulated(8):
            outputs = layer(x, x, x, need_weights=False)[0]
        query, key, value = (
            part.unflatten(2, (2, 4)).transpose(1, 2)
            for part in product(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, 2)
        )
        heads = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        expected = product(heads, layer.out_proj.weight, layer.out_proj.bias)
    assert torch.allclose(outputs, expected, atol=1e-5) and not torch.allclose(outputs, plain, atol=1e-4)


class Two(nn.Module):
    """Two convolutions with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv, self.other = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(self.norm(self.stem(x)).relu()))  # type: ignore[no-any-return]


@pytest.mark.parametrize("bits", [8, 7])
def test_a_network_is_off_as_its_quantized_file_is(bits: int) -> None:
    """Norms are part of the weights in the file, and not in the simulation."""
    torch.manual_seed(0)
    network = Two()
    for norm in (network.norm, network.other):
        nn.init.uniform_(norm.weight, 0.3, 2.0)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 4.0)
    network.eval()
    images = torch.randn(32, 3, 8, 8)
    graph = static_graph(network, (images,))
    content = quantize(graph, feeds_of(graph, [[images.numpy()]]), seven_bits=bits == 7)
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL  # no sums that overflow with 8 bits
    session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input0": images.numpy()})
    with torch.no_grad():
        plain = network(images)
        with simulated(bits):
            alike = rounded(network(images))  # as the file's output is
    off, rest = (float((torch.from_numpy(outputs) - each).abs().mean()) for each in (plain, alike))
    assert 0 < rest < 0.4 * off
