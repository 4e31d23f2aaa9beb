"""Damaged inputs: ONNX files, parquet files, folders of images, and modules of the user's that are wrong in one place.

    python benchmarks/faults/inputs.py [OUT] [--seed 0] [--count 2000] [--first 0] [--only onnx]

Every trial runs in a process of its own, forked from this one, with a limit on its seconds. It fails where there is a
traceback, where it does not end, where it takes 2 GB of memory more than this process has, and where an ONNX file that
is accepted gives other numbers than ONNX Runtime alone. A fault in code of the user's must be told with the file.
"""

import argparse
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.faults.campaign import Outcome, Tally, called, drawn
from benchmarks.faults.users_code import Trial, trials

SECONDS, LONG = 10, 60
"""Limits of a trial, and of one that may be a whole run, of the processor's time."""
WAITING = 4
"""Times these that a trial may wait for a processor."""
MEMORY = 2.0
"""GB that a trial may take."""
SHARES = {"onnx": 8, "parquet": 4, "folder": 4, "module": 1}
"""How often each kind is drawn; a module may take a whole run."""
PLACES = ("../x.bin", "/etc/passwd", "nosuch.bin", "", "a/../../x.bin", "..\\x.bin", "link.bin", "x.onnx")
"""Of data outside of a model's file."""
HUGE = (0, -1, 10**12, 2**31, 2**63 - 1, 1, 3)


@dataclass(frozen=True)
class Ending:
    """What a forked trial came to."""

    outcome: Outcome
    taken: float
    """GB of memory."""
    lasted: float
    """Seconds of the processor."""
    more: str = ""
    """What else was wrong."""


def forked(work: Callable[[], tuple[Outcome, str]], seconds: float) -> Ending:
    """Some work in a process of its own, which is ended, with all that it started, after so many seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            outcome, more = work()
        except BaseException:
            outcome, more = Outcome(1, "", traceback.format_exc()), ""
        text = json.dumps([outcome.code, outcome.err[-100_000:], more]).encode()
        with os.fdopen(sink, "wb") as file:
            file.write(text)
        os._exit(0)
    os.close(sink)
    text, end = b"", time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and select.select([source], [], [], left)[0]:
        if not (part := os.read(source, 1 << 16)):
            break
        text += part
    os.close(source)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    taken = max(0, usage.ru_maxrss - before) / 1e6
    lasted = usage.ru_utime + usage.ru_stime
    if left <= 0:
        return Ending(Outcome(None, "", ""), taken, lasted)
    if not text:
        return Ending(Outcome(-os.waitstatus_to_exitcode(status), "", "it crashed"), taken, lasted)
    code, err, more = json.loads(text)
    return Ending(Outcome(code, "", err), taken, lasted, more)


# -- ONNX --------------------------------------------------------------------------------------------------------------

NETWORKS = ("resnet18", "mobilenet_v3_small", "squeezenet1_1")


@cache
def exported() -> tuple[bytes, ...]:
    """Real networks as ONNX files, for images of 64 x 64; exported in another process, which leaves no threads."""
    folder = Path(tempfile.mkdtemp())
    source, sink = os.pipe()
    if (child := os.fork()) == 0:
        os.close(source)
        import torch

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            for name in NETWORKS:
                import torchvision  # type: ignore[import-untyped]

                network = getattr(torchvision.models, name)(num_classes=10).eval()
                from htas.formats.onnx import network_graph

                (folder / name).write_bytes(network_graph(network, (torch.randn(1, 3, 64, 64),), dynamic=False))
        os._exit(0)
    os.close(sink)
    os.close(source)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the networks cannot be exported"
    contents = tuple((folder / name).read_bytes() for name in NETWORKS)
    shutil.rmtree(folder)
    return contents


def damaged_onnx(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """A damaged model: what was done, and the file."""
    import onnx

    how = rng.choice(("bytes", "cut", "node", "attribute", "shape", "constant", "input", "output", "external", "large"))
    if how == "bytes":
        changed = bytearray(content)
        for _ in range(rng.choice((1, 4, 64))):
            changed[int(len(changed) * rng.random() ** rng.choice((1, 8)))] = rng.randrange(256)
        return how, bytes(changed)
    if how == "cut":
        return how, content[: rng.randrange(len(content))]
    model = onnx.load_from_string(content)
    graph = model.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    if how == "node":
        if rng.random() < 0.5:
            graph.node.remove(node)
        else:
            node.op_type = rng.choice(("Nosuch", "Relu", "Conv", "Loop", "MatMul", "Reshape", ""))
    elif how == "attribute":
        attributes = [each for every in graph.node for each in every.attribute]
        attribute = rng.choice(attributes)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(HUGE)
        else:
            attribute.i = rng.choice(HUGE)
    elif how == "shape":
        value = rng.choice([*graph.input, *graph.output, *graph.value_info])
        if value.type.tensor_type.shape.dim:
            rng.choice(value.type.tensor_type.shape.dim).dim_value = rng.choice(HUGE)
    elif how == "constant":
        if rng.random() < 0.5:
            tensor.dims[:] = [rng.choice(HUGE)]
        else:
            tensor.raw_data = bytes(rng.randrange(256) for _ in range(rng.choice((0, 7, len(tensor.raw_data) % 4096))))
    elif how == "input":
        if rng.random() < 0.3:
            del graph.input[:]
        else:
            graph.input[0].type.tensor_type.elem_type = rng.randrange(24)
    elif how == "output":
        if rng.random() < 0.5:
            del graph.output[:]
        else:
            graph.output[0].name = rng.choice(("nosuch", "", graph.input[0].name))
    elif how == "external":
        place = rng.choice(PLACES)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = {
            "location": place,
            "offset": str(rng.choice((0, -1, 10**12))),
            "length": str(rng.choice((4, 10**12))),
        }
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    else:
        shape = onnx.helper.make_tensor("huge", onnx.TensorProto.INT64, [1], [rng.choice((10**12, 2**40, -5))])
        graph.initializer.append(shape)
        graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["huge"], ["filled"]))
        graph.node.insert(1, onnx.helper.make_node("ReduceSum", ["filled"], ["total"]))
        graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, None))
    return how, model.SerializeToString()


def try_onnx(rng: random.Random, folder: Path) -> tuple[str, Callable[[], tuple[Outcome, str]]]:
    """The kind of a damaged ONNX file, and what reads it as `htas measure` does, and compares it."""
    how, content = damaged_onnx(rng, rng.choice(exported()))
    (folder / "m.onnx").write_bytes(content)
    (folder.parent / "x.bin").write_bytes(b"\0" * 4096)
    (folder / "link.bin").symlink_to("../x.bin")

    def work() -> tuple[Outcome, str]:
        os.chdir(folder)
        return guarded(read_onnx)

    return f"onnx: {how}", work


def read_onnx() -> str:
    """Read m.onnx, run it by htas, and compare it with ONNX Runtime alone; says what differs."""
    import numpy as np
    import onnxruntime
    import torch

    from htas.formats.onnx_file import OnnxFile
    from htas.runtimes import open_runtime
    from htas.timing.target import Target

    model = OnnxFile(Path("m.onnx"), 1)
    assert model.count >= 0 and model.macs >= 0
    torch.manual_seed(0)
    program = open_runtime(Target(runtime="onnxruntime", threads=1, batch=1)).compile(model, ())
    program.run()
    example = model.example()
    mine = program.outputs(*example).numpy()
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    theirs = session.run(None, dict(zip(names, (each.numpy() for each in example), strict=True)))[0]
    same = mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-3, atol=1e-4, equal_nan=True)
    return "" if same else "other numbers than ONNX Runtime's"


# -- data sets ---------------------------------------------------------------------------------------------------------


def picture(rng: random.Random, size: int = 32, kind: str = "PNG") -> bytes:
    """An encoded image of noise."""
    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), rng.randbytes(3 * size * size)).save(file, kind)
    return file.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header says that it is so large, and whose data are those of a few rows."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * min(10_000_000, height * (1 + 3 * width)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def damaged_picture(rng: random.Random, size: int = 32) -> bytes:
    """An image that is cut, has other bytes, is absurdly large, or is none."""
    content = picture(rng, size, rng.choice(("PNG", "JPEG", "WEBP")))
    how = rng.randrange(6)
    if how == 0:
        return content[: rng.randrange(len(content))]
    if how == 1:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 8))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    if how == 2:
        return huge_png(*rng.choice(((60_000, 60_000), (1, 2**31 - 1), (12_000, 12_000), (0, 5), (32, 33))))
    if how == 3:
        return rng.choice((b"", b"text", b"GIF89a" + bytes(99), b"\x89PNG\r\n\x1a\n", bytes(4096)))
    return picture(rng, rng.choice((1, 31, 64, 300)), rng.choice(("PNG", "BMP", "TIFF"))) if how == 4 else content


def try_parquet(rng: random.Random, folder: Path) -> tuple[str, Callable[[], tuple[Outcome, str]]]:
    """The kind of a damaged copy of CIFAR-10 in parquet, and what reads it."""
    import pyarrow
    from pyarrow import parquet

    how = rng.choice(("bytes", "cut", "footer", "image", "label", "column", "shards", "type", "lie"))
    images = [{"bytes": picture(rng), "path": None} for _ in range(12)]
    labels: Any = [*range(10), 0, 1]
    kind: Any = pyarrow.int64()
    if how == "image":
        images[rng.randrange(12)]["bytes"] = rng.choice((damaged_picture(rng), None))
    if how == "label":
        labels[3], kind = rng.choice(
            ((2**64 - 1, pyarrow.uint64()), (-1, kind), (10, kind), (None, kind), (2**40, kind), (2**63 - 1, kind))
        )
    if how == "type":
        labels, kind = rng.choice(
            (
                ([str(each) for each in labels], pyarrow.string()),
                ([0.5] * 12, pyarrow.float64()),
                ([True] * 12, pyarrow.bool_()),
            )
        )
    names = ("img", "label") if how != "column" else rng.choice((("image", "label"), ("img", "target"), ("img", "img")))
    column = pyarrow.array(images) if how != "column" or rng.random() < 0.5 else pyarrow.array([b"x"] * 12)
    table = pyarrow.Table.from_arrays([column, pyarrow.array(labels, kind)], names)
    for part in ("train", "test"):
        file = folder / f"{part}-00000-of-00001.parquet"
        parquet.write_table(table, file, row_group_size=rng.choice((1, 5, 12)))
        content = bytearray(file.read_bytes())
        if how == "bytes":
            for _ in range(rng.choice((1, 8, 64))):
                content[rng.randrange(len(content))] = rng.randrange(256)
        elif how == "cut":
            del content[rng.randrange(len(content)) :]
        elif how in ("footer", "lie"):
            size = int.from_bytes(content[-8:-4], "little")
            for _ in range(rng.choice((1, 2, 16))):
                content[len(content) - 8 - rng.randrange(size + 4 if how == "footer" else size)] = rng.randrange(256)
        file.write_bytes(content)
    if how == "shards":
        other = rng.choice(
            ("train-00001-of-00002.parquet", "train-00000-of-99999.parquet", "test-00000-of-00002-ab.parquet")
        )
        shutil.copy(folder / "train-00000-of-00001.parquet", folder / other)
    return f"parquet: {how}", lambda: guarded(lambda: read_data("cifar10", folder))


def try_folder(rng: random.Random, folder: Path) -> tuple[str, Callable[[], tuple[Outcome, str]]]:
    """The kind of a damaged folder of images, and what reads it."""
    how = rng.choice(("image", "text", "loop", "empty", "class", "name", "broken link", "fifo", "unreadable"))
    kind = rng.choice(("image_folder", "cifar10", "hub"))
    parts, classes = ("train", "test" if kind == "cifar10" else "val"), 10 if kind == "cifar10" else 3
    for part in parts:
        for label in range(classes):
            place = folder / part / f"c{label}"
            place.mkdir(parents=True)
            for number in range(2):
                (place / f"{number}.png").write_bytes(picture(rng))
    place = folder / rng.choice(parts) / f"c{rng.randrange(classes)}"
    if how == "image":
        for number in range(2):
            (place / f"{number}.png").write_bytes(damaged_picture(rng))
    elif how == "text":
        (place / rng.choice(("readme.txt", "2.png", ".png", "Thumbs.db"))).write_text("text")
        (place.parent / "readme.txt").write_text("text")
    elif how == "loop":
        (place.parent / "c9x").symlink_to("c9x")
        (place / "again").symlink_to("..")
        (place / "again.png").symlink_to("again.png")
    elif how == "empty":
        shutil.rmtree(place)
        place.mkdir()
    elif how == "class":
        shutil.rmtree(place)
    elif how == "name":
        place.rename(place.with_name(rng.choice(("c\n", "\x1b[31m", "<script>", " ", "\udcff", "x" * 250))))
    elif how == "broken link":
        (place / "0.png").unlink()
        (place / "0.png").symlink_to("/nosuch/x.png")
    elif how == "fifo":
        (place / "0.png").unlink()
        os.mkdir(place / "0.png")
    else:
        place.chmod(0)
    return f"folder: {how}", lambda: guarded(lambda: read_data(kind, folder))


def read_data(kind: str, folder: Path) -> str:
    """Read a data set as a run does, and a batch of each part."""
    import torch

    from htas import datasets
    from htas.run.config import load

    os.environ["HF_HUB_OFFLINE"] = "1"
    workers = [] if kind == "cifar10" else ["--data.workers=0", "--data.size=16"]
    splits = ["--data.test=validation"] if kind == "hub" else []
    data = datasets.load(load(None, [f"--data.name={kind}", f"--data.path={folder}", *workers, *splits]).data)
    for source in (data.train, data.test):
        for images, labels in source.batches(4, seed=0, augment=True):
            assert len(images) == len(labels) and bool(torch.as_tensor(images).isfinite().all()), (
                "images that are no numbers"
            )
            assert int(labels.min()) >= 0 and int(labels.max()) < data.classes, "a label of no class"
    return ""


def guarded(read: Callable[[], str]) -> tuple[Outcome, str]:
    """What a reader comes to, as a command would end: 0, or 2 with its sentence."""
    from htas.console.blame import users_faults
    from htas.errors import UserError
    from htas.text import sentence

    try:
        with redirect_stdout(io.StringIO()), users_faults():
            return Outcome(0, "", ""), read()
    except UserError as error:
        return Outcome(2, "", f"htas: {sentence(str(error))}"), ""
    except BaseException:
        return Outcome(1, "", traceback.format_exc()), ""


# -- modules of the user's ---------------------------------------------------------------------------------------------


@cache
def modules() -> tuple[Trial, ...]:
    """Every wrong module."""
    return tuple(trials())


def try_module(trial: Trial, folder: Path) -> Callable[[], tuple[Outcome, str]]:
    """What runs a module of the user's, as its command or its program does."""
    for name, text in trial.files:
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "run.toml").write_text("")

    def program() -> str:
        import calls  # type: ignore[import-not-found]

        calls.run("r", trial.options[0] == "True", int(trial.options[1]))
        return ""

    def work() -> tuple[Outcome, str]:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        if trial.kind == "optimize":
            with redirect_stderr(io.StringIO()):
                outcome, _ = guarded(program)
        else:
            outcome = called(["run", "run.toml", "--out", "r", *trial.options], WAITING * LONG)
        silent = trial.raises and (folder / "called").exists() and outcome.code in (0, 2)
        told = outcome.code == 2 and any(name in outcome.err for name in (trial.raises, "mine:"))
        return outcome, f"it does not name {trial.raises}" if silent and not told else ""

    return work


# -- the campaign ------------------------------------------------------------------------------------------------------


def attempt(seed: int, number: int, only: str = "") -> tuple[str, str, str]:
    """One trial: its kind, what was wrong ("" for nothing), and how to do it again."""
    rng = drawn(seed, number)
    kind = only or rng.choices(list(SHARES), list(SHARES.values()))[0]
    again = f"--seed {seed} --first {number} --count 1{f' --only {only}' if only else ''}"
    root = Path(tempfile.mkdtemp(prefix="htas-inputs-"))
    folder = root / "in"
    folder.mkdir()
    try:
        if kind == "module":
            trial = rng.choice(modules())
            what, work, seconds = f"module: {trial.kind}", try_module(trial, folder), float(LONG)
            again += f": {trial.what}"
        else:
            draw = {"onnx": try_onnx, "parquet": try_parquet, "folder": try_folder}[kind]
            (what, work), seconds = draw(rng, folder), float(SECONDS)
        ending = forked(work, WAITING * seconds)
    finally:
        for place in root.rglob("*"):
            if place.is_dir() and not place.is_symlink():
                place.chmod(0o755)
        shutil.rmtree(root, ignore_errors=True)
    trouble = ending.outcome.trouble() or ending.more
    if not trouble and ending.lasted > seconds:
        trouble = f"it took {ending.lasted:.0f} s of the processor"
    if not trouble and ending.taken > MEMORY:
        trouble = f"it took {ending.taken:.1f} GB"
    return what, trouble, again


def prepare() -> None:
    """Import what trials need, so that forks have it, without starting a thread."""
    import types

    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("x"))
    import torch

    torch.set_num_threads(1)
    import accelerate  # type: ignore[import-untyped]  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import psutil  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sklearn.datasets  # noqa: F401

    import htas.cli.app
    import htas.report.summary
    import htas.run.stages  # noqa: F401


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *SHARES])
    options = parser.parse_args()
    prepare()
    tally = Tally()
    for number in range(options.first, options.first + options.count):
        tally.add(*attempt(options.seed, number, options.only))
    if options.out:
        options.out.write_text(tally.table() + "\n")
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
