"""What a run will do and how long it will take, printed before it starts: a few steps are timed, the rest is
arithmetic."""

import time
from collections.abc import Iterator

from torch import nn

from htas.console.blame import blame, is_users
from htas.console.progress import say
from htas.cost.calibrate import cells, roomy_calibration
from htas.data.task import Inputs, Outputs, forward, images_in, precise
from htas.errors import UserError, as_arguments
from htas.graph import UNTRAINED, resize
from htas.run.controls import candidates, ends
from htas.run.needs import need_startable, need_supernet
from htas.run.rows import base_trained
from htas.run.run import Run, check_fits
from htas.runtimes import open_runtime
from htas.search.oneshot import SearchOptions
from htas.spaces.design import grid_widths
from htas.spaces.layers import SLOW, widths_at_most
from htas.spaces.space import Space, tas_widths
from htas.text import duration, plural
from htas.training import ranks
from htas.training.layout import CopyingViews, placed
from htas.training.loop import batches, engine, epoch_seed

STUDENT = 0.8
"""Cost of a distilled step of a searched network, with its teacher, in plain steps of the base network."""
FORWARD = 1 / 3
"""Forward pass of the base network, as a fraction of a training step."""
STUDENTS = 3
"""Controls that are trained, next to the base and the searched networks."""
WHOLE = 5
"""Builds of layers that a whole network takes, where a layer takes SLOW seconds: ResNet-20 in 26 s with torch.compile,
whose layers take 5."""
REPORTED = 45.0
"""Seconds for the report and for choosing its controls, programs not counted."""

KINDS = {
    "differentiable": "widths and depths are learnt together with the weights of a supernet",
    "tas": "the differentiable search of TAS, with its settings",
    "knapsack": "a program over whole numbers by the importance of the trained channels and blocks, without a supernet",
    "blockwise": "every block learns the trained network's feature map alone, at all widths",
    "most": "the arch of most multiply-adds or parameters within the limits, which a short training judges",
}
"""What some searches do, in words."""
GAINS = {
    "knapsack": "at half of ResNet-20's latency on CIFAR-10 its network is 2.1 points above the base with all widths "
    "narrowed alike (89.6 and 87.5 %, three seeds); at a third it is 2.0 points above the best plain member, ResNet-8 "
    "(88.9 and 86.9 %, three seeds)"
}
"""What searches are worth against the plain family, as measured."""
CHEAPER = {"differentiable": "knapsack", "tas": "knapsack", "blockwise": "knapsack", "most": "knapsack"}
"""Strategies that take a small part of the time: the others train networks or blocks, on many more images."""
CHEAPEST = "knapsack"
"""The search of least time: `most` and `uniform`, whose choice takes none, train their network to judge it."""


def check(run: Run) -> None:
    """Raise UserError where the run would be refused before its survey."""
    check_fits(run)
    need_startable(run)
    need_supernet(run)


def show(run: Run) -> None:
    """Print the stages with the time each is expected to take."""
    stages = list(estimate(run))
    say(f"expected on this machine, into {run.folder}:")
    for stage, seconds in (*stages, ("all", sum(seconds for _, seconds in stages))):
        say(f"  {stage:<28}{duration(seconds):>12}")
    for sentence in search_sentences(
        run.config.names["strategy"],
        bool(run.config.constraints.by_metric),
        run.config.strategy.trains_anew and run.anew and run.data.task.as_usual,
    ):
        say(sentence if run.elsewhere else as_arguments(sentence))


def search_sentences(strategy: str, limited: bool, trials: bool) -> Iterator[str]:
    """What the search does, what it is worth by measurement, and what is cheaper by options of the command; `trials`
    says that it may train networks to decide."""
    if strategy in KINDS:
        yield f"the search is {strategy}: {KINDS[strategy]}"
    if limited and strategy in GAINS:
        yield f"{GAINS[strategy]} (benchmarks/evidence)"
    if limited and strategy in CHEAPER:
        other = CHEAPER[strategy]
        yield f"cheaper: --strategy.name={other}, {KINDS[other]}"
    if limited and strategy == CHEAPEST and trials:
        yield "cheaper: --strategy.trials=1, no short trainings where its estimates are close; no other search is"


def estimate(run: Run) -> Iterator[tuple[str, float]]:
    """Stage and seconds."""
    network, options, config = run.network, run.config.design, run.config
    image, runtime = _step(run), open_runtime(run.target)
    seconds, free = runtime.build_seconds, runtime.free_memory()
    layers = options.roomy_survey(network, widths_at_most(seconds), free)[0].at_most
    yield "survey, at most", config.survey.limit(layers, seconds)
    choices = {}  # about those of all spaces together
    for name, site in network.widths.items():
        published = tas_widths(site.base, site.multiple) if "tas" in options.spaces else ()
        choices[name] = tuple(sorted({*grid_widths(site, options), *published}))
    spaces, controls = [Space("", choices, {})], ends(run)
    calibrating, _ = roomy_calibration(run.calibration, network, spaces, seconds, controls, free)
    pairs = sum(map(len, cells(network, spaces, calibrating.widths, seconds, controls).values()))
    measuring, building = sum(calibrating.limits(pairs, seconds, FORWARD * image * run.target.batch)), _build(run)
    yield "calibration, at most", measuring + calibrating.networks * building
    together = ranks.processes()
    searched, training = len(options.spaces), config.train.length * len(run.data.train) * image / together
    search = config.strategy.training_images(len(run.data.weights)) * image
    search /= together if isinstance(config.strategy, SearchOptions) else 1
    yield f"search of {plural(searched, 'space')}", searched * search
    if not base_trained(run):
        yield "train the base network", training
    yield f"train {searched + STUDENTS} networks", (searched + STUDENTS) * training * STUDENT
    compared = len(candidates(run)) + searched + STUDENTS + 1
    yield "measure and report", REPORTED + compared * building


def _forward(run: Run, model: nn.Module, images: Inputs) -> Outputs:
    """What the base network makes of a batch in training. Raises UserError where it fails, and has failed as it was
    traced."""
    try:
        return forward(model, images)
    except UserError:
        raise
    except Exception as error:  # whatever the modules of a user's network raise
        if is_users(error) or not run.network.checked.startswith(UNTRAINED):
            raise
        raise UserError(f"the network cannot be run in training ({blame(error)}); mend its forward") from error


def _build(run: Run) -> float:
    """Seconds to build the base network's program, its export included; estimated where that takes long or would have
    to be sent to a device."""
    runtime = open_runtime(run.target)
    if run.target.host or runtime.build_seconds >= SLOW:
        return runtime.build_seconds * (WHOLE if runtime.build_seconds >= SLOW else 1)
    module, started = resize(run.network, run.network.base), time.monotonic()
    runtime.compile(module, run.target.example())
    return time.monotonic() - started


def _step(run: Run) -> float:
    """Seconds that one image costs in a plain training step of the base network."""
    data, recipe = run.data, run.config.train
    runner = engine(run.device, recipe.precision)
    model = placed(resize(run.network, run.network.base), runner.device)
    seconds, size = [], max(1, recipe.batch // ranks.processes())  # what one process computes
    for _, (images, labels) in zip(range(3), batches(data.train, size, epoch_seed(0, 0)), strict=False):
        started = time.monotonic()
        with CopyingViews(), runner.autocast():
            loss = data.task.loss(precise(_forward(run, model, images)), labels)
        runner.backward(loss)
        loss.item()
        seconds.append((time.monotonic() - started) / images_in(images))
    return min(seconds)
