"""Blocks as files: one HTML page that fetches nothing, and the same as Markdown, with its pictures in figures/."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import assert_never

from htas.files import write_bytes, write_text
from htas.report._blocks import Answer, Block, Cell, Code, Fold, Heading, Picture, Points, Table, Text
from htas.report._draw import embedded, inline, script
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


def publish(title: str, blocks: Sequence[Block], folder: Path, name: str) -> list[Path]:
    """Write NAME.html, NAME.md and its pictures in figures/; their paths, in this order.

    Raises UserError where the folder cannot be written.
    """
    drawn = [block for block in blocks if isinstance(block, Picture) and block.svg]
    figures = [folder / "figures" / f"{picture.name}.svg" for picture in drawn]
    for path, picture in zip(figures, drawn, strict=True):
        write_bytes(path, picture.svg)
    page, text = folder / f"{name}.html", folder / f"{name}.md"
    write_text(text, "\n\n".join([f"# {plain(title)}", *map(_markdown, blocks)]) + "\n")
    write_text(page, html(title, blocks))
    return [page, text, *figures]


def html(title: str, blocks: Sequence[Block]) -> str:
    """The whole page."""
    code = f"<script>{script()}</script>\n" if any(isinstance(block, Picture) for block in blocks) else ""
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(map(_html, blocks)), script=code)


def _html(block: Block) -> str:
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
        case Picture(name, chart, shows, caption, later):
            return (
                f'<figure class="live{" later" if later else ""}">'
                f'<div class="chart" role="img" aria-label="{escape(shows)}">'
                f'{inline(block.svg, name)}</div><script type="application/json">{embedded(chart)}</script>'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
        case Code(text, _):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Fold(summary, inner):
            return f"<details><summary>{escape(summary)}</summary>{''.join(map(_html, inner))}</details>"
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
    rows = []
    for row in table.rows:
        texts = [escape(cell.text) + (f"<small>{escape(cell.note)}</small>" if cell.note else "") for cell in row]
        cells = "".join(f'<td class="{kind}">{text}</td>' for kind, text in zip(kinds[1:], texts[1:], strict=True))
        line = "<tr class=marked>" if row[0].text in table.marked else "<tr>"
        rows.append(f'{line}<th scope="row" class="{kinds[0]}">{texts[0]}</th>{cells}</tr>')
    body = "".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def plain(text: str) -> str:
    """Text on one line that Markdown, in the dialect that GitHub shows, takes for nothing but text."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", " ".join(text.split()))


def _markdown(block: Block) -> str:
    match block:
        case Answer(headline, details, _):
            return "\n\n".join([f"**{plain(headline)}**", *([plain(" ".join(details))] if details else [])])
        case Heading(text):
            return f"## {plain(text)}"
        case Text(text):
            return plain(text)
        case Points(items):
            return "\n".join(
                f"- {f'**{plain(subject)}**: ' if subject else ''}{plain(text)}" for subject, text in items
            )
        case Table(headings, rows, wordy, marked):
            rules = [":--" if heading in wordy else "--:" for heading in headings]
            lines = [list(map(plain, headings)), rules, *(_cells(row, row[0].text in marked) for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(name, _, shows, caption, later):
            return plain(caption) if later else f"![{plain(shows)}](figures/{name}.svg)\n\n{plain(caption)}"
        case Code(text, language):
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
            return f"{fence}{language}\n{text.rstrip()}\n{fence}"
        case Fold(summary, inner):
            parts = "\n\n".join(map(_markdown, inner))
            return f"<details><summary>{escape(summary)}</summary>\n\n{parts}\n\n</details>"
    assert_never(block)


def _cells(row: Sequence[Cell], marked: bool) -> list[str]:
    texts = [f"**{plain(cell.text)}**" if marked and cell is row[0] else plain(cell.text) for cell in row]
    return [f"{text} ({plain(cell.note)})" if cell.note else text for text, cell in zip(texts, row, strict=True)]
