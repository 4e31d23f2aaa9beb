"""What is to be run on a GPU is run in its order, a piece at a time; what the time cuts goes on."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from htas.experiments import arm_tables, compare
from htas.run import networks
from htas.run.config import load
from htas.run.run import Sources

ROOT = Path(__file__).parents[1]
QUEUE = (ROOT / "benchmarks" / "gpu" / "QUEUE.md").read_text()
TEXT = """
1. First (2 minutes).

   ```sh
   echo one \\
     more >> $OUT/said
   ```

2. Second, of $DATA.

   ```sh
   test -e $OUT/half && echo two >> $OUT/said && exit
   touch $OUT/half
   sleep 60
   ```

3. Third.

   ```sh
   cat $DATA/none | tee $OUT/wrong
   echo three >> $OUT/said
   ```
"""

_spec = importlib.util.spec_from_file_location("pieces", ROOT / "benchmarks" / "gpu" / "pieces.py")
assert _spec and _spec.loader
pieces = sys.modules["pieces"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pieces)


def test_items_are_run_in_order_once_and_what_the_time_cuts_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pieces, "LEAST", 0.0)
    queue = pieces.items(TEXT)
    assert [(item.number, item.title) for item in queue] == [
        (1, "First (2 minutes)."), (2, "Second, of $DATA."), (3, "Third.")
    ]  # fmt: skip
    assert pieces.work(queue, tmp_path, None, 4.0) == 0
    assert (tmp_path / "said").read_text() == "one more\n" and (tmp_path / "half").exists()
    assert "item 2 goes on next time" in capsys.readouterr().out
    assert pieces.work(queue, tmp_path, None, 60.0) == 2
    assert (tmp_path / "said").read_text() == "one more\ntwo\n"
    assert "item 3 needs data" in capsys.readouterr().out
    assert pieces.work(queue, tmp_path, tmp_path, 60.0) == 1, "the first command of a pipe fails"
    assert (tmp_path / "said").read_text() == "one more\ntwo\n"
    content = json.loads((tmp_path / "queue.json").read_text())
    assert content["done"] == [1, 2] and [len(its) for its in content["pieces"].values()] == [1, 2, 1]
    (tmp_path / "none").touch()
    assert pieces.work(queue, tmp_path, tmp_path, 60.0) == 0
    assert (tmp_path / "said").read_text().endswith("three\n")
    assert pieces.work(queue, tmp_path, tmp_path, 0.0) == 0 and "every item is finished" in capsys.readouterr().out


def test_no_item_is_begun_where_no_time_is_left(tmp_path, capsys):
    assert pieces.work(pieces.items(TEXT), tmp_path, None, 1.0) == 0
    assert "no time is left for item 1" in capsys.readouterr().out and not (tmp_path / "said").exists()


def test_every_numbered_line_of_the_queue_is_an_item_and_its_files_are_there():
    queue = pieces.items(QUEUE)
    assert [item.number for item in queue] == list(range(1, len(re.findall(r"^\d+\. ", QUEUE, re.MULTILINE)) + 1))
    for word in " ".join(item.commands for item in queue).replace("\\\n", " ").split():
        if word.endswith((".py", ".toml")):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("data", [10, 100])
def test_the_comparisons_of_the_queue_have_the_papers_options(data, tmp_path):
    (commands,) = [item.commands for item in pieces.items(QUEUE) if f"/cifar{data}-resnet32.toml" in item.commands]
    words = [word for word in shlex.split(commands.replace("\\\n", " ")) if word.endswith(".toml")]
    htas, arms = (ROOT / word for word in words)
    tas = htas.with_stem(htas.stem.replace("htas", "tas"))
    found = {arm.name: arm for arm in arm_tables.read_arms(arms)}
    for name, path in (("hardware", htas), ("tas", tas)):
        own, wanted = compare._job(htas, [], found[name], 0, tmp_path, Sources()).config, load(path)
        assert (own.strategy, own.design, own.train, own.target) == (
            wanted.strategy, wanted.design, wanted.train, wanted.target
        )  # fmt: skip
    published = found["TAS's published ResNet-32"].value
    assert networks.build(published, data) and f"C{data:03d}" in published
