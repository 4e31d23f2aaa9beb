"""The architecture: imports point down one list, a plug-in file holds one plug-in, and importing is quick."""

import ast
import importlib
import re
import subprocess
import sys
from abc import ABC
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import htas
from htas import datasets, metrics, models, plugins, runtimes, strategies

ROOT = Path(htas.__file__).parent
ORDER = [
    "testing",
    "cli",
    "experiments",
    "run",
    "strategies",
    "report",
    "search",
    "cost",
    "spaces",
    "metrics",
    "runtimes",
    "training",
    "models",
    "formats",
    "datasets",
    "timing",
    "graph",
    "plugins",
    "data",
    "console",
    "files",
    "text",
    "errors",
]
"""The rooms, from the command down; a file may import what stands below it, and its own room."""
TOP = ("__init__", "__main__")
"""The public page and the door: they may import anything, and nothing imports them."""
HEAVY = [
    "datasets",
    "pyarrow",
    "sklearn",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "ncnn",
    "psutil",
    "altair",
    "vl_convert",
    "accelerate",
    "optuna",
    "cyclopts",
    "PIL",
    "rich",
]
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
FOLDERS = (datasets, metrics, models, runtimes, strategies)


def part(file: Path) -> str:
    """What of ORDER a file belongs to."""
    return file.parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement, in functions too, but for those that only the type checker follows."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from imports(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from imports(node)


def imported(tree: ast.AST) -> Iterator[str]:
    """The rooms of the package that a file imports."""
    for node in imports(tree):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif node.module == "htas":
            paths = [f"htas.{alias.name}" for alias in node.names]
        else:
            assert node.level == 0, "write imports from the root: from htas.x import y"
            paths = [node.module or ""]
        for path in paths:
            if path.split(".")[0] == "htas":
                yield [*path.split("."), "__init__"][1]


def test_the_reader_of_imports_sees_what_it_should() -> None:
    text = """
import htas
from htas import cli
from os import path
if TYPE_CHECKING:
    from htas.pipeline import Figures
else:
    import htas.files
def f():
    if True:
        from htas.graph.trace import trace
"""
    assert sorted(imported(ast.parse(text))) == ["__init__", "cli", "files", "graph"]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_down(file: Path) -> None:
    here = part(file)
    assert here in (*TOP, *ORDER), f"{file} has no place in the order; give it one"
    if here in TOP:
        return
    for other in imported(ast.parse((ROOT / file).read_text())):
        assert other not in TOP, f"{file} imports the package's public page; import the file that has it"
        assert other in ORDER, f"{file} imports htas.{other}, which has no place in the order"
        assert ORDER.index(other) >= ORDER.index(here), f"{file} imports htas.{other}, which stands above it"


def test_the_order_names_nothing_twice() -> None:
    assert len(set(ORDER)) == len(ORDER)


def contract(folder: ModuleType) -> type:
    """The abstract class that a folder's files implement."""
    found = [
        thing
        for thing in vars(folder).values()
        if isinstance(thing, type) and ABC in thing.__bases__ and thing.__module__ == folder.__name__
    ]
    assert len(found) == 1, f"{folder.__name__} must define one contract, it has {found}"
    return found[0]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        pytest.param(folder, name, id=f"{folder.__name__}.{name}")
        for folder in FOLDERS
        for name in plugins.names(folder)
    ],
)
def test_a_plug_in_file_holds_exactly_one_plug_in(folder: ModuleType, name: str) -> None:
    assert plugins.find(folder, contract(folder), name).__module__ == f"{folder.__name__}.{name}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.__name__)
def test_every_folder_has_a_plug_in(folder: ModuleType) -> None:
    assert plugins.names(folder)


def test_importing_the_package_imports_no_heavy_library() -> None:
    script = f"import sys, htas; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def examples() -> list[tuple[str, str]]:
    """The plug-ins in docs/extending.md: file and text."""
    text = (ROOT.parent / "docs" / "extending.md").read_text()
    return re.findall(r"```python\n# (htas/\S+)\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(("file", "text"), examples(), ids=[file for file, _ in examples()])
def test_an_example_plug_in_keeps_its_contract(file: str, text: str) -> None:
    folder = importlib.import_module(".".join(Path(file).parent.parts))
    module = ModuleType("example")
    exec(compile(text, file, "exec"), vars(sys.modules.setdefault("example", module)))
    found = [
        thing
        for thing in vars(sys.modules.pop("example")).values()
        if isinstance(thing, type) and issubclass(thing, contract(folder)) and thing.__module__ == "example"
    ]
    assert len(found) == 1
    assert not found[0].__abstractmethods__


def test_every_folder_has_an_example() -> None:
    assert {Path(file).parent.name for file, _ in examples()} == {folder.__name__.split(".")[1] for folder in FOLDERS}
