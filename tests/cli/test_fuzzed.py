"""A sample of benchmarks/faults/commands.py: damaged command lines and configurations end in one sentence."""

import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.faults.commands import TEXTS, Maker, configuration_options, judged, tried, warm
from htas.errors import UserError
from htas.run.config import KEYS, NAMED, read

COUNT = 200
OPTIONS = configuration_options()
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sampled_from(TEXTS)
"""Values of a table, and what is none."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_damaged_commands_end_in_one_sentence(tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, HTAS_STORE=str(tmp_path / "store.sqlite")):
        warm(tmp_path)
        maker = Maker()
        wrong = [
            (number, trial.argv, trouble)
            for number in range(COUNT)
            for trial, outcome in [tried(maker, 1, number)]
            if (trouble := judged(trial, outcome))
        ]
    assert wrong == []


@pytest.mark.timeout(600)
@settings(max_examples=60, deadline=None)
@given(content=st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_a_file_of_anything_is_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.toml"
    path.write_bytes(content)
    try:
        read(path)
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.timeout(600)
@settings(max_examples=60, deadline=None)
@given(option=st.sampled_from(OPTIONS), text=st.text() | st.sampled_from(TEXTS) | st.floats().map(str))
def test_an_option_of_anything_is_read_or_refused(option: tuple[str, str, str], text: str) -> None:
    table, choice, name = option
    named = [f"--{table}.{NAMED[table].key}={choice}"] if choice and name != NAMED[table].key else []
    try:
        read(None, [*named, f"--{table}.{name}={text}"])
    except UserError as error:
        assert table in str(error) or name in str(error) or repr(text)[1:20] in str(error) or "import" in str(error)


@pytest.mark.timeout(600)
@settings(max_examples=60, deadline=None)
@given(
    table=st.sampled_from(KEYS),
    values=st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20),
    option=st.sampled_from([name for _, _, name in OPTIONS]),
)
def test_a_table_of_anything_is_read_or_refused(table: str, values: object, option: str) -> None:
    for content in ({table: values}, {table: {option: values}}):
        with mock.patch("htas.run.config.read_toml", lambda path, what, content=content: content):
            try:
                read(Path("some.toml"))
            except UserError as error:
                assert table in str(error) or "import" in str(error) or "called" in str(error)
