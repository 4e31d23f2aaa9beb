"""A plug-in outside the package passes the contract that is shipped, and a wrong one does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL))


def stdout_of_tests(folder: Path, *options: str) -> str:
    """What pytest prints of a stranger's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_mine.py", *options],
        cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("grid", [pytest.param("whole", marks=pytest.mark.slow), "one layer of converted"])
def test_the_examples_pass_the_contract_outside_the_package(grid: str, tmp_path: Path) -> None:
    """Those of the page, and the library's with a class like the others; its layers take long to build."""
    for name, text in BLOCKS.items():
        (tmp_path / Path(name).name).write_text(text)
    with (tmp_path / "test_mine.py").open("a") as file:
        file.write('\n\nclass TestConverted(RuntimeContract):\n    runtime = "converted:Converted"\n')
    fewer = "not (TestConverted and (computes_what_its_module_does or between_neighbours)) or TestConverted and 3-d"
    out = stdout_of_tests(tmp_path, *([] if grid == "whole" else ["-k", fewer]))
    assert re.search(r"^\d+ passed", out.splitlines()[-1]), out[-2000:]
