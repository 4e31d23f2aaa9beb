"""Take the README's picture of a report: the top of the page of a committed run, in a browser.

python docs/screenshot.py benchmarks/results/FOLDER docs/report.png

It needs playwright (pip install '.[dev]') and a Chromium (Debian: apt-get install chromium).
"""

import shutil
import sys
import tempfile
from pathlib import Path

from htas.report import read, write

WIDTH = 960
"""Of the window, in pixels."""
LAST = "figure.live"
"""The picture ends below the first of these: accuracy over measured latency."""


def take(folder: Path, file: Path) -> None:
    """Draw the page of the report in a folder anew, and write its top to a PNG file."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no Chromium is installed (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        write(read(folder), Path(place))
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto((Path(place) / "report.html").as_uri())
        figure = page.locator(LAST).first
        figure.scroll_into_view_if_needed()
        page.wait_for_timeout(1500)  # until it is drawn for this width
        page.evaluate("window.scrollTo(0, 0)")
        box = figure.bounding_box()
        assert box is not None
        page.screenshot(
            path=file, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + 16}
        )
        opened.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python docs/screenshot.py FOLDER PICTURE.png; FOLDER has the report.json of a run")
    take(*map(Path, sys.argv[1:]))
