"""From a TOML file or the folder of a run to its configuration and the folder to work in."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from htas.errors import UserError
from htas.plugins.trust import user_code_allowed
from htas.run.trusted import need_report

if TYPE_CHECKING:
    from htas.run.config import Config, Settings
    from htas.run.run import Run
    from htas.run.trusted import Named


def open_run(source: Path, overrides: Sequence[str], out: Path | None) -> "Run":
    """The run of a source in its folder; raises UserError where the folder holds another run."""
    config, folder = load_source(source, overrides, out)
    from htas.run import run

    return run.open_run(config, folder)


def ensure_stage(name: str, job: "Run", again: bool) -> None:
    """Do a stage, unless it is finished and `again` is False, and say so then."""
    from htas.console.progress import say
    from htas.run import stages
    from htas.run.stage import ensure

    if not ensure(job, next(stage for stage in stages.STAGES if stage.name == name), again):
        say(f"{name}: {job.folder} has it already, with the same options; --again does it anew")


def load_source(source: Path, overrides: Sequence[str], out: Path | None) -> tuple["Config", Path]:
    """The configuration and the folder, not opened yet."""
    settings, folder = read_source(source, overrides, out)
    return settings.config(), folder


def devices_source(source: Path, overrides: Sequence[str], out: Path | None) -> tuple["Settings", Path] | None:
    """What `read_source` gives, where target.host names several devices; None for one, or none."""
    settings, folder = read_source(source, overrides, out, several=True)
    return (settings, folder) if len(settings.target.hosts) > 1 else None


def read_source(
    source: Path,
    overrides: Sequence[str],
    out: Path | None,
    suffix: str = "",
    *,
    limited: bool = False,
    several: bool = False,
) -> tuple["Settings", Path]:
    """The options, before PyTorch is imported, and the folder; without `out` that is the usual one.

    The usual folder of several runs ends with `suffix`. `limited` says that they will have limits, whatever the
    configuration has. Raises UserError for several devices, unless `several`.
    """
    from htas.run.config import read

    path = config_file(source)
    if source.is_dir() and not path.exists():
        raise UserError(f"{source} is not the folder of a run: it has no config.toml; name a TOML file first")
    folder = source if source.is_dir() else Path("runs") / source.stem
    if suffix:
        named = folder if folder.name.strip(".") else Path(os.path.abspath(folder))  # `.` has no name
        folder = named.with_name(named.name + suffix)
    settings, folder = read(path, overrides, limited), out or folder
    hosts = settings.target.hosts
    if len(hosts) > 1 and not several:
        from htas.timing.remote.address import short_names

        one = folder / short_names(hosts)[0]
        raise UserError(
            f"target.host names {len(hosts)} devices, which only htas run, survey, measure NETWORK, doctor and report "
            f"take; name {f'the folder of one, {one}' if one.exists() else f'one of them, such as {hosts[0]}'}"
        )
    return settings, folder


def users_code(source: Path, overrides: Sequence[str]) -> "list[Named]":
    """The options that name code of the user's, where that may not be imported; raises UserError."""
    from htas.run.config import configured_code

    return [] if user_code_allowed() else configured_code(config_file(source), overrides)


def written_again(folder: Path, code: "Sequence[Named]") -> None:
    """Write the pages of a run's report once more from report.json, without the code that the run's configuration
    names; raises UserError where the run has gone on since."""
    need_report(folder, code)
    from htas.report import read, write

    write(read(folder), folder)


def device_name(host: str) -> str:
    """What the folder of a host is called by."""
    from htas.timing.remote.address import short_names

    return short_names([host])[0] if host else "here"


def config_file(source: Path) -> Path:
    """The TOML file of a source."""
    return source / "config.toml" if source.is_dir() else source


def is_run(network: str) -> bool:
    """True for a TOML file or a folder, but for one that is called like an ONNX file and holds no run; anything else is
    a network by name."""
    if network.endswith(".onnx"):
        return os.path.isfile(os.path.join(network, "config.toml"))
    return os.path.isdir(network) or network.endswith(".toml")
