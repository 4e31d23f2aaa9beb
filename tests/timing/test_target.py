"""A target's values are looked at where it is made, and its threads where it is opened."""

import os

import numpy as np
import pytest

import htas
from htas.errors import UserError
from htas.runtimes import open_runtime
from htas.timing.target import CROWD


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch": "1"}, "target.batch must be a whole number, got '1'"),
        ({"batch": 1.5}, "target.batch must be a whole number, got 1.5"),
        ({"batch": True}, "target.batch must be a whole number, got True"),
        ({"batch": None}, "target.batch must be a whole number, got None"),
        ({"threads": "2"}, "target.threads must be a whole number, got '2'"),
        ({"threads": 2**64}, "target.threads must be a whole number, got 18446744073709551616"),
        ({"runtime": None}, "target.runtime must be text, got None"),
        ({"host": None}, "target.host must be text, got None"),
        ({"device": "tpu"}, "target.device must be one of cpu, cuda, got 'tpu'"),
        ({"device": "cuda:0"}, "target.device must be one of cpu, cuda, got 'cuda:0'"),
        ({"precision": "fp8"}, "target.precision must be one of fp32, bf16, fp16, int8, got 'fp8'"),
        ({"shapes": (3, 8, 8)}, "target.shapes must be sizes above 0 for each input, such as ((3, 32, 32),), got (3, "),
        ({"shapes": ((3, 0, 8),)}, "target.shapes must be sizes above 0 for each input, such as ((3, 32, 32),), got ("),
        ({"options": 3}, "target.options must be a table, each value true or false or a whole number or a number or "),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_option(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        htas.Target(**values)  # type: ignore[arg-type]
    assert str(refusal.value).startswith(sentence) and "\n" not in str(refusal.value)


def test_numbers_of_numpy_and_lists_are_plain_afterwards() -> None:
    target = htas.Target(batch=np.int64(2), threads=np.int32(1), shapes=[[3, np.int64(8), 8]])  # type: ignore[arg-type]
    assert target == htas.Target(batch=2, threads=1, shapes=((3, 8, 8),))
    assert [type(each) for each in (target.batch, target.threads, *target.shapes[0])] == [int] * 5


def test_far_more_threads_than_cores_are_refused_where_networks_run_alone() -> None:
    most = CROWD * (os.cpu_count() or 1)
    other = htas.Target(threads=most + 1)  # of a run of a larger machine, whose files are read here
    with pytest.raises(UserError, match=rf"target\.threads must be at most {most} here, .*got {most + 1}; use 0 for"):
        open_runtime(other)
    htas.Target(threads=most).check()
    assert htas.Target(host="ssh://someone@board", threads=10**4).threads == 10**4
