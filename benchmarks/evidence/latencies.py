"""Measures the trained networks of a group in one interleaved run -> FOLDER/latencies.json. Run it with nothing else.

    python benchmarks/evidence/latencies.py [--group cifar10-resnet20] [--weights FOLDER] [--runtime onnxruntime]
        [--precision fp32] [--batch 4] [--threads 0] [--file FILE]

Networks of one structure are measured once, whatever their seeds, and stand beside the base network, which is there
twice: how far its two figures lie apart is what the others may err by. --weights has the trained networks of
evidence.py, whose shapes say what Torch-Pruning left; what was pruned from other weights is left out.
"""

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from htas.files import read_json, read_tensors, write_json
from htas.metrics.latency import Latency
from htas.run.rows import measured
from htas.timing.target import Target

sys.path.append(str(Path(__file__).parent))
from evidence import drawn, units  # type: ignore[import-not-found]

HERE = Path(__file__).parent
ROUNDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", default="cifar10-resnet20")
    parser.add_argument("--weights", type=Path, default=Path("runs/evidence/weights"))
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "int8"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    modules: dict[str, nn.Module] = {}
    names: dict[str, str] = {}
    known = {unit.name: unit for unit in units(HERE / "queue.toml")}
    for path in sorted((HERE / "results").glob(f"{given.group}-*.json")):
        unit = known.get(path.stem)
        if unit is None or unit.group != given.group:
            continue
        teacher = None
        if unit.prune is not None:
            teacher = drawn(known[unit.teaching])
            teacher.load_state_dict(read_tensors(given.weights / f"{unit.teaching}.safetensors")[0])
            teacher.eval()
        module = drawn(unit, teacher).eval()
        if sum(each.numel() for each in module.parameters()) != read_json(path)["params"]:
            print(f"{unit.name} is left out: it was pruned from other weights than those in {given.weights}")
            continue
        shape = str([(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()])
        modules.setdefault(shape, module)
        names[unit.name] = shape
    base = names[f"{given.group}-base-s0"]
    target = Target(
        runtime=given.runtime, precision=given.precision, batch=given.batch, threads=given.threads
    ).resolved()  # fmt: skip
    order = [base, *(shape for shape in modules if shape != base), base]
    twins = [*(modules[shape] for shape in order[:-1]), drawn(known[f"{given.group}-base-s0"]).eval()]
    readings = measured(Latency(target, rounds=ROUNDS), twins, f"{len(twins)} networks, %")
    usual = readings[0].estimate
    by_shape = dict(zip(order[:-1], readings[:-1], strict=True))
    figures = {shape: _figures(each.estimate, each.error, usual) for shape, each in by_shape.items()}
    write_json(given.file or HERE / given.group.partition("-")[2] / "latencies.json", {
        "group": given.group,
        "target": {
            "runtime": given.runtime, "precision": given.precision, "batch": given.batch, "threads": target.threads
        },
        "machine": target.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "base_ms": round(1e3 * usual, 4),
        "base_again_over_base": round(readings[-1].estimate / usual, 4),
        "doubts": sorted({remark for each in readings for remark in each.remarks}),
        "over_base": {name: figures[shape] for name, shape in names.items()},
    })  # fmt: skip


def _figures(seconds: float, error: float, base: float) -> Mapping[str, Any]:
    """Over the base network's latency."""
    return {"ratio": round(seconds / base, 4), "standard_error": round(error / base, 4)}


if __name__ == "__main__":
    main()
