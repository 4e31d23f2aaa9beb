"""Every command of the documents runs, the long ones shortened, on a device whose latencies are made up."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import pytest
from scripted_device import scripted_device

from htas.cli import main
from htas.cli.verbs import VERBS

pytestmark = pytest.mark.timeout(300)  # whole runs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ["own-model.md", "parallel.md"]
"""Pages whose commands other tests run, as they need a file of their own (tests/test_examples.py), or other processes
(tests/experiments/test_trials.py)."""
MARKDOWN = [
    *sorted(ROOT.glob("*.md")),
    *(page for folder in ("docs", "benchmarks", "examples") for page in sorted((ROOT / folder).rglob("*.md"))),
]
LIVING = [page for page in MARKDOWN if "results" not in page.relative_to(ROOT).parts]
"""Pages that change with the code; the dated ones stay as they were written."""
WORDS = {"README.md": 1300, "docs/decisions.md": 4950}
"""The most words that a page may have."""
TINY = [
    "--target.threads=1", "--survey.rounds=1", "--survey.store=none", "--survey.undecided=1",
    "--split.limit=60", "--train.epochs=1", "--train.warmup=0", "--train.rest=0", "--train.batch=30",
    "--train.precision=fp32", "--calibrate.networks=8",
]  # fmt: skip
SEARCH = {
    "differentiable": ["--strategy.epochs=1", "--strategy.batch=30", "--strategy.precision=fp32"],
    "evolution": ["--strategy.epochs=1", "--strategy.batch=30", "--strategy.precision=fp32", "--strategy.archs=20"],
}
CONFIGURED = (
    "run",
    "survey",
    "design",
    "calibrate",
    "search",
    "train",
    "sweep",
    "fastest",
    "compare",
    "demo",
    "reproduce",
)
SURVEYED = ["survey", "htas/cli/demo.toml", "--out=runs/before"]
NEEDED = {"formats.md": [SURVEYED], "measuring.md": [SURVEYED]}
"""What a page takes for done, besides a run in runs/demo."""


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line]


def shortened(words: list[str], images: Path) -> list[str]:
    """A command as it is given, with the least of everything."""
    verb = words[0]
    words = [str(images) if word == "FOLDER" else word.replace("=FOLDER", f"={images}") for word in words]
    if verb not in CONFIGURED or "--help" in words:
        return words
    named = next((word.partition("=")[2] for word in words if word.startswith("--strategy.name=")), "differentiable")
    data = [f"--data.path={images}"] if "cifar" in " ".join(words) and "--data.path" not in " ".join(words) else []
    fewer = {"fastest": ["--tries=1"], "run": ['--design.spaces=["hardware"]']}.get(verb, [])
    groups = [] if verb == "reproduce" else ["--design.groups=4"]  # of the paper's tables there are eight
    return [*words, *data, *TINY, *groups, *SEARCH[named], *fewer]


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device(pictures=True):
        yield


LONG = ("README", "quick-start", "formats", "measuring")
"""Pages whose commands take long, though none of them is a whole run."""


def _marks(page: Path) -> list[pytest.MarkDecorator]:
    long = any(line.split()[:2] in (["htas", "run"], ["htas", "reproduce"]) for line in commands(page))
    return [pytest.mark.slow, pytest.mark.timeout(1800)] if long or page.stem in LONG else []


def test_versions_that_the_installation_names_are_those_that_are_pinned() -> None:
    """PyTorch's and torchvision's, which are built for each other and come from one index."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    text = (ROOT / "docs" / "install.md").read_text()
    cpu = set(re.findall(r"install (\w+)==\S+ --index-url https://download.pytorch.org/whl/cpu", text))
    assert cpu == {"torch", "torchvision"}
    assert all(pins[name] == version for name, version in re.findall(r"(\w+)==([\d.]+)", text))


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=_marks(page)) for page in PAGES if page.name not in ELSEWHERE]
)
def test_the_commands_of_a_page_run(
    page: Path,
    images: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if page.name == "formats.md":
        shutil.copytree(finished, tmp_path / "runs" / "demo")
    for folder in ("examples", "htas", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTAS_STORE", str(tmp_path / "store.sqlite"))
    lines = [line for line in commands(page) if line.startswith("htas ")]
    for needed in NEEDED.get(page.name, []) if lines else []:
        kept = [word for word in shortened(needed, images) if not word.startswith("--survey.store")]
        assert main(kept) == 0
    for line in lines:
        words = shlex.split(line)[1:]
        if "SURVEY" in words:
            capsys.readouterr()
            main(["store", "ls", "--json"])
            words[words.index("SURVEY")] = re.findall(r'"survey": "([^"]+)"', capsys.readouterr().out)[0]
        assert main(shortened(words, images)) == 0, f"{page.name}: {line}\n{capsys.readouterr().err[-600:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_what_there_is(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in commands(page):
        words = line.split()
        if words[0] == "make":
            assert all(word in targets for word in words[1:] if "=" not in word), line
        if words[0] == "python" and len(words) > 1:
            assert (ROOT / words[1]).exists(), line
    for verb in re.findall(r"`htas ([a-z]+)", text):
        assert verb in VERBS, verb
    for name, file in re.findall(r"`([\w.]+)` in\s+\[`[\w/.]+`\]\(([^)]+\.py)\)", text):
        assert name.rpartition(".")[2] in (page.parent / file).read_text(), f"{name} is not in {file}"
    for file in re.findall(r"`(benchmarks/[\w./-]+\.(?:py|toml))`", text):
        assert (ROOT / file).exists(), file


def _anchors(page: Path) -> set[str]:
    """What the links to a page's headings end in, as GitHub spells it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", LIVING, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_read(page: Path) -> None:
    """Lines are short outside tables, code and links; pages that people open first are not long."""
    text = page.read_text()
    assert len(text.split()) <= WORDS.get(str(page.relative_to(ROOT)), 10_000)
    prose = re.sub(r"^ *```.*?^ *```$|^ *\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in re.sub(r"\]\([^)]*\)", "]", prose).splitlines():
        assert len(line) <= 120, line


def test_the_readme_shows_what_was_measured() -> None:
    folder = ROOT / "benchmarks" / "evidence"
    arms = {
        "ResNet-20, the base network": "base",
        "searched for 50 %": "knapsack, 50 %",
        "Torch-Pruning, weights kept": "pruned, local, 52 %",
        "all widths narrowed alike": "uniform, 50 %",
        "searched for 35 %": "knapsack, 35 %",
        "ResNet-8": "plain ResNet-8",
    }
    measured = json.loads((folder / "resnet20" / "latencies.json").read_text())
    results = [json.loads(path.read_text()) for path in (folder / "results").glob("cifar10-resnet20-*.json")]
    for name, arm in arms.items():
        (row,) = re.findall(rf"^\| \**{name}\** \|(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
        accuracy, deviation, share = map(float, re.findall(r"[\d.]+", row)[:3])
        own = [result for result in results if result["arm"] == arm]
        accuracies = [100 * result["accuracy"] for result in own]
        shares = [measured["over_base"][each["name"]]["ratio"] for each in own if each["name"] in measured["over_base"]]
        assert len(own) == 3 and shares
        assert accuracy == pytest.approx(mean(accuracies), abs=0.006)
        assert deviation == pytest.approx(stdev(accuracies), abs=0.006)
        assert share == pytest.approx(mean(shares), abs=0.0006)


def test_the_readmes_picture_is_drawn_from_what_was_measured(tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    subprocess.run([sys.executable, "docs/picture.py", "benchmarks/evidence", str(picture)], cwd=ROOT, check=True)
    assert picture.read_text() == (ROOT / "docs" / "accuracy-latency.svg").read_text()
