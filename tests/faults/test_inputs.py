"""A sample of the campaign of damaged inputs (benchmarks/faults/inputs.py)."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.faults import inputs


@pytest.mark.slow
@pytest.mark.parametrize("kind, count", [("parquet", 12), ("folder", 12), ("onnx", 12), ("module", 2)])
def test_a_damaged_input_is_read_or_refused_in_a_sentence(kind: str, count: int) -> None:
    inputs.prepare()
    troubles = [inputs.attempt(1, number, kind) for number in range(count)]
    assert not [each for each in troubles if each[1]]


@pytest.mark.parametrize("number", range(20))
def test_every_damage_can_be_drawn_again(number: int, tmp_path: Path) -> None:
    first, second = (inputs.damaged_picture(inputs.drawn(0, number)) for _ in range(2))
    assert first == second


def test_there_are_as_many_wrong_modules_as_the_campaign_promises() -> None:
    kinds = {trial.kind for trial in inputs.modules()}
    assert len(inputs.modules()) > 1000 and kinds == {"plug-in", "attribute", "class", "name", "optimize"}
