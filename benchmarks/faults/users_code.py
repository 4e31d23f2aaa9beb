"""Modules of a user's that are wrong in one place each: a plug-in of every kind, and every way of a call's going wrong.

`trials` gives all of them; inputs.py draws from them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

RAISED = (
    'raise ValueError("boom")',
    "raise KeyError(3)",
    "raise RuntimeError",
    "1 / 0",
    "assert False",
    "nosuch",
    "None.nosuch",
    "(lambda f: f(f))(lambda f: f(f))",
    "raise OSError(5, 'an error of the disk')",
    "raise FileNotFoundError(2, 'No such file', '/x/y')",
    "raise MemoryError",
    "raise StopIteration",
    "raise OverflowError('too large')",
    "raise SystemExit(3)",
    "import nosuch_package",
    "import torch; torch.zeros(2, 3) @ torch.zeros(2, 3)",
)
"""Statements that raise, in the user's file."""
RETURNED = ("None", "'text'", "3", "(1, 2)", "[]", "{}", "(None, None)", "float('nan')", "object()", "-1", "10**30")
"""Values of the wrong kind."""

MODULE = '''\
"""A plug-in of every kind."""
#@module
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from htas.datasets import Dataset, Images
from htas.models import ModelFamily
from htas.runtimes import Program, Runtime
from htas.metrics import CountedMetric, Metric
from htas.graph import Arch
from htas.search.problem import SearchOutcome
from htas.strategies import Strategy
from htas.timing.bench import Timer
from htas.timing.measurement import Measurement


@dataclass(frozen=True)
class Data(Dataset):
    count: int = 24
    classes: ClassVar = 2  #=classes
    shapes: ClassVar = ((3, 8, 8),)  #=shapes
    mean: ClassVar = (0.5, 0.5, 0.5)  #=mean
    std: ClassVar = (0.25, 0.25, 0.25)  #=std
    flip: ClassVar = True  #=flip
    crop: ClassVar = 1  #=crop

    def __post_init__(self):
        #@Data.__post_init__
        pass

    def read(self, part):
        #@Data.read
        generator = torch.Generator().manual_seed(len(part))
        labels = torch.arange(self.count) % 2
        images = torch.randint(0, 256, (self.count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        images[:, :, :, :4] = (labels * 200)[:, None, None, None].to(torch.uint8)
        #@Data.images
        return Images(images, labels)  #=read


@dataclass(frozen=True)
class Net(ModelFamily):
    width: int = 8

    def build(self, classes):
        #@Net.build
        return nn.Sequential(
            nn.Conv2d(3, self.width, 3, padding=1, bias=False), nn.BatchNorm2d(self.width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), Seen(), nn.Flatten(), nn.Linear(self.width, classes))

    def reset(self, module):
        #@Net.reset
        super().reset(module)

    def check(self, module, example, classes):
        #@Net.check
        return None

    def member(self, blocks):
        #@Net.member
        return f"net with {blocks} blocks"

    @property
    def source(self):
        #@Net.source
        return "text"

    @property
    def title(self):
        #@Net.title
        return "net"


class Seen(nn.Module):
    def forward(self, x):
        #@Net.forward
        if self.training:
            #@Net.forward_in_training
            pass
        return x


@dataclass(frozen=True)
class Lasting:
    seconds: float

    def __call__(self):
        #@Slow.run
        pass


class Clock(Timer):
    shortest: ClassVar = 1e-9

    def time(self, call, loops):
        #@Slow.time
        return loops * call.seconds


@dataclass(frozen=True)
class Slow(Runtime):
    beat: float = 1.0

    @classmethod
    def precisions(cls, device):
        #@Slow.precisions
        return ("fp32",)

    def compile(self, model, example):
        #@Slow.compile
        return Program(Lasting(1e-9 * sum(each.numel() for each in model.parameters())), model)

    def compile_layer(self, layer):
        #@Slow.compile_layer
        return Program(Lasting(1e-6 * (1 + layer.outputs // 4)), lambda *inputs: layer.build()(*inputs))

    def describe(self):
        #@Slow.describe
        return {"clock": "scripted"}

    def timer(self):
        #@Slow.timer
        return Clock()


@dataclass(frozen=True)
class Bytes(CountedMetric):
    unit: ClassVar = "bytes"  #=unit
    units: ClassVar = {"kB": 1e3}  #=units

    @classmethod
    def cost(cls, costs):
        #@Bytes.cost
        return costs.summed(cls)

    def count(self, case):
        #@Bytes.count
        with torch.random.fork_rng(devices=[]):
            model = case.build() if not isinstance(case, nn.Module) else case
        return sum(weight.nbytes for weight in model.parameters())


@dataclass(frozen=True)
class Watts(Metric):
    unit: ClassVar = "W"  #=watts

    def measure(self, cases, *, on_round=None, pending=None):
        #@Watts.measure
        return [Measurement((1.0,), self.unit) for case in cases]


@dataclass(frozen=True)
class Seek(Strategy):
    how: str = "narrow"

    @property
    def charged(self):
        #@Seek.charged
        return "table"

    @property
    def title(self):
        #@Seek.title
        return "seek"

    @property
    def files(self):
        #@Seek.files
        return ()

    def check(self):
        #@Seek.check
        return None

    def training_images(self, weights):
        #@Seek.training_images
        return 0.0

    def search(self, problem):
        #@Seek.search
        arch = problem.space.narrowest
        #@Seek.arch
        def validate(archs):
            #@Seek.validate
            return [0.0] * len(archs)
        return SearchOutcome(arch, (), True, "nothing to find", validate, seconds=0.0)
'''
"""Lines `#@place` are where a call may go wrong, and `#=name` those whose value may be another."""

CALLS = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        #@Pairs.__len__
        return self.count

    def __getitem__(self, number):
        #@Pairs.__getitem__
        image = transform(torch.full((3, 8, 8), float(number % 2)))
        #@Pairs.item
        return image, number % 2


def transform(image):
    #@transform
    return image


def collate(items):
    #@collate
    return torch.stack([each for each, _ in items]), torch.tensor([each for _, each in items])


def begin(number):
    #@begin
    pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x):
        #@Net.forward
        if self.training:
            #@Net.forward_in_training
            pass
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def loss_fn(outputs, targets):
    #@loss_fn
    return nn.functional.cross_entropy(outputs, targets)


def eval_fn(outputs, targets):
    #@eval_fn
    return (outputs.argmax(1) == targets).float().mean()


def distill_fn(outputs, teacher, targets):
    #@distill_fn
    return nn.functional.mse_loss(outputs, teacher)


def train_fn(network, teacher):
    #@train_fn
    pass


def score_func(network):
    #@score_func
    return 0.5


FUNCTIONS = {"loss_fn": loss_fn, "eval_fn": eval_fn, "distill_fn": distill_fn}
WHOLE = {**FUNCTIONS, "train_fn": train_fn, "score_func": score_func}


def run(out, whole, workers):
    import htas

    train, test = Pairs(24), Pairs(12)
    if workers >= 0:
        more = {"num_workers": workers, "collate_fn": collate, "worker_init_fn": begin if workers else None}
        train, test = (DataLoader(each, 4, **more) for each in (train, test))
    htas.optimize(
        Net(), torch.zeros(1, 3, 8, 8), (train, test), trained=False, epochs=1, out=out,
        constraints={"latency": "95%"},
        target=htas.Target(runtime="mine:Slow", threads=1, batch=1), **(WHOLE if whole else FUNCTIONS),
        options={"survey.rounds": 1, "survey.store": "none", "survey.undecided": 1.0, "calibrate.networks": 8,
                 "design.groups": 2, "train.batch": 8, "train.warmup": 0, "train.precision": "fp32"})
"""
"""A program that calls htas.optimize."""

VALUES = {
    "classes": ("0", "-1", "1", "'two'", "None", "2.5", "10**9", "3", "True"),
    "shapes": (
        "()",
        "None",
        "(3, 8, 8)",
        "((3, 8),)",
        "((0, 8, 8),)",
        "((3, 10**6, 10**6),)",
        "((3, -8, 8),)",
        "[[3, 8, 8]]",
        "((3, 8, 8), (3,))",
        "'3x8x8'",
        "((3, 8.0, 8),)",
    ),
    "mean": ("()", "(0.5,)", "(0.5,) * 4", "0.5", "None", "('a', 'b', 'c')", "(float('nan'),) * 3", "[0.5] * 3"),
    "std": (
        "()",
        "(0.5,)",
        "(0.5,) * 4",
        "(0.5, 0, 0.5)",
        "(-1, 1, 1)",
        "None",
        "(float('nan'),) * 3",
        "(float('inf'),) * 3",
        "(1e-30,) * 3",
        "torch.ones(3)",
    ),
    "flip": ("None", "'no'", "2"),
    "crop": ("-1", "1.5", "'x'", "None", "10**7", "True"),
    "read": (
        "Images(images.numpy(), labels)",
        "Images(images, labels.numpy())",
        "(images, labels)",
        "Images(images, None)",
        "Images(images.float(), labels)",
        "Images(images[:0], labels[:0])",
        "Images(images, labels - 1)",
        "Images(images, labels.float())",
        "Images(images, labels[:5])",
        "Images(images[:, :1], labels)",
        "Images(images, labels.to(torch.uint64) + 2**63)",
        "Images(images.to('meta'), labels)",
        "Images(images.to_sparse(), labels)",
        "Images(images, labels * 0)",
        "Images(images, labels[:, None])",
        "Images(images, labels.tolist())",
        "Images(None, labels)",
        "Images(images)",
        "images",
    ),
    "unit": ("None", "3", "''"),
    "units": ("None", "3", "{'kB': 'x'}", "{3: 1}"),
    "watts": ("None", "3"),
}
"""Attributes of the wrong kind."""
SHAPES = {
    "Plain": "class Plain(Data):\n    more: int = 3\n",
    "NoDataclass": "class NoDataclass(Dataset):\n    def read(self, part):\n        return None\n",
    "Unfrozen": "@dataclass\nclass Unfrozen(Strategy):\n    how: int = 3\n"
    "    def search(self, problem):\n        return None\n",
    "Abstract": "@dataclass(frozen=True)\nclass Abstract(Dataset):\n    count: int = 3\n",
    "Undefined": "@dataclass(frozen=True)\nclass Undefined(Data):\n    more: 'Nosuch' = 3\n",
    "Odd": "@dataclass(frozen=True)\nclass Odd(Data):\n    more: complex = 3j\n",
    "OddDefault": "@dataclass(frozen=True)\nclass OddDefault(Data):\n    more: object = object()\n",
    "Factory": "from dataclasses import field\n@dataclass(frozen=True)\nclass Factory(Data):\n"
    "    more: list = field(default_factory=lambda: 1 / 0)\n",
    "Required": "@dataclass(frozen=True, kw_only=True)\nclass Required(Data):\n    more: int\n",
    "Init": "@dataclass(frozen=True)\nclass Init(Data):\n    def __init__(self):\n        pass\n",
    "Meta": "class Kind(type(Dataset)):\n    def __call__(cls, *a, **k):\n        return None\n"
    "@dataclass(frozen=True)\nclass Meta(Data, metaclass=Kind):\n    pass\n",
    "function": "def function():\n    return 3\n",
    "number": "number = 3\n",
    "Dataset": "",
    "nosuch": "",
}
"""Classes that are none as they should be, by name."""
NAMES = (
    ".:x",
    ":",
    ":x",
    "x:",
    "..:x",
    "mine:",
    "mine.:Data",
    ".mine:Data",
    "mine:Data:Data",
    "mine:Data.read",
    "../../x",
    "/etc/x",
    "mine\0:Data",
    "__main__:Data",
    "builtins:object",
    "os:system",
    "mine::Data",
    "mine: Data",
    " mine:Data",
    "a b:c",
    "mine:__doc__",
    "mine:\ud800",
    "1:2",
    "mine/x:Data",
    "htas:Dataset",
    "htas.datasets:Dataset",
    "htas.datasets.digits:Digits",
    "sys:exit",
    "antigravity2:x",
    "x" * 300 + ":y",
)
"""Names that name nothing that can be used, or something that should not be."""


@dataclass(frozen=True)
class Trial:
    """A program of the user's, and what to do with it."""

    kind: str
    what: str
    """In words, to do the same again."""
    files: tuple[tuple[str, str], ...]
    """Name and text of each file."""
    options: tuple[str, ...] = ()
    """Of the command; for a program that calls htas.optimize, `whole` and the number of workers instead."""
    raises: str = ""
    """The file that raises, which a sentence must name; empty where nothing raises for sure."""


def _set(text: str, place: str, statement: str) -> str:
    """The module with a statement at a place."""
    marked = f"{'open({}, {}).close(); '.format(repr('called'), repr('w')) if place != 'module' else ''}{statement}"
    changed = re.sub(rf"^( *)#@{re.escape(place)}$", lambda match: f"{match[1]}{marked}", text, count=1, flags=re.M)
    assert changed != text, place
    return changed


def _valued(text: str, name: str, value: str) -> str:
    """The module with another value."""
    sign = "return " if name == "read" else r"\w+: ClassVar = "
    changed = re.sub(rf"^(.*?{sign}).*#={name}$", lambda match: f"{match[1]}{value}", text, count=1, flags=re.M)
    assert changed != text, name
    return changed


def _places(text: str) -> list[str]:
    return re.findall(r"#@(\S+)", text)


OTHERS = {
    "Data.images": (
        "images = images.numpy()",
        "labels = labels + 2**62",
        "images[0] = 0; labels[:] = 7",
        "self.count = 3",
    ),
    "Seek.arch": (
        "arch = None",
        "arch = 'x'",
        "arch = Arch({}, {})",
        "arch = Arch({'nosuch': 3}, {})",
        "arch = Arch({k: v + 1000 for k, v in arch.widths.items()}, arch.depths)",
        "arch = Arch({k: 0 for k in arch.widths}, arch.depths)",
        "arch = Arch({k: -v for k, v in arch.widths.items()}, arch.depths)",
        "arch = Arch({k: 'x' for k in arch.widths}, arch.depths)",
    ),
    "Net.forward": ("x = x * float('nan')", "x = x.double()", "x = x.detach()", "x = x[:1]", "x = x.numpy()"),
    "Pairs.item": (
        "return image, 'cat'",
        "return image",
        "return image, 2**64 - 1",
        "return image, -1",
        "return image, 7",
        "return image, float('nan')",
        "return image.numpy(), 1",
        "return image * float('inf'), number % 2",
        "return image * float('nan'), number % 2",
        "return image[:2], 1",
        "return image.byte(), 1",
        "return image[:, :number % 3 + 1], 1",
        "return {'x': image, 'label': 1}",
        "return (image, image), 1",
        "return [], []",
        "return image.numpy().tolist(), 1",
        "return image.to('meta'), 1",
        "return torch.zeros(0), 1",
    ),
}
"""Other statements at some places."""


def trials() -> Iterator[Trial]:
    """Every trial."""
    for place in _places(MODULE):
        statements = [(each, "mine.py") for each in RAISED] + [(f"return {each}", "") for each in RETURNED]
        for statement, raises in statements + [(each, "") for each in OTHERS.get(place, ())]:
            if place == "module" and statement.startswith("return"):
                continue
            text = _set(MODULE, place, statement)
            yield Trial("plug-in", f"{place}: {statement}", (("mine.py", text),), _command(), raises)
    for name, values in VALUES.items():
        for value in values:
            yield Trial("attribute", f"{name} = {value}", (("mine.py", _valued(MODULE, name, value)),), _command())
    for name, text in SHAPES.items():
        table = "strategy" if name == "Unfrozen" else "data"
        yield Trial("class", name, (("mine.py", f"{MODULE}\n\n{text}"),), _command(f"--{table}.name=mine:{name}"))
    for content in (
        "",
        "\0",
        "def f(:\n",
        "x = (" * 300,
        "raise SystemExit",
        "import mine",
        "from mine import Data",
        "\ufeff#",
    ):
        yield Trial("class", f"a file {content[:20]!r}", (("mine.py", content),), _command())
    for option in ("data.name", "family.name", "strategy.name", "target.runtime"):
        for name in NAMES:
            yield Trial("name", f"{option}={name!r}", (("mine.py", MODULE),), _command(f"--{option}={name}"))
    for name in NAMES:
        words = ("--family.name=custom", f"--family.factory={name}")
        yield Trial("name", f"family.factory={name!r}", (("mine.py", MODULE),), _command(*words))
        more = f'--constraints.metrics={{"{name}" = "50%"}}'
        yield Trial("name", f"constraints.metrics={name!r}", (("mine.py", MODULE),), _command(more))
    for place in _places(CALLS):
        statements = [(each, "calls.py") for each in RAISED] + [(f"return {each}", "") for each in RETURNED]
        for statement, raises in statements + [(each, "") for each in OTHERS.get(place, ())]:
            files = (("mine.py", MODULE), ("calls.py", _set(CALLS, place, statement)))
            whole = str(place in ("train_fn", "score_func"))
            workers = {"collate": "0", "begin": "1"}.get(place, "-1")
            yield Trial("optimize", f"{place}: {statement}", files, (whole, workers), raises)
            if place == "Pairs.__getitem__":
                yield Trial("optimize", f"{place} in a worker: {statement}", files, (whole, "1"), raises)


def _command(*more: str) -> tuple[str, ...]:
    return (
        "--data.name=mine:Data",
        "--family.name=mine:Net",
        "--target.runtime=mine:Slow",
        "--strategy.name=mine:Seek",
        '--constraints.metrics={"mine:Bytes" = "90%", "mine:Watts" = "100%"}',
        "--target.threads=1",
        "--target.batch=1",
        "--survey.rounds=1",
        "--survey.store=none",
        "--survey.undecided=1",
        "--calibrate.networks=8",
        "--design.groups=2",
        '--design.spaces=["hardware"]',
        "--train.epochs=1",
        "--train.warmup=0",
        "--train.rest=0",
        "--train.batch=8",
        "--train.precision=fp32",
        *more,
    )
