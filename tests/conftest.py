"""What every test file shares: a fixed seed, and tests left out where this machine lacks what they need."""

import os
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for every core: their threads would wait for each other
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
# With a PyTorch for CPUs, torchvision imports only without this part of it.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent with a torch for CPUs"))


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


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the classes of CIFAR-10 and CIFAR-100, in folders so named; CIFAR-10's in the folder itself too."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, classes, each in (("cifar10", 10, 10), ("cifar100", 100, 1)):
        for part in ("train", "test"):
            for number in range(classes):
                place = folder / name / part / f"{number:03}"
                place.mkdir(parents=True)
                for image in range(each):
                    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{image}.png")
    for part in ("train", "test"):
        shutil.copytree(folder / "cifar10" / part, folder / part)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole run of whole_run.py, to be read only: the first process that needs it makes it, the others wait."""
    from whole_run import run_all, times

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished" / "whole"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder.parent / "done").exists():
            run_all(folder)
            (folder.parent / "done").touch()
    before = times(folder)
    yield folder
    assert times(folder) == before, "a test wrote into the run that all of them read"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "copied")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="this PyTorch finds no CUDA device"))
