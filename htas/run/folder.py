"""The folder of a run: opened for one configuration."""

from pathlib import Path

from htas.console.record import NAME as PROGRESS
from htas.console.record import into
from htas.errors import UserError
from htas.files import write_text
from htas.run.config import Config, load
from htas.run.run import Run, Sources, write_environment
from htas.spaces.design import check


def open_run(config: Config, folder: Path, *, supernets: Path | None = None, sources: Sources | None = None) -> Run:
    """The run of a configuration in a folder, which is made, or is this configuration's already; see `Run`.

    Raises UserError where the folder holds something else, and where the configuration does not fit the network or
    this machine.
    """
    run = Run(config, folder, supernets, sources or Sources())
    path, text = folder / "config.toml", config.toml()
    if path.exists():
        try:
            old = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}); name another folder with --out") from error
        if old != text and _differs(path, config) and any(not _unstarted(each) for each in folder.iterdir()):
            raise UserError(
                f"{folder} holds a run of another configuration ({_difference(old, text)}); "
                "name another folder with --out, or delete this one"
            )
    else:
        if folder.exists() and (not folder.is_dir() or any(not _unfinished(each) for each in folder.iterdir())):
            raise UserError(f"{folder} exists and is not the folder of a run; name another one with --out")
        old = ""
    if old != text:
        check(run.network, config.design)
        config.target.check()
        for metric in run.fitted_metrics.values():
            metric.check()
        write_text(path, text)
    if old != text or not (folder / "environment.json").exists():
        write_environment(run)
    into(folder)
    return run


def _differs(path: Path, config: Config) -> bool:
    """Whether the configuration in a file may give other results."""
    try:
        return load(path).key_options() != config.key_options()
    except UserError:  # of a plug-in that is gone, or has other options by now
        return True


def _unfinished(path: Path) -> bool:
    """Whether a killed process left this part of the first file of a run."""
    return path.name.startswith(".config.toml.")


def _unstarted(path: Path) -> bool:
    """Whether this file may exist before any stage has finished."""
    names = ("config.toml", "environment.json", "command.json", PROGRESS, f".{PROGRESS}.part")
    return path.name in names or _unfinished(path)


def _difference(old: str, new: str) -> str:
    """The first line in which two configurations differ."""
    for before, after in zip(old.splitlines(), new.splitlines(), strict=False):
        if before != after:
            return f"{before} there, {after} here"
    return "their options differ"
