"""Damages the files of a run, of a comparison and of a sweep, and calls the commands that read them.

    python benchmarks/faults/run_files.py [OUT] [--seed 0] [--count 3000] [--first 0]

OUT holds the undamaged folders, which are made once (on the scripted device of the tests, in a minute or two), and a
copy to be damaged. A damage is one of bytes (cut, flipped, emptied, a folder in the file's place), or of a value: JSON
of the right format with a key missing or one more, a value of another kind or size, a list cut or doubled. After each
of them a command must end with exit code 0 and what the files say, or with exit code 2 and one sentence that names the
file. Searches and trainings are not done again: to begin one is as good an end as exit code 0.

It also counts, by file, the reports that came out with other figures than the undamaged one: a figure that was changed
by hand to another that may be right is believed.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent with a torch for CPUs"))

from campaign import Outcome, Tally, called, drawn  # type: ignore[import-not-found]  # noqa: E402

AGAIN = "this campaign does not train"
"""What a search or a training says in place of its work."""
OPTIONS = (
    "family.depth=14", "split.limit=60", "target.threads=1", "survey.rounds=1", "survey.store=none",
    "survey.undecided=1", "calibrate.networks=8", "design.groups=2", "train.epochs=1", "train.warmup=0",
    "train.rest=0", "train.batch=30", "train.precision=fp32",
)  # fmt: skip
SEARCH = ("strategy.name=differentiable", "strategy.epochs=2", "strategy.batch=30", "strategy.precision=fp32")
LIMITED = ("design.spaces=[grid]", "constraints.latency=60%", "strategy.name=scaled")
ARMS = '[found]\n["plain 8"]\nnetwork = "cifar_resnet:8"\n[base]\nnetwork = "base"\n'
MOST = 60
"""Seconds of a command, in which stages may be done again beside others on a busy machine."""
PRETTY = 12
"""One in so many reports has charts."""
LONG = "9" * 400
DEEP = 100_000
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**12, 2**63, 10**30, int(LONG), 0.0, -0.5, 0.5, 1e-320, 1e308, -1e308, 1e15,
    "", "x", "NaN", "../../x", "/etc/passwd", "<script>alert(1)</script>", "\x1b[31mred\x1b]0;t\x07", "a\nb\r\x00c",
    "\u202egnp.exe", "\ud800", "y" * 20_000, [], [0], [1], [[]], ["x"], [None], {}, {"x": 1}, {"": None},
)  # fmt: skip
RAW = ("NaN", "Infinity", "-Infinity", "1e999", LONG * 20, "[" * DEEP + "]" * DEEP, '{"a":' * 500 + "1" + "}" * 500)
"""Texts in place of a value that `json` does not write."""


# -- the folders ------------------------------------------------------------------------------------------------------


def configuration(*more: str) -> list[str]:
    """Options of the command line."""
    return [f"--{option}" for option in (*OPTIONS, *more)]


def make(folder: Path) -> None:
    """A run, a comparison and a sweep in a folder that has none; and a report alone, as it is sent to somebody."""
    if (folder / "sent").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "some.toml").write_text("seed = 0\n")
    (folder / "arms.toml").write_text(ARMS)
    for argv in (
        ["run", str(folder / "some.toml"), *configuration(*SEARCH), f"--out={folder / 'whole'}"],
        compare(folder),
        sweep(folder),
    ):
        outcome = called(argv, 600)
        if outcome.code != 0:
            raise SystemExit(f"{argv} ended with {outcome.code}: {outcome.err[-2000:]}")
    called(compare(folder, "--only"), 60)
    (folder / "sent").mkdir()
    shutil.copy(folder / "whole" / "report.json", folder / "sent")


def compare(folder: Path, *more: str) -> list[str]:
    """The command of the comparison in a folder."""
    files = [str(folder / name) for name in ("some.toml", "arms.toml")]
    return ["compare", *files, *configuration(*LIMITED), "--seeds=1", f"--out={folder / 'arms'}", *more]


def sweep(folder: Path) -> list[str]:
    """The command of the sweep in a folder."""
    budgets = "--budgets=60%"
    return [
        "sweep", str(folder / "some.toml"), *configuration(*LIMITED[::2]), budgets, f"--out={folder / 'swept'}"
    ]  # fmt: skip


@dataclass
class Copy:
    """A folder to be damaged, and its content before."""

    folder: Path
    contents: dict[str, bytes] = field(default_factory=dict)
    states: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, clean: Path, folder: Path) -> "Copy":
        """A copy of the undamaged folders."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(clean, folder)
        contents = {str(path.relative_to(folder)): path.read_bytes() for path in files_in(folder)}
        new = cls(folder, contents)
        new.states = {name: state(folder / name) for name in contents}
        return new

    def restore(self) -> None:
        """Put back what has changed."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = str(path.relative_to(self.folder))
            if path.is_symlink() or (path.is_file() and name not in self.contents):
                path.unlink()
            elif path.is_dir() and name in self.contents:
                shutil.rmtree(path)
        for name, content in self.contents.items():
            path = self.folder / name
            if not path.exists() or state(path) != self.states[name]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                os.utime(path, ns=(self.states[name][0], self.states[name][0]))


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def state(path: Path) -> tuple[int, int]:
    """What tells that a file was written since."""
    about = path.lstat()
    return about.st_mtime_ns, about.st_size


# -- damages ----------------------------------------------------------------------------------------------------------


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Damage a file whatever it holds; what was done, in a word."""
    content = path.read_bytes()
    way = rng.choice(("cut", "flipped", "emptied", "folder", "gone", "loop", "latin", "doubled"))
    if way in ("folder", "gone", "loop"):
        path.unlink()
        if way == "folder":
            path.mkdir()
        elif way == "loop":
            path.symlink_to(path.name)
        return way
    at = rng.randrange(len(content) or 1)
    changed = {
        "cut": content[:at],
        "flipped": content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
        "emptied": b"",
        "latin": content[:at] + b"\xe9\xff" + content[at:],
        "doubled": content + content,
    }[way]
    path.write_bytes(changed)
    return f"{way} at {at}"


Place = tuple[str | int, ...]


def places(content: Any, above: Place = ()) -> Iterator[Place]:
    """Where the values of a JSON document are."""
    inner: Any = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inner:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


def shape(place: Place) -> Place:
    """A place without the numbers, so that a long list counts as one."""
    return tuple("" if isinstance(key, int) else key for key in place)


def damage_value(content: Any, rng: random.Random) -> tuple[str, str]:
    """Another document, as text, that differs in one value; what was done."""
    by_shape: dict[Place, list[Place]] = {}
    for place in places(content):
        by_shape.setdefault(shape(place), []).append(place)
    place = rng.choice(by_shape[rng.choice(list(by_shape))])
    changed = copy.deepcopy(content)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    key, old = place[-1], holder[place[-1]]
    ways: list[str] = ["value", "value", "raw", "gone"]
    ways += ["near"] * (2 if type(old) in (int, float) else 0)
    ways += ["shorter", "doubled", "reversed", "emptied"] * isinstance(old, list)
    ways += ["key more", "key less", "key changed"] * isinstance(old, dict)
    way = rng.choice(ways)
    raw = ""
    if way == "value":
        holder[key] = rng.choice(VALUES)
    elif way == "raw":
        raw, holder[key] = rng.choice(RAW), "@"
    elif way == "gone":
        del holder[key]
    elif way == "near":
        holder[key] = rng.choice([old + 1, old - 1, 2 * old, -old, old * 10**6, 1.5 * old, float(old)])
    elif way == "shorter":
        holder[key] = old[: rng.randrange(len(old) or 1)]
    elif way in ("doubled", "reversed", "emptied"):
        holder[key] = {"doubled": old + old, "reversed": old[::-1], "emptied": []}[way]
    elif way == "key more":
        old[rng.choice(("x", "", "../x", "\x1b[31m", "layer9"))] = rng.choice(VALUES)
    elif old:
        name = rng.choice(list(old))
        value = old.pop(name)
        if way == "key changed":
            old[f"{name}x"] = value
    text = json.dumps(changed, allow_nan=True)
    said = f"{'.'.join(map(str, place))}: {way} {str(raw or holder_value(holder, key))[:40]!r}"
    return (text.replace('"@"', raw, 1) if raw else text), said


def holder_value(holder: Any, key: str | int) -> Any:
    """What stands at a place now; nothing where it is gone."""
    return holder.get(key, "") if isinstance(holder, dict) else holder[key] if int(key) < len(holder) else ""


def damage_json(path: Path, rng: random.Random) -> str:
    """Change a value of a JSON file."""
    with sys_digits():
        text, said = damage_value(json.loads(path.read_text()), rng)
    path.write_text(text)
    return said


@contextlib.contextmanager
def sys_digits() -> Iterator[None]:
    """While whole numbers of any length can be written."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def damage_tensors(path: Path, rng: random.Random) -> str:
    """Change the header of a safetensors file, the record in it, or its tensors."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    way = rng.choice(("record", "record", "header", "nan", "missing", "shape", "dtype", "renamed", "size"))
    name = rng.choice(names)
    text = ""
    said = f"{way} {name}"
    if way == "record":
        about, said = damage_value(json.loads(header["__metadata__"]["about"]), rng)
        header["__metadata__"]["about"] = about
        said = f"record {said}"
    elif way == "header":
        text, said = damage_value(header, rng)
    elif way == "nan":
        begin, end = header[name]["data_offsets"]
        data[begin:end] = b"\xff" * (end - begin)
    elif way == "missing":
        del header[name]
    elif way == "renamed":
        header[f"{name}x"] = header.pop(name)
    elif way == "shape":
        header[name]["shape"] = [*header[name]["shape"], 1]
    elif way == "dtype":
        header[name]["dtype"] = rng.choice(("I32", "F16", "U8", "BOOL", "X"))
    body = (text or json.dumps(header)).encode("utf-8", "surrogatepass")
    length = rng.choice((0, 2**63, size + 1)) if way == "size" else len(body)
    path.write_bytes(struct.pack("<Q", length) + body + data)
    return said


def damage_toml(path: Path, rng: random.Random) -> str:
    """Change a line of a configuration."""
    lines = path.read_text().splitlines()
    way = rng.choice(("cut", "tables", "line", "value", "value", "more"))
    at = rng.randrange(len(lines))
    if way == "cut":
        lines = lines[:at]
    elif way == "tables":
        heads = [number for number, line in enumerate(lines) if line.startswith("[")]
        begin = rng.choice(heads)
        end = next((number for number in heads if number > begin), len(lines))
        lines = lines[:begin] + lines[end:]
    elif way == "line":
        del lines[at]
    elif way == "more":
        lines.insert(at, rng.choice(("x = 1", '["\\u001b[31m"]', 'y = "\\u001b[31m"', "[" * 2000 + "]" * 2000)))
    else:
        at = rng.choice([number for number, line in enumerate(lines) if " = " in line])
        name, _, _ = lines[at].partition(" = ")
        value = rng.choice(('""', "-1", "nan", "1e308", "[]", "{}", "true", '"x"', '"\\u001b[31m"', LONG, '"../x"'))
        lines[at] = f"{name} = {value}"
    path.write_text("\n".join(lines) + "\n")
    return f"{way} at line {at + 1}: {lines[at][:40] if at < len(lines) else ''!r}"


BY_SUFFIX: dict[str, Callable[[Path, random.Random], str]] = {
    ".json": damage_json, ".safetensors": damage_tensors, ".toml": damage_toml
}  # fmt: skip
BYTES = 0.2
"""The share of damages that look at no value."""


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file; what was done."""
    return damage_bytes(path, rng) if rng.random() < BYTES else BY_SUFFIX[path.suffix](path, rng)


# -- commands ---------------------------------------------------------------------------------------------------------


READERS = {
    "survey.json": ("survey", "run"), "design.json": ("search", "run"), "cost.json": ("search", "train"),
    "networks.json": ("measure", "run"), "measure.json": ("run",), "controls.json": ("train",),
    "environment.json": ("run",), "command.json": ("run",), "config.toml": ("run", "watch"),
    "progress.json": ("watch", "run"),
}  # fmt: skip
"""The verbs that read a file of a run, besides report."""


def commands(folder: Path, name: str, rng: random.Random) -> list[list[str]]:
    """The commands that read a file, by its name below the folder."""
    place = name.partition("/")[0]
    file = name.rpartition("/")[2]
    if file == "progress.json":
        return [["watch", str(folder / name.rpartition("/")[0]), "--once"], ["watch", str(folder / place), "--once"]]
    if place == "sent":
        return [["report", str(folder / "whole"), str(folder / "sent"), f"--out={folder / 'both'}"]]
    if place == "arms":
        return [compare(folder, *([] if rng.random() < 0.3 else ["--only"]))]
    if place == "swept":
        return [sweep(folder)]
    run = str(folder / "whole")
    verbs = READERS.get(file, ("measure", "train") if file.endswith("safetensors") else ("train",))
    others = [[verb, run, *(["--once"] if verb == "watch" else [])] for verb in verbs]
    if file.endswith("safetensors") and rng.random() < 0.05:
        others = [["export", run, "--to=pt2", f"--network={Path(file).stem}"]]
    return [["report", run]] if rng.random() < 0.6 else [rng.choice(others)]


def sentence_trouble(outcome: Outcome, name: str) -> str:
    """What is wrong with what a command printed about a file."""
    if trouble := outcome.trouble():
        return trouble
    if any(letter in outcome.out + outcome.err for letter in ("\x1b", "\x07", "\u202e")):
        return "an escape sequence"
    if outcome.code == 0 or AGAIN in outcome.err:
        return ""
    last = [line for line in outcome.err.splitlines() if line.strip()][-1]
    file = name.rpartition("/")[2]
    allowed = (
        file,
        "was made from other files",
        "holds a run of another configuration",
        "in which a run has begun",
        "constraints.latency = ",  # an option that other figures of the file do not allow
    )
    if file.endswith(".toml"):  # a sentence of the configuration names the option
        return ""
    return "" if any(words in last for words in allowed) else f"a sentence that does not name {file}: {last}"


@contextlib.contextmanager
def untrained() -> Iterator[None]:
    """While searches and trainings say AGAIN, and networks are traced once."""
    import pytest

    from htas.errors import UserError
    from htas.run import run as runs
    from htas.strategies import differentiable, scaled
    from htas.training.train import Training

    def stop(*args: Any, **options: Any) -> Any:
        raise UserError(AGAIN)

    sources = runs.Sources()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "run", stop)
        patch.setattr(differentiable.Differentiable, "search", stop)
        patch.setattr(scaled.Scaled, "search", stop)
        patch.setattr(runs, "Sources", lambda **_: sources)
        yield


@contextlib.contextmanager
def checked(whether: bool) -> Iterator[None]:
    """While charts are made and checked against their schema, or are blank, which is far quicker."""
    import pytest

    from htas.report import _course, _figures, survey

    with pytest.MonkeyPatch.context() as patch:
        for module in () if whether else (_course, _figures, survey):
            patch.setattr(module, "spec", lambda chart: {"mark": "point"})
        yield


def trial(damaged: Copy, name: str, rng: random.Random, number: int) -> tuple[str, str, list[Outcome]]:
    """Damage one file and call a command; the damage, what is wrong, and what the commands did."""
    try:
        said = damage(damaged.folder / name, rng)
        outcomes, troubles = [], []
        for argv in commands(damaged.folder, name, rng):
            with checked(number % PRETTY == 0):
                outcome = called(argv, MOST)
            outcomes.append(outcome)
            if trouble := sentence_trouble(outcome, name):
                troubles.append(f"{argv[0]}: {trouble}")
        return said, "; ".join(troubles), outcomes
    finally:
        if sys.exc_info()[0] is None:
            believed(damaged, name)
        damaged.restore()


BELIEVED: Counter[str] = Counter()


def believed(damaged: Copy, name: str) -> None:
    """Count a report that was written with other figures than the undamaged one's."""
    report = damaged.folder / "whole" / "report.json"
    if name.startswith("whole/") and name != "whole/report.json" and report.is_file():
        BELIEVED[name] += report.read_bytes() != damaged.contents["whole/report.json"]


def damageable(folder: Path) -> list[str]:
    """The names of the files that a command reads, below the folder."""
    names = [str(path.relative_to(folder)) for path in files_in(folder)]
    written = ("report.json", "compare.json")  # and never read again, but where they were sent
    inner = [name for name in names if "/" in name and Path(name).suffix in BY_SUFFIX]
    return [name for name in inner if not name.endswith(written) or name == "sent/report.json"]


def kind(name: str) -> str:
    """What the table calls a file."""
    file = name.rpartition("/")[2]
    return f"{name.partition('/')[0]}: {'*.safetensors' if file.endswith('.safetensors') else file}"


def damages(damaged: Copy, seed: int, count: int, first: int = 0, only: str = "") -> Tally:
    """So many damages of the files whose names hold `only`, each with a command that reads the file."""
    tally, verdicts = Tally(), Counter[str]()
    by_kind: dict[str, list[str]] = {}
    for name in damageable(damaged.folder):
        if only in name:
            by_kind.setdefault(kind(name), []).append(name)
    kinds = list(by_kind)
    with untrained():
        for number in range(first, first + count):
            rng = drawn(seed, number)
            name = rng.choice(by_kind[kinds[number % len(kinds)]])
            said, trouble, outcomes = trial(damaged, name, rng, number)
            again = any(AGAIN in outcome.err for outcome in outcomes)
            verdicts["done again" if again else f"exit code {outcomes[-1].code}"] += 1
            again_by = f"--seed={seed} --first={number} --count=1, {name}: {said}"
            tally.add(kind(name), trouble, again_by)
            if trouble:
                print(f"{trouble} ({again_by})", file=sys.stderr, flush=True)
    print(", ".join(f"{verdict}: {count}" for verdict, count in sorted(verdicts.items())))
    others = ", ".join(f"{name} {each}" for name, each in BELIEVED.items() if each)
    print(f"reports with other figures: {others or 'none'}")
    return tally


def campaign(out: Path, seed: int, count: int, first: int = 0, only: str = "") -> Tally:
    """The damages of `damages` in folders that are made first, unless they are there."""
    from scripted_device import scripted_device  # type: ignore[import-not-found]

    with scripted_device(), checked(False):
        make(out / "clean")
        return damages(Copy.of(out / "clean", out / "copy"), seed, count, first, only)


def main(argv: Sequence[str] | None = None) -> int:
    """Do the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "htas-run-files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default="", help="damage files alone whose names hold this")
    options = parser.parse_args(argv)
    return campaign(options.out, options.seed, options.count, options.first, options.only).end()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
