"""Processes that a command starts on its machine, each for one piece of work at a time: they end when it ends."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def new_process(threads: int) -> ProcessPoolExecutor:
    """A process for one piece of work at a time, which lives on between them: PyTorch is imported once."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (threads, str(Path.cwd())))


def died(future: Future[Any]) -> bool:
    """Whether the process ended in the middle of this work, as the system ends one where memory is short."""
    return isinstance(future.exception(), BrokenProcessPool)


@contextmanager
def ending() -> Iterator[None]:
    """At the end, end the processes that were started within, also in the middle of their work, and all that these
    have started."""
    others = multiprocessing.active_children()
    try:
        yield
    finally:
        _end([each for each in multiprocessing.active_children() if each not in others])


def _begin(threads: int, place: str) -> None:
    """In a new process."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this process
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    os.chdir(place)
    if place not in sys.path:
        sys.path.append(place)


def _end(processes: Sequence[BaseProcess]) -> None:
    import psutil

    ending: list[psutil.Process] = []
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(each.pid)
            ending += [process, *process.children(recursive=True)]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in ending:
            with suppress(psutil.NoSuchProcess):
                end(process)
        ending = psutil.wait_procs(ending, timeout=5)[1]
