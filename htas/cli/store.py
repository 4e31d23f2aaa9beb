"""The verb of the measurement store."""

from collections import Counter
from dataclasses import asdict, fields
from json import dumps
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from htas import text
from htas.console.terminal import show
from htas.errors import UserError

if TYPE_CHECKING:
    from htas.timing.store import Store

CUT = 200
"""Letters of a layer that is none of this version's."""


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
            _print(_surveys(opened, json))
        case "show":
            _print(_survey(opened, name, json))
        case "export":
            print(f"{text.plural(opened.export(Path(name)), 'layer')} written to {name}")
        case "import":
            print(f"{text.plural(opened.import_(Path(name)), 'new layer')} from {name} added to {opened.path}")
        case "forget":
            removed = opened.forget_all() if name == "all" else opened.forget(name)
            if not removed and name != "all":
                raise UserError(_no_survey(opened, name))
            print(f"{text.plural(removed, 'layer')} removed from {opened.path}")


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


def _surveys(opened: "Store", json: bool) -> text.TextTable | str:
    """One line per survey, metric and place."""
    surveys = opened.surveys()
    if json:
        return dumps([asdict(each) for each in surveys], indent=1)
    if not surveys:
        return f"no measurements in {opened.path}"
    settings = ("device", "runtime", "precision", "batch", "threads")
    rows: list[tuple[str, ...]] = [
        ("survey", "metric", "date (UTC)", "machine", "place", *settings, "layers", "doubtful")
    ]
    for each in surveys:
        date = each.date[:16].replace("T", " ")
        where = (each.context.get(name, text.NONE) for name in settings)
        counts = (str(each.layers), str(each.doubtful))
        machine = each.context.get("measured on") or each.context.get("processor", text.NONE)
        words = (each.survey, each.metric, date, machine, each.place, *where, *counts)
        rows.append(tuple(map(text.printable, words)))
    return text.TextTable(rows, 8)


def _survey(opened: "Store", name: str, json: bool) -> text.TextTable | str:
    """One line per layer, and below what casts doubt on its readings; raises UserError for an unknown survey."""
    entries = opened.entries(name)
    if not entries:
        raise UserError(_no_survey(opened, name))
    if json:
        return dumps([each.row() for each in entries], indent=1)
    rows: list[tuple[str, ...]] = [("layer", "metric", "readings", "median", "min", "spread", "anchor")]
    for each in entries:
        readings = each.measurement
        seconds = (readings.median, readings.minimum, readings.spread)
        figures = (text.quantity(value, readings.unit) for value in seconds)
        anchor = text.quantity(median(each.anchor), readings.unit) if each.anchor else text.NONE
        rows.append((text.sentence(_layer(each.layer))[:CUT], each.metric, str(len(readings.values)), *figures, anchor))
    doubts = Counter(doubt for each in entries for doubt in dict.fromkeys((*each.measurement.remarks, *each.doubts)))
    lines = [f"{text.plural(count, 'layer')}: {text.sentence(doubt)}" for doubt, count in doubts.items()]
    return text.TextTable(rows, 2, after=lines)


def _no_survey(opened: "Store", name: str) -> str:
    surveys = dict.fromkeys(text.sentence(each.survey) for each in opened.surveys())
    return text.no_such("survey", name, surveys) if surveys else f"no survey called {name!r}: {opened.path} has none"


def _layer(key: str) -> str:
    """`conv 16 -> 32, size 32x32, kernel 3x3, norm, activation relu`: what differs from a layer's defaults."""
    from htas.graph.layer import Layer

    try:
        layer = Layer.of(key)
    except (KeyError, TypeError):
        return key  # not a layer, or one of another version
    parts = [f"{layer.op} {layer.inputs} {text.ARROW} {layer.outputs}"]
    for field in fields(layer)[3:]:
        value = getattr(layer, field.name)
        if value != field.default:
            words = "x".join(map(str, value)) if isinstance(value, tuple) else "" if value is True else str(value)
            parts.append(f"{field.name} {words}".rstrip())
    return ", ".join(parts)


def _print(table: text.TextTable | str) -> None:
    """Print a table in the way of this terminal, or a text as it is."""
    if isinstance(table, text.TextTable):
        show([table], {}, False)
    else:
        print(table)
