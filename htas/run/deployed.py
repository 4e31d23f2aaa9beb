"""Networks as they are deployed: the score of the file that the runtime runs, in the precision of the target."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from htas.console.progress import progress
from htas.data.nests import tensors_in
from htas.data.split import Data, Source
from htas.data.task import Task, forward, images_in, need_score, precise
from htas.formats.parity import unlike_fp32
from htas.metrics.latency import Latency, rounds
from htas.report.result import Deployed, Result
from htas.run.run import Run
from htas.runtimes import Program, open_runtime
from htas.text import milliseconds, significant
from htas.timing.target import Target
from htas.training.train import users_score

CALIBRATION = 256
"""Images of the training split, not augmented, that show how large activations become."""
BLOCK = 50
"""Images whose mean scores are one sample of the difference between two precisions."""
MOST_ELSEWHERE = 2000
"""Test images that are sent to a device, drawn at random: in a folder they lie sorted by class."""
CHECKED = 32
"""Images of the calibration on which outputs are compared with those in fp32."""


class Runs(nn.Module):
    """A program as a module for any number of images, of which it takes one batch at a time."""

    def __init__(self, program: Program, batch: int) -> None:
        super().__init__()
        self.program, self.batch = program, batch

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first output [N, ...] for inputs [N, *shape]; a batch that is short is filled with zeros."""
        parts = []
        for at in range(0, len(inputs[0]), self.batch):
            batch = [each[at : at + self.batch].cpu().contiguous() for each in inputs]
            short = self.batch - len(batch[0])
            whole = [torch.cat([each, each.new_zeros(short, *each.shape[1:])]) if short else each for each in batch]
            parts.append(self.program.outputs(*whole)[: len(batch[0])])
        return torch.cat(parts).to(inputs[0].device)


def calibration_images(data: Data, seed: int) -> tuple[Tensor, ...]:
    """Inputs [N, *shape] of the training split, without those of validation."""
    count = max(min(CALIBRATION, len(data.weights)), 1)
    inputs, _ = next(data.weights.batches(count, seed=seed))
    return tuple(tensor.detach().cpu().contiguous() for tensor in tensors_in(inputs))


def as_deployed(
    model: nn.Module, target: Target, data: Data, *, seed: int = 0, device: str = "cpu",
    deployed: nn.Module | None = None, name: str = "",
) -> Deployed | None:  # fmt: skip
    """The score of a trained network on the test split through the target's runtime, and what the precision changed.

    The difference from fp32, which `device` computes, is that of the same images, with twice its standard error over
    blocks of them; `deployed` is the network with the weights that are deployed, where it has others for that. None for
    a network with several outputs, of which a runtime gives the first. Raises UserError, which has the network's name,
    where its score is no finite number.
    """
    whose = f"the network {name or '(as deployed)'} on {target.runtime} in {target.precision}, or before in fp32"
    test, example = data.test, target.example()
    with torch.no_grad():
        if not isinstance(forward(model.cpu().eval(), example[0] if len(example) == 1 else example), Tensor):
            return None
    if target.host:
        test = some_of(test, MOST_ELSEWHERE)
    runtime = open_runtime(target)
    with runtime.session():
        images = calibration_images(data, seed) if target.precision != "fp32" else ()
        program = runtime.deploy(deployed or model, example, images if target.precision == "int8" else ())
        network = Runs(program, target.batch)
        remark = " ".join(filter(None, [program.remark, _doubt(deployed or model, network, images, target)]))
        if data.task.judge is not None:
            before, after = (users_score(data.task, each, whose) for each in (model, network))
            return Deployed(target.precision, after, after - before, None, 0, remark)
        scores = np.array([_scores(each.to(device), test, data.task) for each in (model, network)])
    sizes, means = scores[0, :, 1], scores[:, :, 0]
    before, after = (need_score(float(np.average(each, weights=sizes)), data.task.scored_by, whose) for each in means)
    noise = 2 * float(np.std(means[1] - means[0], ddof=1)) / sqrt(len(sizes)) if len(sizes) > 1 else None
    return Deployed(target.precision, after, after - before, noise, round(sizes.sum()), remark)


def some_of(source: Source, count: int) -> Source:
    """So many of the items at random, the same each time, in their order; all where there are no more."""
    mask = torch.zeros(len(source), dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=torch.Generator().manual_seed(0))[:count]] = True
    return source.where(mask)


@torch.no_grad()
def _doubt(model: nn.Module, network: Runs, images: tuple[Tensor, ...], target: Target) -> str:
    """A remark where a network computes something else in another precision; its accuracy may hide that."""
    inputs = [image[:CHECKED] for image in images]
    return unlike_fp32(model.cpu().eval()(*inputs), network(*inputs), target.precision) if inputs else ""


@torch.no_grad()
def _scores(network: nn.Module, split: Source, task: Task) -> list[tuple[float, int]]:
    """Mean score and number of images of every block."""
    network.eval()
    return [
        (float(task.score(precise(forward(network, inputs)), targets)), images_in(inputs))
        for inputs, targets in split.batches(BLOCK)
    ]


def against_fp32(run: Run, networks: Sequence[nn.Module], seconds: Sequence[float]) -> list[str]:
    """Of networks that take so many seconds in the target's precision, a sentence each on how long they take in fp32,
    where the processor may be faster."""
    target = replace(run.target, precision="fp32")
    readings = Latency(target, rounds=rounds(seconds), seed=run.config.seed).measure(list(networks))
    sentences = []
    for reading, lasted in zip(readings, seconds, strict=True):
        times, fp32 = reading.estimate / lasted, milliseconds(reading.estimate)
        how = f"{significant(times)} times as fast as" if times >= 1 else f"{significant(1 / times)} times slower than"
        sentences.append(f"In {run.target.precision} it is {how} in fp32 on this device ({fp32}, in a run of its own).")
    return sentences


def deployed_rows(
    run: Run, rows: Sequence[Result], networks: Sequence[nn.Module], deployed: Sequence[nn.Module]
) -> list[Result]:
    """Measured rows with their accuracy as deployed, with the weights of `deployed`; also the speed of base and
    searched one (the first two)."""
    with progress(f"accuracy in {run.target.precision}", len(rows)) as bar:
        accuracies = []
        for row, network, other in zip(rows, networks, deployed, strict=True):
            deployed_network = as_deployed(
                network, run.target, run.data, seed=run.config.seed, device=run.device, deployed=other, name=row.name
            )
            accuracies.append(deployed_network)
            bar.step(row.name)
    seconds = [row.measured.estimate for row in rows[:2] if row.measured]
    faster = [*against_fp32(run, networks[:2], seconds), *[""] * len(rows[2:])]
    return [
        replace(row, deployed=each, remarks=(*row.remarks, *filter(None, (sentence, each.remark if each else ""))))
        for row, each, sentence in zip(rows, accuracies, faster, strict=True)
    ]
