"""Signals that end a command: Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
LEAVING = 5.0
"""Seconds in which processes that the command started may end by themselves."""


class Stopped(KeyboardInterrupt):
    """A signal that ends the command; all that ends a piece of work for Ctrl-C does so for this one."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Stop:
    """Whether a signal has come, and what it was."""

    number = 0

    @property
    def code(self) -> int:
        """The exit code: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def words(self) -> str:
        """`stopped`, or for another signal than Ctrl-C `stopped by SIGTERM`."""
        return "stopped" if self.number in (0, signal.SIGINT) else f"stopped by {signal.Signals(self.number).name}"


@contextmanager
def stopping(*, last: bool) -> Iterator[Stop]:
    """Let signals raise Stopped in the main thread; a second one ends the process at once.

    A signal that is ignored, as nohup ignores SIGHUP, stays so. `last` says that nothing of the process comes after
    this, so that Ctrl-C ends it without a traceback from then on.
    """
    stop, process = Stop(), os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {each: signal.getsignal(each) for each in SIGNALS}
    before = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != process:  # forked from this one, which ends it
            os.kill(os.getpid(), number)
            return
        stop.number = number
        raise Stopped(number)

    for each in before:
        signal.signal(each, end)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if last else handler)


def end_children(since: float) -> None:
    """End the processes that this one has started since then (seconds since 1970), and what these have started."""
    if "subprocess" not in sys.modules and "multiprocessing" not in sys.modules:
        return
    import psutil

    children = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if each.create_time() > since - 1 and "resource_tracker" not in " ".join(each.cmdline()):
                children.append(each)
    for ending in (psutil.Process.terminate, psutil.Process.kill):
        for each in children:
            with suppress(psutil.Error):
                ending(each)
        children = psutil.wait_procs(children, timeout=LEAVING)[1]
