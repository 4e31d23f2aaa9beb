"""The program that is sent to a device: small, of Python 3.8, and right about what the kernel says."""

import ast
import hashlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from htas.timing import bench, quota
from htas.timing.remote import agent, engines, kernel, pipe
from htas.timing.remote.needs import NEEDS

SOURCE = pipe.source().decode()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where proc and sys lie for the agent."""
    monkeypatch.setattr(kernel, "ROOT", str(tmp_path))
    yield tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_it_is_small_and_of_python_3_8():
    assert len(SOURCE.encode()) <= 30_000 and '"""' not in SOURCE
    tree = ast.parse(SOURCE, feature_version=(3, 8))
    newer = {"removeprefix", "removesuffix", "cache", "bit_count", "pairwise", "is_relative_to", "nextafter"}
    assert not newer & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):  # annotations are evaluated there
        assert not (isinstance(node, ast.FunctionDef) and node.returns)


def test_it_imports_the_standard_library_numpy_and_the_runtime_only():
    names = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        assert not isinstance(node, ast.ImportFrom) or node.module in ("collections", "contextlib")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "__import__":
            words = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            names |= {word.split(".")[0] for word in words if isinstance(word, str)}
    ours = {"numpy", "onnxruntime", "ncnn", "ai_edge_litert", "executorch", "torch"}
    assert names - sys.stdlib_module_names - {"_sha2"} == ours  # of later versions of Python
    assert not names & {"pickle", "marshal", "shelve"}


def test_it_imports_nothing_but_the_standard_library_before_a_runtime_is_asked_for():
    tree = ast.parse(SOURCE)
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not {name.split(".")[0] for name in names} - sys.stdlib_module_names


def test_it_has_every_runtime_that_a_host_may_ask_for():
    assert engines.ENGINES.keys() == NEEDS.keys()
    needed = {name for need in NEEDS.values() for name in (need.package, *need.besides)}
    assert needed | {"numpy"} == {package for _, package in kernel.PACKAGES}


def test_it_knows_versions_by_the_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("numpy-1.26.4.dist-info", "onnxruntime_gpu-1.18.0.dist-info", "ai_edge_litert-1.0.1-py3.11.egg-info"):
        (tmp_path / name).mkdir()
    for name in ("numpy", "onnxruntime", "ai_edge_litert", "ncnn"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("numpy", "onnxruntime", "ai_edge_litert", "ncnn", "executorch", "torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert kernel.versions() == {"numpy": "1.26.4", "onnxruntime": "1.18.0", "ncnn": "", "ai-edge-litert": "1.0.1"}


def test_a_digest_needs_no_openssl():
    assert kernel.digest(b"program") == hashlib.sha256(b"program").hexdigest()


def test_inputs_are_small_numbers_of_the_shapes_and_types_asked_for():
    real, whole = agent.inputs([[[2, 3, 4], "float16"], [[5], "int64"]])
    assert real.shape == (2, 3, 4) and real.dtype == "float16" and 0.9 < abs(real).max() <= 1
    assert whole.shape == (5,) and whole.dtype == "int64" and not whole.any()


def test_it_runs_no_code_but_its_own():
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec", "compile"}


def test_it_times_as_the_bench_does():
    assert (agent.STEADY, agent.MOST_WARMUPS, agent.MOST_LOOPS) == (
        bench.STEADY,
        bench.MOST_WARMUPS,
        bench.MOST_LOOPS,
    )
    assert pipe.MOST_HEADER <= agent.MOST_HEADER


def test_a_call_is_settled_as_the_bench_settles_it(monkeypatch: pytest.MonkeyPatch):
    class Clock:
        now = 0.0

    def call() -> None:
        Clock.now += 3e-5

    monkeypatch.setattr(agent.time, "perf_counter", lambda: Clock.now)
    timer = bench.HostTimer(clock=lambda: Clock.now)
    loops, seconds = agent.settle(call, 1e-3, 0.01)
    assert loops == timer.settle(call, 1e-3, 0.01) == 34 and seconds == pytest.approx(3e-5)
    lasted, counts = agent.turn(call, 2, 1e-3, 3)
    turn = timer.turns([(call, 2)], 1e-3)[0]
    assert tuple(counts) == turn.loops and lasted == pytest.approx(turn.lasted)


def test_the_quota_is_what_htas_finds(root: Path):
    write(
        root,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            "sys/fs/cgroup/a/cpu.max": "150000 100000",
        },
    )
    assert kernel.quota() == quota.quota(root) == 1.5
    write(
        root,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/x\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
        },
    )
    assert kernel.quota() == quota.quota(root) == 0.5


def test_a_raspberry_pi_says_what_slows_it_down(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel.platform, "machine", lambda: "aarch64")
    write(
        root,
        {
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
            "sys/class/thermal/thermal_zone0/temp": "61500\n",
            "sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n",
            "proc/stat": "cpu  100 0 50 1000 0 0 5 7 0 0\n",
            "proc/meminfo": "MemTotal: 4000 kB\nMemAvailable: 3000 kB\n",
        },
    )
    assert kernel.throttling() == (["too little voltage", "a throttled clock"], True, 0)
    facts = kernel.describe()
    assert facts["processor"] == facts["board"] == "Raspberry Pi 4 Model B Rev 1.4" and "asimddp" in facts["flags"]
    assert not facts["emulated"]
    assert (facts["memory"], facts["available"]) == (4096000, 3072000)
    assert facts["state"]["celsius"] == 61.5 and facts["state"]["stolen"] == pytest.approx(0.07)


INTEL, ARM = "model name: Xeon\nflags: fpu avx2\n", "Features: fp asimd\nCPU implementer: 0x41\nCPU part: 0xd0b\n"
QEMU = "Features: fp asimd\nCPU implementer: 0x00\nCPU part: 0x051\n"


@pytest.mark.parametrize(
    ("machine", "shown", "processor", "emulated"),
    [
        ("x86_64", INTEL, "Xeon", False),
        ("i686", INTEL, "Xeon", False),
        ("aarch64", ARM, "aarch64", False),
        ("aarch64", "", "aarch64", False),
        ("aarch64", INTEL, "aarch64, emulated on Xeon", True),
        ("x86_64", ARM, "x86_64, emulated on another processor", True),
        ("aarch64", QEMU, "aarch64, emulated", True),
    ],
)
def test_a_processor_that_is_emulated_is_not_the_one_below(
    machine: str, shown: str, processor: str, emulated: bool, root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kernel.platform, "machine", lambda: machine)
    write(root, {"proc/cpuinfo": shown})
    facts = kernel.describe()
    assert (facts["processor"], facts["emulated"]) == (processor, emulated)
    assert ("avx2" in facts["flags"]) == (shown == INTEL and not emulated)


def test_a_lowered_clock_and_a_count_of_throttling_are_seen(root: Path):
    write(
        root,
        {
            "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
            "sys/class/thermal/cooling_device0/cur_state": "2",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "4",
        },
    )
    assert kernel.throttling() == (["a clock lowered against heat (cpufreq-cpu0)"], True, 4)


def test_a_device_that_says_nothing_is_described_all_the_same(root: Path):
    facts = kernel.describe()
    assert facts["quota"] is None and facts["state"]["celsius"] is None and facts["state"]["hertz"] is None


def test_it_ends_at_what_is_no_frame_and_at_a_closed_pipe():
    words = [sys.executable, "-c", f"WORD = b'x'\n__name__ = '__main__'\n{SOURCE}"]
    for sent in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", struct.pack(">4sII", b"HTAS", 1 << 31, 0), b""):
        done = subprocess.run(words, input=sent, capture_output=True, timeout=20)
        assert done.stdout == b"\nhtas-agent 1 x\n" and b"Traceback" not in done.stderr
