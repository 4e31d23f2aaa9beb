"""The store of readings under writers that are killed, and with a file or a table that is damaged.

    python benchmarks/faults/store.py writers [--seed 0] [--seconds 300] [--count 8]
    python benchmarks/faults/store.py damages [--seed 0] [--count 500] [--first 0]
    python benchmarks/faults/store.py tables [--seed 0] [--count 500] [--first 0]

`writers`: 8 processes add readings to one store and are killed at random and replaced. Every reading whose add()
returned is there once afterwards, of the others all of an add() or none, no other reading, and no process saw an error.

`damages`: a damaged store is listed, imported into, exported and used by a survey. Each time the result is right, or
one sentence says why it is not; a store that was set aside is whole under its new name, and the next command works.
What is wrong must be known before the survey has measured anything. `tables`: a damaged .csv or .parquet file is
imported, all of it or nothing with one sentence. (TMPDIR=/dev/shm makes them quick.)
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("writers", "damages", "tables"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.part == "writers":
            from benchmarks.faults.store_writers import writers

            tally = writers(folder, options.seed, options.seconds, options.count or 8)
            print(f"target: no reading lost or doubled and no error, in 300 s; reached in {options.seconds:g} s:")
        else:
            from benchmarks.faults.store_damages import CHANGED, damages, tables

            part = damages if options.part == "damages" else tables
            tally = part(folder, options.seed, options.count or 500, options.first)
            unnoticed = tally.tried.pop(CHANGED, 0)
            print(
                "target: 500 damages, each a right result or one sentence; reached (in "
                f"{unnoticed} of them a figure became another one, which nothing in the file tells):"
            )
        return tally.end()


if __name__ == "__main__":
    sys.exit(main())
