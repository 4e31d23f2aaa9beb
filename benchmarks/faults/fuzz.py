"""Fuzzes what reads bytes from outside, in this process: only a UserError may come of them.

    python -m benchmarks.faults.fuzz [OUT] [--seconds 60] [--kind configuration] [--seed 0] [--engine hypothesis]

A configuration (with options of the command line), the files of a run, a store or a table of readings, an ONNX file,
and the parquet files of a data set are made of valid ones by edits. Where atheris is installed it makes them, led by
the lines of htas that they reach; else hypothesis does. It is no dependency:

    python -m venv fuzzing; echo .../site-packages of htas > fuzzing/lib/python3.11/site-packages/htas.pth
    fuzzing/bin/pip install atheris; fuzzing/bin/python -m benchmarks.faults.fuzz

What else than a UserError comes out is a failure: an exception, an end of the process, ten seconds without one. For
each place in the code OUT has the shortest bytes that lead there, KIND-DIGEST; `--again FILE` reads them once more and
lets the exception out. The first run of OUT makes a run whose files are edited, in two minutes.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.faults.campaign import LONGEST, Tally, TooLongError, limited

ROOT = Path(__file__).parents[2]
SECONDS = 10
"""That reading some bytes may take."""
MEGABYTES = 4096
"""Of memory that atheris lets this process take."""
BATCH = 100
"""Examples that hypothesis makes between two looks at the clock."""
PLACES = 1 << 16
"""An edit's place is a share of the length, in so many parts."""
WORDS = (
    *(b"null", b"true", b"-1", b"0", b"1", b"0.0", b"1e308", b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"[]", b"{}"),
    *(b'""', b'"x"', b'"\\u001b[31m"', b'"\\ud800"', b"[" * 3000, b'{"a":' * 3000, b"nan", b"\x00", b"\xff\xff", b"\n"),
    *(b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x80\x80\x80\x80\x10", b"2147483648", b"../x", b"x:y", b"exec:", b"'", b"="),
)
"""Put in the place of others."""
WORD = re.compile(rb"[\w.+-]+")


# -- what reads --------------------------------------------------------------------------------------------------------


def read_configuration(content: bytes, folder: Path) -> None:
    """A TOML file, and behind a zero byte options of the command line, a line each."""
    from htas.plugins.trust import without_user_code
    from htas.run.config import load

    text, _, options = content.partition(b"\0")
    (folder / "some.toml").write_bytes(text)
    with without_user_code():
        config = load(folder / "some.toml", options.decode(errors="surrogateescape").splitlines())
        assert config.toml()


def read_run_file(content: bytes, folder: Path) -> None:
    """A file of a run; the first byte says which."""
    from htas.console import watch
    from htas.files import read_tensors
    from htas.report import read
    from htas.report.summary import summary
    from htas.run.config import load

    if not content:
        return
    names = [*records(), "report.json", "progress.json", "config.toml", "x.safetensors"]
    name = names[content[0] % len(names)]
    path = folder / name
    path.write_bytes(content[1:])
    match name:
        case "report.json":
            shown(str(summary(read(folder))))
        case "progress.json":
            shown("\n".join(watch.state(folder).words))
        case "config.toml":
            load(path)
        case "x.safetensors":
            read_tensors(path)
        case _:
            records()[name](path)


def shown(words: str) -> None:
    """Words that a command prints: a terminal must not obey them."""
    assert "\x1b" not in words and "\x07" not in words, f"an escape sequence is printed: {words!a}"


def records() -> dict[str, Callable[[Path], object]]:
    """What reads the files of a run that hold a record, by name."""
    from functools import partial

    from htas.cost.fit import CalibrationRecord
    from htas.experiments.arms import Entry
    from htas.experiments.compare import LatenciesRecord
    from htas.files import read_record
    from htas.run.rows import ControlsRecord, NetworksRecord
    from htas.run.run import CommandRecord, EnvironmentRecord
    from htas.search.record import SearchRecord
    from htas.spaces.curve import SurveyRecord
    from htas.spaces.design import DesignRecord

    kinds: dict[str, type[Any]] = {
        "survey.json": SurveyRecord, "design.json": DesignRecord, "cost.json": CalibrationRecord,
        "networks.json": NetworksRecord, "measure.json": NetworksRecord, "search-hardware.json": SearchRecord,
        "command.json": CommandRecord, "environment.json": EnvironmentRecord, "result.json": Entry,
        "latencies.json": LatenciesRecord, "controls.json": ControlsRecord,
    }  # fmt: skip
    return {name: partial(read_record, kind=kind) for name, kind in kinds.items()}


def read_store(content: bytes, folder: Path) -> None:
    """A store that is listed, read, exported, added to and forgotten, or a table that is imported."""
    from benchmarks.faults.store_damages import entry
    from htas.timing.store import Store

    store = Store(folder / "store.sqlite", timeout=0.1)
    if not content.startswith(b"SQLite"):
        (folder / "table.csv").write_bytes(content)
        store.import_(folder / "table.csv")
        return
    store.path.write_bytes(content)
    for work in (
        lambda: [store.entries(each.survey) for each in store.surveys()],
        lambda: store.export(folder / "table.csv"),
        lambda: store.add([entry(8, "new", readings=4)]),
        lambda: store.forget("s0"),
    ):
        with refused():
            work()


def read_onnx(content: bytes, folder: Path) -> None:
    """An ONNX file, as far as it is read before a runtime has it."""
    from htas.formats.onnx_file import OnnxFile

    (folder / "m.onnx").write_bytes(content)
    model = OnnxFile(folder / "m.onnx", 1)
    assert model.count >= 0 and model.macs >= 0
    model.example()


def read_parquet(content: bytes, folder: Path) -> None:
    """A table of readings, and both parts of CIFAR-10."""
    from benchmarks.faults.inputs import read_data
    from htas.timing.entry import read_table

    for part in ("train-00000-of-00001", "test-00000-of-00001", "table"):
        (folder / f"{part}.parquet").write_bytes(content)
    with refused():
        list(read_table(folder / "table.parquet"))
    (folder / "table.parquet").unlink()
    read_data("cifar10", folder)


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """While a UserError is as good an end as another."""
    from htas.errors import UserError

    with contextlib.suppress(UserError):
        yield


# -- what is edited ----------------------------------------------------------------------------------------------------


def configurations(out: Path) -> list[bytes]:
    """All options as they usually are, the examples, and options of the command line."""
    from htas.run.config import Config

    usual = Config.default().toml().encode()
    options = b"\0--strategy.name=evolution\n--constraints.latency=50%\n--family.depth=14\n--target.runtime=onnxruntime"
    examples = [path.read_bytes() for path in sorted(ROOT.glob("examples/*.toml"))]
    return [usual, usual + options, options, *examples]


def run_files(out: Path) -> list[bytes]:
    """The files of a run and of a comparison, which are made first unless they are there."""
    if not (out / "clean" / "sent").exists():
        from scripted_device import scripted_device  # type: ignore[import-not-found]

        import benchmarks.faults.run_files as campaign

        with scripted_device(), campaign.checked(False):
            campaign.make(out / "clean")
    names = [*records(), "report.json", "progress.json", "config.toml", "x.safetensors"]
    several = sorted((out / "clean").rglob("*"))
    seeds = []
    for number, name in enumerate(names):
        suited = [each for each in several if each.name == name or (name[0] == "x" and each.suffix == ".safetensors")]
        seeds += [bytes([number]) + min(suited, key=lambda each: each.stat().st_size).read_bytes()] if suited else []
    return seeds


def stores(out: Path) -> list[bytes]:
    """A small store, and its readings as a table."""
    from benchmarks.faults.store_damages import entry
    from htas.timing.store import Store

    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "store.sqlite")
        store.add([entry(width, survey, readings=4) for survey in ("s0", "s1") for width in (8, 16)])
        store.export(Path(place) / "table.csv")
        return [store.path.read_bytes(), (Path(place) / "table.csv").read_bytes()]


def onnx_files(out: Path) -> list[bytes]:
    """A small network: a convolution, its activation, a mean, and a product."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = [("w", np.ones((2, 3, 3, 3), np.float32)), ("v", np.ones((2, 5), np.float32))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    values: list[tuple[str, list[str | int | None]]] = [("x", ["N", 3, 8, 8]), ("y", ["N", 5])]
    source, sink = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values)
    tensors = [numpy_helper.from_array(each, name) for name, each in weights]
    return [helper.make_model(helper.make_graph(nodes, "g", [source], [sink], tensors)).SerializeToString()]


def parquet_files(out: Path) -> list[bytes]:
    """Ten images of one colour each with their labels, and a table of readings."""
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    from benchmarks.faults.store_damages import entry
    from htas.timing.store import Store

    images = []
    for label in range(10):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (label, 0, 0)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    content = io.BytesIO()
    parquet.write_table(pyarrow.table({"img": images, "label": list(range(10))}), content, row_group_size=5)
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "store.sqlite")
        store.add([entry(width, "s0", readings=4) for width in (8, 16)])
        store.export(Path(place) / "table.parquet")
        return [content.getvalue(), (Path(place) / "table.parquet").read_bytes()]


@dataclass(frozen=True)
class Kind:
    """Something that reads bytes, and valid ones; of those that need it, OUT has what they are made of."""

    read: Callable[[bytes, Path], None]
    seeds: Callable[[Path], list[bytes]]


KINDS = {
    "configuration": Kind(read_configuration, configurations),
    "run_file": Kind(read_run_file, run_files),
    "store": Kind(read_store, stores),
    "onnx": Kind(read_onnx, onnx_files),
    "parquet": Kind(read_parquet, parquet_files),
}


# -- trials ------------------------------------------------------------------------------------------------------------


@dataclass
class Findings:
    """What failed of one kind: by place in the code, the shortest bytes that lead there."""

    kind: str
    out: Path | None = None
    """Where they are kept."""
    tried: int = 0
    shortest: dict[str, bytes] = field(default_factory=dict)

    def attempt(self, content: bytes) -> None:
        """Read some bytes, and keep them where that fails."""
        self.tried += 1
        trouble = fault(self.kind, content)
        if trouble and len(content) < len(self.shortest.get(trouble, content + b"x")):
            self.shortest[trouble] = content
            if self.out is not None:
                self.out.mkdir(parents=True, exist_ok=True)
                name = self.out / f"{self.kind}-{sha256(trouble.encode()).hexdigest()[:8]}"
                name.write_bytes(content)
                name.with_suffix(".txt").write_text(trouble)


def fault(kind: str, content: bytes) -> str:
    """What is wrong with how some bytes are read, with its place; "" for nothing."""
    from htas.errors import UserError
    from htas.text import sentence

    quiet = io.StringIO()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        try:
            with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet), alarmed():
                KINDS[kind].read(content, Path(place))
        except UserError as error:
            words = sentence(str(error))
            if not words.strip() or len(words) > LONGEST or not words.isprintable():
                return f"a sentence that is none: {words[:100]!a}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            ours = [each for each in frames if "/htas/" in each.filename] or list(frames)
            words = "it did not end" if isinstance(error, TooLongError) else f"{type(error).__name__}"
            return f"{words} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return ""


@contextlib.contextmanager
def alarmed() -> Iterator[None]:
    """At most so many seconds; atheris has an alarm of its own."""
    with contextlib.nullcontext() if "atheris" in sys.modules else limited(SECONDS):
        yield


# -- engines -----------------------------------------------------------------------------------------------------------


def edited(content: bytes, edits: Sequence[tuple[str, int, bytes]]) -> bytes:
    """Bytes after some edits: how, where, and with what."""
    for how, place, more in edits:
        at = place * len(content) // PLACES
        match how:
            case "cut":
                content = content[:at]
            case "put":
                content = content[:at] + more + content[at:]
            case "over":
                content = content[:at] + more + content[at + len(more) :]
            case "drop":
                content = content[:at] + content[at + 1 + 8 * len(more) :]
            case "twice":
                content = content[: at + 40] + content[at:]
            case "word" if match := WORD.search(content, at):
                content = content[: match.start()] + more + content[match.end() :]
    return content


def by_hypothesis(findings: Findings, seeds: Sequence[bytes], seconds: float, seed: int, most: int = 10**9) -> None:
    """Let hypothesis edit the seeds for so many seconds, or to so many examples."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    hows = st.sampled_from(("cut", "put", "over", "drop", "twice", "word", "word", "word", "over"))
    words = st.binary(min_size=1, max_size=8) | st.sampled_from(WORDS)
    edits = st.lists(st.tuples(hows, st.integers(0, PLACES - 1), words), max_size=6)
    contents = st.builds(edited, st.sampled_from(list(seeds)), edits)
    end = time.monotonic() + seconds
    for number in itertools.count():
        if time.monotonic() > end or findings.tried >= most:
            return

        @seeded(f"{seed}:{number}")
        @settings(
            max_examples=min(BATCH, most), deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(content=contents)
        def batch(content: bytes) -> None:
            if time.monotonic() < end:
                findings.attempt(content)

        batch()


def by_atheris(findings: Findings, seeds: Sequence[bytes], seconds: float, seed: int) -> None:
    """Let atheris edit the seeds for so many seconds, in another process, as it ends the one that it runs in."""
    assert findings.out is not None
    with tempfile.TemporaryDirectory() as place:
        corpus, words = Path(place) / "corpus", Path(place) / "words"
        corpus.mkdir()
        for number, content in enumerate(seeds):
            (corpus / str(number)).write_bytes(content)
        quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS if len(word) < 64)
        words.write_text("".join(f'"{word}"\n' for word in quoted))
        findings.out.mkdir(parents=True, exist_ok=True)
        options = [
            f"-max_total_time={seconds:.0f}", f"-seed={seed + 1}", f"-timeout={SECONDS}", f"-dict={words}",
            f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={findings.out / findings.kind}-", str(corpus),
            f"-max_len={2 * max(map(len, seeds))}",
        ]  # fmt: skip
        command = [
            sys.executable,
            "-m",
            "benchmarks.faults.fuzz",
            "--child",
            findings.kind,
            str(findings.out),
            *options,
        ]
        before = set(findings.out.iterdir())
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        counts = re.findall(r"^#(\d+)|Done (\d+) runs", done.stderr, re.MULTILINE)
        findings.tried += int("".join(counts[-1])) if counts else 0
        for file in sorted(set(findings.out.iterdir()) - before):
            if file.suffix == ".txt":
                findings.shortest[file.read_text()] = file.with_suffix("").read_bytes()
            elif not file.with_suffix(".txt").exists():
                findings.shortest[f"the process ended: {file.name}"] = file.read_bytes()
        if done.returncode and not findings.shortest:
            findings.shortest[f"exit code {done.returncode}: {done.stderr[-300:]!a}"] = b""


def child(kind: str, out: Path, options: Sequence[str]) -> None:
    """The process that atheris ends."""
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["htas"]):
        prepare()
    findings = Findings(kind, out)
    atheris.Setup([sys.argv[0], *options], findings.attempt)
    atheris.Fuzz()


def prepare() -> None:
    """Import what is slow to import, so that no trial takes long."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent with a torch for CPUs"))
    from benchmarks.faults.inputs import prepare as prepare_inputs

    prepare_inputs()


def fuzz(kind: str, out: Path, seconds: float, seed: int, engine: str) -> Findings:
    """Fuzz one kind; what failed."""
    findings, seeds = Findings(kind, out / "failures"), KINDS[kind].seeds(out)
    if engine == "atheris":
        by_atheris(findings, seeds, seconds, seed)
    else:
        by_hypothesis(findings, seeds, seconds, seed)
    return findings


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    sys.path.append(str(ROOT / "tests"))
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--child"]:
        child(words[1], Path(words[2]), words[3:])
    usual = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "htas-run-files")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kind", choices=list(KINDS), default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("hypothesis", "atheris"), default=usual)
    parser.add_argument("--again", type=Path, help="read these bytes of --kind once, and let the exception out")
    options = parser.parse_args(words)
    prepare()
    if options.again:
        with tempfile.TemporaryDirectory() as place:
            KINDS[options.kind].read(options.again.read_bytes(), Path(place))
        return 0
    tally = Tally()
    for kind in [options.kind] if options.kind else KINDS:
        findings = fuzz(kind, options.out, options.seconds, options.seed, options.engine)
        name = f"{kind}, by {options.engine}"
        tally.tried[name] += findings.tried
        for trouble, content in findings.shortest.items():
            again = (
                f"--kind {kind} --again {options.out / 'failures'}/{kind}-{sha256(trouble.encode()).hexdigest()[:8]}"
            )
            tally.failures.append((name, trouble, f"{len(content)} bytes; {again}"))
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
