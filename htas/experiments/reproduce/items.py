"""The paper's tables and figures made again on this machine, each next to the printed ones.

Milliseconds of the paper are of its hardware, so ratios are compared. What this machine cannot train at the paper's
length is trained at a shorter one, which the page names. Every item stores its results in the folder and continues
there.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from htas.console.progress import say
from htas.errors import UserError
from htas.experiments.reproduce._int8 import int8
from htas.experiments.reproduce._motivation import motivation
from htas.experiments.reproduce._tables import table3, table4, table5
from htas.experiments.reproduce._widths import fig2, fig3, table2
from htas.experiments.reproduce.plan import NAMES, PAPER, Item, Plan
from htas.files import RecordError, from_json, read_json, to_json, write_json
from htas.report.paper import Section, page
from htas.text import TextTable

ITEMS: Mapping[Item, Callable[[Plan], Section]] = {
    "table2": table2, "fig2": fig2, "fig3": fig3, "table3": table3, "table4": table4, "table5": table5,
    "motivation": motivation, "int8": int8,
}  # fmt: skip
TITLE = "The paper's tables and figures on this machine"
INTRO = (
    f"{PAPER['source']}. Its latencies are those of {PAPER['hardware']['gpu']}, and of {PAPER['hardware']['cpu']}; "
    "of other machines only ratios can be compared with them."
)


def reproduce(names: Sequence[Item], plan: Plan) -> tuple[Path, list[TextTable], list[str]]:
    """Make items again; the path of reproduce.html, which also has those that were made in this folder before, the
    tables of the items named, and why others of them could not be made.

    Raises UserError where the folder holds sections of another version.
    """
    _sections(plan.folder)
    tables, reasons = [], []
    path = plan.folder / "reproduce.html"
    for name in names:
        say(f"reproduce: {name}")
        try:
            section = ITEMS[name](plan)
        except UserError as error:
            reasons.append(f"{name}: {error}")
            say(f"reproduce: {reasons[-1]}")
            continue
        write_json(plan.folder / "sections" / f"{name}.json", to_json(section))
        rows = [section.headings, *section.rows]
        tables.append(TextTable(rows, section.words, [section.title], [*section.says, ""], section.marked))
        path = page(TITLE, INTRO, _sections(plan.folder), plan.folder)
    return path, tables, reasons


def _sections(folder: Path) -> list[Section]:
    """What has been made in a folder; raises UserError where a section is none of this version's."""
    sections = []
    for path in (folder / "sections" / f"{name}.json" for name in NAMES):
        if path.exists():
            content = read_json(path)
            try:
                sections.append(from_json(content, Section, path))
            except RecordError as error:
                raise UserError(
                    f"{path} was not written by this version ({error.reason}); delete it, and it is made again from "
                    "the results next to it, or name another --out"
                ) from error
    return sections
