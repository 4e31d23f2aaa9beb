"""What a configuration names that is code: classes and functions in modules of the user's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from htas.errors import UserError
from htas.plugins.trust import is_trusted, need_trust
from htas.plugins.values import REFUSED, Values, parse
from htas.text import quoted

Named = tuple[str, str]
"""An option, and what it names."""


def named_code(tables: Mapping[str, Values], names: Mapping[str, str]) -> Iterator[Named]:
    """Every option whose value is code by its name, by tables whose values need not have their types yet; `names` are
    the classes and recipe by table."""
    for table, name in names.items():
        yield f"{table}.name", name
    if names["family"] == "custom":
        yield "family.factory", tables["family"].get("factory", "")
    yield "target.runtime", tables["target"].get("runtime", "")
    for option in ("cost", "prices"):
        yield f"strategy.{option}", tables["strategy"].get(option, "")
    metrics = tables["constraints"].get("metrics", {})
    with suppress(*REFUSED):
        metrics = parse(metrics, dict[str, str]) if isinstance(metrics, str) else metrics
    for name in metrics if isinstance(metrics, Mapping) else ():
        yield "constraints.metrics", name


def user_code(tables: Mapping[str, Values], names: Mapping[str, str]) -> list[Named]:
    """Options that name modules of the user's, by tables as in `named_code`."""
    named = ((option, str(name)) for option, name in named_code(tables, names) if isinstance(name, str))
    return [(option, name) for option, name in named if ":" in name and not is_trusted(name)]


def check(path: Path | None, tables: Mapping[str, Values], names: Mapping[str, str]) -> None:
    """Raise UserError, which names the file and the option, where code is named that may not be imported."""
    for option, name in user_code(tables, names):
        need_trust(name, f"{path}: {option}" if path else option)


def need_report(folder: Path, code: Sequence[Named]) -> None:
    """Raise UserError where the report of a run, whose configuration names this code, cannot be taken from report.json:
    to make it anew needs the code."""
    option, name = code[0]
    last = folder / "report.json"
    before = [path for path in folder.glob("*.json") if path.name in STAGED or path.name.startswith("search-")]
    if last.exists() and all(path.stat().st_mtime <= last.stat().st_mtime for path in before):
        return
    raise UserError(
        f"{folder / 'config.toml'}: {option} names {quoted(name)}, code that is not of htas, and a report of what the "
        "run has done since its last one needs it; give htas report --user-code if you trust it"
    )


STAGED = ("survey.json", "design.json", "cost.json", "networks.json", "measure.json")
"""Files that a report is made from."""
