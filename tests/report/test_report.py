import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from htas.errors import UserError
from htas.files import FORMAT, from_json, to_json
from htas.graph.arch import Arch
from htas.report import read, write
from htas.report._blocks import Picture
from htas.report._content import doubts, standing, target, value
from htas.report._course import asked_share
from htas.report._draw import inline
from htas.report._figures import accuracy_over_latency, archs
from htas.report._names import family_name, network_names
from htas.report.result import Deployed, Prediction, Report, Result
from htas.report.runs import page as runs_page
from htas.report.summary import accuracy, answer, speed, summary
from htas.report.survey import page as survey_page
from htas.run.stages import _reported
from htas.search.record import EpochRecord, LimitOutcome, SearchRecord
from htas.spaces.curve import Curve, CurveRecord, Fit
from htas.text import NONE, plus_minus
from htas.timing.measurement import STUDENT, Measurement
from htas.timing.target import Target

TARGET = {"device": "cpu", "runtime": "eager", "precision": "fp32", "batch": 4, "threads": 2, "shapes": [[3, 32, 32]]}
STRANGE = "</td><script>alert(1)</script> | $a$ `b` *c* [d](http://e) & \N{SNOWMAN}\N{CJK UNIFIED IDEOGRAPH-7DB2}"


def readings(milliseconds: float, spread: float = 0.1, count: int = 21, survey: str = "one") -> Measurement:
    """Readings with a given 25th percentile and spread between the quartiles, in ms, in no order."""
    steps = [2 * spread * (place / (count - 1) - 0.25) if count > 1 else 0.0 for place in range(count)]
    random.Random(0).shuffle(steps)
    return Measurement(tuple((milliseconds + step) / 1e3 for step in steps), "s", {}, survey)


def network(name: str, measured: Measurement | None, share: float | None, **others: Any) -> Result:
    fields: dict[str, Any] = {
        "family": "cifar_resnet:20",
        "adds": "join",
        "space": name if name in ("hardware", "tas") else "-",
        "strategy": "differentiable",
        "cost": "paper, weight 2",
        "target": TARGET,
        "macs": 40_813_184,
        "params": 272_474,
        "seed": 7,
    }
    arch = Arch({"a": 16, "b": 16, "c": 24}, {"stage": 3})
    return Result(name=name, arch=arch, measured=measured, accuracy=share, **{**fields, **others})


BASE = network("base", readings(4.0), 0.9)
FOUND = network(
    "hardware",
    readings(2.0),
    0.88,
    macs=20_000_000,
    params=150_000,
    predicted=0.0015,
    recipe={"epochs": 60},
    teacher="base",
    versions={"torch": "2.13.0"},
    remarks=("trained on half the data",),
)
CURVE = CurveRecord(
    sites=("layer1.0", "layer1.1"),
    base=4,
    measured=Curve(tuple(range(1, 9)), (1e-3, 1.1e-3, 1.2e-3, 1.25e-3, 2e-3, 2.1e-3, 2.2e-3, 2.3e-3)),
    fit=Fit(0.0002, 0.5, 0.0009),
    groups=((1, 4), (5, 8)),
    choices={"hardware": (4, 8), "tas": (2, 3, 4)},
    doubts=("the fit is flat",),
)
SEARCH = SearchRecord(
    space="hardware",
    strategy="differentiable",
    cost="paper, weight 2",
    arch=FOUND.arch,
    epochs=tuple(
        EpochRecord(
            n,
            5.0 / n,
            2.0 / n,
            2.5 / n,
            0.3 * n,
            1.2 - 0.2 * n,
            1.1 - 0.2 * n,
            0.3 * n,
            9.0,
            {"a": 1 / n, "b": 0.5 / n},
        )
        for n in (1, 2)
    ),
    converged=True,
    why="median top probability 0.61",
    accuracy=0.75,
    rivals=(0.7, 0.72, 0.74, 0.8),
    rival_costs=(0.98, 1.0, 1.02, 1.04),
    seconds=62.0,
    seed=11,
)
REPORT = Report(
    title="a run",
    command="htas run config.toml",
    results=(BASE, FOUND, network("plain cifar_resnet:8", None, None, strategy="plain")),
    curves=(CURVE,),
    searches=(SEARCH,),
    machine={"processor": "Abacus 9000", "cores": 2},
    config='seed = 7\nname = "x"\n',
    dataset="digits",
    stages={"survey": 65.0, "search": 3600.0},
    remarks=("one seed only",),
    test_images=360,
    predictions=(Prediction(2.06e-3, 2e-3, 1e-5), Prediction(4.28e-3, 4e-3, 1e-5), Prediction(0.8e-3, 1e-3, 1e-5)),
    blocks={"stage": ("stage.0", "stage.1", "stage.2", "stage.3")},
)
PICTURES = ["accuracy-latency", "arch-1", "curve-1", "search-1", "predictions"]


class Page(HTMLParser):
    """Checks that tags close in order, and gathers the text and what would be fetched."""

    EMPTY = ("meta", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.said = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.ids += [given or "" for name, given in attrs if name == "id"]
        self.links += [given or "" for name, given in attrs if name in ("href", "xlink:href", "src")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a little of everything, one name of it strange."""
    folder = tmp_path_factory.mktemp("report")
    odd = network(STRANGE, readings(3.0, survey="another"), 0.85, predicted=0.002)
    paths = write(replace(REPORT, title=STRANGE, results=(*REPORT.results, odd)), folder)
    assert all(path.stat().st_size for path in paths)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def verdict(found: Measurement, base: Measurement) -> str:
    return speed(found, base).verdict


def headline(found: Result, base: Result = BASE, images: int = 360) -> str:
    return " ".join(answer(replace(REPORT, results=(base, found), test_images=images)).sentences)


def test_the_json_gives_the_report_back(tmp_path: Path) -> None:
    plain = replace(REPORT, curves=(), searches=(), results=REPORT.results[2:])
    write(plain, tmp_path)
    assert read(tmp_path) == plain
    assert read(tmp_path / "report.json") == plain
    assert json.loads((tmp_path / "report.json").read_text())["format"] == FORMAT


def test_every_record_survives_json() -> None:
    assert from_json(json.loads(json.dumps(to_json(REPORT))), Report, "it") == REPORT


def test_a_file_that_is_no_report_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"format": FORMAT, "title": "x"}))
    with pytest.raises(UserError, match=r"is not a report .* make it again"):
        read(tmp_path)


def test_a_clear_gain_is_called_faster() -> None:
    said = headline(FOUND)
    assert said.startswith(
        "The searched network is 2.00 times as fast as ResNet-20: 2.00 ms against 4.00 ms per batch, measured."
    )


def test_a_clear_loss_is_called_slower() -> None:
    said = headline(replace(FOUND, measured=readings(5.0)))
    assert said.startswith(
        "The searched network is slower than ResNet-20, 0.800 times as fast: 5.00 ms against 4.00 ms"
    )


def test_a_gain_within_the_noise_is_no_clear_difference() -> None:
    said = headline(replace(FOUND, measured=readings(3.9, spread=0.5)))
    assert said.startswith(
        "No clear difference in speed between the searched network and ResNet-20: 3.90 ms against 4.00 ms"
    )
    assert "within the noise" in said


def test_a_few_readings_claim_nothing() -> None:
    said = headline(replace(FOUND, measured=readings(1.0, count=1)))
    assert said.startswith("No clear difference in speed")
    assert "fewer than 5 readings" in said


def test_the_noise_of_separate_runs_is_that_of_both_errors() -> None:
    base = readings(2.0, 0.4, count=2001)
    noise = STUDENT * 2**0.5 * base.error
    assert 0 < noise < 0.1e-3
    assert speed(replace(base, survey="another"), base).noise == pytest.approx(noise)
    assert verdict(readings(2.0 - 1.1e3 * noise, 0.4, 2001, "another"), base) == "more"
    assert verdict(readings(2.0 - 0.9e3 * noise, 0.4, 2001, "another"), base) == "unclear"


@pytest.mark.parametrize(
    ("share", "classes", "said"), [(0.1, 10, True), (0.14, 10, True), (0.2, 10, False), (0.1, 0, False)]
)
def test_networks_that_guess_are_not_compared(share: float, classes: int, said: bool) -> None:
    """Of 360 images two standard errors of a difference from 0.1 are 4.5 to 4.8 points."""
    base, found = replace(BASE, accuracy=share), replace(FOUND, accuracy=share)
    made = answer(replace(REPORT, results=(base, found, narrowed(1.0, share)), classes=classes))
    words = f"ResNet-20 is no better than guessing, {100 * share:.2f} % with 10 classes, so no accuracy here says"
    assert made.sentences[0].startswith(words) == said
    assert ("may do as well" in " ".join(made.sentences)) != said
    assert ("is as accurate as" in " ".join(made.sentences)) != said


def test_nothing_is_concluded_from_a_network_whose_training_failed() -> None:
    """That it guesses, where the base network does not, says something of its training."""
    other = narrowed(1.0, 0.9)
    made = answer(replace(REPORT, results=(BASE, replace(FOUND, accuracy=0.1), other), classes=10))
    text = " ".join(made.sentences)
    assert made.sentences[0].startswith(
        "The searched network is no better than guessing, 10.00 % with 10 classes, where ResNet-20 has 90.00 %: its "
        "training failed and says nothing about the network; its remark says what to do. The searched network is"
    )
    assert not any(words in text for words in ("needs no search", "more accurate", "less accurate", "narrowing"))
    assert not any("accuracy" in each.label for each in made.figures)
    made = answer(replace(REPORT, results=(BASE, FOUND, replace(other, accuracy=0.1)), classes=10))
    text = " ".join(made.sentences)
    assert "narrowing all layers alike ended" not in text and "No clear difference in accuracy to ResNet-20" in text
    assert "10.00 % with 10 classes, where ResNet-20 has 90.00 %: its training failed" in text


def test_of_scores_that_are_no_shares_of_right_answers_no_noise_is_claimed() -> None:
    """R2, 1 / (1 + loss): their noise does not follow from the number of images."""
    base, found = replace(BASE, accuracy=0.6), replace(FOUND, accuracy=0.8)
    for images, words in (
        (20, "No clear difference in accuracy to ResNet-20: 80.00 % against 60.00 %, 20.00 points more, within"),
        (0, "20.00 points more accurate than ResNet-20: 80.00 % against 60.00 %, and how much of that is noise is not"),
    ):
        sentences = " ".join(answer(replace(REPORT, results=(base, found), test_images=images)).sentences)
        assert words in sentences


def test_a_difference_in_accuracy_is_judged_by_the_number_of_test_images() -> None:
    # two standard errors of 0.9 and 0.88 on 360 images: 2 sqrt((0.09 + 0.1056) / 360) = 0.0466
    assert accuracy(0.88, 0.9, 360).noise == pytest.approx(0.0466, abs=1e-4)
    assert accuracy(0.88, 0.9, 10_000).verdict == "less"
    assert "No clear difference in accuracy to ResNet-20: 88.00 % against 90.00 %, 2.00 points less" in headline(FOUND)
    assert "The searched network is 2.00 points less accurate than ResNet-20: 88.00 % against 90.00 %." in headline(
        FOUND, images=10_000
    )
    assert "The searched network is 5.00 points more accurate than ResNet-20" in headline(
        replace(FOUND, accuracy=0.95), images=10_000
    )
    assert "The searched network is as accurate as ResNet-20: 90.00 %." in headline(replace(FOUND, accuracy=0.9))


def test_what_is_not_measured_or_trained_is_said() -> None:
    said = headline(replace(FOUND, measured=None, accuracy=None))
    assert said == (
        "Not measured yet: the searched network. Nothing can be said about speed. "
        "Not trained yet: the searched network. Nothing can be said about accuracy."
    )


def test_accuracies_as_deployed_have_a_column_and_a_sentence(tmp_path: Path) -> None:
    int8 = [Deployed("int8", 0.8975, -0.0025, 0.0012, 360), Deployed("int8", 0.8810, 0.0010, None, 360)]
    base, found = replace(BASE, deployed=int8[0]), replace(FOUND, deployed=int8[1])
    sentence = "In int8, as they are deployed, the searched network has 88.10 % (+0.10 points), ResNet-20 89.75 %"
    assert sentence in headline(found, base)
    assert "as they are deployed" not in headline(FOUND) and "in int8" not in summary(REPORT).rows[0]
    report = replace(REPORT, results=(base, found, network("uniform x0.5", readings(2.5), 0.8, strategy="uniform")))
    headings, *rows = summary(report).rows
    assert headings[:4] == ("network", "accuracy", "in int8", "measured, ms")
    assert [row[2] for row in rows] == [
        "89.75 % (\N{MINUS SIGN}0.25 \N{PLUS-MINUS SIGN} 0.12 points)", "88.10 % (+0.10 points)", NONE,
    ]  # fmt: skip
    write(report, tmp_path)
    assert "+0.10 points" in (tmp_path / "report.html").read_text()
    about = "The accuracy in int8 is that of what the runtime runs, read by it on 360 images of the test split"
    assert about in (tmp_path / "report.md").read_text()


def test_a_better_rival_that_is_not_slower_is_named_on_top() -> None:
    rival = network("plain cifar_resnet:14", readings(1.9), 0.89, strategy="plain")
    slow = network("plain cifar_resnet:17", readings(3.0), 0.9, strategy="plain")
    made = answer(replace(REPORT, results=(BASE, FOUND, rival, slow), test_images=100_000))
    assert made.headline.startswith(
        "ResNet-14 is better, and needs no search: it is not slower (1.90 ms), and 1.00 points more accurate (89.00 % "
        "against 88.00 %). The searched network is 2.00 times as fast as ResNet-20"
    )
    assert not any("ResNet-14" in sentence for sentence in made.details)


def test_a_better_network_of_another_search_is_no_simpler_one() -> None:
    other = network("tas", readings(1.9), 0.89)
    made = answer(replace(REPORT, results=(BASE, FOUND, other), test_images=100_000))
    assert made.headline.startswith("The searched network")
    assert "not slower and 1.00 points more accurate (89.00 %, 1.90 ms)." in made.details[1]


def test_the_best_of_several_simpler_networks_comes_first() -> None:
    plain = network("plain cifar_resnet:14", readings(1.9), 0.885, strategy="plain")
    made = answer(replace(REPORT, results=(BASE, FOUND, narrowed(2.0, 0.879), plain), test_images=10_000))
    assert made.headline.startswith("ResNet-14 may do as well, and needs no search")


def narrowed(milliseconds: float, share: float | None) -> Result:
    return network("uniform x0.50", readings(milliseconds), share, strategy="uniform")


@pytest.mark.parametrize(
    ("milliseconds", "share", "ending"),
    [
        (2.0, 0.8, "At equal latency, narrowing all layers alike ended 8.00 points lower"),
        (1.0, 0.8, "At lower latency, narrowing all layers alike ended 8.00 points lower"),
    ],
)
def test_the_headline_says_where_narrowing_all_layers_alike_ended(
    milliseconds: float, share: float, ending: str
) -> None:
    # two standard errors of 0.8 and 0.88 on 2000 images: 2 sqrt((0.16 + 0.1056) / 2000) = 0.0230
    made = answer(replace(REPORT, results=(BASE, FOUND, narrowed(milliseconds, share)), test_images=2000))
    assert made.headline.endswith(f"per batch, measured. {ending} (\N{PLUS-MINUS SIGN}2.30 points).")


def test_narrowing_within_the_noise_comes_first() -> None:
    # two standard errors of 0.87 and 0.88 on 360 images: 2 sqrt((0.1131 + 0.1056) / 360) = 0.0493
    made = answer(replace(REPORT, results=(BASE, FOUND, narrowed(2.0, 0.87)), test_images=360))
    assert made.headline.startswith(
        "ResNet-20 with all widths x0.50 may do as well, and needs no search: it is not slower (2.00 ms), and there is "
        "no clear difference in accuracy (87.00 % against 88.00 %, \N{PLUS-MINUS SIGN}4.93 points). The searched"
    )


MISSED = "latency is 0.314 ms, 66.0 % of the base network's, where 45% was asked for"


def test_a_missed_limit_is_the_first_sentence(tmp_path: Path) -> None:
    outcome = LimitOutcome("latency", "45%", 0.21e-3, 0.2e-3, 0.31e-3, 0.0, "s")
    report = replace(
        REPORT,
        results=(replace(BASE, accuracy=0.1), replace(FOUND, breaks=(MISSED,)), narrowed(2.0, 0.9)),
        searches=(replace(SEARCH, limits=(outcome,)),),
        classes=10,
    )
    words = f"The searched network misses its limit: {MISSED}. "
    assert answer(report).headline.startswith(f"{words}ResNet-20 is no better than guessing")
    assert answer(replace(report, classes=0)).headline.startswith(f"{words}ResNet-20 with all widths x0.50 may do")
    assert str(summary(report)).startswith(words)
    assert answer(replace(report, results=report.results[1:])).headline.startswith(words)
    assert [each for each in doubts(report) if "limit" in each[1] or "allows" in each[1]] == [
        ("searched network", f"misses its limit: {MISSED}")
    ], "and the reading of the search is not another"
    write(report, tmp_path)
    assert words.strip() in (tmp_path / "report.md").read_text()


def test_every_budget_of_a_sweep_that_is_missed_is_named_first() -> None:
    rows = [replace(FOUND, name=name, breaks=(MISSED,) if name != "70%" else ()) for name in ("70%", "45%", "30%")]
    headline = answer(replace(REPORT, results=(BASE, *rows))).headline
    assert headline.startswith(
        f"The searched network (45%) misses its limit: {MISSED}. The searched network (30%) misses its limit: {MISSED}."
    )


@pytest.mark.parametrize("share", [0.8, 0.88, 0.95])
@pytest.mark.parametrize("strategy", ["uniform", "plain", "stage"])
def test_a_control_that_breaks_what_was_asked_for_is_no_answer(share: float, strategy: str) -> None:
    words = "params is 0.308 M, 396.0 % of the base network's, where 200% was asked for"
    control = network(f"{strategy} x", readings(1.9), share, strategy=strategy, breaks=(words,))
    report = replace(REPORT, results=(BASE, FOUND, control), test_images=2000)
    name = network_names(report)[control.name]
    assert answer(report).headline.startswith("The searched network is 2.00 times as fast as ResNet-20")
    assert not any(each in " ".join(answer(report).sentences) for each in (name, "narrowing", "needs no search"))
    remark = f"is no answer here, as it breaks what was asked for: {words}"
    assert summary(report).after == [f"{name} {remark}."]
    assert (name, remark) in doubts(report)


@pytest.mark.parametrize("control", [narrowed(3.0, 0.8), narrowed(2.0, None)], ids=["slower", "not trained"])
def test_narrowing_that_is_slower_or_untrained_is_not_compared(control: Result) -> None:
    made = answer(replace(REPORT, results=(BASE, FOUND, control), test_images=10_000))
    assert not any("narrowing" in sentence for sentence in made.sentences)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("cifar_resnet:20", "ResNet-20"),
        ("cifar_resnet:164:bottleneck", "ResNet-164 (bottleneck)"),
        ("imagenet_resnet:50", "ResNet-50"),
        ("vgg:16", "VGG-16"),
        ("mobilenet_v2:100", "MobileNetV2"),
        ("mobilenet_v2:75", "MobileNetV2 at 75 % of its widths"),
        ("custom:my_nets:make", "my_nets:make"),
        ("given:Net:1f00d", "Net"),
        ("small:32", "small:32"),
    ],
)
def test_families_have_the_names_that_people_use(family: str, name: str) -> None:
    assert family_name(family) == name


def test_a_title_names_what_the_target_is() -> None:
    assert Target(runtime="onnxruntime").title == "cpu, onnxruntime"
    assert Target(runtime="openvino", precision="int8").title == "cpu, openvino, int8"


def test_a_title_names_the_family_in_words(tmp_path: Path) -> None:
    write(replace(REPORT, title="cifar_resnet:20 on digits", curves=(), searches=()), tmp_path)
    assert (tmp_path / "report.md").read_text().startswith("# ResNet-20 on digits\n")


def test_every_kind_of_network_has_a_name_in_words() -> None:
    plain = network("plain given:Net:1f00d with 1, 1 blocks a stage", None, None, strategy="plain")
    rows = (BASE, FOUND, network("tas", None, None), narrowed(2.0, 0.8), plain)
    assert list(network_names(replace(REPORT, results=rows)).values()) == [
        "ResNet-20",
        "the searched network (measured widths)",
        "the searched network (TAS's widths)",
        "ResNet-20 with all widths x0.50",
        "Net with 1, 1 blocks a stage",
    ]
    assert network_names(replace(REPORT, results=(BASE, FOUND)))["hardware"] == "the searched network"


def test_a_search_that_did_not_converge_is_named_on_top_and_among_the_doubts() -> None:
    report = replace(REPORT, searches=(replace(SEARCH, converged=False),))
    assert answer(report).sentences[-1] == "The search among measured widths has not converged."
    assert ("search among measured widths", "not converged: median top probability 0.61") in doubts(report)


@pytest.mark.parametrize(
    ("results", "missing"), [((BASE,), "searched network"), ((FOUND,), "base network"), ((), "base")]
)
def test_a_report_without_both_networks_compares_nothing(results: tuple[Result, ...], missing: str) -> None:
    said = answer(replace(REPORT, results=results))
    assert missing in said.sentences[0]
    assert not said.figures


def test_the_answer_has_the_four_figures() -> None:
    figures = [(figure.value, figure.label) for figure in answer(replace(REPORT, test_images=0)).figures]
    assert figures == [
        ("2.00\N{MULTIPLICATION SIGN}", "as fast as ResNet-20, measured"),
        ("\N{MINUS SIGN}2.00", "points of accuracy"),
        ("49 %", "of the multiply-adds"),
        ("55 %", "of the parameters"),
    ]


def test_an_unclear_speed_stands_in_brackets() -> None:
    figure = answer(replace(REPORT, results=(BASE, replace(FOUND, measured=readings(3.99))))).figures[0]
    assert (figure.value, figure.label) == ("(1.00\N{MULTIPLICATION SIGN})", "no clear difference in speed")


def test_doubts_gather_readings_fits_remarks_and_unlike_targets() -> None:
    other = network("tas", readings(3.0, 1.0, survey="two"), 0.8, target={**TARGET, "batch": 1})
    said = doubts(replace(REPORT, results=(BASE, FOUND, other)))
    assert ("", "one seed only") in said
    assert ("searched network (measured widths)", "trained on half the data") in said
    (surprise,) = [words for subject, words in said if "was foretold" in words]
    assert surprise.startswith("was foretold to take 25 % less than it does")
    outside = replace(FOUND, outside="The prediction lies outside the measured widths: 1 of 9 layers.")
    assert not any("was foretold" in words for _, words in doubts(replace(REPORT, results=(BASE, outside))))
    assert ("curve of layer1.0, layer1.1", "the fit is flat") in said
    assert [subject for subject, _ in said].count("searched network (TAS's widths)") == 3


def test_the_arch_found_stands_beside_its_rivals() -> None:
    said = standing(SEARCH)
    assert "75.00 %" in said
    assert "better than 3 of 4 random archs within 4 % of its latency (their median 73.00 %)" in said
    assert "no random arch" in standing(replace(SEARCH, rivals=(), rival_costs=()))


def test_a_score_is_the_fit_less_the_measurement() -> None:
    # f(4) = 0.2 x 2 + 0.9 = 1.3 ms against 1.25 ms measured
    assert CURVE.measured.scores(CURVE.fit)[3] == pytest.approx(0.05e-3)


def test_targets_and_plain_values_are_written_on_a_line() -> None:
    assert target(TARGET) == "cpu eager fp32, batch 4, threads 2, input 3x32x32"
    assert target({**TARGET, "options": {}, "more": []}) == target(TARGET)  # nothing is said of what is empty
    assert value({"lr": 0.1, "betas": (0.9, 0.99), "name": ""}) == "lr 0.1, betas 0.9, 0.99, name \N{EN DASH}"


FIGURES = [
    *("90.00 %", "88.00 %", "1.50", "0.75", "2.00"),
    *(plus_minus(4.0, 2e3 * readings(4.0).error), plus_minus(2.0, 2e3 * readings(2.0).error)),
    "median 2.05, min 1.95, 21 readings",
    *("40.81 M", "20.00 M", "0.272 M", "0.150 M", "2x16 24", "join", "differentiable", "paper, weight 2"),
    *("cpu eager fp32, batch 4, threads 2, input 3x32x32", "ms per batch of 4", "predicted, ms", "epochs 60"),
    *("torch 2.13.0", "trained on half the data", "a 16, b 16, c 24", "stage 3", "digits", "360 test images", "7, 11"),
    *(
        "layer1.0, layer1.1",
        "f(x) = 0.200 x^0.500 + 0.900 ms",
        "measured widths: 4 8; TAS's widths: 2 3 4",
        "the fit is flat",
    ),
    *("2 groups of widths 1 to 8", "median top probability 0.61", "seed 11, 1 min 02 s", "better than 3 of 4"),
    *("loss 1.00 in training and 1.25 in validation", "accuracy 60.00 %", "expected cost 0.80", "arch 0.70"),
    *("temperature 2.50", "top probability 0.60", "one seed only", "Abacus 9000", "htas run config.toml"),
    *("1 min 05 s", "1 h 00 min", "1 h 01 min", "seed = 7", 'name = "x"'),
]


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_of_the_report_is_in_the_page_and_in_the_markdown(folder: Path, page: Page, figure: str) -> None:
    markdown = (folder / "report.md").read_text().replace("\\", "")
    assert figure in page.said
    assert figure in markdown


def test_every_picture_is_in_the_page_and_beside_the_markdown(folder: Path, page: Page) -> None:
    names = PICTURES
    markdown = (folder / "report.md").read_text()
    assert (folder / "report.html").read_text().count('<figure class="live">') == len(names)
    assert [name for name in names if f"](figures/{name}.svg)" in markdown] == names
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == sorted(names)


def test_chosen_widths_are_numbered_in_the_curve(folder: Path) -> None:
    drawn = (folder / "figures" / "curve-1.svg").read_text()
    assert drawn.count(">4</text>") >= 2
    assert "selected, measured widths" in drawn


def test_the_page_is_well_formed_and_fetches_nothing(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text()
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not {"link", "img", "iframe", "object", "embed", "audio", "video"} & set(page.tags)
    assert "url(http" not in text and "@import" not in text
    assert text.count("<script>") == 1 and "<script src" not in text
    specs = [json.loads(each) for each in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    assert len(specs) == len(PICTURES) and all("url" not in each.get("data", {}) for each in specs)


def test_strange_names_are_shown_as_they_are(folder: Path, page: Page) -> None:
    assert "<script>alert(1)</script> | $a$ `b` *c* [d](http://e) & \N{SNOWMAN}" in page.said
    rows = [
        line for line in (folder / "report.md").read_text().splitlines() if "alert" in line and line.startswith("| ")
    ]
    assert len(rows) == 2
    assert all("\\<script\\>" in row and " \\| " in row and "\\[d\\](http" in row for row in rows)


def test_predictions_are_told_with_their_bands(page: Page) -> None:
    # off by 3, 7 and 20 %: their mean is 10 %, one of three within 5 %, two within 10 %
    assert "10.0 % off in the mean, 20.0 % at worst, 33 % within 5 %, 67 % within 10 %" in page.said


def test_an_arch_is_drawn_beside_the_base_and_dropped_blocks_are_hollow() -> None:
    base = Arch({"stem": 8, "stage.0.conv": 16, "stage.1.conv": 16}, {"stage": 2})
    found = Arch({"stem": 6, "stage.0.conv": 24, "stage.1.conv": 12}, {"stage": 1})
    made = archs(found, base, {"stage": ("stage.0", "stage.1")})
    rows = {row["site"]: row for own in made["datasets"].values() for row in own if row["what"] != "base network"}
    assert {site: row["width"] for site, row in rows.items()} == {"stem": 6, "stage.0.conv": 24, "stage.1.conv": 0}
    assert [row["what"] for row in rows.values()] == ["searched network", "searched network", "of a dropped block"]
    assert {site: row["base"] for site, row in rows.items()} == base.widths


def test_the_front_is_drawn_through_those_that_none_beats() -> None:
    rows = [
        network("base", readings(4.0), 0.9),
        network("tas", readings(3.0), 0.8),
        network("hardware", readings(2.0), 0.85),
    ]
    picture = accuracy_over_latency(replace(REPORT, results=tuple(rows)))
    assert isinstance(picture, Picture)
    made = picture.chart
    line = made["datasets"][made["layer"][0]["data"]["name"]]
    assert [row["network"] for row in line] == ["searched network (measured widths)", "ResNet-20"]


@pytest.mark.slow
def test_a_long_search_of_many_sites_stays_a_page_to_be_mailed(tmp_path: Path) -> None:
    sites = [f"stage.{number}.conv" for number in range(60)]
    arch = Arch(dict.fromkeys(sites, 64), {"stage": 3})
    epochs = tuple(replace(SEARCH.epochs[0], epoch=n, entropy=dict.fromkeys(sites, 1 / (1 + n))) for n in range(200))
    curve = replace(
        CURVE,
        measured=Curve(tuple(range(1, 129)), tuple(1e-5 * n * 1.01**n for n in range(1, 129)), (1.234567e-5,) * 128),
        groups=((1, 128),),
    )
    curves = tuple(replace(curve, sites=(site,)) for site in sites)
    rows = tuple(replace(row, arch=arch) for row in (BASE, FOUND))
    write(replace(REPORT, results=rows, curves=curves, searches=(replace(SEARCH, arch=arch, epochs=epochs),)), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 6e6


def test_a_width_that_costs_nothing_is_in_the_table_of_a_survey(tmp_path: Path) -> None:
    """The increment of a small layer may be exactly zero, or less by the noise."""
    measured = Curve(tuple(range(1, 5)), (0.0, -1e-9, 1e-6, 2e-6), (1e-9,) * 4)
    curve = replace(CURVE, measured=measured, groups=((1, 4),), certain=(1.0,), choices={"hardware": (4,)})
    _, table = survey_page("Survey", [curve], (), "decided", {}, tmp_path)
    assert table.rows[1][4] == "0.10 %"


def test_a_page_keeps_the_labels_of_its_pictures_whole() -> None:
    """Coordinates are shortened in the page's copy of a picture; the ticks of a fast layer and names are not."""
    drawn = b'<svg width="10" height="5"><path d="M1.23456,2.5L3.00001,4"/><text>0.00125 of layer.1234</text></svg>'
    assert inline(drawn, "one") == (
        '<svg style="max-width: 10px"><path d="M1.23,2.5L3.00,4"/><text>0.00125 of layer.1234</text></svg>'
    )


def test_a_report_of_another_version_is_written_anew(tmp_path: Path) -> None:
    write(REPORT, tmp_path)
    path = tmp_path / "report.json"
    assert _reported(REPORT, tmp_path)
    content = json.loads(path.read_text())
    for wrong in ({**content, "results": 1}, {"format": 1}, {**content, "more": 2, "curves": [{}]}):
        path.write_text(json.dumps(wrong))
        assert not _reported(REPORT, tmp_path)


def test_several_runs_stand_on_one_page_with_what_they_differ_in(tmp_path: Path) -> None:
    rows = tuple(replace(row, target={**TARGET, "threads": 1}) for row in REPORT.results)
    other = replace(REPORT, dataset="cifar10", results=rows, machine={**REPORT.machine, "processor": "Cray-1"})
    page = Page(runs_page({"one": REPORT, STRANGE: other}, tmp_path).read_text())
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    assert page.open == [] and STRANGE in page.said
    for said in (
        "for different targets, so their latencies say nothing of each other",
        "on different images, so their accuracies say nothing of each other",
        "on different machines, so their latencies say nothing of each other",
        "| data | digits | cifar10 |",
        "threads 1, input 3x32x32 |",
    ):
        assert said in text


def test_an_untrained_network_has_a_dash_for_its_accuracy(folder: Path) -> None:
    lines = (folder / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| ResNet-8"))
    assert row.split(" | ")[1:6] == ["\N{EN DASH}"] * 5


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    few = replace(REPORT, curves=(), searches=())
    first, second = (
        [path.read_bytes() for path in write(few, tmp_path / name) if path.suffix != ".json"] for name in ("one", "two")
    )
    assert first == second


def test_a_search_without_epochs_or_rivals_is_drawn_all_the_same(tmp_path: Path) -> None:
    bare = replace(SEARCH, epochs=(), rivals=(), rival_costs=())
    write(replace(REPORT, curves=(), searches=(bare,), results=()), tmp_path)
    assert "no random arch was compared with it" in (tmp_path / "report.md").read_text()


def test_backticks_in_a_configuration_stay_inside_its_fence(tmp_path: Path) -> None:
    write(replace(REPORT, curves=(), searches=(), results=(), config="a = '```'\n"), tmp_path)
    assert "````toml\na = '```'\n````" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("cost", "kept", "share"),
    [
        ("table", LimitOutcome("latency", "60%", 6e-3, 5.9e-3, 5.9e-3, 0.01, "s"), 0.6),
        ("paper", LimitOutcome("latency", "8 ms", 8e-3, 7e-3, 7e-3, 0.01, "s"), 0.8),
        ("table", LimitOutcome("macs", "50%", 2e7, 2e7, 2e7, 0.0, ""), None),  # which is not what is charged
        ("macs", LimitOutcome("macs", "50%", 2e7, 2e7, 2e7, 0.0, ""), 0.5),
    ],
)
def test_the_budget_beside_the_course_is_a_share_of_the_base(
    cost: str, kept: LimitOutcome, share: float | None
) -> None:
    (search, *_) = REPORT.searches
    base = replace(REPORT.results[0], predicted=10e-3)
    assert asked_share(replace(search, cost=cost, limits=(kept,)), base) == (share and pytest.approx(share))
    assert asked_share(replace(search, cost=cost, limits=()), base) is None
