"""Damaged command lines and configurations: every one must end in one sentence that names the option or the file.

    python benchmarks/faults/commands.py [--seed 0] [--count 10000] [--first 0]

Valid commands are damaged: values of the wrong kind, too large, too long, too deep, not in UTF-8; unknown, doubled and
missing options; files where folders belong; TOML of random bytes. What is accepted ends at once where its work would
begin, so that 10,000 take a quarter of an hour of one core; one in eighty is a whole `htas plan`.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.faults.campaign import Outcome, Tally, called, drawn
from htas.errors import UserError
from htas.run.config import TABLES
from htas.text import sentence

DEEP, LONG, DIGITS = 2000, 20_000, 400
BUSY, LIMIT = 10, 100
"""Seconds that a command may compute, and that it may take where other processes compute."""
WORDS = """
    x true none null nan inf -inf -1 0 1 2 0.5 1e308 -1e308 1e400 5e-324 0x10 1_000 1+2j b'x' __import__('os')
    9223372036854775807 4294967296 9223372036854775808 [1] [[1]] [nan] {"a":1} 1,2 {"a":[16,64]} {"a":"50%"}
    {"mine:Metric":"50%"} , ' " \\ = == a=b --x - % 0% 50% -5% 1e999% ~nosuch/x ~ .. . / /dev/null /proc/self/mem
    /nosuch/x x.toml x.onnx x.safetensors mine:Thing :x .:x x: os:system nosuch.module:Thing htas.models:ModelFamily
    json:loads exec: exec:' ssh:// ssh://-oX=y ssh://a:99999 ssh://a,ssh://a local:0 ray a:1 tas:nosuch cifar_resnet:
    cifar_resnet:x cifar_resnet:20:basic:x custom: custom:x 3,224 3,-1,2 3,9999999999,2 é %s%n {0}
"""
TEXTS = (
    *WORDS.split(),
    *("", " ", "lambda: 1", "8 ms", "8 lightyears", "9" * DIGITS, "-" + "9" * DIGITS, "9" * 5000, "1." + "0" * 5000),
    *("1e" + "9" * DIGITS, "a" * 300, "a" * LONG, "a b " * (LONG // 4), "/" + "a/" * 3000, "9" * DIGITS + "%"),
    *("[" * DEEP + "]" * DEEP, "(" * DEEP, "{" * DEEP, "[" * 90 + "]" * 90, '{"a": ' * 90 + "1" + "}" * 90),
    *("-" * DEEP + "1", "local:" + "9" * 30, "cifar_resnet:" + "9" * DIGITS, "\x1b[31mred", "a\x1b]0;x\x07b", "a\nb"),
    *("a\rb", "\u202egnp", "\u0661\u0662", "\ufeff1", "\U0001f600", "\0", "a\0b", "\ud800", "a\udcff"),
)
"""What options are given."""
VALUES = r"""
    1 -1 0 0.5 nan inf -inf 1e308 true "" "x" [] {} [1] ["x"] [[]] [1.5] {a=1} {"16"=[16]} {a={b={c=1}}} 1979-05-27
    07:32:00 1979-05-27T07:32:00Z 0x7fffffff 9223372036854775807 9223372036854775808 "\u0000" "\u001b[31m" "\u202e"
    "mine:Thing" "~nosuch/x" "os:system" "nosuch.module:Thing" "exec:" "\ud800" '''x''' [1, tru
"""
TOMLS = (
    *VALUES.split(),
    *("9" * DIGITS, "9" * 5000, f'"{"a" * LONG}"', "[" * DEEP + "]" * DEEP, "{a = " * DEEP + "1" + "}" * DEEP),
    *("[" * 90 + "]" * 90, "1 2", '"""x'),
)
"""What a TOML file has as values."""


class Accepted(UserError):
    """What would begin work was accepted."""


@dataclass(frozen=True)
class Trial:
    """One command in a folder of its own."""

    kind: str
    argv: tuple[str, ...]


def accept(*args: Any, **kwargs: Any) -> Any:
    """Stands where work would begin."""
    raise Accepted("accepted")


STAGES = ("htas.run.plan.show", "htas.run.run.open_run", "htas.run.networks.measure_networks")
WORK = (
    *("htas.run.networks.inspect", "htas.run.networks.inspect_named", "htas.experiments.budgets.sweep"),
    *("htas.experiments.budgets.fastest", "htas.experiments.compare.compare", "htas.experiments.trials.run_alone"),
    *("htas.experiments.reproduce.items.reproduce", "htas.experiments.devices.run", "htas.experiments.devices.survey"),
    *("htas.experiments.devices.report", "htas.run.transfer.check_source", "htas.cli.doctor.examine"),
)


@contextlib.contextmanager
def without_work(whole: bool = False) -> Iterator[None]:
    """Let every piece of work end at once; with `whole` not those of `htas plan`."""
    import htas.run.stages  # all of them are imported before they are replaced

    assert htas.run.stages
    with contextlib.ExitStack() as stack:
        for name in WORK if whole else (*WORK, *STAGES):
            stack.enter_context(mock.patch(name, accept))
        yield


def configuration_options() -> list[tuple[str, str, str]]:
    """Every option of a configuration: table, class or recipe, name."""
    from htas.run.config import NAMED, TABLES

    named = [
        (table, choice, option)
        for table, each in TABLES.items()
        for choice in each.choices()
        for option in each.options(choice)
    ]
    return [*named, *((table, choice, each.key) for table, each in NAMED.items() for choice in each.choices())]


def flags() -> dict[str, list[str]]:
    """The options of every verb."""
    from htas.cli.app import APP
    from htas.cli.verbs import VERBS

    return {
        verb: sorted({
            name
            for argument in APP[verb].assemble_argument_collection(default_parameter=APP.default_parameter)
            if argument.parse
            for name in argument.names
            if name.startswith("-")
        })
        for verb in VERBS
    }  # fmt: skip


def damaged(rng: random.Random, text: str) -> str:
    """Text with a few letters changed, left out, doubled or put in."""
    letters = list(text)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(letters) + 1)
        match rng.randrange(4):
            case 0 if letters:
                del letters[min(at, len(letters) - 1)]
            case 1 if letters:
                letters[min(at, len(letters) - 1)] = chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x3000))))
            case 2:
                letters[at:at] = letters[max(0, at - 9) : at]
            case _:
                letters.insert(at, rng.choice("[]{}\"'=,.:-#\n\t\\ 0a"))
    return "".join(letters)


class Maker:
    """Makes trials in a folder."""

    def __init__(self) -> None:
        from htas.cli.verbs import CONFIGURED, VERBS
        from htas.run.config import NAMED, Config

        self.options, self.flags = configuration_options(), flags()
        self.verbs, self.named, self.valid = list(VERBS), NAMED, Config.default().toml()
        self.configured = [verb for verb in CONFIGURED if verb not in ("demo", "reproduce")]

    def trial(self, rng: random.Random, folder: Path) -> Trial:
        """Draw one; its files are written into the folder."""
        (folder / "some.toml").write_text("[family]\ndepth = 8\n")
        (folder / "arms.toml").write_text('[a]\n[b]\nnetwork = "base"\n')
        (folder / "run").mkdir()
        (folder / "run" / "config.toml").write_text(self.valid)
        make: Callable[[random.Random, Path], Trial] = rng.choices(
            [self.option, self.flag, self.words, self.place, self.toml, self.raw, self.whole],
            [30, 20, 15, 8, 20, 6, 1.25],
        )[0]
        return make(rng, folder)

    def command(self, rng: random.Random, verb: str, source: str = "some.toml") -> list[str]:
        """The shortest command of a verb that is right."""
        more = {
            "transfer": ["run", "--host=exec:python3"], "fastest": [source, "--accuracy-floor=-1"],
            "compare": [source, "arms.toml"], "reproduce": ["table2"], "export": ["run", "--to=onnx"], "demo": [],
            "doctor": [], "options": [source], "completion": ["bash"], "watch": ["run", "--once"], "store": ["ls"],
            "measure": [rng.choice([source, "cifar_resnet:8"])], "inspect": [rng.choice([source, "cifar_resnet:8"])],
        }  # fmt: skip
        return [verb, *more.get(verb, [source])]

    def option(self, rng: random.Random, folder: Path) -> Trial:
        """One to three options of the configuration with other values."""
        table, choice, option = rng.choice(self.options)
        key = f"{table}.{option}"
        words = [f"--{key}={self._text(rng)}"]
        if choice and option != self.named[table].key:
            words.insert(0, f"--{table}.{self.named[table].key}={choice}")
        if rng.random() < 0.2:
            other = rng.choice(self.options)
            words.append(f"--{other[0]}.{other[2]}={self._text(rng)}")
        command = self.command(rng, rng.choice(self.configured))
        return Trial("a configuration's option", (*command, *words))

    def flag(self, rng: random.Random, folder: Path) -> Trial:
        """An option of a verb with another value."""
        verb = rng.choice(self.verbs)
        command = self.command(rng, verb)
        names = [name for name in self.flags[verb] if name not in ("--help", "-h", "--version")]
        if names and rng.random() < 0.8:
            text = self._text(rng)
            command += rng.choice([[f"{rng.choice(names)}={text}"], [rng.choice(names), text]])
        elif len(command) > 1:
            command[rng.randrange(1, len(command))] = self._text(rng)
        return Trial("a verb's option or argument", tuple(command))

    def words(self, rng: random.Random, folder: Path) -> Trial:
        """Words doubled, left out, in another order, misspelt, or of another verb."""
        command = self.command(rng, rng.choice(self.verbs))
        if rng.random() < 0.6:
            command.append(rng.choice(self.flags[rng.choice(self.verbs)] or ["--x"]))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(command) + 1)
            match rng.randrange(5):
                case 0:
                    del command[at : at + 1]
                case 1:
                    command[at:at] = command[max(0, at - 2) : at]
                case 2:
                    command.insert(at, self._text(rng))
                case 3:
                    command[at : at + 1] = [damaged(rng, each) for each in command[at : at + 1]]
                case _:
                    command[1:] = rng.sample(command[1:], len(command[1:]))
        return Trial("words", tuple(_safe(command)))

    def place(self, rng: random.Random, folder: Path) -> Trial:
        """Files where folders belong, and the reverse; nothing, links to themselves, and what is no text."""
        name = rng.choice(
            ["some.toml", "arms.toml", "run", "run/config.toml", "out", "x.onnx", "out/config.toml", "data"]
        )
        target = folder / name
        for each in [target, *target.parents]:
            if each.is_file() and each != target:
                each.unlink()
        target.parent.mkdir(exist_ok=True, parents=True)
        if target.is_dir() and not target.is_symlink():
            target.rename(folder / "before")
        target.unlink(missing_ok=True)
        match rng.randrange(6):
            case 0:
                target.mkdir()
            case 1:
                target.symlink_to(target.name)
            case 2:
                target.write_bytes(rng.randbytes(rng.randrange(200)))
            case 3:
                os.mkfifo(target) if name == "out" else target.symlink_to("/dev/null")
            case 4:
                target.write_text("x" * 10)
        verb = rng.choice(self.verbs)
        command = self.command(rng, verb)
        if "--out" in self.flags[verb] and rng.random() < 0.7:
            command.append(f"--out={rng.choice(['out', 'out/in', 'some.toml', 'run'])}")
        if verb in self.configured and rng.random() < 0.5:
            command += ["--data.name=image_folder", "--data.path=data"]
        if verb in ("measure", "inspect"):
            command[1] = rng.choice(["x.onnx", "run", "some.toml"])
        if verb == "store":
            command = [verb, rng.choice(["ls", "export", "import"]), *rng.choice([[], ["out"], ["out.csv"]])]
            command += rng.choice([[], ["--path=out"], ["--path=out/x"]])
        return Trial("files and folders", tuple(command))

    def toml(self, rng: random.Random, folder: Path) -> Trial:
        """A TOML file that is valid but for some values, tables or keys."""
        lines = self.valid.splitlines()
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(lines))
            name, equals, _value = lines[at].partition(" = ")
            match rng.randrange(5):
                case 0 | 1 if equals:
                    lines[at] = f"{name} = {rng.choice(TOMLS)}"
                case 2:
                    lines.insert(rng.randrange(len(lines)), lines[at])
                case 3:
                    lines[at] = damaged(rng, lines[at])
                case _:
                    table, _choice, option = rng.choice(self.options)
                    more = [f"{table} = {rng.choice(TOMLS)}", f"[{table}.{option}]", f"[[{table}]]", f"{option} = 1"]
                    lines.insert(rng.choice([0, at]), rng.choice(more))
        return self._file(rng, folder, "\n".join(lines).encode(errors="surrogatepass"), "a TOML file")

    def raw(self, rng: random.Random, folder: Path) -> Trial:
        """A file of random bytes, of deep brackets, of nothing, or a valid one that is cut or has another bit."""
        content = bytearray(self.valid.encode())
        match rng.randrange(7):
            case 0:
                content = bytearray(rng.randbytes(rng.randrange(400)))
            case 1:
                del content[rng.randrange(len(content)) :]
            case 2:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            case 3:
                content = bytearray(f"seed = {'[' * DEEP}{']' * DEEP}", "ascii")
            case 4:
                content = bytearray(".".join(["[a"] + ["a"] * DEEP) + "]", "ascii")
            case 5:
                content = bytearray(b"\xff\xfe" + self.valid.encode("utf-16-le"))
            case _:
                content = bytearray(b"a = 1\n" * rng.choice([0, 2, 100_000]))
        return self._file(rng, folder, bytes(content), "bytes")

    def whole(self, rng: random.Random, folder: Path) -> Trial:
        """A plan that is made, of a small network with other values."""
        table = rng.choice(["design", "calibrate", "survey", "strategy", "train", "split", "family", "constraints"])
        name = {"family": "cifar_resnet", "strategy": "differentiable", "train": "paper"}.get(table, "")
        option = rng.choice(sorted(TABLES[table].options(name)))
        text = rng.choice([str(10 ** rng.randint(0, 18)), str(10.0 ** rng.randint(-300, 300)), self._text(rng)])
        return Trial("a whole plan", ("plan", "some.toml", "--strategy.epochs=1", f"--{table}.{option}={text}"))

    def _file(self, rng: random.Random, folder: Path, content: bytes, kind: str) -> Trial:
        name = rng.choice(["some.toml", "run", "arms.toml"])
        (folder / name / "config.toml" if name == "run" else folder / name).write_bytes(content)
        if name == "arms.toml":
            return Trial(kind, ("compare", "some.toml", name))
        verb = rng.choice([*self.configured, "export"] if name == "run" else self.configured)
        return Trial(kind, tuple(self.command(rng, verb, name)))

    def _text(self, rng: random.Random) -> str:
        return damaged(rng, rng.choice(TEXTS)[:1000]) if rng.random() < 0.2 else rng.choice(TEXTS)


def _safe(command: Sequence[str]) -> list[str]:
    """A command that does not wait for a run to go on."""
    return [*command, *(["--once"] if command[:1] == ["watch"] and "--once" not in command else [])]


def judged(trial: Trial, outcome: Outcome) -> str:
    """What is wrong with the way in which a command ended; "" for nothing."""
    trouble = outcome.trouble()
    last = [line for line in outcome.err.splitlines() if line.strip()][-1:]
    if trouble or outcome.code == 0:
        return trouble
    if last and last[0].removeprefix("htas: ") == "accepted":
        return ""
    words = last[0].removeprefix("htas: ")
    sentences = [line for line in outcome.err.splitlines() if line.startswith("htas: ")]
    if len(sentences) > 1:
        return f"{len(sentences)} sentences"
    if not words.isprintable():
        return f"a sentence with control characters: {words!a}"
    if not any(each in words for each in _subjects(trial)):
        return f"a sentence that names neither option nor file: {words}"
    return ""


def _subjects(trial: Trial) -> Iterator[str]:
    """What a sentence may name: an option, a file, a verb, or a word of the command."""
    yield from (
        " --",
        " called ",
        "HTAS_STORE",
        "every word of a command",
        "verb",
        "table",
        "config.toml",
        "no measurements",
    )
    for word in trial.argv:
        name, _, value = word.partition("=")
        for part in filter(None, (name.lstrip("-"), value, word)):
            yield from (part[:20], repr(part[:12])[1:-1], sentence(part)[:12], sentence(str(Path(part)))[:12])
    yield from ("CONFIG", "RUN", "ARMS", "the following arguments are required")
    yield from (f"{table}{more}" for table in ("seed", *TABLES) for more in (".", ":", " "))


def tried(maker: Maker, seed: int, number: int) -> tuple[Trial, Outcome]:
    """One trial and how it ended."""
    rng = drawn(seed, number)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trial = maker.trial(rng, folder)
        os.chdir(folder)
        try:
            with without_work(trial.kind == "a whole plan"):
                began = time.process_time()
                outcome = called(trial.argv, LIMIT)
                if time.process_time() - began > BUSY:
                    outcome = replace(outcome, code=None)
        finally:
            os.chdir(here)
            sys.path[:] = [each for each in sys.path if each != name]
    return trial, outcome


def warm(folder: Path) -> None:
    """Import what commands import with their first use, which takes longer than the limit on a busy machine."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent with a torch for CPUs"))
    (folder / "small.toml").write_text("[family]\ndepth = 8\n")
    outcome = called(("plan", str(folder / "small.toml"), "--strategy.epochs=1"), 300)
    assert outcome.code == 0, outcome


def main() -> int:
    """Try them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    tally, maker, accepted = Tally(), Maker(), 0
    with tempfile.TemporaryDirectory() as store, mock.patch.dict(os.environ, HTAS_STORE=f"{store}/store.sqlite"):
        warm(Path(store))
        for number in range(options.first, options.first + options.count):
            trial, outcome = tried(maker, options.seed, number)
            accepted += "accepted" in outcome.err[-20:] or outcome.code == 0
            again = f"--seed {options.seed} --first {number} --count 1: {ascii(' '.join(trial.argv))[:200]}"
            tally.add(trial.kind, trouble := judged(trial, outcome), again)
            if trouble:
                print(f"{again}: {trouble}", file=sys.stderr, flush=True)
    print(f"{accepted} of {options.count} were accepted")
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
