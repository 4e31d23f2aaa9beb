"""A report in a browser: every section and picture, details under the pointer, nothing fetched, no overflow."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from htas.report import write
from htas.report.paper import Picture, Section, fitted_curve, gained
from htas.report.paper import page as paper_page
from tests.report.test_report import CURVE, PICTURES, REPORT

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
SECTIONS = [
    "Networks",
    "Accuracy and latency",
    "The searched networks, layer by layer",
    "How each network was made",
    "Latency curves",
    "Searches",
    "Predicted and measured",
    "Doubts and remarks",
    "How it was measured",
    "How to repeat it",
    "Machine and time",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the driver is not installed: pip install playwright"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write(REPORT, folder)
    return folder / "report.html"


@pytest.mark.parametrize("width", [400, pytest.param(1400, marks=pytest.mark.slow)])
def test_a_report_is_whole_in_a_browser(width: int, browser: Any, page_file: Path) -> None:
    said: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    for figure in page.locator("figure.live").all():
        figure.scroll_into_view_if_needed()
        figure.locator("xpath=self::*[@data-live='yes']").wait_for()
    assert page.locator("h2").all_inner_texts() == SECTIONS
    assert page.locator("figure.live svg").count() == len(PICTURES)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "all => all.filter(f => f.querySelector('svg').getBoundingClientRect().width > f.clientWidth + 1).length"
    assert page.locator("figure.live").evaluate_all(wide) == 0
    assert said == []
    assert asked == [page_file.as_uri()]
    page.close()


def test_a_point_says_what_it_is(browser: Any, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(page_file.as_uri())
    first = page.locator("figure.live").first
    first.scroll_into_view_if_needed()
    first.locator("xpath=self::*[@data-live='yes']").wait_for()
    first.locator("path[aria-roledescription='point']").nth(1).hover()
    page.locator("#vg-tooltip-element.visible").wait_for()
    told = page.locator("#vg-tooltip-element").inner_text()
    assert "searched network" in told and "2.000" in told and "88.00" in told
    page.close()


def test_without_a_script_the_pictures_are_there_all_the_same(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("figure.live .chart > svg").count() == len(PICTURES)
    context.close()


@pytest.mark.parametrize("width", [400, pytest.param(1400, marks=pytest.mark.slow)])
def test_the_papers_tables_are_whole_in_a_browser(width: int, browser: Any, tmp_path: Path) -> None:
    figure = Picture("fig2", fitted_curve(CURVE), "Latency over width", "A <caption>")
    points = [{"network": "a", "kind": "TAS", "runtime": "eager", "saved": 0.5, "speed": 0.9, "macs": 20.0}]
    other = Picture("motivation", gained(points), "Speed over multiply-adds", "Two")
    headings = tuple(f"column {number}" for number in range(13))
    row = ("<b>network</b>", *(f"{number}.25 \N{PLUS-MINUS SIGN} 0.5" for number in range(12)))
    sections = [
        Section(
            title, ("What came out.",), headings, (row,) * 4, 1, figures=(own,), facts={"Command": "htas reproduce"}
        )
        for title, own in (("Table 3: CIFAR-10", figure), ("Why one measures", other))
    ]
    file = paper_page("The paper's tables", "Its latencies are of other hardware.", sections, tmp_path)
    said: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    for drawn in page.locator("figure.live").all():
        drawn.scroll_into_view_if_needed()
        drawn.locator("xpath=self::*[@data-live='yes']").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [heading.inner_text() for heading in page.locator("h2").all()] == ["Table 3: CIFAR-10", "Why one measures"]
    assert page.get_by_text("<b>network</b>", exact=True).count() == 8 and not said
    page.close()


@pytest.mark.slow
def test_the_picture_of_a_committed_run_is_taken_by_a_script(page_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="the driver is not installed: pip install playwright")
    if not CHROMIUM:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    script = Path(__file__).parents[2] / "docs" / "screenshot.py"
    file = tmp_path / "report.png"
    subprocess.run([sys.executable, str(script), str(page_file.parent), str(file)], check=True, capture_output=True)
    with Image.open(file) as image:
        assert image.size[0] == 960 and image.size[1] > 700
