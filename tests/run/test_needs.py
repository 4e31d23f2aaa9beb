"""Trainings that memory cannot hold are refused before anything is measured."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_device import scripted_device
from whole_run import COMMAND, do, options, sentence, times

from htas.errors import UserError
from htas.metrics.latency import Latency
from htas.run import needs
from htas.run import stages as pipeline
from htas.run.needs import training_bytes
from htas.run.run import Run, open_run


@pytest.fixture(autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


def test_a_step_takes_what_its_weights_and_values_take(tmp_path: Path) -> None:
    network = Run(options("family.depth=8"), tmp_path).network
    weights, values = training_bytes(network, network.base, 10)
    assert weights == 12 * sum(each.numel() for each in network.module.parameters())
    of_convolutions = 3 * 16 * 32**2 + 2 * 32 * 16**2 + 2 * 64 * 8**2
    assert 1 < values / (12 * 10 * of_convolutions) < 2
    assert training_bytes(network, network.base, 20) == (weights, 2 * values)


@pytest.mark.parametrize(
    ("free", "more", "said"),
    [
        (1e7, "seed=0", "the training of the base network takes .* GB of memory at least .* M weights, .* GB for a "
                        r"batch of 30\), and 0.01 GB are free; free some, lower train.batch$"),
        (2e7, "train.batch=2", "the search takes .* GB of memory at least .* GB for a batch of 30.*, and 0.02 GB "
                                 "are free; free some, lower strategy.batch, give design.expand=1, or take a search"),
    ],
)  # fmt: skip
def test_a_run_is_refused_with_the_figures(
    free: float, more: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "free_memory", lambda: int(free))
    monkeypatch.setattr(Latency, "measure", None)
    run = open_run(options(more), tmp_path / "run")
    with pytest.raises(UserError, match=said) as error:
        pipeline.run_all(run, COMMAND, quiet=True)
    assert sentence(error)
    assert not (tmp_path / "run" / "survey.json").exists()


def test_a_search_in_a_wider_space_is_refused_before_it_trains(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = times(copied)
    monkeypatch.setattr(needs, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match="the search with a supernet of such widths takes"):
        do("search", options(), copied, again=True)
    assert times(copied) == before
    do("search", options(), copied)  # it is done
