"""What a runtime needs on a device, and what to install there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from htas.text import listing

if TYPE_CHECKING:
    from htas.timing.remote.facts import Facts


@dataclass(frozen=True)
class Need:
    """A runtime of the agent."""

    title: str
    package: str
    """As pip installs it."""
    oldest: tuple[int, ...]
    """The first version that loads what is sent."""
    why: str
    """What older ones lack; ends a sentence."""
    besides: tuple[str, ...] = ()
    """Packages that pip does not install with it."""


NEEDS: Mapping[str, Need] = {
    "onnxruntime": Need("ONNX Runtime", "onnxruntime", (1, 17), "graphs need 1.17"),  # formats/onnx.py: OPSET
    "ncnn": Need("ncnn", "ncnn", (), "batches need 1.0.20261020"),
    "litert": Need("LiteRT", "ai-edge-litert", (1, 0), "files need 1.0"),
    "executorch": Need("ExecuTorch", "executorch", (1, 0), "programs need 1.0", ("torch",)),
}
"""By the names of engines (engines.py)."""


def install(facts: "Facts", *packages: str, newer: bool = False) -> str:
    """The command for that, and how the new Python is named where there must be one."""
    words = f"{'-U ' if newer else ''}{' '.join(packages)}"
    if facts.managed:
        return f"{facts.executable} -m venv htas && htas/bin/pip install {words} (and name htas/bin/python3 with exec:)"
    return f"{facts.executable} -m pip install {words}"


def lacking(facts: "Facts", runtime: str) -> str:
    """The end of the sentence for a device that lacks packages of a runtime; empty for one that has them."""
    needed = ("numpy", NEEDS[runtime].package, *NEEDS[runtime].besides)
    missing = [name for name in needed if name not in facts.versions]
    return f"has no {listing(missing)}; install it there: {install(facts, *missing)}" if missing else ""


def broken(facts: "Facts", runtime: str, words: str) -> str:
    """The end of the sentence for a device that cannot import a runtime."""
    need = NEEDS[runtime]
    return f"cannot import {need.title} ({words}); install it there: {install(facts, need.package)}"


def outdated(facts: "Facts", runtime: str, version: str) -> str:
    """The end of the sentence for a device whose version cannot load what is sent; empty for one that can."""
    need = NEEDS[runtime]
    parts = version.split(".")[:2]
    numbers = tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
    return "" if numbers >= need.oldest else old(facts, runtime, version)


def old(facts: "Facts", runtime: str, version: str) -> str:
    """The end of the sentence for a version that is too old."""
    need = NEEDS[runtime]
    newer = install(facts, need.package, newer=True)
    return f"has {need.title} {version}, and {need.why}; install a newer one there: {newer}"
