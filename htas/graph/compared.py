"""What Python has asked about sizes: answers that stay at any widths, by ties, and those that would not, by freezes."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from htas.graph.channels import Ids
from htas.graph.labels import Labels
from htas.graph.layout import Layout, Run
from htas.graph.length import Comparison, Leaf, Length, leaves_of

if TYPE_CHECKING:
    from htas.graph.emit import Emitter

DENSE, SPREAD, MIXED = 128, 64, 100
"""Widths at which an answer is computed again: the smallest, others up to twice the base, and random ones of several
sites."""


def keep_equal(compared: Sequence[Comparison], labels: Labels) -> None:
    """Give numbers of channels that were found to be equal one width; a number that a module holds counts them."""
    pairs: list[list[Leaf]] = []
    for comparison in compared:
        leaves = [leaf for number in comparison.numbers for leaf, _ in leaves_of(number)]
        for leaf in leaves:
            _channels(leaf, labels)  # those of a parameter that no step reads are made here
        if comparison.equal and all(isinstance(each, Length) and each.how in leaves for each in comparison.numbers):
            pairs.append([each.how for each in comparison.numbers])
    while True:
        still = [pair for pair in pairs if not _bound(pair, labels)]
        if len(still) == len(pairs):
            return
        pairs = still


def _bound(pair: Sequence[Leaf], labels: Labels) -> bool:
    """Whether two equal numbers, of which one or both count channels, are bound now."""
    one, two = (_channels(leaf, labels) for leaf in pair)
    if one is not None and two is not None:
        labels.channels.tie(one, two)
        return True
    for ids, leaf in ((one, pair[1]), (two, pair[0])):
        if ids is not None and leaf[0] == "attribute":
            labels.count(leaf, ids)
            return True
    return False


def _channels(leaf: Leaf, labels: Labels) -> Ids | None:
    """The channels that a number counts; None where it counts others things."""
    return labels.of(leaf[1]).get(leaf[2]) if leaf[0] == "size" else labels.counted.get(leaf)


def undecided(compared: Sequence[Comparison], emitter: "Emitter") -> dict[str, str]:
    """Width sites at whose other widths Python would answer otherwise, and so take other steps, with the reason."""
    answers: dict[Any, bool] = {}
    reasons: dict[str, str] = {}
    for comparison in compared:
        layouts: dict[Leaf, Layout] = {}
        for leaf in dict.fromkeys(leaf for number in comparison.numbers for leaf, _ in leaves_of(number)):
            ids = _channels(leaf, emitter.labels)
            if ids is not None and (layout := emitter.atoms.layout(ids)).free:
                layouts[leaf] = layout
        if not layouts:
            continue
        key = comparison.function, tuple(_form(each, layouts) for each in comparison.numbers)
        if key not in answers:
            answers[key] = _changes(comparison, layouts)
        if answers[key]:
            why = f"forward {comparison.sentence} ({comparison.where}): let __init__ do that"
            for site in dict.fromkeys(site for layout in layouts.values() for site in layout.sites):
                reasons.setdefault(site, why)
    return reasons


def _form(number: Any, layouts: Mapping[Leaf, Layout]) -> Any:
    """What a number is computed from, equal for those that are equal at all widths."""
    if not isinstance(number, Length):
        return number
    head, *rest = number.how
    if isinstance(head, str):
        return layouts.get(number.how, int(number))
    return head, *(_form(each, layouts) for each in rest)


def _changes(comparison: Comparison, layouts: Mapping[Leaf, Layout]) -> bool:
    """Whether the answer is another at any widths."""
    forms = [_form(each, layouts) for each in comparison.numbers]
    if len(forms) == 2 and forms[0] == forms[1]:
        return False
    runs = {run.site: run for layout in layouts.values() for run in layout.runs if run.site}
    for widths in _tried(runs, _constants(comparison)):

        def number(leaf: Leaf, recorded: int, widths: Mapping[str, int] = widths) -> int:
            return layouts[leaf].size(widths) if leaf in layouts else recorded

        try:
            if comparison.at(number) != comparison.answer:
                return True
        except ArithmeticError:
            return True
    return False


def _constants(comparison: Comparison) -> set[int]:
    """Numbers near which an answer may change."""
    numbers: set[int] = set()

    def visit(number: Any) -> None:
        numbers.add(int(number))
        if isinstance(number, Length) and not isinstance(number.how[0], str):
            for each in number.how[1:]:
                visit(each)

    for each in comparison.numbers:
        visit(each)
    pairs = list(itertools.product(numbers, repeat=2))
    near = numbers | {a * b for a, b in pairs} | {a // b for a, b in pairs if b} | {a - b for a, b in pairs}
    return {number + step for number in near for step in (-1, 0, 1)}


def _tried(runs: Mapping[str, Run], constants: set[int]) -> Iterator[dict[str, int]]:
    """Widths by site: of one site after the other, of all at about one number, and at random."""
    base = {name: run.atoms * run.multiple for name, run in runs.items()}
    numbers: dict[str, list[int]] = {}
    for name, run in runs.items():
        atoms = {*range(1, min(2 * run.atoms, DENSE) + 1), *(run.atoms * times for times in (2, 3, 4, 8, 16))}
        atoms |= {max(1, 2 * run.atoms * part // SPREAD) for part in range(SPREAD)}
        atoms |= {each // run.multiple for each in constants if 1 <= each // run.multiple <= 16 * run.atoms}
        numbers[name] = sorted(each * run.multiple for each in atoms)
        yield from (base | {name: width} for width in numbers[name])
    if len(runs) > 1:
        for width in sorted({each for widths in numbers.values() for each in widths}):
            yield {name: max(1, width // run.multiple) * run.multiple for name, run in runs.items()}
        dice = random.Random(0)
        yield from ({name: dice.choice(widths) for name, widths in numbers.items()} for _ in range(MIXED))
