"""Commands from a process that has imported everything: it forks one for each line that it reads, and tells its end.

    python -m benchmarks.faults.warm

A line is a JSON object: the words of `htas`, the folder to work in, variables, and a file for what is printed. Its
answers are the process's number, and once that has ended, its exit code as a shell would say it. To be quick, these
commands judge two rivals of an arch only, and draw no charts.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any

from htas.cli import main

for name in (
    "accelerate", "altair", "htas.cli.app", "htas.experiments.budgets", "htas.experiments.trials",
    "htas.search.oneshot", "htas.strategies._journal", "htas.strategies.evolution", "pandas", "psutil", "pytest",
    "rich.progress", "scipy.optimize", "scipy.stats", "sklearn.datasets", "sympy", "torch._dynamo",
    "torch.distributed", "torch.onnx",
):  # fmt: skip
    importlib.import_module(name)
stages = importlib.import_module("htas.run.stages")
drawing, page = (importlib.import_module(f"htas.report.{name}") for name in ("_draw", "_page"))
BLANK = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1" viewBox="0 0 1 1"></svg>'
"""In place of a chart."""


def child(order: dict[str, Any]) -> None:
    """Become the process of a command."""
    os.setsid()
    os.chdir(order["folder"])
    os.environ.update(order["variables"])
    printed, nothing = os.open(order["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, 0)
    for old, new in ((nothing, 0), (printed, 1), (printed, 2)):
        os.dup2(old, new)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["htas", *order["words"]]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module, name, value in ((stages, "RIVALS", 2), (drawing, "svg", lambda chart: BLANK), (page, "script", str)):
        setattr(module, name, value)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            child(json.loads(line))
            sys.exit(main())
        print(process, flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(status if status >= 0 else 128 - status, flush=True)
