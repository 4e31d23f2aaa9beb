"""htas.optimize: the whole method for a network, data and a target that a Python program has."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from htas import files
from htas.console.blame import blame, users_faults
from htas.console.progress import say
from htas.data.batch import one_class
from htas.data.task import CLASSIFY, Task, unit
from htas.errors import UserError, in_python
from htas.files import BUFFERS, read_record, state_of, write_bytes, write_record, write_tensors, write_text
from htas.formats.export import export
from htas.formats.int8 import needs_seven_bits
from htas.graph.arch import Arch
from htas.graph.modes import copied
from htas.plugins.values import Values
from htas.report import read
from htas.report.result import Result
from htas.report.summary import breach, summary
from htas.run import rows as run_rows
from htas.run import stages as pipeline
from htas.run.arguments import check_arguments, check_once
from htas.run.config import TABLES, Config, usual_strategy
from htas.run.deployed import calibration_images
from htas.run.functions import try_functions
from htas.run.rows import NetworksRecord
from htas.run.run import Run, open_run
from htas.run.tuned import int8_network
from htas.run.user import UserData, UserNetwork
from htas.text import millions, milliseconds, percent, plural, shapes
from htas.timing.target import Target
from htas.training import ranks
from htas.training.train import evaluate

LOGITS = 58.0
"""Steps of a search times the learning rate of its logits that let them decide (docs/decisions.md)."""
SEARCH_EPOCHS = 3
"""Passes of a supernet's search where the strategy has one and no number is given."""
FEW = 8
"""Items of a batch at least, of which norms can compute statistics; the search's part of fewer items is one batch."""
MARGIN = 0.05
"""A trained network is better than guessing by this fraction of the distance to perfect accuracy, or more."""


@dataclass(frozen=True, repr=False)
class OptimizationResult:
    """The result of `optimize`; its files are in the run's folder. As text, the answer and the networks in a table."""

    run: Run

    def __str__(self) -> str:
        return str(summary(read(self.folder)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        """Of the run: every stage's files."""
        return self.run.folder

    @property
    def config(self) -> Config:
        """Of the run."""
        return self.run.config

    @cached_property
    def model(self) -> nn.Module:
        """The resulting network, trained, in eval mode, on the CPU: of the user's class, with resized leaf modules."""
        return run_rows.load_network(self.run, self.result)

    @cached_property
    def base(self) -> nn.Module:
        """The user's network, trained here unless it was; its channels may be in another order."""
        return run_rows.load_network(self.run, self.results[0])

    @property
    def arch(self) -> Arch:
        """Widths and depths of the resulting network."""
        return self.result.arch

    @property
    def result(self) -> Result:
        """Accuracy, predicted and measured latency, and counts of the resulting network."""
        return next(row for row in self.results if row.name == self.config.design.spaces[0])

    @cached_property
    def results(self) -> list[Result]:
        """The same for every network of the run: the base, then the searched ones, then the controls."""
        return list(read_record(self.folder / "measure.json", NetworksRecord).results)

    def report(self, path: str | Path) -> Path:
        """Write the report as one HTML file, which needs no other; its path."""
        write_bytes(Path(path), (self.folder / "report.html").read_bytes())
        return Path(path)

    def export(self, path: str | Path, precision: Literal["fp32", "int8"] = "fp32") -> float:
        """Write the network as .onnx, .pt2 or .xml (OpenVINO), for any batch; the largest difference of outputs.

        In int8 an .onnx or .xml is quantized, with images of the training data. Raises UserError for another suffix,
        and where outputs differ by more than 1e-4 of the largest (by half of it in int8); nothing is written then.
        """
        if precision == "fp32":
            return export(self.model, self.run.target.example(), Path(path))
        network, target = int8_network(self.run, self.result), self.run.target
        images = calibration_images(self.run.data, self.config.seed)
        seven_bits = needs_seven_bits(target.instructions())
        return export(network, target.example(), Path(path), images, seven_bits=seven_bits)

    def save(self, folder: str | Path) -> Path:
        """Write files that need no htas: weights (safetensors), widths and depths, the network as model.pt2,
        which torch alone can load, and as model.onnx, for any batch, and a README with the measured table; the folder.
        Buffers that a state_dict leaves out are in buffers.safetensors.
        """
        place = Path(folder)
        for suffix in ("pt2", "onnx"):
            self.export(place / f"model.{suffix}")
        about, state = {"network": self.config.family.title}, state_of(self.model)
        buffers = {name.removeprefix(BUFFERS): each for name, each in state.items() if name.startswith(BUFFERS)}
        write_tensors(place / "model.safetensors", self.model.state_dict(), about)
        if buffers:
            write_tensors(place / "buffers.safetensors", buffers, about)
        write_record(place / "arch.json", self.arch)
        write_text(place / "README.md", _card(self))
        return place


@in_python()
@users_faults()
def optimize(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    data: tuple[Any, Any],
    *,
    target: Target | None = None,
    constraints: Mapping[str, str | float] | None = None,
    trained: bool = True,
    epochs: int = 0,
    search_epochs: int = 0,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    eval_fn: Callable[[Any, Any], Tensor | float] | None = None,
    distill_fn: Callable[[Any, Any, Any], Tensor] | None = None,
    train_fn: Callable[[nn.Module, nn.Module | None], object] | None = None,
    score_func: Callable[[nn.Module], float] | None = None,
    ignored_layers: Sequence[str] = (),
    widths: Mapping[str, tuple[int, int]] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    out: str | Path = "",
) -> OptimizationResult:
    """A faster network than `model` on the target, within the constraints, trained, distilled from it, and measured.

    Args:
        model: any network that runs on its example, [N, ...] in, logits [N, classes] out (with `loss_fn`, anything); it
            is not changed.
        example_inputs: a tensor as the network takes it, [N, C, H, W] (of series [N, C, T]), or one for each of its
            inputs; the first dimension does not count.
        data: (training, validation) items: torch Datasets of (input, label), of (input, input, label) for a network of
            two inputs, or DataLoaders of such. The training items are divided for the search; nothing is chosen by the
            validation items, which only tell accuracies.
        target: where it must be fast; otherwise PyTorch on every core of this CPU.
        constraints: `{"latency": "50%"}`, `{"latency": "8ms", "macs": "60%"}`, of the metrics of `[constraints]`; half
            of the latency by default.
        trained: whether the model's weights are trained. They are then those of the base network, from which all others
            inherit (the most important channels first) and learn; otherwise the base network is trained here, from new
            weights but for the parameters that require no gradients.
        epochs: of training; 0 means 10 for networks that inherit and 20 for those that do not.
        search_epochs: passes of a differentiable search over half of the training items; 0 for a search without a
            supernet, by the importance of channels and blocks (`strategy.name`: knapsack), or what `options` name.
        loss_fn: (outputs, targets) to a scalar, where it is not cross-entropy. Then nothing is distilled but by
            `distill_fn`, and the score of a network is 1 / (1 + loss) unless there is an `eval_fn`.
        eval_fn: (outputs, targets) of a batch to its mean score, the higher the better; it stands where accuracies do.
        distill_fn: (outputs, the base network's outputs, targets) to a scalar: what networks found learn from it.
        train_fn: (network, teacher) trains a whole network in place; the teacher is the base network.
        score_func: (network) to the score of a whole, trained network; it stands where its accuracy does.
        ignored_layers: modules, by name, that keep the widths that they give, and their blocks, with all in them.
        widths: least and most channels of sites, by name (htas inspect lists them) or base width: `{"64": (16, 64)}`.
        options: any options of a configuration by name, `{"design.expand": 1.5, "train.lr": 0.01}` (htas run --help).
        seed: of every random draw; 0 by default.
        out: the folder of the run, in which an interrupted call goes on; otherwise runs/optimize-CLASS.

    Raises htas.UserError in one sentence for what cannot be used.
    """
    check_arguments(
        constraints=constraints, trained=trained, widths=widths, ignored_layers=ignored_layers, options=options,
        epochs=epochs, search_epochs=search_epochs, out=out,
    )  # fmt: skip
    example = _checked(model, example_inputs)
    if target is not None and not isinstance(target, Target):
        raise UserError(f"target must be an htas.Target (htas.Target(runtime=..., batch=...)), got {target!r}")
    task = _task(loss_fn, eval_fn, distill_fn, train_fn, score_func)
    classes = _classes(model, example, task)
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise UserError(f"data must be a pair (training, validation), got {type(data).__name__}")
    example_shapes = tuple(tuple(each.shape[1:]) for each in example)
    whole = tuple(not each.is_floating_point() for each in example)
    dataset = UserData.of(*data, classes, example_shapes, task, _names(model, len(example)), whole)
    dataset.check()
    for doubt in dataset.doubts:
        say(f"data: doubt: {doubt}")
    by_option, trained = dict(options or {}), bool(trained)
    ignored = [ignored_layers] if isinstance(ignored_layers, str) else [*ignored_layers]
    bounds = {str(name): [*map(int, limits)] for name, limits in (widths or {}).items()}
    check_once(by_option, {
        "target": {f"target.{name}": value for name, value in (vars(target) if target else {}).items()},
        "constraints": {f"constraints.{metric}": limit for metric, limit in (constraints or {}).items()},
        "epochs": {"train.epochs": int(epochs) or None},
        "search_epochs": {"strategy.epochs": int(search_epochs) or None},
        "ignored_layers": {"design.ignored": ignored or None},
        "widths": {"design.bounds": bounds or None},
        "seed": {"seed": seed},
    })  # fmt: skip
    changes: Values = {
        "seed": 0 if seed is None else seed,
        "design.ignored": ignored,
        "design.bounds": bounds,
        **by_option,
    }
    changes = {**_usual(dataset.sizes[0], trained, int(epochs), int(search_epochs), changes), **changes}
    if not task.classifies and distill_fn is None and train_fn is None:
        say("nothing is distilled, as the loss is your own; distill_fn says what networks learn from the base network")
        changes["distill.alpha"] = 0.0
    limits = {f"constraints.{metric}": str(text) for metric, text in (constraints or {"latency": "50%"}).items()}
    config = Config.default().changed({**limits, **changes})
    names = {**config.names, "family": "htas.run.user:UserNetwork", "data": "htas.run.user:UserData"}
    family = UserNetwork.of(model, example, trained=trained)
    config = replace(config, family=family, data=dataset, target=target or config.target, names=names)
    run = Run(config, Path(out) if str(out) else Path("runs") / f"optimize-{files.slug(type(model).__name__)}")
    with ranks.joined(), torch.random.fork_rng(devices=[]):  # what the caller draws next does not depend on this
        return _optimized(run, model, trained=trained)


def _optimized(run: Run, model: nn.Module, *, trained: bool) -> OptimizationResult:
    config, task = run.config, run.data.task
    _check_counts(run)
    batch = max(1, config.train.batch // ranks.processes())
    try_functions(model, run.data, batch=batch, device=run.device, trained=trained)
    if not trained and not run.model_file("base").exists():
        say(
            "the base network is trained from new weights, as trained=False says; parameters that require no "
            "gradients, and those that no module draws, keep their values (to keep pre-trained weights, train the "
            "network first, and leave trained=True)"
        )
    if trained:
        _check_alike(config.family.title)
    if trained and task.classifies and task.judge is None:
        _check_trained(run, model)
    run = open_run(config, run.folder, sources=run.sources)
    pipeline.run_all(run, f"htas.optimize(..., out={str(run.folder)!r})")
    return OptimizationResult(run)


def _check_alike(title: str) -> None:
    """Raise UserError in all processes that train together where one was given another network or other weights; its
    students would learn from another teacher."""
    first = ranks.of_first(lambda: title)
    if float(ranks.mean(torch.tensor(float(title != first)))):
        raise UserError(
            "the processes were given networks of other weights; load the same weights in each, or call "
            "torch.manual_seed before the network is built"
        )


def _checked(model: nn.Module, example_inputs: Any) -> tuple[Tensor, ...]:
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be an nn.Module, got {type(model).__name__}")
    examples = [example_inputs] if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(examples, list | tuple) or not examples or not all(isinstance(each, Tensor) for each in examples):
        raise UserError(
            f"example_inputs must be a tensor [N, C, H, W], or a list with one for each input, got {_kinds(examples)}"
        )
    if examples[0].dim() not in (3, 4, 5):
        raise UserError(
            "example_inputs must begin with images [N, C, H, W], series [N, C, T] or volumes [N, C, D, H, W], got a "
            f"tensor {tuple(examples[0].shape)}"
        )
    devices = {str(tensor.device) for tensor in model.state_dict().values()} - {"cpu"}
    if devices:
        raise UserError(f"the model must be on the CPU, it is on {', '.join(sorted(devices))}: call model.cpu() first")
    return tuple(each.detach().cpu() for each in examples)


def _names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of forward's first inputs; empty where it takes any (*inputs)."""
    parameters = list(inspect.signature(model.forward).parameters.values())[:count]
    usual = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(each.name for each in parameters if each.kind in usual)
    return names if len(names) == count else ()


def _kinds(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " and ".join(type(each).__name__ for each in value) or "nothing"
    return type(value).__name__


def _task(loss: Any, score: Any, distil: Any, train: Any, judge: Any) -> Task:
    """The user's functions, with the defaults of classification for the others."""
    functions = {"loss_fn": loss, "eval_fn": score, "distill_fn": distil, "train_fn": train, "score_func": judge}
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise UserError(f"{name} must be a function, got {type(function).__name__}")
    usual = Task()
    score_function = score or (unit(loss) if loss is not None else usual.score)
    scored_by = "loss_fn" if score is None and loss is not None else usual.scored_by
    return Task(loss or usual.loss, score_function, distil, train, judge, scored_by)


def _classes(model: nn.Module, example: tuple[Tensor, ...], task: Task) -> int:
    """Outputs of the network, 1 where they are no logits; raises ValueError where they should be."""
    try:
        with torch.no_grad():
            out = copied(model).eval()(*example)
    except Exception as error:  # a user's code may raise anything
        input_shapes = shapes(each.shape for each in example)
        raise UserError(f"the model does not run on example_inputs of shape {input_shapes}: {blame(error)}") from error
    if not task.classifies:
        return 1
    if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[1] < 2:
        output = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(
            f"the model must give logits [N, classes] of 2 classes or more, it gives {output}; for another task give "
            "loss_fn"
        )
    return int(out.shape[1])


def _usual(count: int, trained: bool, epochs: int, search_epochs: int, options: Values) -> Values:
    """The usual options for `count` training items, but for those that the strategy in `options` has not."""
    share = float({"split.validation": 0.5, **options}["split.validation"])
    batch = max(1, min(128, max(count // 20, FEW), int(count * (1 - share))))
    strategy: Values = {
        "strategy.epochs": search_epochs or SEARCH_EPOCHS,
        "strategy.batch": batch,
        "strategy.lr": 0.03 if trained else 0.05,
        "strategy.start": "base",
        "strategy.mix": "pad",
        "strategy.anneal": "step",
    }
    named = [key.partition(".")[2] for key in options if key.startswith("strategy.")]
    usual = TABLES["strategy"].default if search_epochs else usual_strategy(True, named)
    all_options = {"strategy.name": usual, **strategy, **options}
    steps = max(1, int(count * (1 - share) / int(all_options["strategy.batch"]))) * int(all_options["strategy.epochs"])
    strategy["strategy.arch_lr"] = float(f"{min(0.3, LOGITS / steps):.3g}")
    names = TABLES["strategy"].options(str(all_options["strategy.name"]))
    return {
        "design.spaces": ["hardware"],
        "strategy.name": all_options["strategy.name"],
        **{option: value for option, value in strategy.items() if option.partition(".")[2] in names},
        "train.recipe": "finetune" if trained else "short",
        "train.epochs": epochs or (10 if trained else 20),
        "train.batch": batch,
    }


def _check_counts(run: Run) -> None:
    """Raise UserError where a part of the training items is too small for a batch of two."""
    data = run.data
    if len(data.weights) < 2 or len(data.validation) < 2:
        raise UserError(
            f"the training data have {plural(len(data.train), 'item')}, of which the search learns from "
            f"{len(data.weights)} and judges by {len(data.validation)}; both need 2 or more"
        )


def _check_trained(run: Run, model: nn.Module) -> None:
    """Raise UserError where a network that should be trained is hardly better than guessing, in all and class by class:
    one that learnt rare classes by their weights may be right less often than the commonest class is."""
    test = run.data.test
    labels = torch.cat([one_class(labels.cpu()) for _, labels in test.batches(500)])
    counts = labels.bincount(minlength=run.data.classes).double()
    share = torch.where(counts > 0, len(labels) / counts / (counts > 0).sum(), 0.0)
    right = replace(CLASSIFY, score=lambda outputs, targets: _by_class(outputs, one_class(targets).cpu(), share))
    accuracy, of_classes = (evaluate(copied(model), test, device=run.device, task=each) for each in (CLASSIFY, right))
    guessed, among = float(counts.max()) / len(labels), 1 / max(1, int((counts > 0).sum()))
    if accuracy < guessed + MARGIN * (1 - guessed) and of_classes < among + MARGIN * (1 - among):
        raise UserError(
            f"the model's accuracy on the validation items is {percent(accuracy)}, and guessing the commonest class "
            f"has {percent(guessed)}: train it first, or say trained=False to have it trained here"
        )


def _by_class(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The mean over items of whether logits [N, classes] are right about labels [N], weighted by their classes."""
    return ((logits.argmax(1).cpu() == labels) * weights[labels]).mean()


def _card(result: OptimizationResult) -> str:
    """A model card: what it is, the measured table, and how to load it."""
    rows = []
    for row in result.results:
        times = [milliseconds(each) if each else "" for each in (row.measured and row.measured.estimate, row.predicted)]
        times[1] += f" ({row.predicted_note})" if row.predicted_note else ""
        cells = [row.name, percent(row.accuracy or 0), *times, millions(row.macs), millions(row.params)]
        rows.append(f"| {' | '.join(cells)} |")
    breaches = [f"`{row.name}` {breach(row)}." for row in result.results if row.breaks]
    target = result.config.target
    inputs = result.config.data.shapes
    names = ["images"] if len(inputs) == 1 else [f"input{number + 1}" for number in range(len(inputs))]
    each = " and ".join(f"[N, {', '.join(map(str, shape))}]" for shape in inputs)
    return "\n".join([
        f"# {result.config.family.title.split(':')[1]}, made faster",  # given:Net:digest
        "",
        f"`{result.config.design.spaces[0]}` is this network; latencies of a batch of {target.batch} with "
        f"{target.runtime} on {target.host or target.device}, {target.threads or 'all'} threads, {target.precision}, "
        "measured in one interleaved run.",
        "",
        *(line for sentence in breaches for line in (sentence, "")),
        "| network | accuracy | measured | predicted | multiply-adds | parameters |",
        "| :-- | --: | --: | --: | --: | --: |",
        *rows,
        "",
        "```python",
        "import torch",
        'model = torch.export.load("model.pt2").module()',
        f"outputs = model({', '.join(names)})  # {each}",
        "```",
        "",
        "`model.onnx` is the same network for other runtimes, `model.safetensors` holds the weights under the names of "
        "your own network, `arch.json` its widths and depths; buffers that its state_dict leaves out, if it has any, "
        "are in `buffers.safetensors`.",
        "",
    ])  # fmt: skip
