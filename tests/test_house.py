"""The figures of the house: how many rooms, how long a file, how plain the words, how typed the walls."""

import ast
import graphlib
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from test_layout import FILES, ROOT, imports

ROOMS, LINES, UNTYPED, VAGUE = 26, 500, 25, 80
PARTICIPLES = {
    *("found", "own", "given", "known", "made", "told", "kept", "taken", "its", "said", "asked", "tried", "shown"),
    *("seen", "wanted", "drawn", "chosen", "left"),
}
"""They say how a thing came to be, and not what it is."""
LOOSE = ("dict[str, Any]", "Mapping[str, Any]")
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT.parent / folder).glob("**/*.py"))


@cache
def tree(file: Path) -> ast.Module:
    """What a file of the package says."""
    return ast.parse((ROOT / file).read_text())


def names(module: ast.Module) -> Iterator[str]:
    """Every name that a file binds."""
    for node in ast.walk(module):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name


def annotations(module: ast.Module) -> Iterator[str]:
    """The types in the signatures of a file."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            each = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            kinds = [node.returns, *(argument.annotation for argument in each if argument)]
            yield from (ast.unparse(kind) for kind in kinds if kind)


def module(file: Path) -> str:
    """`htas.graph.trace`; the name of the folder for its `__init__`."""
    return ".".join(["htas", *file.with_suffix("").parts]).removesuffix(".__init__")


def private(file: Path) -> list[str]:
    """What a file imports that is private to another room."""
    room = file.parts[0]
    return [
        f"{node.module}.{alias.name}"
        for node in imports(tree(file))
        if isinstance(node, ast.ImportFrom) and node.module and [*node.module.split("."), ""][:2] != ["htas", room]
        if node.module.startswith("htas.")
        for alias in node.names
        if any(part.startswith("_") and not part.startswith("__") for part in (*node.module.split("."), alias.name))
    ]


def test_the_readers_see_what_they_should() -> None:
    text = "import a as found\ndef given(x: dict[str, Any], *its: int) -> Mapping[str, Any]:\n    self.own = kept = x\n"
    assert sorted(names(ast.parse(text))) == ["found", "given", "its", "kept", "own", "x"]
    assert sorted(annotations(ast.parse(text))) == ["Mapping[str, Any]", "dict[str, Any]", "int"]
    assert module(Path("graph/trace.py")) == "htas.graph.trace" and module(Path("graph/__init__.py")) == "htas.graph"


def test_the_top_of_the_package_has_few_names() -> None:
    assert len([path for path in ROOT.iterdir() if path.name != "__pycache__"]) <= ROOMS


def test_no_file_is_long() -> None:
    lines = {str(file): (ROOT / file).read_text().count("\n") for file in FILES}
    assert {file: count for file, count in lines.items() if count > LINES} == {}


def test_nothing_private_is_imported_across_rooms() -> None:
    assert {str(file): private(file) for file in FILES if private(file)} == {}


def test_few_signatures_hand_on_what_nothing_types() -> None:
    loose = [kind.count(each) for file in FILES for kind in annotations(tree(file)) for each in LOOSE]
    assert sum(loose) <= UNTYPED


def test_few_names_are_bare_participles() -> None:
    vague = [f"{file}: {name}" for file in FILES for name in names(tree(file)) if name.strip("_") in PARTICIPLES]
    assert len(vague) <= VAGUE, vague


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {module(file): file for file in FILES}

    def sources(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        """The files of the package that an import runs."""
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module

    arrows = {
        name: {source for node in tree(file).body if isinstance(node, ast.Import | ast.ImportFrom)
               for source in sources(node) if source in modules} - {name}
        for name, file in modules.items()
    }  # fmt: skip
    assert list(graphlib.TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_a_script_is_imported_without_running(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--no-such-option"])
    runpy.run_path(str(path), run_name="script")
