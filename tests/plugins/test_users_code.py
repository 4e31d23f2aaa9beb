"""A class of the user's that fails or returns something else is one sentence, with their file; a fault here is not."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from htas import cli, datasets, plugins, strategies
from htas.console.blame import blame, is_users, users_faults
from htas.datasets import Dataset
from htas.errors import UserError
from htas.graph import Arch, trace
from htas.graph.layer import Layer
from htas.metrics.latency import Latency
from htas.run import plan
from htas.run.config import read
from htas.spaces.space import Space
from htas.strategies import Strategy
from htas.timing.target import Target
from htas.training.layout import CopyingViews

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from htas.datasets import Dataset, Images
from htas.strategies import Strategy

@dataclass(frozen=True)
class Data(Dataset):
    classes: ClassVar = 2
    shapes: ClassVar = ((3, 8, 8),)
    mean: ClassVar = (0.5,) * 3
    std: ClassVar = (0.25,) * 3
    crop: ClassVar = 0
    def read(self, part):
        labels = torch.arange(20) % 2
        images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
        return Images(images, labels)

class NoDataclass(Data.__mro__[1]):
    pass

@dataclass
class Unfrozen(Strategy):
    def search(self, problem):
        return None

@dataclass(frozen=True)
class Abstract(Strategy):
    pass

@dataclass(frozen=True)
class Undefined(Data):
    more: "Nosuch" = 3

@dataclass(frozen=True)
class Search(Strategy):
    def search(self, problem):
        return None
"""


def module(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> Path:
    """`mine.py` of this text, which can be imported."""
    file = folder / "mine.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return file


def loaded(name: str = "mine:Data") -> object:
    return datasets.load(plugins.find(datasets, Dataset, name)())  # type: ignore[type-abstract]


@pytest.mark.parametrize(
    "line, statement, said",
    [
        (
            "return Images",
            "raise KeyError(3)",
            r"code of your own raised KeyError: 3 \(.*mine.py, line 18\); mend it there",
        ),
        ("return Images", "raise SystemExit(3)", r"raised SystemExit: 3 \(.*mine.py, line 18\)"),
        ("return Images", "torch.zeros(2, 3) @ images", r"raised RuntimeError: .* \(.*mine.py, line 18\)"),
        ("return Images", "return None", r"mine:Data.read\(\) must be Images, it is None; mend it there"),
        ("return Images", "return images, labels", r"mine:Data.read\(\) must be Images, it is tuple of Tensor, Tensor"),
        (
            "return Images",
            "return Images(images.numpy(), labels)",
            "must be a torch tensor with values, they are ndarray",
        ),
        ("mean:", "mean: ClassVar = (0.5,)", "has 1 mean for 3 channels; give one for each"),
        ("std:", "std: ClassVar = (0.5, 0, 0.5)", "has the std 0 in channel 1, which must be 0.0001 or more"),
        ("crop:", "crop: ClassVar = -1", "has crop = -1, pixels padded on each side, which must be 0 to 8"),
        ("classes:", "classes: ClassVar = 'two'", "mine:Data.classes must be int, it is 'two'"),
        ("classes:", "classes: ClassVar = 10**9", "has 1000000000 classes, which must be 1 to 1000000"),
        ("shapes:", "shapes: ClassVar = ((3, 10**6, 10**6),)", "has inputs of 3,000,000,000,000 numbers"),
        ("    def read(self, part)", "    def read(self):", r"mine:Data.read\(\) must take what its contract says"),
    ],
)
def test_a_data_set_that_is_wrong(
    line: str, statement: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = MODULE.splitlines()
    place = next(number for number, each in enumerate(lines) if each.lstrip().startswith(line.strip()))
    lines[place] = " " * (len(lines[place]) - len(lines[place].lstrip())) + statement.strip()
    module(monkeypatch, tmp_path, "\n".join(lines))
    with pytest.raises(UserError, match=said), users_faults():
        loaded()


def test_a_data_set_that_is_right_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, tmp_path, MODULE)
    assert loaded()


@pytest.mark.parametrize(
    "name, said",
    [
        ("NoDataclass", "lacks what every Dataset has: classes, mean, shapes, std"),
        ("Unfrozen", r"is no frozen dataclass, whose fields are its options; write @dataclass\(frozen=True\)"),
        ("Abstract", "lacks what every Strategy has: search"),
        ("Undefined", "the fields of 'mine:Undefined' cannot be read"),
        ("Nosuch", "module 'mine' has no attribute 'Nosuch'"),
    ],
)
def test_a_class_that_is_no_plug_in(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, tmp_path, MODULE)
    contract = Dataset if name in ("NoDataclass", "Undefined") else Strategy
    package = datasets if contract is Dataset else strategies
    with pytest.raises(UserError, match=said):
        plugins.find(package, contract, f"mine:{name}")  # type: ignore[type-abstract]


def test_a_strategy_must_return_what_a_search_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, tmp_path, MODULE)
    search = plugins.find(strategies, Strategy, "mine:Search")()  # type: ignore[type-abstract]
    with pytest.raises(UserError, match=r"mine:Search.search\(\) must be SearchOutcome, it is None"):
        search.search(None)  # type: ignore[arg-type]


OUTCOME = """
from dataclasses import dataclass
from htas.graph import Arch, trace
from htas.search.problem import SearchOutcome
from htas.strategies import Strategy

@dataclass(frozen=True)
class Search(Strategy):
    def search(self, problem):
        arch, pool, worth = problem.space.narrowest, (), lambda arch: 0.0
        def validate(archs):
            return [0.5] * len(archs)
        HERE
        return SearchOutcome(arch, (), True, "why", validate, seconds=0.0, worth=worth, pool=pool)
"""


@pytest.mark.parametrize(
    "statement, said",
    [
        (
            "arch = Arch({'x': 3})",
            "give archs of the space tiny, it gives widths {'x': 3} and depths {}; mend it there",
        ),
        ("arch = Arch({**arch.widths, 'x': 3})", "give archs of the space tiny, it gives widths {'a': 1, 'x': 3}"),
        ("arch = Arch({'a': 2})", "give archs of the space tiny"),
        ("arch = Arch({'a': -1})", "give archs of the space tiny"),
        ("arch = None", r"arch of what mine:Search.search\(\) gives must be Arch, it is None"),
        ("pool = (Arch({'a': 7}),)", "give archs of the space tiny, it gives widths {'a': 7}"),
        ("pool = [None]", "pool of what"),
        ("validate = lambda archs: [0.5]", r"one accuracy, 0 to 1, for each of 2 archs, it is \[0.5\]"),
        ("validate = lambda archs: []", r"one accuracy, 0 to 1, for each of 2 archs, it is \[\]"),
        ("validate = lambda archs: [0.5] * 3", "for each of 2 archs, it is"),
        ("validate = lambda archs: [0.5, float('nan')]", "for each of 2 archs, it is"),
        ("validate = lambda archs: [50.0, 40.0]", "for each of 2 archs, it is"),
        (
            "validate = lambda archs: None",
            r"what validate\(\) of mine:Search.search\(\) gives must be list\[float\], it is",
        ),
        ("validate = lambda archs: ['x', 'y']", "list of str, str"),
        ("validate = None", "validate of what mine:Search.search"),
        ("worth = lambda arch: float('nan')", "a number that can be compared, it is nan"),
        ("worth = lambda arch: None", r"what worth\(\) of mine:Search.search\(\) gives must be float, it is None"),
    ],
)
def test_what_a_search_of_the_user_s_finds_is_compared_with_its_contract(
    statement: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(monkeypatch, tmp_path, OUTCOME.replace("HERE", statement))
    search = plugins.find(strategies, Strategy, "mine:Search")()  # type: ignore[type-abstract]
    problem = SimpleNamespace(space=Space("tiny", {"a": (1, 3)}, {}))
    with pytest.raises(UserError, match=said):
        outcome = search.outcome(problem)  # type: ignore[arg-type]
        outcome.validate([Arch({"a": 1}), Arch({"a": 3})])
        outcome.worth(outcome.arch)


def test_what_a_search_of_the_user_s_finds_may_be_numpy_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "import numpy; validate = lambda archs: numpy.full(len(archs), 0.25); worth = lambda arch: numpy.float32(1)"
    module(monkeypatch, tmp_path, OUTCOME.replace("HERE", more))
    search = plugins.find(strategies, Strategy, "mine:Search")()  # type: ignore[type-abstract]
    outcome = search.outcome(SimpleNamespace(space=Space("tiny", {"a": (1, 3)}, {})))  # type: ignore[arg-type]
    assert outcome.validate([outcome.arch] * 2) == [0.25, 0.25] and outcome.worth(outcome.arch) == 1


RUNTIME = """
from dataclasses import dataclass
from typing import ClassVar
from htas.runtimes import Program, Runtime
from htas.timing.bench import Timer, Turn

class Clock(Timer):
    shortest: ClassVar = 1e-9
    def time(self, call, loops):
        return 1e-3 * loops
    HERE

@dataclass(frozen=True)
class Slow(Runtime):
    @classmethod
    def precisions(cls, device):
        return ("fp32",)
    def compile(self, model, example):
        return Program(lambda: None, model)
    def describe(self):
        return {}
    def timer(self):
        return Clock()
"""


@pytest.mark.parametrize(
    "method, said",
    [
        *(
            (f"time = lambda self, call, loops: {value}", rf"mine:Clock.time\(\) must give the seconds that calls "
             rf"take, above 0, it gives {shown} for \d+ calls")
            for value, shown in (("float('nan')", "nan"), ("-1e-3", "-0.001"), ("0.0", "0"), ("float('inf')", "inf"))
        ),
        ("shortest = 1.0; time = lambda self, call, loops: 1e-3 if loops == 1 else -loops", "above 0, it gives -"),
        ("def time(self, call, loops): return None", r"mine:Clock.time\(\) must be float, it is None"),
        ("def time(self, call, loops): return 'x'", r"mine:Clock.time\(\) must be float, it is 'x'"),
        ("def time(self, call): return 1.0", r"mine:Clock.time\(\) must take what its contract says"),
        ("def settle(self, call, reading, warmup): return 0", r"mine:Clock.settle\(\) must give 1 or more calls, it"),
        ("def settle(self, call, reading, warmup): return None", r"mine:Clock.settle\(\) must be int, it is None"),
        ("def turns(self, calls, least): return []", r"Clock.turns\(\) must give one for each of 2 calls, it gives 0"),
        ("def turns(self, calls, least): return [Turn((), ()) for _ in calls]", "a turn needs readings of 1 or more"),
        ("def turns(self, calls, least): return [Turn((1.0,), (0,)) for _ in calls]", "a turn needs readings of 1 or"),
        ("def turns(self, calls, least): return [Turn((float('nan'),), (1,)) for _ in calls]", "gives nan for 1 c"),
        ("shortest = None", "mine:Clock.shortest must be float, it is None"),
    ],
)  # fmt: skip
def test_a_timer_of_the_user_s_that_gives_no_seconds_is_named(
    method: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(monkeypatch, tmp_path, RUNTIME.replace("HERE", method))
    with pytest.raises(UserError, match=said):
        Latency(Target(runtime="mine:Slow", threads=1)).measure([Layer("conv", 3, width, (8, 8)) for width in (4, 8)])


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "import nosuch", "1 / 0", "def f(:", "x = 3\nexit()"])
def test_a_module_that_fails_on_import_is_named_with_its_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = module(monkeypatch, tmp_path, text)
    with pytest.raises(UserError, match=rf"cannot import 'mine:Data' .*{file}, line \d.*; mend that file"):
        plugins.find(datasets, Dataset, "mine:Data")  # type: ignore[type-abstract]


def test_the_command_tells_the_user_s_fault_in_a_sentence_and_its_own_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module(monkeypatch, tmp_path, MODULE.replace("return Images(images, labels)", "images.nosuch"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('data.name = "mine:Data"\n')
    assert cli.main(["plan", "a.toml", "--out", "r"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
    try:
        torch.zeros(2) + "x"  # type: ignore[operator]
    except TypeError as error:
        assert is_users(error) and "test_users_code.py, line" in blame(error)


def test_a_fault_in_a_file_of_htas_stays_one() -> None:
    names: dict[str, Any] = {}
    exec(compile("def fail():\n    1 / 0\n", str(Path(datasets.__file__)), "exec"), names)
    with pytest.raises(ZeroDivisionError), users_faults():
        names["fail"]()


def test_what_a_mode_of_pytorch_s_hands_on_is_of_who_called_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef product():\n    torch.zeros(2, 3) @ torch.zeros(2, 3)\n")
    users: dict[str, Any] = {}
    exec(compile((tmp_path / "mine.py").read_text(), str(tmp_path / "mine.py"), "exec"), users)
    with pytest.raises(RuntimeError) as theirs, CopyingViews():
        users["product"]()
    assert is_users(theirs.value) and "mine.py, line 3" in blame(theirs.value)


class TwoInTraining(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return (x, x) if self.training else x


def test_a_network_that_fails_in_training_alone_is_one_sentence_before_the_survey() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), TwoInTraining(), nn.Flatten())
    network = trace(module, (torch.zeros(1, 3, 8, 8),))
    run: Any = SimpleNamespace(network=network)
    with pytest.raises(UserError, match=r"the network cannot be run in training \(AttributeError: .*flatten.*; mend"):
        plan._forward(run, module.train(), torch.zeros(2, 3, 8, 8))
    assert plan._forward(run, module.eval(), torch.zeros(2, 3, 8, 8)).shape == (2, 144)


def test_a_refusal_of_the_user_s_class_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        MODULE + "\n\n@dataclass(frozen=True)\nclass Odd(Search):\n    def __post_init__(self):\n"
        "        raise ValueError('boom')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(UserError, match=r"^strategy: mine:Odd: boom$"):
        read(None, ["--strategy.name=mine:Odd"]).config()


def test_a_worker_s_error_has_its_place_in_the_traceback_that_is_its_message() -> None:
    text = "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    error = RuntimeError(f'{text}  File "/x/my.py", line 7, in __getitem__\n    x\nKeyError: 3\n')
    assert blame(error) == "KeyError: 3 (/x/my.py, line 7)"
    assert is_users(error)
