"""What the control groups of a process grant it, as in a container."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from htas.timing import quota

FREE = 3_000_000
GRANTED = {
    "version 2, the group above grants less": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "1000\n",
            "sys/fs/cgroup/a/memory.max": "4000000\n",
            "sys/fs/cgroup/a/memory.current": "1500000\n",
            "sys/fs/cgroup/a/memory.stat": "anon 1000000\ninactive_file 250000\n",
        },
        2_750_000,
    ),
    "version 1, in a container that shows the host's path": (
        {
            "proc/self/cgroup": "9:cpu:/\n4:memory:/docker/123\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1900000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100000\n",
        },
        200_000,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1900000\n",
        },
        FREE,
    ),
    "full": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "1000\n",
            "sys/fs/cgroup/memory.current": "2000\n",
        },
        0,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/\nwhat\n", "sys/fs/cgroup/memory.max": "many\n"}, FREE),
    "no group": ({}, FREE),
}


@pytest.mark.parametrize(("files", "free"), GRANTED.values(), ids=GRANTED)
def test_free_memory_is_what_the_control_groups_grant(
    files: dict[str, str], free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert quota.free_memory(tmp_path) == free
