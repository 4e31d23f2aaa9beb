"""Three ways to capture a network as a graph, tried on networks that others wrote.

`python benchmarks/captures.py FILE` writes a line for each name in FILE (`tv:resnet18`, `timm:regnetx_002`): torch.fx's
symbolic trace, torch.export with a dynamic number of images, and htas's record of a run. Of each: the seconds, and
whether the graph computes what the network computes on other images, of which there is another number; or its error.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from htas.graph.runs import recorded_run
from htas.graph.steps import Step, order_of

sys.path.append(str(Path(__file__).parent))
from networks import build  # type: ignore[import-not-found]

Captured = Callable[[Tensor], Any]
IMAGES = 3


def symbolic(module: nn.Module, example: Tensor) -> Captured:
    """torch.fx, which follows no control flow."""
    return torch.fx.symbolic_trace(module)


def exported(module: nn.Module, example: Tensor) -> Captured:
    """torch.export, in which the number of images is free."""
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("images")},), strict=False)
    return program.module()


def recorded(module: nn.Module, example: Tensor) -> Captured:
    """The steps of a run on the example, sizes being numbers that remember where they come from."""
    record = recorded_run(module, (example,))

    def run(images: Tensor) -> Any:
        from htas.data.nests import replaced
        from htas.graph.record import Value

        values: dict[Value, Any] = {record.inputs[0]: images.clone()}
        values.update({value: value.tensor for value in record.params.values()})
        for call in record.calls:
            for value in call.outputs:
                order = order_of(call)
                step = Step(call, value.number, order, {})
                values[value] = step(module.get_submodule, tuple(values[each] for each in order))
        return replaced(record.outputs, lambda leaf: values[leaf] if isinstance(leaf, Value) else leaf)

    return run


WAYS: dict[str, Callable[[nn.Module, Tensor], Captured]] = {"fx": symbolic, "export": exported, "record": recorded}


def first(output: Any) -> Tensor:
    """The first tensor of what a network returns."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def tried(capture: Callable[[nn.Module, Tensor], Captured], module: nn.Module, example: Tensor) -> str:
    """Seconds and `equal`, or what is wrong."""
    start = time.perf_counter()
    try:
        graph = capture(module, example)
    except Exception as error:
        return f"- {type(error).__name__}"
    seconds = time.perf_counter() - start
    images = torch.randn(IMAGES, *example.shape[1:])
    try:
        with torch.no_grad():
            wanted, got = first(module(images.clone())), first(graph(images.clone()))
    except Exception as error:
        return f"{seconds:.1f} s, other images: {type(error).__name__}"
    equal = wanted.shape == got.shape and torch.allclose(wanted, got, rtol=1e-4, atol=1e-5)
    return f"{seconds:.1f} s{'' if equal else ', not equal'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each network, and at the end how many each way captures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", type=Path, help="a file with a name on each line")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    names = [line.strip() for line in options.names.read_text().splitlines() if ":" in line and line[0] != "#"]
    right = dict.fromkeys(WAYS, 0)
    for name in names:
        torch.manual_seed(0)
        module, example = build(name)
        module.eval()
        results = {way: tried(capture, module, example) for way, capture in WAYS.items()}
        for way, result in results.items():
            right[way] += result.endswith(" s")
        print(name, *(f"{way}: {result}" for way, result in results.items()), sep=" | ", flush=True)
    print(f"captured rightly, of {len(names)}:", right, flush=True)


if __name__ == "__main__":
    main()
