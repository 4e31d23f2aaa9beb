"""Errors of blocks that learn a trained network's feature maps alone, and their sums as tables over sites.

Blockwise distillation: LANA (Molchanov et al. 2021, arXiv 2107.10624) and DONNA (Moons et al. 2020, arXiv 2012.08859).
Blocks learn by DONNA's noise-to-signal ratio: mean squared errors of channels, over their variances. What is added up
is this ratio, or what the errors add to the loss of the trained network, which means the same in all blocks; LANA plugs
every block into the network for that, here it is the second order of an expansion (as in importance.py).
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from htas.console.progress import Bar, progress
from htas.data.split import Source
from htas.data.task import Task
from htas.errors import UserError
from htas.files import read_json, write_json
from htas.graph import Arch, Network, Node
from htas.search.oneshot import some
from htas.search.problem import Problem
from htas.search.program import Group, Tables, decomposed, groups_of
from htas.search.segments import Block, blocks_of
from htas.search.student import Maps, Student, maps_of
from htas.text import significant
from htas.training.layout import placed

MEMORY = 2**30
"""Bytes that the feature maps of a block may take; fewer images are then seen more often."""
SMALL = 0.001
"""Errors far above it count by their logarithm, so that wide cells learn as narrow ones do, whose errors are large."""
EXTRA = 20
"""Archs that are looked at for each cell of a table, at most."""
Key = tuple[int, ...]
"""The widths and depths that a block meets."""
Teach = Callable[[Sequence[int], Bar], Iterator[tuple[int, list[float] | None]]]
"""The errors of lessons, by number, each as soon as it is learnt; None for one that could not be."""


@dataclass(frozen=True)
class BlockOptions:
    """How blocks learn."""

    images: int
    epochs: int
    batch: int
    lr: float
    judged: int
    cells: int
    error: Literal["loss", "noise"]


@dataclass(frozen=True)
class Lesson:
    """A block, and the feature map that it learns: its own end, or, as the last of its depth site, the end of that."""

    block: Block
    last: bool

    @property
    def name(self) -> str:
        """The name of the step that ends the block, marked where the block is the last."""
        return f"{self.block.name} as the last" if self.last else self.block.name

    @property
    def targets(self) -> tuple[Node, ...]:
        """The steps whose feature maps the teacher shows."""
        return (self.block.end,) if self.last and self.block.end is not None else self.block.exits


class BlockErrors:
    """The errors of all blocks of a problem's network at the choices of its space, written down block by block.

    A block has one error for each combination of the choices that it meets, its cells: of all of them together where
    these are at most `cells`; else of those that layers meet together, and else of one site at a time, while all others
    are as in the base network. A block that an arch cuts has none. A block learns with all its cells: at each step the
    widest, the narrowest and one at random.
    """

    def __init__(self, problem: Problem, teacher: nn.Module, options: BlockOptions) -> None:
        """`teacher` is the trained base network, its channels in the order of their importance, on its device."""
        self.problem, self.options = problem, options
        self.space, self.teacher = problem.space, teacher
        self.network = replace(problem.network, module=teacher)
        self.blocks = blocks_of(self.network, self.space)
        self.anchor = self.space.nearest(self.network.base)
        self.groups = {block.name: self._groups(block) for block in self.blocks}
        self.path = problem.checkpoint.with_suffix(".json")
        content: dict[str, Any] = read_json(self.path) if self.path.exists() else {"errors": {}, "seconds": 0.0}
        self.errors: dict[str, list[float]] = content["errors"]
        """By lesson, its errors in the order of `cells`."""
        self.seconds: float = content["seconds"]
        """Seconds of all lessons, those before an interruption included."""

    # -- the sum of errors ---------------------------------------------------------------------------------------------

    def tables(self, teach: "Teach | None" = None) -> Tables:
        """The sum of the errors of all blocks, as tables; blocks learn what they have not yet learnt, one after the
        other unless somebody else teaches them.

        Raises UserError where feature maps or errors are not finite, or of other sizes than foretold.
        """
        lessons = {lesson.name: cells for lesson, cells in self.lessons()}
        names, teach = list(lessons), teach or self._one_by_one
        begun = len(self.errors.keys() & lessons.keys())
        with progress(f"{self.problem.title}: blocks", len(names), done=begun) as bar:
            while waiting := [number for number, name in enumerate(names) if name not in self.errors]:
                since = time.monotonic()
                for number, errors in teach(waiting, bar):
                    if errors is None:  # it is taught again
                        continue
                    self.errors[names[number]] = errors
                    now = time.monotonic()
                    self.seconds, since = self.seconds + now - since, now
                    write_json(self.path, {"errors": self.errors, "seconds": self.seconds})
                    bar.step(f"{names[number]}: errors of {_range(errors)}")
        by_cell = {name: dict(zip(cells, self.errors[name], strict=True)) for name, cells in lessons.items()}
        total: dict[Group, Any] = {(): np.zeros(())}
        for block in self.blocks:
            figure = self._figure(block, lambda lesson, key, _: by_cell[lesson.name][key])
            for group, table in decomposed(figure, self.space, self.groups[block.name], self.anchor).tables.items():
                total[group] = total[group] + table if group in total else table
        return Tables(self.space, total)

    def lessons(self) -> Iterator[tuple[Lesson, dict[Key, Arch]]]:
        """What blocks learn, each with its cells: an arch for each combination of choices that it meets."""
        for block in self.blocks:
            yield from self._cells(block, self.groups[block.name]).items()

    def errors_of(self, number: int) -> list[float]:
        """The errors of the cells of a lesson, by its number, after it is learnt; they depend on nothing else."""
        lesson, cells = self._numbered[number]
        return self.learn(lesson, list(cells.values()), self.problem.seed + number)

    @cached_property
    def _numbered(self) -> list[tuple[Lesson, dict[Key, Arch]]]:
        return list(self.lessons())

    def _one_by_one(self, numbers: Sequence[int], bar: Bar) -> Iterator[tuple[int, list[float] | None]]:
        return ((number, self.errors_of(number)) for number in numbers)

    def _figure(self, block: Block, error: Callable[[Lesson, Key, Arch], float]) -> Callable[[Arch], float]:
        """The error of a block as a function of archs."""
        sites = block.widths

        def figure(arch: Arch) -> float:
            if not block.runs(arch):
                return 0.0
            now = self.network.widths_at(arch)
            key = (*(now[site] for site in sites), *(arch.depths[site] for site in block.inner))
            return error(Lesson(block, block.is_last(arch)), key, arch)

        return figure

    def _cells(self, block: Block, groups: Sequence[Group]) -> dict[Lesson, dict[Key, Arch]]:
        """The cells of a block that tables over these groups need."""
        cells: dict[Lesson, dict[Key, Arch]] = {}

        def note(lesson: Lesson, key: Key, arch: Arch) -> float:
            cells.setdefault(lesson, {}).setdefault(key, arch)
            return 0.0

        decomposed(self._figure(block, note), self.space, groups, self.anchor)
        return cells

    def _groups(self, block: Block) -> list[Group]:
        """The groups of sites of which a block's error is a sum: as large as the number of cells allows."""
        order = {site: place for place, (site, choices) in enumerate(self.space.choices.items()) if len(choices) > 1}
        sites = {*block.inner, *block.widths, block.site} - {""}
        for node in self.network.nodes:
            passed = {segment.site for segment in node.segments} - self.network.sites.keys()
            if node.kind == "depth" and sites & passed:
                sites |= {node.site} | _sites_of_ends(self.network, node)
        met = sites & order.keys()
        always = {block.site} & order.keys()

        def group(names: set[str]) -> Group:
            return tuple(sorted(names & met | always, key=order.__getitem__))

        pairs = [group(set(each)) for each in groups_of(self.network, self.space)]
        for groups in ([group(met)], [each for each in dict.fromkeys(pairs) if each]):
            sizes = [math.prod(len(self.space.choices[site]) for site in each) for each in groups]
            if sum(sizes) <= EXTRA * self.options.cells:
                cells = self._cells(block, groups)
                if max(map(len, cells.values()), default=0) <= self.options.cells:
                    return groups
        return [group({site}) for site in sorted(met, key=order.__getitem__)] or [()]

    # -- learning ------------------------------------------------------------------------------------------------------

    def learn(self, lesson: Lesson, cells: Sequence[Arch], seed: int) -> list[float]:
        """Train a block from the teacher's weights, and return the error of each cell on held-out images."""
        data, options = self.problem.data, self.options
        device = next(self.teacher.parameters()).device

        def maps(source: Source, most: int, task: Task | None = None) -> list[Maps]:
            parts: list[Maps] = []
            images = some(source, most, options.batch)
            for each in maps_of(self.network, self.teacher, lesson.block, lesson.targets, images, task):
                if parts and len(each.targets[0]) < options.batch / 2:  # too few for the statistics of norms
                    break
                parts.append(each)
                size = sum(tensor.numel() * tensor.element_size() for tensor in (*each.entries, *each.targets))
                if size * (len(parts) + 1) > MEMORY:
                    break
            return parts

        torch.manual_seed(seed)
        training = maps(data.weights, options.images)
        student = placed(Student(self.network, self.space, lesson.block, lesson.targets, training), device)
        student.allocate(cells)
        steps = options.epochs * math.ceil(min(options.images, len(data.weights)) / options.batch)
        train(student, training, cells, steps, options.lr, random.Random(seed), lesson.name)
        task = data.task if options.error == "loss" else None
        errors = judge(student, maps(data.validation, options.judged, task), cells)
        for arch, error in zip(cells, errors, strict=True):
            if not math.isfinite(error):
                raise UserError(
                    f"the error of the block that ends at {lesson.name} is not finite at {arch}; lower strategy.lr, "
                    "and name another folder with --out"
                )
        return errors


def train(
    student: Student, maps: Sequence[Maps], cells: Sequence[Arch], steps: int, lr: float, rng: random.Random, name: str
) -> None:  # fmt: skip
    """Train a block for some steps by Adam, its rate falling to 0 along half a cosine."""
    learnt = student.learnt()
    if not learnt:
        return
    ends = _ends(student, cells)
    adam = torch.optim.Adam(learnt, lr)
    order: list[int] = []
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        order = order or rng.sample(range(len(maps)), len(maps))
        batch = maps[order.pop()]
        archs = dict.fromkeys([*ends, rng.choice(cells)])
        adam.zero_grad()
        total = 0.0
        for arch in archs:
            loss = student.noise(student.misses(batch, arch))
            total += float(loss.detach())
            if loss.requires_grad:
                (loss / (loss.detach() + SMALL)).backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(total):
            raise UserError(
                f"the block that ends at {name} diverged at a learning rate of {significant(lr)}; lower strategy.lr, "
                "and name another folder with --out"
            )
        adam.step()


@torch.no_grad()
def judge(student: Student, maps: Sequence[Maps], cells: Sequence[Arch]) -> list[float]:
    """The error of each cell on some maps: what it adds to the loss where they have slopes, else noise to signal."""
    errors = []
    for arch in cells:
        total = 0.0
        for each in maps:
            misses = student.misses(each, arch)
            error = student.loss(misses, each) if each.slopes else student.noise(misses)
            total += float(error) * len(misses[0])
        errors.append(total / sum(len(each.targets[0]) for each in maps))
    return errors


def _ends(student: Student, cells: Sequence[Arch]) -> list[Arch]:
    """The largest cell that is nowhere wider than the base network, and the smallest."""
    block, base = student.block, student.network.base_widths
    widths = {arch: student.network.widths_at(arch) for arch in cells}

    def size(arch: Arch) -> int:
        return math.prod((*(widths[arch][site] for site in block.widths), *(arch.depths[site] for site in block.inner)))

    within = [arch for arch in cells if all(widths[arch][site] <= base[site] for site in block.widths)]
    return [max(within or cells, key=size), min(cells, key=size)]


def _sites_of_ends(network: Network, node: Node) -> set[str]:
    """The sites that the ends of a depth site's blocks have."""
    nodes = {each.name: each for each in network.nodes}
    return {segment.site for name in node.inputs for segment in nodes[name].segments}


def _range(errors: Sequence[float]) -> str:
    return f"{significant(min(errors))} to {significant(max(errors))}" if errors else "nothing"
