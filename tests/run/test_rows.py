"""Remarks on trained networks, and the weights that trainings begin with."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from whole_run import kill
from whole_run import rows as networks

from htas.data.task import CLASSIFY
from htas.files import read_tensors, to_json, write_tensors
from htas.graph import resize
from htas.graph.arch import Arch
from htas.report.result import Result
from htas.run import rows, run
from htas.run.config import load
from htas.run.run import Run
from htas.training.recipe import Recipe
from htas.training.train import Training

ROW = Result("hardware", "cifar_resnet:8", Arch({}, {}), "join", "hardware", "most", "-", {}, 1, 1)
FAILED = "Its training failed: its accuracy cannot be told from guessing, and the base network's is"


@pytest.mark.parametrize(
    ("accuracy", "teachers", "words"),
    [
        (0.12, 0.15, ["Its accuracy cannot be told from guessing."]),  # two standard errors of 0.03 are 0.043
        (0.12, 0.2, [f"{FAILED} 20.00 %; lower train.lr (it is 0.3), or train longer."]),
        (0.12, 0.9, [f"{FAILED} 90.00 %; lower train.lr (it is 0.3), or train longer."]),
        (0.6, 0.12, ["Its teacher's accuracy cannot be told from guessing, so it learned from noise; train the base"]),
        (0.6, 0.9, []),
    ],
)
def test_networks_that_guess_and_those_they_taught_are_named(accuracy, teachers, words, tmp_path):
    data = SimpleNamespace(task=CLASSIFY, classes=10, test=range(500))  # 0.1 and three times 0.0134
    config = SimpleNamespace(train=Recipe(lr=0.3))
    run = cast(Run, SimpleNamespace(data=data, config=config, model_file=lambda name: tmp_path / name))
    write_tensors(tmp_path / "base", {}, to_json(rows.WeightsRecord(teachers, "0", "", "base", 1.0)))
    remarks = rows._judged(run, ROW, accuracy, "base").remarks
    assert len(remarks) == len(words) and all(map(str.startswith, remarks, words))
    assert rows._judged(run, ROW, 0.6, "").remarks == ()


@pytest.mark.parametrize(
    ("task", "counts"),
    [
        (CLASSIFY, True),
        (replace(CLASSIFY, distil=lambda *_: torch.zeros(())), True),
        (replace(CLASSIFY, score=lambda *_: 0.1), False),
        (replace(CLASSIFY, judge=lambda _: 0.1), False),
    ],
)
def test_scores_of_other_kinds_have_no_number_of_images_and_guess_nothing(task, counts, tmp_path):
    data = SimpleNamespace(task=task, classes=10, test=range(500))
    assert rows.images_counted(data) == (500 if counts else 0)
    run = cast(Run, SimpleNamespace(data=data, model_file=lambda name: tmp_path / name))
    assert rows._judged(run, ROW, 0.1, "").remarks == (
        ("Its accuracy cannot be told from guessing.",) if counts else ()
    )


def test_a_training_goes_on_from_the_last_good_state_of_another(finished, tmp_path, monkeypatch):
    config, path = load(finished / "config.toml"), tmp_path / "checkpoint.safetensors"
    before = run.Run(config, finished)
    torch.manual_seed(3)
    model = resize(before.network, before.network.base)
    data, recipe = before.data, replace(config.train, epochs=2, warmup=0, rest=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill(patch, Training, "epoch", 2)
        Training(
            model, data.train, recipe, seed=0, device="cpu", checkpoint=path, task=data.task, title="train base"
        ).run()
    kept = {name: each.clone() for name, each in read_tensors(path)[0].items()}
    after = run.Run(config.changed({"train.start": str(path)}), finished)
    found = networks(finished)
    weights = rows._untrained(after, found["base"], None, None).state_dict()
    assert all(torch.equal(each, kept[f"{Training.prefix}{name}"]) for name, each in weights.items())
    other = rows._untrained(after, found["hardware"], None, None).state_dict()
    fresh = rows._untrained(before, found["hardware"], None, None).state_dict()
    assert all(torch.equal(each, fresh[name]) for name, each in other.items())
