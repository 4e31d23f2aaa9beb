"""A report as Markdown, in the dialect that GitHub shows; the pictures are files in figures/."""

import re
from html import escape as html_escape

from htas.report._blocks import Block, Cell, Code, Fold, Heading, Picture, Points, Table, Text
from htas.report._compare import Answer


def markdown(title: str, blocks: list[Block]) -> str:
    """The whole document."""
    return "\n\n".join([f"# {escape(title)}", *(_block(block) for block in blocks)]) + "\n"


def escape(text: str) -> str:
    """Text on one line that Markdown takes for nothing but text."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    match block:
        case Answer(headline, details, _):
            return "\n\n".join([f"**{escape(headline)}**", *([escape(" ".join(details))] if details else [])])
        case Heading(text):
            return f"## {escape(text)}"
        case Text(text):
            return escape(text)
        case Points(items):
            return "\n".join(
                f"- {f'**{escape(subject)}**: ' if subject else ''}{escape(text)}" for subject, text in items
            )
        case Table():
            return _table(block)
        case Picture(_, _, caption, later) if later:
            return escape(caption)
        case Picture(name, shows, caption):
            return f"![{escape(shows)}](figures/{name}.svg)\n\n{escape(caption)}"
        case Code(text, language):
            return _code(text, language)
        case Fold(summary, inner):
            parts = "\n\n".join(_block(part) for part in inner)
            return f"<details><summary>{html_escape(summary)}</summary>\n\n{parts}\n\n</details>"


def _table(table: Table) -> str:
    rules = [":--" if heading in table.wordy else "--:" for heading in table.headings]
    rows = [
        [_cell(cell, strong=row[0].text in table.marked and place == 0) for place, cell in enumerate(row)]
        for row in table.rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[escape(text) for text in table.headings], rules, *rows])


def _cell(cell: Cell, strong: bool) -> str:
    text = f"**{escape(cell.text)}**" if strong else escape(cell.text)
    return f"{text} ({escape(cell.note)})" if cell.note else text


def _code(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
