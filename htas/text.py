"""Numbers and units as people write them; the only place that formats either."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from math import floor, isfinite, log10
from unicodedata import category

NONE = "\N{EN DASH}"
"""The text of a table cell without a value."""
ARROW = "\N{RIGHTWARDS ARROW}"


def milliseconds(seconds: float) -> str:
    """`4.22 ms` from 0.00422."""
    return f"{significant(seconds * 1e3)} ms"


UNITS = {"s": (1e3, "ms"), "J": (1e3, "mJ"), "bytes": (1e-6, "MB"), "MACs": (1e-6, "M"), "parameters": (1e-6, "M")}
"""The factor and name of the unit that people write in place of a metric's own."""


def quantity(value: float, unit: str) -> str:
    """`4.22 ms` from 0.00422 and `s`; a unit without an entry in UNITS stands as it is."""
    factor, usual = UNITS.get(unit, (1.0, unit))
    return f"{significant(value * factor)} {usual}"


def significant(value: float, digits: int = 3) -> str:
    """A number to `digits` significant digits, never in exponent form: 0.0123, 1.23, 12.3, 123, 1234."""
    return f"{value:.{_places(value, digits)}f}" if value else "0"


def _places(value: float, digits: int) -> int:
    """Decimal places for `digits` significant digits, after rounding: 9.999 is 10.0, not 10.00."""
    if value == 0 or not isfinite(value):
        return 0
    rounded = float(f"{value:.{digits - 1}e}")
    return max(0, digits - 1 - floor(log10(abs(rounded))))


def plus_minus(value: float, spread: float) -> str:
    """`4.22 ± 0.08`: both to the places of the value, or to the first digit of a smaller spread. A spread that these do
    not show is rounded up to one in the last place, as nothing that is measured is exact."""
    places = _places(value, 3)
    finer = min(max(places, _places(spread, 1)), places + 2)
    spread = max(spread, 10.0**-finer) if spread else spread
    return f"{value:.{finer}f} ± {spread:.{finer}f}"


def points(share: float) -> str:
    """`0.31 points` from a difference of 0.0031 between two shares."""
    return f"{share * 100:.2f} points"


def signed(value: float, places: int = 2) -> str:
    """`+0.31` or, with a true minus sign, `-0.31`; `0.00` where it rounds to nothing."""
    digits = f"{abs(value):.{places}f}"
    if float(digits) == 0:
        return digits
    return ("+" if value > 0 else "\N{MINUS SIGN}") + digits


def fitted(k: float, alpha: float, b: float) -> str:
    """The latency fit of eq. 1, given in seconds, as `f(x) = 0.0123 x^0.91 + 0.456 ms`."""
    sign = "+" if b >= 0 else "\N{MINUS SIGN}"
    return f"f(x) = {significant(k * 1e3)} x^{significant(alpha)} {sign} {significant(abs(b) * 1e3)} ms"


def plural(count: int, noun: str) -> str:
    """`1 group`, `2 groups`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def millions(value: float) -> str:
    """`40.81 M` from 40813184; to three significant digits below a million, `0.0144 M` from 14378."""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{significant(value / 1e6)} M"


def percent(share: float, places: int = 2) -> str:
    """`93.16 %` from 0.9316."""
    return f"{share * 100:.{places}f} %"


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 05 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def runs(values: Sequence[int]) -> str:
    """`16 16 8` as `2x16 8`: equal neighbours once, with their count."""
    counted = ((len(list(equal)), value) for value, equal in groupby(values))
    return " ".join(f"{count}x{value}" if count > 1 else str(value) for count, value in counted)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its class where the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def fault(error: BaseException, log: object) -> str:
    """What is said of an exception that nobody expects; `log` is a file that tells more."""
    words = f"{type(error).__name__}: {first_line(error)}"
    return f"a fault of htas, unless it comes from code of your own: {words}; see {log}"


LONGEST_VALUE, LONGEST_SENTENCE = 160, 960
"""Letters of a value that a sentence quotes, and of a sentence."""


def shortened(words: str, most: int = LONGEST_VALUE) -> str:
    """Words as they are, or, where there are more letters than `most`, without their middle: `9999 ... 9999 (400
    letters)`."""
    if len(words) <= most:
        return words
    note = f" ({len(words)} letters)"
    size = max(8, most - len(note) - 5)
    return f"{words[: size - size // 3]} ... {words[-(size // 3) :]}{note}"


def quoted(value: object) -> str:
    """A value as Python writes it, shortened."""
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # a number of more digits than Python writes, a list in too many lists
        return f"a value of type {type(value).__name__} that is too long to print"


def printable(words: str) -> str:
    """Words without what a terminal obeys: control characters as escapes, `\\x1b`; spaces and line ends stay."""
    plain = (
        each if each.isprintable() or each in "\n\t" or category(each) == "Zs" else ascii(each)[1:-1] for each in words
    )
    return "".join(plain)


def sentence(words: str) -> str:
    """Words for a terminal: in one line, of a length that people read, without control characters."""
    parts = (part if len(part) <= LONGEST_VALUE * 2 else shortened(part) for part in words.split())
    whole = printable(" ".join(parts))
    if len(whole) <= LONGEST_SENTENCE:
        return whole
    return f"{whole[: LONGEST_SENTENCE * 2 // 3]} ... {whole[-LONGEST_SENTENCE // 3 + 5 :]}"


def listing(names: Iterable[str]) -> str:
    """`a, b, c` in the order given."""
    return ", ".join(names)


def shapes(sizes: Iterable[Iterable[int]]) -> str:
    """`(1, 3, 8, 8) and (1, 5)`: shapes of tensors, as PyTorch writes them."""
    return " and ".join(str(tuple(shape)) for shape in sizes)


def columns(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Rows in columns, a line each: the first `words` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


@dataclass(frozen=True)
class TextTable:
    """Rows of a table, the headings first; as text, lines of columns. Sentences stand `before` and `after` it."""

    rows: Sequence[Sequence[str]]
    words: int
    """The number of columns, from the first on, that hold no numbers."""
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    marked: Sequence[str] = ()
    """First cells of the rows to be set off."""

    def __str__(self) -> str:
        return "\n".join([*self.before, *(columns(self.rows, self.words) if self.rows else []), *self.after])

    def json(self) -> dict[str, list[str] | list[dict[str, str]]]:
        """As plain JSON values, cells as they are printed: an object for each row, by heading."""
        headings, *rows = self.rows or [()]
        cells = [dict(zip(headings, row, strict=True)) for row in rows]
        return {"before": list(self.before), "rows": cells, "after": list(self.after)}


def no_such(what: str, name: str, names: Iterable[str]) -> str:
    """The sentence for a name that does not exist: the nearest one, and all of them."""
    choices = list(names)
    return f"no {what} called {quoted(name)}; {near(name, choices)}choose one of {listing(choices)}"


def near(name: str, names: Iterable[str]) -> str:
    """`did you mean 'groups'? ` with a space at the end, or nothing where no name is similar."""
    matches = get_close_matches(name[:LONGEST_VALUE], list(names), n=1)
    return f"did you mean {matches[0]!r}? " if matches else ""
