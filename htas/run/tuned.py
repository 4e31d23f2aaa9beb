"""Networks trained on in simulated int8, where quantization alone costs them more than half a point."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from htas.console.progress import say
from htas.data.split import Data
from htas.errors import UserError
from htas.files import digest, from_json, load_state, read_about, read_weights, state_of, to_json, write_tensors
from htas.formats.int8 import needs_seven_bits
from htas.report.result import Deployed, Result
from htas.run import rows as run_rows
from htas.run.deployed import as_deployed, some_of
from htas.run.run import Run
from htas.text import plural, signed
from htas.timing.target import Target
from htas.training.train import Training

DROP = 0.005
"""Of the score, which quantization may cost."""
JUDGES = 2000
"""Training images, not augmented, that tell what it costs: no choice looks at the test split."""
GENTLER = 20
"""The learning rate of `train` over that of these epochs."""


@dataclass(frozen=True)
class TunedRecord:
    """The header of a file of weights that were trained on in simulated int8."""

    inputs: str
    """A hash of the weights that the epochs began with, and of what they depend on."""
    note: str
    """What they changed, as a remark of the network's row."""


def weight_bits(target: Target) -> int:
    """Of weights in int8 on the processor of a target: 7 where its sums of products would overflow with 8; 0 in another
    precision."""
    if target.precision != "int8":
        return 0
    return 7 if needs_seven_bits(target.instructions()) else 8


def int8_network(run: Run, row: Result) -> nn.Module:
    """The trained network that is quantized, in eval mode, on the CPU: with the weights of its epochs in simulated
    int8, where it needed them."""
    network = run_rows.load_network(run, row)
    if _record(run, row):
        read_weights(_file(run, row), network)
    return network


def tuned_rows(run: Run, rows: Sequence[Result]) -> list[Result]:
    """The rows, each with a remark where its network was trained on; the weights are written beside those in fp32."""
    return [replace(row, remarks=(*row.remarks, *filter(None, [_note(run, row)]))) for row in rows]


def _note(run: Run, row: Result) -> str:
    """What further epochs in simulated int8 did for a network that needed them; empty where it did not."""
    epochs, task = run.config.train.int8_epochs, run.data.task
    if run.target.precision != "int8" or not epochs or task.train is not None or task.judge is not None:
        return ""
    if record := _record(run, row):
        return record.note
    original, judges = run_rows.load_network(run, row), _with_training_images(run.data)

    def read(network: nn.Module) -> Deployed | None:
        return as_deployed(
            original, run.target, judges, seed=run.config.seed, device=run.device, deployed=network, name=row.name
        )

    before = read(original)
    if before is None or not _costs(before):
        return ""
    say(f"train {row.name}: int8 costs {_points(before)} on training images; {plural(epochs, 'epoch')} in int8 follow")
    try:
        network = _trained_on(run, row)
    except UserError as error:  # it diverged; the network in fp32 is as good as it was
        say(f"train {row.name}: it is quantized without them: {error}")
        _checkpoint(run, row).unlink(missing_ok=True)
        return ""
    after = read(network)
    assert after is not None
    if after.accuracy <= before.accuracy:
        say(f"train {row.name}: they gained nothing ({_points(after)}); it is quantized without them")
        return ""
    note = (
        f"In int8 with weights of {plural(epochs, 'further epoch')} in simulated int8: quantization alone cost "
        f"{_points(before)} on {before.images} training images, and {_points(after)} after them."
    )
    write_tensors(_file(run, row), state_of(network), to_json(TunedRecord(_key(run, row), note)))
    return note


def _record(run: Run, row: Result) -> TunedRecord | None:
    """The header of weights that were trained on from the present ones; None where there are none."""
    path = _file(run, row)
    if not path.exists():
        return None
    record = from_json(read_about(path), TunedRecord, path)
    return record if record.inputs == _key(run, row) else None


def _file(run: Run, row: Result) -> Path:
    return run.model_file(f"{row.name}-int8")


def _key(run: Run, row: Result) -> str:
    return digest(run.model_file(row.name), weight_bits(run.target), run.config.train.int8_epochs, GENTLER)


def _checkpoint(run: Run, row: Result) -> Path:
    return run.checkpoint(f"int8-{row.name}", _key(run, row))


def _costs(result: Deployed) -> bool:
    """Whether the score falls by more than it may, and by more than the images can tell."""
    return -result.difference > max(DROP, result.noise or 0.0)


def _points(result: Deployed) -> str:
    return f"{signed(100 * result.difference)} points"


def _with_training_images(data: Data) -> Data:
    """The data with some of its training images in place of the test split."""
    return replace(data, test=some_of(data.weights, JUDGES))


def _trained_on(run: Run, row: Result) -> nn.Module:
    """The network after its further epochs, in eval mode, on the CPU."""
    config, checkpoint = run.config, _checkpoint(run, row)
    recipe = replace(
        config.train, epochs=config.train.int8_epochs, warmup=0, rest=0, lr=config.train.lr / GENTLER, precision="fp32"
    )
    model, network = run_rows.load_network(run, row), run_rows.load_network(run, row)
    taught = row.name != "base" and config.distill.alpha != 0
    Training(
        model, run.data.train, recipe, seed=config.seed, device=run.device, checkpoint=checkpoint, task=run.data.task,
        title=f"train {row.name} in int8", teacher=run_rows.base_network(run) if taught else None,
        distill=config.distill, weight_bits=weight_bits(run.target),
    ).run()  # fmt: skip
    load_state(network, state_of(model))
    checkpoint.unlink(missing_ok=True)
    return network
