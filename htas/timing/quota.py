"""The processor, and how much of its time and of the memory the control groups of this process grant it, from the
kernel's files."""

from collections.abc import Iterator
from pathlib import Path


def quota(root: Path = Path("/")) -> float | None:
    """Cores that the tightest control group above this process grants; None without a limit.

    `root` is where `proc` and `sys` lie.
    """
    limits = [limit for folder in groups(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of versions 2 and 1: the files with the most and the used bytes, and the line of memory.stat with those of used ones
that the kernel gives back when they are needed."""


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process could take: what the machine has, or less where a control group grants less, as
    in a container. `root` is where `proc` and `sys` lie."""
    import psutil

    grants = [free for folder in groups(root, "memory") if (free := _grant(folder)) is not None]
    return int(min([psutil.virtual_memory().available, *grants]))


def _grant(folder: Path) -> float | None:
    """Bytes that the processes of a control group could still take; None without a limit."""
    for most, used, cached in MEMORY:
        limit, size = (number(text(folder / name)) for name in (most, used))
        if limit is not None and size is not None:
            lines = [line.split() for line in (text(folder / "memory.stat") or "").splitlines()]
            spare = next((number(line[1]) for line in lines if len(line) == 2 and line[0] == cached), None)
            return max(0.0, limit - size + (spare or 0.0))
    return None


def groups(root: Path, controller: str = "cpu") -> Iterator[Path]:
    """The folders of the control groups that limit this process's time, or its memory, its own first.

    In a container the path may be that of the host, and only the mount point exists.
    """
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        group, controllers, path = [*line.split(":", 2), "", ""][:3]
        if group != "0" and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        innermost = mount / path.lstrip("/")
        yield from (folder for folder in (innermost, *innermost.parents) if folder == mount or mount in folder.parents)


def _limit(folder: Path) -> float | None:
    """Version 2 has one file, version 1 two; 'max' and -1 are no limit."""
    both = (text(folder / "cpu.max") or "").split()
    granted, every = map(
        number, both if len(both) == 2 else [text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    )
    return granted / every if granted and granted > 0 and every else None


def cpuinfo(root: Path = Path("/")) -> dict[str, str]:
    """What the kernel says of the first processor, by name; empty where it says nothing."""
    lines = [line.partition(":") for line in (text(root / "proc/cpuinfo") or "").splitlines()]
    return {name.strip(): value.strip() for name, _, value in reversed(lines)}


def text(file: Path) -> str | None:
    """The text of a file; None where it cannot be read."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def number(words: str | None) -> float | None:
    """A number; None for anything else."""
    try:
        return None if words is None else float(words)
    except ValueError:
        return None
