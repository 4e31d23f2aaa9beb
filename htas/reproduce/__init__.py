"""The paper's tables and figures made again on this machine, each beside what is printed there.

Milliseconds of the paper are of its hardware, so ratios are compared. What this machine cannot train at the paper's
length is trained at a shorter one, which is said. Every item keeps what it has found in the folder and goes on there.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from htas.files import read_json, write_json
from htas.progress import say
from htas.report.paper import Section, page
from htas.reproduce._cross import table5
from htas.reproduce._motivation import motivation
from htas.reproduce._plan import LENGTHS, PAPER, Plan
from htas.reproduce._rows import table3, table4
from htas.reproduce._widths import fig2, fig3, table2
from htas.sweep import own_folder
from htas.text import Shown, no_such, shown

__all__ = ["ITEMS", "LENGTHS", "Plan", "reproduce"]

ITEMS: Mapping[str, Callable[[Plan], Section]] = {
    item.__name__: item for item in (table2, fig2, fig3, table3, table4, table5, motivation)
}
"""In the order of the page: the widths, the networks, and why one measures."""


def reproduce(what: Sequence[str], plan: Plan) -> tuple[Path, list[Shown]]:
    """Make the items named (`all` for every one) again; the path of reproduce.html, which also has those that were made
    in this folder before, and the tables of the items named.

    Raises ValueError for an item that there is none of, and where a target cannot be run.
    """
    names = list(dict.fromkeys(what))
    for name in names:
        if name not in (*ITEMS, "all"):
            raise ValueError(no_such("table or figure", name, (*ITEMS, "all")))
    names = [name for name in ITEMS if name in names or "all" in names]
    own_folder(plan.folder)
    made: list[Shown] = []
    for name in names:
        say(f"reproduce: {name}")
        section = ITEMS[name](plan)
        write_json(plan.folder / "sections" / f"{name}.json", section.json())
        rows = [section.headings, *section.rows]
        made.append(shown(rows, section.words, [section.title], [*section.says, ""], section.marked))
    paths = {name: plan.folder / "sections" / f"{name}.json" for name in ITEMS}
    sections = [Section.of(read_json(path)) for path in paths.values() if path.exists()]
    intro = (
        f"{PAPER['source']}. Its latencies are those of {PAPER['hardware']['gpu']}, and of {PAPER['hardware']['cpu']}; "
        "of other machines only ratios can be set beside them."
    )
    return page("The paper's tables and figures on this machine", intro, sections, plan.folder), made
