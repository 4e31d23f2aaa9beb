"""Networks as they are deployed: the score of the file that the runtime runs, in the precision of the target."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from htas.console.progress import progress
from htas.data.nests import tensors_in
from htas.data.split import Source
from htas.data.task import forward, images_in, precise
from htas.metrics.latency import Latency, rounds
from htas.report.result import Deployed, Result
from htas.run.run import Run
from htas.runtimes import Program, open_runtime
from htas.text import milliseconds, significant

CALIBRATION = 256
"""Images of the training split, not augmented, that show how large activations become."""
BLOCK = 50
"""Images whose mean scores are one sample of the difference between two precisions."""
MOST_ELSEWHERE = 2000
"""Test images that are sent to a device."""


class Runs(nn.Module):
    """A program as a module for any number of images, of which it takes one batch at a time."""

    def __init__(self, program: Program, batch: int) -> None:
        super().__init__()
        self.program, self.batch = program, batch

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first output [N, ...] for inputs [N, *shape]; a batch that is short is filled with zeros."""
        parts = []
        for at in range(0, len(inputs[0]), self.batch):
            given = [each[at : at + self.batch].cpu().contiguous() for each in inputs]
            short = self.batch - len(given[0])
            whole = [torch.cat([each, each.new_zeros(short, *each.shape[1:])]) if short else each for each in given]
            parts.append(self.program.outputs(*whole)[: len(given[0])])
        return torch.cat(parts).to(inputs[0].device)


def calibration_images(run: Run) -> tuple[Tensor, ...]:
    """Inputs [N, *shape] of the training split, without those of validation; N whole batches where it has as many."""
    source = run.data.weights
    count = max(min(CALIBRATION, len(source)), 1)
    inputs, _ = next(source.batches(count, seed=run.config.seed))
    return tuple(tensor.detach().cpu().contiguous() for tensor in tensors_in(inputs))


def as_deployed(run: Run, model: nn.Module) -> Deployed | None:
    """The score of a trained network on the test split through the runtime, and what the precision changed.

    The difference from fp32 is that of the same images, with twice its standard error over blocks of them. None
    for a network with several outputs, of which a runtime gives the first.
    """
    with torch.no_grad():
        if not isinstance(forward(model.cpu().eval(), run.network.example()), Tensor):
            return None
    runtime, task, test = open_runtime(run.target), run.data.task, run.data.test
    if run.target.host and len(test) > MOST_ELSEWHERE:
        test = test.where(torch.arange(len(test)) < MOST_ELSEWHERE)
    images = calibration_images(run) if run.target.precision == "int8" else ()
    with runtime.session():
        program = runtime.deployed(model, run.target.example(), images)
        network = Runs(program, run.target.batch)
        if task.judge is not None:
            before, after = (float(task.judge(each.eval())) for each in (model, network))
            return Deployed(run.target.precision, after, after - before, None, 0, program.remark)
        scores = np.array([_scores(run, each, test) for each in (model, network)])
    sizes = scores[0, :, 1]
    means = (scores[:, :, 0] * sizes).sum(axis=1) / sizes.sum()
    differences = scores[1, :, 0] - scores[0, :, 0]
    noise = 2 * float(np.std(differences, ddof=1)) / sqrt(len(sizes)) if len(sizes) > 1 else None
    return Deployed(
        run.target.precision, float(means[1]), float(means[1] - means[0]), noise, round(sizes.sum()), program.remark
    )


@torch.no_grad()
def _scores(run: Run, network: nn.Module, split: Source) -> list[tuple[float, int]]:
    """Mean score and number of images of every block."""
    score, network = run.data.task.score, network.to(run.device).eval()
    return [
        (float(score(precise(forward(network, inputs)), targets)), images_in(inputs))
        for inputs, targets in split.batches(BLOCK)
    ]


def against_fp32(run: Run, networks: Sequence[nn.Module], seconds: Sequence[float]) -> list[str]:
    """Of networks that take so many seconds in the target's precision, a sentence each on how long they take in fp32,
    where the processor may be faster."""
    target = replace(run.target, precision="fp32")
    readings = Latency(target, rounds=rounds(seconds), seed=run.config.seed).measure(list(networks))
    sentences = []
    for reading, own in zip(readings, seconds, strict=True):
        times, fp32 = reading.estimate / own, milliseconds(reading.estimate)
        how = f"{significant(times)} times as fast as" if times >= 1 else f"{significant(1 / times)} times slower than"
        sentences.append(f"In {run.target.precision} it is {how} in fp32 on this device ({fp32}, in a run of its own).")
    return sentences


def deployed_rows(run: Run, rows: Sequence[Result], networks: Sequence[nn.Module]) -> list[Result]:
    """Measured rows with their accuracy as deployed; also the speed of base and searched one (the first two)."""
    with progress(f"accuracy in {run.target.precision}", len(rows)) as bar:
        deployed = []
        for row, network in zip(rows, networks, strict=True):
            deployed.append(as_deployed(run, network))
            bar.step(row.name)
    seconds = [row.measured.estimate for row in rows[:2] if row.measured]
    faster = [*against_fp32(run, networks[:2], seconds), *[""] * len(rows[2:])]
    return [
        replace(row, deployed=each, remarks=(*row.remarks, *filter(None, (sentence, each.remark if each else ""))))
        for row, each, sentence in zip(rows, deployed, faster, strict=True)
    ]
