"""A report as one HTML file: pictures, style and script inside it, nothing fetched."""

import re
from collections.abc import Mapping
from html import escape
from typing import assert_never

from htas.report._blocks import Block, Cell, Code, Fold, Heading, Picture, Points, Table, Text
from htas.report._compare import Answer
from htas.report._draw import RenderedChart, embedded, inline, script
from htas.report._style import STYLE

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
{script}</body>
</html>
"""


def html(title: str, blocks: list[Block], pictures: Mapping[str, RenderedChart]) -> str:
    """The whole page; `pictures` by the names that the blocks use."""
    body = "\n".join(_block(block, pictures) for block in blocks)
    live = f"<script>{script()}</script>\n" if pictures else ""
    return PAGE.format(title=escape(title), style=STYLE, body=body, script=live)


def _block(block: Block, pictures: Mapping[str, RenderedChart]) -> str:
    match block:
        case Answer():
            return _answer(block)
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Points(items):
            points = ((f"<b>{escape(subject)}</b>: " if subject else "") + escape(text) for subject, text in items)
            return f"<ul>{''.join(f'<li>{point}</li>' for point in points)}</ul>"
        case Table():
            return _table(block)
        case Picture(name, shows, caption, later):
            chart = pictures[name]
            return (
                f'<figure class="live{" later" if later else ""}">'
                f'<div class="chart" role="img" aria-label="{escape(shows)}">'
                f'{inline(chart.svg, name)}</div><script type="application/json">{embedded(chart.spec)}</script>'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
        case Code(text, _):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Fold(summary, inner):
            parts = "".join(_block(part, pictures) for part in inner)
            return f"<details><summary>{escape(summary)}</summary>{parts}</details>"
    assert_never(block)


def _answer(answer: Answer) -> str:
    figures = "".join(
        f"<div><dt>{escape(figure.label)}</dt><dd><b>{escape(figure.value)}</b></dd><dd>{escape(figure.note)}</dd></div>"
        for figure in answer.figures
    )
    headline = re.sub(r"(?<=\d) (?=ms|%|M\b)", "&nbsp;", escape(answer.headline))
    tiles = f"<dl>{figures}</dl>" if figures else ""
    rest = f"<p>{escape(' '.join(answer.details))}</p>" if answer.details else ""
    return f'<section class="answer"><p class="first">{headline}</p>{tiles}{rest}</section>'


def _table(table: Table) -> str:
    kinds = ["words" if heading in table.wordy else "number" for heading in table.headings]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(text)}</th>' for kind, text in zip(kinds, table.headings, strict=True)
    )
    rows = "".join(_row(row, kinds, row[0].text in table.marked) for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(row: tuple[Cell, ...], kinds: list[str], marked: bool) -> str:
    first, *others = (_cell(cell) for cell in row)
    cells = "".join(f'<td class="{kind}">{text}</td>' for kind, text in zip(kinds[1:], others, strict=True))
    return f'<tr{" class=marked" if marked else ""}><th scope="row" class="{kinds[0]}">{first}</th>{cells}</tr>'


def _cell(cell: Cell) -> str:
    return escape(cell.text) + (f"<small>{escape(cell.note)}</small>" if cell.note else "")
