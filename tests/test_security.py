"""What htas never does with what comes from outside: run it, unpickle it, or take it for a path."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import htas
from htas import strategies
from htas.errors import UserError
from htas.files import slug
from htas.plugins import check_name, is_path
from htas.run.config import load

ROOT = Path(htas.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
OWN_ERRORS = "strategies/_several.py"
"""Tries whether an exception of its own can be sent to another process."""
OWN_TEXT = "plugins/options.py"
"""Evaluates files of this package, which it reads instead of importing them."""


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        own = {"pickle"} if str(file).endswith(OWN_ERRORS) else set()
        assert not {name.partition(".")[0] for name in names} & MODULES - own
    for name, call in calls(file):
        options = {each.arg: ast.unparse(each.value) for each in call.keywords}
        assert name not in ("torch.load", "os.system", "os.popen", "yaml.load", "np.load", "numpy.load"), name
        assert options.get("shell") != "True" and options.get("allow_pickle", "False") == "False"
        assert name not in ("eval", "exec") or str(file).endswith(OWN_TEXT)
        assert not name.endswith((".extractall", ".unpack_archive"))


@pytest.mark.parametrize(
    "name", [".:x", "..:x", "../../x:y", "/etc/x:y", ":x", "x:", "a/b:c", "a\0:b", "a b:c", "a..b:c"]
)
def test_a_name_that_is_no_path_of_a_module_is_refused_before_anything_is_imported(name: str) -> None:
    assert not is_path(name.partition(":")[0]) or not name.partition(":")[2]
    with pytest.raises(UserError, match=r"cannot import .*; write it as 'package.module:Class'"):
        check_name("htas.strategies", name)
    with pytest.raises(UserError):
        load(None, ["--family.name=custom", f"--family.factory={name}"])


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "__init__", "_agent"])
def test_a_plug_in_is_never_named_by_a_path(name: str) -> None:
    with pytest.raises(UserError, match="no strategy called"):
        check_name(strategies.__name__, name)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a\0b", "\n", "x" * 1000])
def test_a_name_becomes_a_part_of_a_file_s_name(name: str) -> None:
    assert "/" not in slug(name) and "\0" not in slug(name) and slug(name) not in ("", ".", "..")
