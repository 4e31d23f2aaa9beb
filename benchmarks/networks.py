"""Which networks of public libraries can be searched, and are the narrower ones right?

    python benchmarks/networks.py OUT.jsonl [--names FILE] [--check] [--archs 20] [--pixels 96] [--torch-pruning]
    python benchmarks/networks.py OUT.jsonl --table docs/models.md

A line of OUT for each network: the free share of its multiply-adds, sites of width and depth, seconds of trace. With
`--check`: equal outputs at base widths and with ordered channels; random archs in eval and in training, with the
parameters and multiply-adds foretold; the supernet, equal where one arch is chosen; half widths, exported to ONNX and
run. With `--torch-pruning`: whether that package halves the network, or its error. What is done is not done again.
Names are `torchvision:NAME` and `timm:NAME`; `--table` writes the lines into a Markdown file.
"""

import argparse
import contextlib
import copy
import functools
import importlib.util
import json
import multiprocessing
import random
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from htas.formats.export import export
from htas.graph import Network, ordered, resize, trace
from htas.graph.arch import Arch
from htas.graph.modes import copied
from htas.graph.network import OUTPUT
from htas.search.draw import Draw
from htas.search.supernet import Supernet
from htas.spaces.space import Space
from htas.text import significant

NAMES = Path(__file__).with_suffix(".txt")
UNPRETRAINED: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False},
    **{stem: {"weights_backbone": None} for stem in ("deeplabv3", "fcn", "lraspp")},
}  # fmt: skip
"""Arguments of torchvision's networks, by the first letters of their names."""
VIDEO = {"mc3_18": (3, 8, 64, 64), "r2plus1d_18": (3, 8, 64, 64), "r3d_18": (3, 8, 64, 64), "s3d": (3, 16, 224, 224)}
FORK = multiprocessing.get_context("fork")
PATIENCE = 180
"""Seconds that Torch-Pruning has for a network."""
FEW = 0.95
"""Networks with a smaller free share are listed with their reasons."""


@dataclass
class Row:
    """What is found out about a network."""

    name: str
    shape: tuple[int, ...] = ()
    params: int = 0
    macs: int = 0
    free: float = 0.0
    widths: int = 0
    depths: int = 0
    seconds: float = 0.0
    """Of trace, with its checks, on one core; of that core's time, whatever else the machine does."""
    reasons: dict[str, float] = field(default_factory=dict)
    """Why multiply-adds are not free, and their share, the largest first."""
    faults: list[str] = field(default_factory=list)
    """Checks that failed."""
    checked: bool = False
    pruning: str | None = None
    """What Torch-Pruning says: empty where it halves the network; None where it was not tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--names", type=Path, default=NAMES)
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--archs", type=int, default=20)
    parser.add_argument(
        "--pixels", type=int, default=0, help="side of the images for --check, where a network allows it"
    )
    parser.add_argument("--torch-pruning", action="store_true")
    parser.add_argument("--table", type=Path, help="write the table of what is done into this Markdown file")
    arguments = parser.parse_args()
    rows = {row.name: row for row in read(arguments.out)}
    if arguments.table:
        write_table(arguments.table, rows.values())
        return
    pruning = arguments.torch_pruning
    if pruning and importlib.util.find_spec("torch_pruning") is None:
        print("Torch-Pruning is not installed: pip install torch-pruning", file=sys.stderr)
        pruning = False
    warnings.simplefilter("ignore")  # of the libraries
    torch.set_num_threads(1)
    for name in names_in(arguments.names):
        if name in rows or arguments.only not in name:
            continue
        row = examined(
            name, check=arguments.check, archs=arguments.archs, pruning=pruning, smaller=arguments.pixels
        )  # fmt: skip
        with arguments.out.open("a") as lines:
            lines.write(json.dumps(asdict(row)) + "\n")
        print(sentence(row), flush=True)


def read(path: Path) -> list[Row]:
    """Rows of a file of lines; none where there is no file."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def names_in(path: Path) -> list[str]:
    """Names of networks, one a line; lines that begin with # are none."""
    return [line.strip() for line in path.read_text().splitlines() if ":" in line and not line.startswith("#")]


def build(name: str, pixels: int = 0) -> tuple[nn.Module, Tensor]:
    """A network as its library defines it, without trained weights, and two random images for it, of `pixels` a side
    where they are not to be of its own size."""
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent with a torch for CPUs"))
    if library == "timm":
        import timm  # type: ignore[import-not-found, import-untyped, unused-ignore]

        module = timm.create_model(model, pretrained=False)
        sizes: dict[str, Any] = module.default_cfg  # type: ignore[assignment]
        return module, torch.randn(2, *((3, pixels, pixels) if pixels else sizes.get("input_size", (3, 224, 224))))
    import torchvision  # type: ignore[import-not-found, import-untyped, unused-ignore]

    options = next((more for stem, more in UNPRETRAINED.items() if model.startswith(stem)), {})
    module = torchvision.models.get_model(model, weights=None, **options)
    size = pixels or (299 if model.startswith("inception") else 224)
    return module, torch.randn(2, *VIDEO.get(model, (3, size, size)))


def examined(
    name: str, *, check: bool, archs: int, pruning: bool, pixels: int = 0, smaller: int = 0, export: bool = True
) -> Row:  # fmt: skip
    """What is found out about one network; an exception is a fault."""
    row = Row(name)
    try:
        module, images = build(name, pixels)
        stir(module)
        module.eval()
        row.shape = tuple(images.shape[1:])
        start = time.process_time()
        network = trace(module, images[:1])
        row.seconds = round(time.process_time() - start, 2)
        row.params, row.macs = network.params(network.base), network.macs(network.base)
        row.free, row.widths, row.depths = round(network.searchable, 4), len(network.widths), len(network.depths)
        row.reasons = reasons(network)
        if check:
            checks = [part for part in CHECKS if export or part is not exported]
            network, images = sized(network, images, smaller)
            row.faults = [fault for part in checks for fault in attempted(part, network, images, archs)]
            row.checked = True
        if pruning:
            row.pruning = torch_pruning_error(module, images[:1])
    except Exception as error:
        row.faults.append(told(error))
    return row


def sized(network: Network, images: Tensor, pixels: int) -> tuple[Network, Tensor]:
    """The network traced for images of fewer pixels a side, and such images, where it has the same sites for them."""
    if 0 < pixels < images.shape[-1]:
        smaller = torch.randn(*images.shape[:-2], pixels, pixels)
        with contextlib.suppress(Exception):  # a network for images of one size, or with a head that needs larger ones
            copied(network.module).train()(smaller)
            other = trace(network.module, smaller[:1])
            if other.sites == network.sites:
                return other, smaller
    return network, images


@torch.no_grad()
def stir(module: nn.Module) -> None:
    """Give norms, biases and scales numbers that differ by channel, as training does."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            if part.weight is not None:
                part.weight.uniform_(0.5, 1.5, generator=generator)
    for parameter in module.parameters():
        first = float(parameter.flatten()[0])
        if (parameter == first).all() and first == 0:
            parameter.normal_(0, 0.1, generator=generator)
        elif (parameter == first).all():
            parameter.uniform_(0.5, 1.5, generator=generator)


def told(error: Exception) -> str:
    """An exception on one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]


def reasons(network: Network) -> dict[str, float]:
    """Shares of multiply-adds that are not free, by the reason."""
    total = max(1, network.macs(network.base))
    nodes = {node.name: node for node in network.nodes}

    @functools.cache
    def why(name: str) -> str:
        """Why a node's channels are not free: its own reason, or that of what it reads; empty where they are."""
        node = nodes[name]
        reason = network.frozen.get(node.module or name, "")
        if node.kind == "input" or reason == OUTPUT or all(segment.site for segment in node.segments):
            return ""
        return reason or next((why(each) for each in node.inputs if why(each)), "")

    found: dict[str, float] = {}
    for node in network.nodes:
        macs = node.layer.macs if node.layer is not None else node.macs
        reason = next((why(name) for name in (node.name, *node.inputs[:1]) if macs and why(name)), "")
        if node.layer is None:
            reason = "" if node.scaled else "products of activations, none of whose channels are free"
        if macs and reason:
            found[reason] = found.get(reason, 0.0) + macs / total
    ranked = sorted(found.items(), key=lambda item: -item[1])
    return {why: round(share, 3) for why, share in ranked if share >= 0.001}


# -- checks ------------------------------------------------------------------------------------------------------------


def attempted(check: Callable[..., Iterable[str]], network: Network, images: Tensor, archs: int) -> list[str]:
    """The faults that a check finds; an exception is one."""
    torch.manual_seed(0)
    try:
        return [f"{check.__name__}: {fault}" for fault in check(network, images, archs)]
    except Exception as error:
        return [f"{check.__name__}: {told(error)}"]


def difference(one: Any, two: Any) -> float:
    """The largest difference of outputs, as a share of the largest output."""
    pairs = [(a, b) for a, b in zip(tree_leaves(one), tree_leaves(two), strict=True) if isinstance(a, Tensor)]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-9)) for a, b in pairs)


def sampled(network: Network, seed: int) -> Arch:
    """An arch with any allowed widths and depths."""
    choose = random.Random(seed)
    widths = {
        name: choose.randint(site.least // site.multiple, round(1.25 * site.base / site.multiple)) * site.multiple
        for name, site in network.widths.items()
    }
    return Arch(widths, {name: choose.randint(1, site.base) for name, site in network.depths.items()})


@torch.no_grad()
def base(network: Network, images: Tensor, _: int) -> Iterable[str]:
    """Equal outputs at base widths, and with channels in the order of their importance."""
    right = network.module(images)
    if (error := difference(right, resize(network, network.base).eval()(images))) > 1e-5:
        yield f"differs by {error:.0e} at base widths"
    twin = ordered(network.module, images[:1])
    if (error := difference(right, twin(images))) > 1e-4:  # untrained and deep, a network may amplify rounding
        exact = images.double()
        error = difference(copy.deepcopy(network.module).double()(exact), twin.double()(exact))
        if error > 1e-4:
            yield f"differs by {error:.0e} when ordered"


def archs(network: Network, images: Tensor, count: int) -> Iterable[str]:
    """Random archs run in both modes and have the parameters and multiply-adds foretold."""
    for seed in range(count):
        arch = sampled(network, seed)
        small = resize(network, arch).eval()
        real = sum(parameter.numel() for parameter in small.parameters() if parameter.requires_grad)
        if real != network.params(arch):
            yield f"arch {seed} has {real} parameters where {network.params(arch)} are foretold"
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            small(images[:1])
        macs = counter.get_total_flops() // 2
        foretold = network.macs(arch) - biases(network, arch)
        if macs != foretold:
            yield f"arch {seed} has {macs} multiply-adds where {foretold} are foretold"
        out = small.train()(images)
        total: Any = sum(each.float().mean() for each in tree_leaves(out) if isinstance(each, Tensor))
        total.backward()


def biases(network: Network, arch: Arch) -> int:
    """Multiply-adds that `macs` counts for biases, and torch's counter does not."""
    layers = [step.layer for step in network.steps(arch) if step.layer is not None and step.layer.bias]
    return sum(layer.macs - layer_without_bias(layer) for layer in layers)


def layer_without_bias(layer: Any) -> int:
    from dataclasses import replace

    return int(replace(layer, bias=False).macs)


@torch.no_grad()
def supernet(network: Network, images: Tensor, count: int) -> Iterable[str]:
    """The supernet equals the resized network where one arch is chosen."""
    widths = {
        name: tuple(sorted({site.near(part * site.base) for part in (0.5, 0.75, 1)}))
        for name, site in network.widths.items()
    }
    space = Space("thirds", widths, {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()})
    net = Supernet(network, space, lambda module: None, norms="shared", mix="pad")
    net.inherit(network.module)
    net.eval()
    for seed in range(min(count, 3)):
        arch = network.base if seed == 0 else space.sample(random.Random(seed), 0.0)
        small = resize(network, arch).eval()
        error = difference(small(images), net((images,), Draw.of(arch, network)))
        if error > 1e-4:
            yield f"differs by {error:.0e} at arch {seed}"


def exported(network: Network, images: Tensor, _: int) -> Iterable[str]:
    """Half widths as ONNX compute the same."""
    half = {name: site.near(site.base / 2) for name, site in network.widths.items()}
    with tempfile.TemporaryDirectory() as folder:
        export(resize(network, Arch(half, network.base.depths)), images[:1], Path(folder) / "half.onnx")
    return ()


CHECKS = (base, archs, supernet, exported)


def torch_pruning_error(module: nn.Module, image: Tensor) -> str:
    """What Torch-Pruning answers, in a process of its own, which is stopped after `PATIENCE`: on some it never ends."""
    answers: multiprocessing.SimpleQueue[str] = FORK.SimpleQueue()
    process = FORK.Process(target=lambda: answers.put(halved(module, image)), daemon=True)
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        return f"it did not end within {PATIENCE} s"
    return "its process ended" if answers.empty() else answers.get()


def halved(module: nn.Module, image: Tensor) -> str:
    """What Torch-Pruning answers when it is to halve all widths but the output's; empty where the result runs."""
    import torch_pruning  # type: ignore[import-untyped, import-not-found, unused-ignore]

    twin = copy.deepcopy(module).eval()
    shapes = [tuple(each.shape) for each in tree_leaves(twin(image))]
    before = sum(parameter.numel() for parameter in twin.parameters())
    last = [part for part in twin.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d)]
    heads = [part for part in last if part.weight.shape[0] in {shape[1] for shape in shapes if len(shape) > 1}]
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            twin, image, importance=torch_pruning.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
            ignored_layers=heads,
        )  # fmt: skip
        pruner.step()
        out = twin(image)
    except Exception as error:
        return told(error)
    if [tuple(each.shape) for each in tree_leaves(out)] != shapes:
        return "its outputs have other shapes"
    after = sum(parameter.numel() for parameter in twin.parameters())
    return "" if after < 0.6 * before else f"it keeps {100 * after / before:.0f} % of the parameters"


# -- what is written ---------------------------------------------------------------------------------------------------


def sentence(row: Row) -> str:
    """A line for the terminal."""
    parts = [f"{row.name}: {100 * row.free:.1f} % free, {row.widths} widths, {row.depths} depths, {row.seconds} s"]
    parts += [
        f"not free: {why} ({100 * share:.1f} %)" for why, share in list(row.reasons.items())[:3] if row.free < FEW
    ]
    parts += [f"FAULT {fault}" for fault in row.faults]
    if row.pruning is not None:
        parts.append(f"Torch-Pruning: {row.pruning or 'halves it'}")
    return "; ".join(parts)


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Put the rows between the header of the table of a Markdown file and what follows it."""
    lines = path.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| network |")) + 2
    end = next((number for number in range(start, len(lines)) if not lines[number].startswith("|")), len(lines))
    path.write_text("\n".join([*lines[:start], *map(line_of, rows), *lines[end:]]) + "\n")


def line_of(row: Row) -> str:
    """A row of the table."""
    size = "x".join(map(str, row.shape))
    pruning = {None: "", "": "halves it"}.get(row.pruning, row.pruning)
    cells = [
        row.name, size, f"{row.params / 1e6:.2f} M", f"{significant(row.macs / 1e9)} G", f"{100 * row.free:.1f} %",
        str(row.widths), str(row.depths), f"{row.seconds:.1f} s", str(pruning).replace("|", "/"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
