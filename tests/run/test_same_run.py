"""A small run on the scripted device computes what it always did; a refactoring may not change it.

Where a change is meant, run this file with the variables of ARITHMETIC and the path of same_run.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from scripted_device import scripted_device

from htas.files import read_json
from htas.run import stages as pipeline
from htas.run.config import load
from htas.run.run import open_run

pytestmark = pytest.mark.timeout(300)  # whole runs

HERE = Path(__file__).parent
RECORD = HERE / "same_run.json"
ARITHMETIC = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
"""Instructions that every x86-64 machine of these years has, so that sums come out the same on all of them."""
OPTIONS = [
    "family.depth=14", "split.limit=120", "target.runtime=scripted_device:Scripted", "target.threads=1",
    "survey.rounds=1", "survey.store=none", "survey.undecided=1",
    "design.groups=2", "design.spaces=hardware,tas", "constraints.latency=60%",
    "strategy.epochs=2", "strategy.batch=30", "strategy.precision=fp32", "strategy.arch_lr=0.3",
    "strategy.mix=interpolate", "strategy.start=random", "strategy.anneal=epoch",
    "train.epochs=3", "train.warmup=0", "train.rest=0", "train.batch=30", "train.precision=fp32",
]  # fmt: skip


def figures(folder: Path) -> dict[str, Any]:
    """What a run decided and reached: its cost tables, archs and accuracies."""
    with scripted_device(patched=False):
        pipeline.run_all(open_run(load(None, OPTIONS), folder), "htas run")
    rows = read_json(folder / "measure.json")["results"]
    cost = read_json(folder / "cost.json")
    return {
        "cost": {
            name: cost[name]
            for name in cost
            if name not in ("inputs", "design", "took", "context", "doubts", "borrowed_from")
        },
        "spaces": read_json(folder / "design.json")["spaces"],
        "archs": {row["name"]: row["arch"] for row in rows},
        "accuracies": {row["name"]: row["accuracy"] for row in rows},
        "predicted": {row["name"]: row["predicted"] for row in rows},
        "entropies": {
            space: [epoch["entropy"] for epoch in read_json(folder / f"search-{space}.json")["epochs"]]
            for space in ("hardware", "tas")
        },
    }


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON as one level of dotted names."""
    match value:
        case dict():
            pairs = value.items()
        case list():
            pairs = enumerate(value)
        case _:
            return {name: value}
    return {key: leaf for inner, each in pairs for key, leaf in flat(each, f"{name}.{inner}").items()}


@pytest.mark.slow
def test_a_small_run_is_the_same_as_ever(tmp_path: Path) -> None:
    record = tmp_path / "now.json"
    subprocess.run(
        [sys.executable, __file__, record],
        env={**os.environ, **ARITHMETIC, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])},
        check=True,
        capture_output=True,
    )
    now, before = flat(json.loads(record.read_text())), flat(json.loads(RECORD.read_text()))
    assert now.keys() == before.keys()
    for name, value in now.items():
        if isinstance(value, float):
            assert value == pytest.approx(before[name], rel=1e-4, abs=1e-9), name
        else:
            assert value == before[name], name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[1]).write_text(json.dumps(figures(Path(folder) / "run"), indent=1) + "\n")
