"""The paper's tables and figures are made again beside what it prints, on a device whose latencies are made up."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_device import scripted_device

from htas.cli import main
from htas.experiments import compare
from htas.experiments.arms import Entry
from htas.experiments.reproduce import items
from htas.experiments.reproduce._tables import Row, _name, _verdict, doubted
from htas.experiments.reproduce.plan import LAMBDA, NAMES, PAPER, PUBLISHED, TAS, Plan, budget
from htas.graph.arch import Arch
from htas.report.result import Result
from htas.run.config import load
from htas.timing.target import machine

pytestmark = pytest.mark.timeout(300)  # whole runs

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "paper").glob("*.toml"))
SHORT = [
    "--split.limit=100", "--target.threads=1", "--survey.rounds=1", "--survey.store=none", "--design.groups=4",
    "--calibrate.networks=8",
    "--strategy.epochs=1", "--strategy.batch=50", "--strategy.precision=fp32",
    "--train.epochs=1", "--train.warmup=0", "--train.rest=0", "--train.batch=50", "--train.precision=fp32",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


def test_the_printed_figures_give_the_speeds_that_the_paper_claims() -> None:
    """Its abstract: about 2.2 times as fast as TAS, 3.5 times as fast as the plain ResNet-110."""
    rows = {(row["depth"], row["device"], row["method"]): row["latency_ms"] for row in PAPER["table4"]}
    assert rows[110, "gpu", "tas"] / rows[110, "gpu", "htas"] == pytest.approx(2.2, abs=0.02)
    assert rows[110, "gpu", "manual"] / rows[110, "gpu", "htas"] == pytest.approx(3.5, abs=0.02)
    assert budget("cifar100", 110, "gpu") == 0.28 and budget("cifar10", 32, "gpu") == 0.44
    both = [row for row in PAPER["table5"] if row["target"] == "cpu"]
    assert both[0]["cpu_ms"] == rows[32, "cpu", "htas"]
    for widths in (*PAPER["table2"]["cpu"].values(), *PAPER["table2"]["gpu"].values()):
        assert len(widths) == 8 and widths == sorted(widths)
        each = widths[-1] // 8
        assert all(each * group < width <= each * (group + 1) for group, width in enumerate(widths))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_at_full_length_a_row_is_the_example_of_it(path: Path) -> None:
    data, network, where, method = path.stem.split("-")
    depth, device = int(network.removeprefix("resnet")), "cuda" if where == "gpu" else "cpu"
    plan = Plan(Path("runs"), device=device, length="full")
    (arm,) = [arm for arm in plan.arms(data, depth) if arm.name == {"tas": TAS, "htas": LAMBDA}[method]]
    assert plan.config(data, depth, *arm.overrides) == load(path)


@pytest.mark.slow
def test_widths_of_a_device_of_eight_channels_at_a_time(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "out", overrides=("--survey.store=none",))
    page, (table, figure), _ = items.reproduce(plan.items(["fig3", "table2"]), plan)
    rows = [row for row in table.rows[1:] if row[0] == "32x32, 16"]
    widths = {row[1]: row[2].replace("?", "") for row in rows}
    assert widths["the paper, CPU"] == "4 5 12 16 20 24 27 32"
    # of one latency the widest is best, and 4, 12, 20 and 28 are the widest of their groups below a step
    assert widths["here, this project's rule"] == widths["the last of each group"] == "4 8 12 16 20 24 28 32"
    assert next(row[3] for row in rows if row[1] == "here, this project's rule") == "6 of 8"
    assert len(figure.rows) == 1 + 3 * 8
    (first,) = [row for row in figure.rows if row[:2] == ("32x32, 16", "13 to 16")]
    assert first[2:4] == ("16", "16")
    text = page.read_text()
    assert "Table 2: the hardware-aware space" in text and "Fig. 3" in text and "Fig. 2" not in text
    assert (tmp_path / "out" / "figures" / "fig3-32.svg").exists()
    items.reproduce(["fig2"], plan)
    assert all(title in page.read_text() for title in ("Table 2", "Fig. 2", "Fig. 3"))  # what was made before stays
    markdown = page.with_suffix(".md").read_text()
    assert markdown.index("Table 2") < markdown.index("Fig. 2") < markdown.index("Fig. 3")


@pytest.mark.slow
def test_int8_has_the_choices_of_both_precisions_and_networks_of_them(tmp_path: Path) -> None:
    """On a device that is as fast in both."""
    plan = Plan(tmp_path / "out", overrides=("--survey.store=none", "--target.threads=1"))
    page, (table,), _ = items.reproduce(plan.items(["int8"]), plan)
    rows = {row[0]: row[1:] for row in table.rows[1:]}
    assert rows["layers, 32x32, base 16"] == ("4 8 12 16 20 24 28 32",) * 2 + (" ".join(["1.00"] * 8),)
    assert len(rows) == 3 + 8 and all(row[2] == "1.00" for name, row in rows.items() if name.startswith("networks"))
    macs, milliseconds = rows["networks of group 8"][0].split(" M MACs, ")
    assert float(macs) > 4 * float(rows["networks of group 3"][0].split()[0]) > 0
    in_fp32, in_int8 = milliseconds.removesuffix(" ms").split(" and ")
    assert in_fp32 == in_int8 and float(in_int8) > 0
    text = page.with_suffix(".md").read_text()
    assert "int8 chooses as fp32 does in 24 of 24 groups" in text
    assert re.search(r"Networks of group \d take (\d\.\d\d) times as long in int8 as .*, and \1 times in fp32", text)
    assert "The base network is 1.00 times as fast as in fp32" in text
    assert (tmp_path / "out" / "figures" / "int8-32.svg").exists()


@pytest.fixture(scope="module")
def crossed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table 5, by the command."""
    folder = tmp_path_factory.mktemp("reproduce") / "out"
    assert main(["reproduce", "table5", "--quick", *SHORT, f"--data.path={images}", f"--out={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def made(crossed: Path, images: Path) -> Path:
    """Table 4 and the motivation beside it."""
    options = ["table4", "motivation", "--quick", *SHORT, f"--data.path={images}", f"--out={crossed}"]
    assert main(["reproduce", *options]) == 0
    return crossed


def section(folder: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "sections" / f"{name}.json").read_text())
    return found


@pytest.mark.slow
def test_a_table_has_the_printed_rows_beside_those_of_this_machine(made: Path) -> None:
    content = section(made, "table4")
    rows = {row[0]: dict(zip(content["headings"], row, strict=True)) for row in content["rows"]}
    paper, here = rows["ResNet-32, HTAS within 43 %"]["ms, paper"], rows["ResNet-32, HTAS within 43 %"]["ms, here"]
    assert paper == "24.4" and float(here) > 0
    assert rows["ResNet-32, HTAS within 43 %"]["times as fast as manual, paper"] == f"{56.6 / 24.4:.2f}"
    # the scripted device is as slow as a network has parameters
    manual = json.loads((made / "cifar100-resnet32-cpu-quick" / "manual-0" / "result.json").read_text())["result"]
    found = json.loads((made / "cifar100-resnet32-cpu-quick" / "HTAS-within-43---0" / "result.json").read_text())[
        "result"
    ]
    assert rows["ResNet-32, HTAS within 43 %"]["than manual, here"] == f"{manual['params'] / found['params']:.2f}"
    assert rows["ResNet-32, HTAS within 43 %"]["predicted, ms"] != "-"
    assert rows["ResNet-110, TAS, its published network"]["MACs, M, paper"] == "120"
    assert rows["ResNet-110, TAS, its published network"]["MACs, M, here"] == "120"
    assert (
        rows["ResNet-110, HTAS within 26 %"]["ms, here"] == "-"
        and rows["ResNet-32, HTAS, lambda 1"]["ms, paper"] == "-"
    )
    assert (
        "quick: 1 epoch of search, 1 of training, 100 training images" in content["facts"]["Length"]
        and "305" in content["facts"]["Length"]
    )
    assert content["facts"]["Data"] == "cifar100: PNG images, lossless"
    assert any("slip of the paper" in note for note in content["notes"])


@pytest.mark.slow
def test_networks_of_two_targets_are_measured_on_both(crossed: Path) -> None:
    content = section(crossed, "table5")
    rows = {row[0]: row for row in content["rows"]}
    assert rows["the paper's ResNet32-G, for its GPU"][4] == f"{23.5 / 21.6:.3f}"
    assert rows["the paper's ResNet32-C, for its CPU"][4] == f"{26.8 / 24.4:.3f}"
    for name in ("here, searched for A", "here, searched for B", "here, manual"):
        assert all(cell != "-" for cell in (*rows[name][1:4], rows[name][5]))
    on_a = float(rows["here, searched for B"][2]) / float(rows["here, searched for A"][2])
    assert float(rows["here, searched for A"][4]) == pytest.approx(on_a, rel=0.01)
    place = crossed / "cifar100-resnet32-cpu-quick"
    images = [json.loads(path.read_text())["images"] for path in place.glob("*/result.json")]
    assert len(images) >= 3 and set(images) == {"PNG images, lossless"}  # Table 4 may have added others
    searched = json.loads((place / "HTAS-within-43---0" / "progress.json").read_text())  # not prepared last
    assert any(line.startswith("search-hardware: ") for line in searched["lines"])
    assert {path.name for path in place.glob("latencies-*.json")} == {
        "latencies-eager-cpu-1.json", "latencies-onnxruntime-cpu-1.json"
    }  # fmt: skip


@pytest.mark.slow
def test_the_motivation_has_every_kind_on_every_runtime(made: Path) -> None:
    content = section(made, "motivation")
    assert content["headings"][:4] == ["network", "made by", "MACs saved, %", "promised by them"]
    assert {"eager", "onnxruntime"} <= set(content["headings"][4:])
    rows = {row[0]: row for row in content["rows"]}
    kinds = {row[1] for row in rows.values()}
    assert {"uniform narrowing", "TAS", "Torch-Pruning", "this project"} <= kinds
    half = rows["uniform, 50% of the MACs"]
    assert float(half[2]) == pytest.approx(50, abs=6)
    assert float(half[3]) == pytest.approx(1 / (1 - float(half[2]) / 100), abs=0.02)
    saved = [float(row[2]) for row in content["rows"]]
    assert saved == sorted(saved)
    assert any(saying.startswith("eager: of ") and "neither" in saying for saying in content["says"])
    assert all("±" in cell for row in rows.values() for cell in row[4:])


@pytest.mark.slow
def test_what_is_there_is_kept(made: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was found and trained before")

    monkeypatch.setattr(compare, "_finish", never)
    monkeypatch.setattr(compare, "prepared", never)
    before = section(made, "table4")
    options = ["table4", "--quick", *SHORT, f"--data.path={images}", f"--out={made}", "--json"]
    assert main(["reproduce", *options]) == 0
    found = json.loads(capsys.readouterr().out)  # type: ignore[attr-defined]
    assert found["page"] == str(made / "reproduce.html")
    assert found["tables"][0]["rows"][0]["network"] == "ResNet-110, manual"
    assert {**section(made, "table4"), "facts": 0} == {**before, "facts": 0}
    assert math.isfinite(float(found["tables"][0]["rows"][0]["ms, here"]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["table9"], "no table or figure called 'table9'"),
        (["table2", "--quick", "--full"], "give one of them"),
        (["table4", "--depths=50"], "--depths may name 110, 56, 32"),
        (["table4", "--depths=deep"], "--depths must be numbers of layers"),
        (["table4", "--seeds=0"], "--seeds must be 1 or more"),
        (["table5", "--second=faster", "--quick"], "--second must be options of a target"),
        (["table5", "--second=runtime=eager", "--quick"], "is the target of the first search too"),
        (["table2", "--target.runtime=abacus"], "abacus"),
        (["table2", "--design.groups=4"], "8 groups of widths up to 2 times the base width, got --design.groups=4"),
        (["fig3", "--design.expand=1"], "--design.expand=1; leave those options out"),
        (["table4", "--seed=5"], "takes no --seed, got '5': seeds go from 0 on"),
        (["table4", "--target.device=cuda"], "takes no --target.device, got 'cuda': name it with --device"),
        (["table4", "--family.depth=20"], "takes no --family.depth"),
        pytest.param(
            ["table4", "--quick", "--data.path=nowhere"],
            "no network of ResNet-32 could be trained: manual, seed 0; TAS, searched here, seed 0; ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_reproduced_is_one_sentence(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *given, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("htas: ")
    assert not (tmp_path / "out" / "reproduce.html").exists()


@pytest.mark.slow
def test_the_widths_are_surveyed_once_at_any_length(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "out"
    assert main(["reproduce", "table2", "--survey.store=none", f"--out={folder}"]) == 0
    before = (folder / "widths-cpu" / "survey.json").read_bytes()
    more = [f"--data.path={images}", "--quick", "--split.limit=50", "--survey.store=none", f"--out={folder}"]
    assert main(["reproduce", "fig2", *more]) == 0
    assert (folder / "widths-cpu" / "survey.json").read_bytes() == before


@pytest.mark.slow
def test_what_cannot_be_made_leaves_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["table4", "fig3", "--quick", "--data.path=nowhere", "--survey.store=none", f"--out={tmp_path / 'out'}"]
    assert main(["reproduce", *words]) == 2
    found = capsys.readouterr()
    assert "Fig. 3" in found.out and found.err.strip().splitlines()[-1].startswith("htas: table4: no network of")
    assert "Fig. 3" in (tmp_path / "out" / "reproduce.html").read_text()
    assert not (tmp_path / "out" / "cifar100-resnet32-cpu-quick" / "manual-0").exists()  # nothing was measured for it


def test_a_section_of_another_version_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / "sections" / "table4.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 1, "title": "Table 4"}')
    assert main(["reproduce", "fig2", f"--out={tmp_path / 'out'}"]) == 2
    assert "table4.json was not written by this version" in capsys.readouterr().err
    assert not (tmp_path / "out" / "widths-cpu").exists()


def test_a_shortened_run_is_not_called_the_papers() -> None:
    short = Plan(Path("runs"), length="full", overrides=("--train.epochs=20", "--split.limit=1000"))
    said = short.length_text(short.config("cifar10", 32))
    assert said.startswith("full, but 600 epochs of search, 25 of training, 1000 training images")
    assert said.endswith("; the paper's is 600 epochs of search and 305 of training with all images")
    whole = Plan(Path("runs"), length="full")
    assert whole.length_text(whole.config("cifar100", 32)).startswith(
        "the paper's: 600 epochs of search, 305 of training, all"
    )


def test_each_second_target_has_a_name_of_its_own() -> None:
    first = Plan(Path("runs")).config("cifar10", 32).target
    threads = 2 if first.threads != 2 else 1
    others = [replace(first, batch=1), replace(first, precision="bf16"), replace(first, threads=threads), first]
    names = [_name(other, first) for other in (*others, replace(first, runtime="openvino"))]
    assert len(set(names)) == 5
    assert names[0] == f"eager-cpu-{first.threads}-batch-1" and names[3] == f"eager-cpu-{first.threads}"


@pytest.fixture
def row() -> Result:
    return Result("manual", "cifar_resnet:32", Arch({}), "-", "-", "given", "-", {}, 69_000_000, 467_000)


def test_what_was_found_elsewhere_is_said(row: Result) -> None:
    here = {"processor": machine()["processor"], "instructions": machine()["instructions"], "gpu": machine()["gpu"]}
    there = {
        ("manual", 0): Entry(replace(row, versions=here), None),
        ("manual", 1): Entry(replace(row, versions={**here, "processor": "Cray-1"}), None),
    }
    (said,) = doubted(there)
    assert said.startswith("Found and trained on another machine (Cray-1") and said.endswith("here: manual, seed 1")


def test_the_images_named_are_those_that_were_trained_on(row: Result, images: Path) -> None:
    plan = Plan(Path("runs"), length="quick", overrides=(f"--data.path={images}",))
    config = plan.config("cifar100", 32)
    jpeg = Entry(row, None, images="JPEG images of quality 95")
    assert plan.facts(config.target, config, [jpeg])["Data"] == "cifar100: JPEG images of quality 95"
    both = plan.facts(config.target, config, [jpeg, Entry(row, None)])["Data"]
    assert both == "cifar100: JPEG images of quality 95; others PNG images, lossless"


def test_a_speed_that_the_budget_asks_for_is_called_so(row: Result) -> None:
    def arm(milliseconds: float, *shares: float) -> Row:
        return Row(shares, (milliseconds / 1e3,), None, 40.0, tuple(range(len(shares))))

    paper = {"manual": arm(56.6), PUBLISHED: arm(42.8), "ours": arm(24.4)}
    here = {"manual": arm(20.0, 0.70, 0.72), PUBLISHED: arm(15.0, 0.69, 0.71), "ours": arm(8.0, 0.60, 0.62)}
    (said,) = _verdict(32, paper, here, "ours")
    speed, asked, accuracy = said.split(". ", 2)
    assert speed == (
        "ResNet-32: ours is 2.50 times as fast as the manual network and 1.88 times as fast as TAS's published one, "
        "with 40.0 M multiply-adds (the paper's: 2.32, 1.75, 40.0 M)"
    )
    assert asked == "The first of these speeds is what the budget asks for"
    assert "10.0 ± 0.0 points (95 %, 2 seeds), a clear difference at this length" in accuracy
    here["ours"] = arm(8.0, 0.71)
    assert _verdict(32, paper, here, "ours")[0].endswith("+1.0 points, of one training each, which says little.")
    lone = {"manual": here["manual"], LAMBDA: arm(4.0, 0.5, 0.5), PUBLISHED: here[PUBLISHED]}
    assert "the paper" not in _verdict(32, paper, lone, "ours")[0]


def test_every_item_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in NAMES)
