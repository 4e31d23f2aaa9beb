"""Processes that train one network, as a launcher starts them, for tests."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from htas.training import ranks

# Each process is a copy of one that has imported all of this and done nothing.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pytest", "torch.distributed", "torch._dynamo", "accelerate", "htas.strategies.differentiable", "htas.cli.app"]
)


def start(folder: Path, work: Callable[..., Any], *values: Any, count: int = 2) -> list[BaseProcess]:
    """Processes that are doing this work; each leaves in the folder what it returns, or the traceback of its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        FORKS.Process(target=_one, args=(folder, rank, count, port, work, values), daemon=True) for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def together(folder: Path, work: Callable[..., Any], *values: Any, count: int = 2, wait: float = 250.0) -> list[Any]:
    """What each of several processes that train together returns; of one that fails, the last line of its traceback."""
    processes = start(folder, work, *values, count=count)
    for process in processes:
        process.join(wait)
        process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _one(folder: Path, rank: int, count: int, port: int, work: Callable[..., Any], values: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    ranks.PAUSE = 0.1
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        with ranks.joined():
            result = work(*values)
    except Exception:
        result = traceback.format_exc().strip().splitlines()[-1]
    torch.save(result, folder / f"{rank}.pt")


def die(folder: Path, deaths: int) -> None:
    """End this process, as one of so many that note it in the folder; after those nothing happens."""
    for number in range(deaths):
        try:
            (folder / f"dead-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os._exit(9)
