"""What every test file shares: a fixed seed, and tests left out where this machine lacks what they need."""

import os
from collections.abc import Iterator

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for every core: their threads would wait for each other
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads wait for each other on a busy machine, longer than small networks compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the store of who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTAS_STORE", str(tmp_path_factory.mktemp("store") / "store.sqlite"))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="this PyTorch finds no CUDA device"))
