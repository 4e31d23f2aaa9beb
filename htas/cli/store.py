"""The verb of the measurement store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from htas import text
from htas.cli.tables import no_survey, print_table, survey_table, surveys_table
from htas.errors import UserError

if TYPE_CHECKING:
    from htas.timing.store import Store


def store(
    action: Annotated[Literal["ls", "show", "export", "import", "forget"], Parameter(help="one of those above")],
    name: Annotated[str, Parameter(help="the survey or the file")] = "",
    /,
    *,
    path: Annotated[Path | None, Parameter(help="the store's file; otherwise $HTAS_STORE, or this user's own")] = None,
    json: Annotated[bool, Parameter(help="print JSON instead of a table (ls, show)")] = False,
    yes: Annotated[bool, Parameter(help="really forget all")] = False,
) -> None:
    """List, show, move or forget the measurements kept from survey to survey.

    ls                  every survey in the store, the newest first
    show SURVEY         the layers of one survey
    export FILE         write all readings to a .csv or .parquet file, exactly
    import FILE         add the readings of such a file, each once
    forget SURVEY|all   remove a survey, all surveys of a place, or, with --yes, everything
    """
    _check_store(action, name, json, yes)
    from htas.timing.store import Store

    opened = Store(path) if path else Store()
    match action:
        case "ls":
            print_table(surveys_table(opened, json))
        case "show":
            print_table(survey_table(opened, name, json))
        case "export":
            print(f"{text.plural(opened.export(Path(name)), 'layer')} written to {name}")
        case "import":
            print(f"{text.plural(opened.import_(Path(name)), 'new layer')} from {name} added to {opened.path}")
        case "forget":
            print(f"{text.plural(_forget(opened, name), 'layer')} removed from {opened.path}")


def _check_store(action: str, name: str, json: bool, yes: bool) -> None:
    """Raise UserError where an action lacks an argument that it needs, or has one that it would ignore."""
    needs = {"ls": "", "show": "a survey", "export": "a file", "import": "a file", "forget": "a survey, or all"}[action]
    if needs and not name:
        raise UserError(f"htas store {action} needs {needs}; see htas store --help")
    if name and not needs:
        raise UserError(f"htas store {action} takes no {name!r}; htas store show {name} shows one survey")
    if json and action not in ("ls", "show"):
        raise UserError(f"--json is for htas store ls and show, so leave it out of htas store {action}")
    if yes and action != "forget":
        raise UserError(f"--yes is for htas store forget, so leave it out of htas store {action}")
    if action == "forget" and name == "all" and not yes:
        raise UserError("htas store forget all removes every measurement; add --yes if you mean it")


def _forget(opened: "Store", name: str) -> int:
    removed = opened.forget_all() if name == "all" else opened.forget(name)
    if not removed and name != "all":
        raise UserError(no_survey(opened, name))
    return removed
