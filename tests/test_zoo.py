"""The networks of tests/zoo are the published ones, torch.fx follows them, and they run."""

import pytest
import torch
from torch import Tensor, fx, nn
from zoo import ZOO, Entry

each = pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in ZOO])


def without_memory(entry: Entry) -> nn.Module:
    """The network in eval mode, without weights."""
    with torch.device("meta"):
        return entry.build().eval()


def shapes(outputs: Tensor | tuple[Tensor, ...]) -> list[torch.Size]:
    """The shape of each output."""
    return [output.shape for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def test_names_are_unique() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)


@each
def test_a_kind_is_the_file_that_defines_the_network(entry: Entry) -> None:
    assert entry.build.__module__ == f"zoo.{entry.kind}"


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in ZOO if entry.params is not None])
def test_a_network_has_as_many_parameters_as_published(entry: Entry) -> None:
    parameters = without_memory(entry).parameters()
    assert sum(parameter.numel() for parameter in parameters if parameter.requires_grad) == entry.params


@each
def test_torch_fx_follows_a_network(entry: Entry) -> None:
    network = without_memory(entry)
    graph = fx.symbolic_trace(network)
    inputs = [torch.empty(shape, device="meta") for shape in entry.shapes]
    with torch.no_grad():
        assert shapes(graph(*inputs)) == shapes(network(*inputs))


@each
def test_a_network_computes_finite_numbers(entry: Entry) -> None:
    network = entry.build().eval()
    with torch.no_grad():
        outputs = network(*(torch.randn(shape) for shape in entry.shapes))
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        assert output.isfinite().all()
