"""Blocks as files: a page, the same as Markdown, and the pictures that Markdown shows."""

from collections.abc import Mapping
from pathlib import Path

from htas.files import write_bytes, write_text
from htas.report._blocks import Block
from htas.report._draw import RenderedChart
from htas.report._html import html
from htas.report._markdown import markdown


def publish(title: str, blocks: list[Block], pictures: Mapping[str, RenderedChart], folder: Path, name: str) -> Path:
    """Write NAME.html, NAME.md and the pictures in figures/; the path of the page.

    Raises UserError where the folder cannot be written.
    """
    for picture, chart in pictures.items():
        if chart.svg:
            write_bytes(folder / "figures" / f"{picture}.svg", chart.svg)
    write_text(folder / f"{name}.md", markdown(title, blocks))
    path = folder / f"{name}.html"
    write_text(path, html(title, blocks, pictures))
    return path
