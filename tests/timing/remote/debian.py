"""Packages of Debian unpacked into a folder: nothing is installed, and no list of packages must be there before."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path


class Missing(Exception):
    """Why it cannot be made here, in a sentence."""


def once(place: Path, what: str, make: Callable[[], None]) -> None:
    """Make what lies in a folder where it is not yet there; raises Missing."""
    if (place / "ready").exists():
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        make()
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise Missing(f"{what} cannot be made here: {' '.join(said.split())[-300:]}") from error
    (place / "ready").touch()


def native() -> str:
    """Debian's name for this machine's architecture."""
    return run("dpkg", "--print-architecture").strip()


def unpack(place: Path, architecture: str, words: list[str], root: Path) -> None:
    """Unpack what apt gets, with lists of packages of its own and nothing installed."""
    apt = place / "apt"
    for folder in ("lists/partial", "archives/partial", "parts"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    for file in Path("/etc/apt/sources.list.d").glob("debian*"):
        (apt / "parts" / file.name).symlink_to(file)
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
        "Dir::Etc::sourceparts": apt / "parts",
    }
    get = ["apt-get", "-q", "-y", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    run(*get, "update")
    run(*get, *words, at=apt / "archives")
    root.mkdir()
    for package in sorted((apt / "archives").glob("*.deb")):
        run("dpkg-deb", "-x", str(package), str(root))
    shutil.rmtree(apt)


def run(*words: str, at: Path | None = None) -> str:
    """What a command prints; raises CalledProcessError where it fails."""
    done = subprocess.run(
        words, cwd=at, check=True, text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=600
    )
    return done.stdout
