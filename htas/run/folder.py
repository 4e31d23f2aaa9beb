"""The folder of a run: which of its files can still be used, and why not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from htas.console.progress import say
from htas.console.record import NAME as PROGRESS
from htas.console.record import into
from htas.errors import UserError
from htas.files import digest, read_json, write_json, write_text
from htas.run.config import Config
from htas.run.run import Run, _environment, _lasting
from htas.spaces.design import check
from htas.text import duration, listing

STAGES = ("survey", "design", "calibrate", "search", "train", "measure", "report")


BEFORE = {
    "design": ["survey"],
    "calibrate": ["design"],
    "search": ["survey", "design", "calibrate"],
    "train": ["search"],
}
"""Stages whose files a stage is made from, where it is done again when they change."""


def open_run(config: Config, folder: Path) -> None:
    """Make the folder of a run, or see that it is this configuration's; raises UserError otherwise."""
    path, text = folder / "config.toml", config.toml()
    if path.exists():
        try:
            old = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}); name another folder with --out") from error
        if _lasting(old) != _lasting(text) and any(not _unstarted(found) for found in folder.iterdir()):
            raise UserError(
                f"{folder} holds a run of another configuration ({_difference(old, text)}); "
                "name another folder with --out, or delete this one"
            )
    else:
        if folder.exists() and (not folder.is_dir() or any(not _unfinished(found) for found in folder.iterdir())):
            raise UserError(f"{folder} exists and is not the folder of a run; name another one with --out")
        old = ""
    if old != text:
        job = Run(config, folder)
        check(job.network, config.design)
        config.target.check()
        for metric in job.fitted_metrics.values():
            metric.check()
        write_text(path, text)
    if old != text or not (folder / "environment.json").exists():
        _environment(Run(config, folder))
    into(folder)


# -- files -------------------------------------------------------------------------------------------------------------


def _finished(path: Path, key: str, again: bool) -> bool:
    """Whether a stage's file was made from what is there now."""
    return not again and path.exists() and read_json(path).get("inputs") == key


def _unfinished(path: Path) -> bool:
    """Whether this is what a killed process leaves of the first file of a run."""
    return path.name.startswith(".config.toml.")


def _unstarted(path: Path) -> bool:
    """Whether a file of a run's folder is there before any stage has finished."""
    own = ("config.toml", "environment.json", "command.json", PROGRESS, f".{PROGRESS}.part")
    return path.name in own or _unfinished(path)


def _write(path: Path, key: str, took: float, content: Mapping[str, Any]) -> None:
    write_json(path, {"inputs": key, "took": took, **content})
    say(f"{path.stem}: {duration(took)}")


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's file without what every file has."""
    return {name: value for name, value in content.items() if name not in ("format", "inputs", "took")}


def _need(job: Run, *stages: str) -> None:
    """Raise UserError, naming the verb to run, where a file of these stages is missing or made from older ones."""
    for stage in stages:
        for path in job.files(stage):
            if why := _lack(job, stage, path):
                raise UserError(why)


def _lack(job: Run, stage: str, path: Path) -> str:
    """Why a file of a stage cannot be used, and the verb to run; empty where it can."""
    if not path.exists():
        return f"{path} does not exist; run `htas {stage} {path.parent}` first"
    if stage in ("survey", "calibrate") and (other := _other_target(job, path)):
        return other
    if stage in ("survey", "measure"):  # of another machine too: only measuring anew depends on the machine
        return ""
    for before in BEFORE[stage]:
        for source in job.files(before):
            if not source.exists():
                return f"{path} was made from {source}, which does not exist; run `htas {before} {path.parent}` first"
    name, key = ("design", digest(job.folder / "design.json")) if stage == "calibrate" else ("inputs", "")
    if read_json(path).get(name) != (key or job.made_from(stage)):
        return f"{path} was made from other files than are there now; run `htas {stage} {path.parent}`"
    return ""


def _other_target(job: Run, path: Path) -> str:
    """Why not, where a file's readings are of another device, runtime or load than this run asks for."""
    context = read_json(path).get("context", {})
    asked = {name: str(getattr(job.target, name)) for name in ("device", "runtime", "precision", "threads", "batch")}
    other = {name: context[name] for name, value in asked.items() if context.get(name, value) != value}
    if not other:
        return ""
    there, here = (listing(f"{name} {values[name]}" for name in other) for values in (context, asked))
    return (
        f"{path} was measured with {there}, and this run asks for {here}; take a folder that was measured so, or "
        f"measure anew: htas {'survey' if path.stem == 'survey' else 'calibrate'} {path.parent} --again"
    )


def _difference(old: str, new: str) -> str:
    """The first line in which two configurations differ."""
    for before, after in zip(old.splitlines(), new.splitlines(), strict=False):
        if before != after:
            return f"{before} there, {after} here"
    return "their options differ"
