"""How long a report takes, and how large it is, of a run of 200 epochs and 60 sites with a curve of its own each.

    python benchmarks/report.py

Prints the aims (10 s, 6 MB) and what was reached, in a process of its own, from `import` on.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

AIMS = {"seconds": 10.0, "megabytes": 6.0}
SITES, EPOCHS, WIDTHS = 60, 200, 64
SCRIPT = """
import sys, time
started = time.monotonic()
from pathlib import Path
from htas.report import read, write
write(read(Path(sys.argv[1])), Path(sys.argv[1]))
print(time.monotonic() - started)
"""


def long_report() -> dict[str, object]:
    """A report as a run of that size leaves it; its figures are made up."""
    from htas.files import to_json
    from htas.graph.arch import Arch
    from htas.report.result import Report, Result
    from htas.search.record import EpochRecord, SearchRecord
    from htas.spaces.curve import Curve, CurveRecord, Fit
    from htas.timing.measurement import Measurement

    sites = [f"stages.{number}.conv" for number in range(SITES)]
    base, searched = Arch(dict.fromkeys(sites, 32)), Arch(dict.fromkeys(sites, 24))
    target = {
        "device": "cpu",
        "runtime": "eager",
        "precision": "fp32",
        "batch": 4,
        "threads": 2,
        "shapes": [[3, 32, 32]],
    }

    def row(name: str, arch: Arch, seconds: float) -> Result:
        return Result(
            name=name, family="made up", adds="join", space=name if name == "hardware" else "-",
            strategy="differentiable", cost="table", arch=arch, target=target, macs=4 * 10**7, params=3 * 10**5,
            recipe={"name": "short"}, seed=0, versions={"htas": "0"}, accuracy=0.9, predicted=seconds,
            measured=Measurement(tuple(seconds * (1 + n / 1000) for n in range(60)), "s", {}, "one"),
        )  # fmt: skip

    epochs = tuple(
        EpochRecord(n + 1, 5.0 - n / 41, 2.3 - n / 100, 2.4 - n / 100, n / 210, 1 - n / 400, 1 - n / 390,
                    0.2 + n / 300, 9.0, {site: 1 - n / 250 for site in sites})
        for n in range(EPOCHS)
    )  # fmt: skip
    search = SearchRecord(
        space="hardware", strategy="differentiable", cost="table", arch=searched, epochs=epochs, converged=True,
        why="sure", accuracy=0.9, rivals=(0.8,) * 20, rival_costs=(1.0,) * 20, seconds=1800.0, seed=0,
    )  # fmt: skip
    curves = tuple(
        CurveRecord(
            (site,), 32,
            Curve(
                tuple(range(1, WIDTHS + 1)),
                tuple(1e-4 * (5 + (x + 7) // 8 + number / 60) for x in range(WIDTHS)), (1e-6,) * WIDTHS,
            ),
            Fit(1e-5, 1.0, 5e-4), tuple((1 + 8 * g, 8 + 8 * g) for g in range(8)),
            {"hardware": tuple(range(8, 65, 8))}, certain=(0.95,) * 8,
        )
        for number, site in enumerate(sites)
    )  # fmt: skip
    report = Report(
        title="a run of 200 epochs and 60 sites", command="htas run", results=(row("base", base, 4e-3),
        row("hardware", searched, 2e-3)), curves=curves, searches=(search,), machine={}, config="", dataset="made up",
        stages={"search": 1800.0}, remarks=(), test_images=10_000,
    )  # fmt: skip
    return {"format": 1, **to_json(report)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "report.json").write_text(json.dumps(long_report()))
        done = subprocess.run([sys.executable, "-c", SCRIPT, place], capture_output=True, text=True, check=True)
        reached = {
            "seconds": float(done.stdout),
            "megabytes": (Path(place) / "report.html").stat().st_size / 1e6,
        }
    print(f"{SITES} sites, {EPOCHS} epochs; {platform.machine()}, Python {platform.python_version()}")
    for name, aim in AIMS.items():
        print(f"{name}: {reached[name]:.1f}, aim {aim:.0f}: {'reached' if reached[name] <= aim else 'missed'}")
