"""Remarks on trained networks."""

from types import SimpleNamespace
from typing import cast

import pytest

from htas.data.task import CLASSIFY
from htas.files import to_json, write_tensors
from htas.graph.arch import Arch
from htas.report.result import Result
from htas.run import rows
from htas.run.run import Run

ROW = Result("hardware", "cifar_resnet:8", Arch({}, {}), "join", "hardware", "most", "-", {}, 1, 1)


@pytest.mark.parametrize(
    ("accuracy", "teachers", "words"),
    [
        (0.12, 0.9, ["Its accuracy cannot be told from guessing."]),
        (0.6, 0.12, ["Its teacher's accuracy cannot be told from guessing, so it learned from noise; train the base"]),
        (0.6, 0.9, []),
    ],
)
def test_networks_that_guess_and_those_they_taught_are_named(accuracy, teachers, words, tmp_path):
    data = SimpleNamespace(task=CLASSIFY, classes=10, test=range(500))  # 0.1 and three times 0.0134
    run = cast(Run, SimpleNamespace(data=data, model_file=lambda name: tmp_path / name))
    write_tensors(tmp_path / "base", {}, to_json(rows.WeightsRecord(teachers, "0", "", "base", 1.0)))
    remarks = rows._judged(run, ROW, accuracy, "base").remarks
    assert len(remarks) == len(words) and all(map(str.startswith, remarks, words))
    assert rows._judged(run, ROW, 0.6, "").remarks == ()
