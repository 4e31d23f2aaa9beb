"""Read a network's free widths and depths out of its graph (torch.fx)."""

from collections.abc import Collection, Sequence
from typing import Literal

from torch import Tensor, nn

from htas.errors import UserError
from htas.graph._check import check
from htas.graph.capture import captured
from htas.graph.follow import Follower
from htas.graph.fuse import fused
from htas.graph.network import Network, Site
from htas.graph.sites import Flow, width_sites
from htas.text import no_such


def trace(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    adds: Literal["join", "project"] = "join",
    project_norm: bool = True,
    ignored: Collection[str] = (),
) -> Network:
    """The free widths and depths of `module`, from a run with `example`: [N, C, H, W], or one tensor [N, ...] an input.

    `adds="join"` gives layers that are added one width; "project" gives each its own, with a 1x1 convolution (and a
    norm, if `project_norm`) on an identity shortcut where they differ. Modules that are `ignored`, with all their
    submodules, keep the widths of their outputs, and their blocks. The module is not changed. Raises UserError where
    torch.fx cannot follow the forward pass, for an ignored module that does not exist, and for hooks and quantised
    layers.
    """
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    check(module)
    _check_ignored(module, ignored)
    steps = Follower(captured(module, examples), module, examples, adds, project_norm, ignored)
    steps.follow()
    steps.groups.settle(join_all=adds == "join")
    nodes = fused(steps.nodes, steps.activation)
    sited, widths, frozen = width_sites(Flow(nodes, steps.sources, steps.groups, steps.modules))
    depths = {run.site: Site(run.site, "depth", len(run.blocks), run.blocks) for run in steps.runs}
    shapes = tuple(tuple(each.shape[1:]) for each in examples)
    return Network(module, sited, widths | depths, frozen, shapes, adds, steps.outputs, steps.result)


def _check_ignored(module: nn.Module, ignored: Collection[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for name in ignored:
        if name not in names:
            raise UserError(no_such("module of this network", name, names[:40]))
