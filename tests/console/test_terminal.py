"""What commands print: rules on a terminal, columns elsewhere, JSON for programs."""

import io
import json
import re
import sys

import pytest

from htas.console.terminal import show
from htas.report.summary import summary
from htas.text import TextTable
from tests.report.test_report import REPORT

TABLE = TextTable(
    [("network", "ms"), ("base", "3.54"), ("found [x]", "2.06")], 1, ["The answer."], ["A doubt."], ["found [x]"]
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_a_row_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show([TABLE], {"page": "runs/report.html"}, False)
    assert capsys.readouterr().out.splitlines() == [
        "The answer.", "network      ms", "base       3.54", "found [x]  2.06", "A doubt.", "runs/report.html"
    ]  # fmt: skip


@pytest.mark.parametrize("plain", [False, True])
def test_a_terminal_has_a_table_and_colour_unless_it_is_not_wanted(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    show([TABLE], {"page": "runs/report.html"}, False)
    text = screen.getvalue()
    assert ("\x1b[1;32m" in text) is not plain
    bare = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "found [x]" in bare and "─" in bare
    assert bare.index("The answer.") < bare.index("base") < bare.index("A doubt.") < bare.index("runs/report.html")


def test_programs_get_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    show([TABLE], {"page": "p"}, True)
    assert json.loads(capsys.readouterr().out) == {
        "page": "p",
        "tables": [{
            "before": ["The answer."], "after": ["A doubt."],
            "rows": [{"network": "base", "ms": "3.54"}, {"network": "found [x]", "ms": "2.06"}],
        }],
    }  # fmt: skip


def test_a_summary_has_the_answer_and_every_network() -> None:
    made = summary(REPORT)
    assert [row[0] for row in made.rows[1:]] == ["ResNet-20", "searched network", "ResNet-8"]
    assert "times as fast as ResNet-20" in made.before[0]
    assert list(made.marked) == ["searched network"]


def test_a_table_of_nothing_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show([TextTable([], 0, after=["nothing yet"])], {}, False)
    assert capsys.readouterr().out == "nothing yet\n"
    assert TextTable([], 0).json()["rows"] == []
