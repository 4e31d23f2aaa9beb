"""Read a network's free widths and depths out of its graph (torch.fx)."""

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, permutations
from math import lcm, prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from htas.graph.network import OUTPUT, Kind, Network, Node, Segment, Site
from htas.layer import ACTIVATIONS, Layer, Op
from htas.text import no_such

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
MAPS = (
    *ACTIVATIONS.values(), *POOLS, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Upsample, nn.ZeroPad2d,
    nn.Softplus, nn.Mish,
)  # fmt: skip
MAP_FUNCTIONS = {
    F.relu, torch.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, F.leaky_relu,
    F.elu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, F.interpolate, F.mish,
    torch.abs, torch.exp, torch.neg, operator.neg,
}  # fmt: skip
MAP_METHODS = {"relu", "relu_", "sigmoid", "tanh", "contiguous", "clone", "detach", "float", "abs", "exp", "neg"}
POINTWISE = (
    *ACTIVATIONS.values(), nn.Dropout, nn.Identity, nn.Softplus, nn.Mish,
)  # fmt: skip
"""Maps that know no dimensions."""
SPATIAL_FUNCTIONS = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
}  # fmt: skip
FUNCTION_ACTIVATIONS = {
    F.relu: "relu", torch.relu: "relu", F.relu6: "relu6", F.silu: "silu", F.hardswish: "hardswish", F.gelu: "gelu",
}  # fmt: skip
ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
WRITTEN_OUT = {"view", "reshape", torch.reshape}
"""Reshapes that are given sizes."""
RESHAPES = {*WRITTEN_OUT, "flatten", torch.flatten, "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze}
IGNORED = "design.ignored names it"
"""Why a width is frozen that the user wants as it is."""
SHARED = ("conv", "grouped", "norm", "layer_norm")
"""Kinds of nodes whose modules have weights."""
CONCATS = {torch.cat, torch.concat, torch.concatenate}
JOINS = ADDS | {
    operator.mul, operator.imul, torch.mul, operator.sub, torch.sub, torch.maximum, "mul", "mul_", "sub", "expand_as",
}  # fmt: skip


def trace(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    adds: Literal["join", "project"] = "join",
    project_norm: bool = True,
    ignored: Collection[str] = (),
) -> Network:
    """What is free in `module`, found by running `example` ([N, C, H, W], or one for each input) through it.

    `adds="join"` gives layers that are added one width; "project" gives each its own, with a 1x1 convolution (and a
    norm, if `project_norm`) on an identity shortcut where they differ. Modules that are `ignored`, with all that is in
    them, keep the widths that they give, and their blocks. The module is not changed. Raises ValueError where torch.fx
    cannot follow the forward pass, and for an ignored module that there is not.
    """
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    _check_ignored(module, ignored)
    return _Builder(_captured(module, examples), module, examples, adds, project_norm, ignored).network()


def _check_ignored(module: nn.Module, ignored: Collection[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for name in ignored:
        if name not in names:
            raise ValueError(no_such("module of this network", name, names[:40]))


def capture(module: nn.Module, inputs: int) -> fx.GraphModule:
    """The module in eval mode as a torch.fx graph, whose nodes know which submodule they stand in; raises ValueError.

    What forward takes beyond so many `inputs` has its default.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    rest = list(inspect.signature(module.forward).parameters.values())[inputs:]
    defaults = {each.name: each.default for each in rest if each.default is not each.empty}
    try:
        return fx.GraphModule(module, _Tracer().trace(module, defaults or None))
    except Exception as error:  # a forward pass may raise anything
        raise ValueError(
            f"{type(module).__name__} cannot be traced by torch.fx ({_first_line(error)}); "
            "keep data-dependent control flow out of forward()"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training


class _Tracer(fx.Tracer):
    """Layer norms stay whole, those of a user's own class too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.LayerNorm) or super().is_leaf_module(m, module_qualified_name)


def names(graph: fx.Graph) -> dict[fx.Node, str]:
    """A name for each node that stays when blocks elsewhere are cut: its module, or `owner:operation` and a count."""
    counts: dict[str, int] = {}
    found = {}
    for node in graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
        else:
            what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "function")
            name = f"{_owner(node)}:{what}"
        counts[name] = counts.get(name, 0) + 1
        found[node] = name if counts[name] == 1 else f"{name}#{counts[name]}"
    return found


def _owner(node: fx.Node) -> str:
    stack = _stack(node)
    return stack[-1] if stack else ""


def _stack(node: fx.Node) -> list[str]:
    """Paths of the modules under way, the outermost first."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _captured(module: nn.Module, examples: tuple[Tensor, ...]) -> fx.GraphModule:
    """`capture`, with the shape of every node's value under meta["shape"] (None where it is no tensor)."""
    graph = capture(module, len(examples))
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            _Shapes(graph).run(*(example.clone() for example in examples))
    except Exception as error:
        shapes = " and ".join(str(tuple(example.shape)) for example in examples)
        what = "an input" if len(examples) == 1 else "inputs"
        raise ValueError(
            f"{type(module).__name__} does not run on {what} of shape {shapes} ({_first_line(error)})"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    return graph


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        n.meta["tensors"] = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if isinstance(result, nn.Parameter) and result.requires_grad:
            n.meta["params"] = result.numel()
        return result


@dataclass
class _Groups:
    """Union-find over the producers of widths; a group with a reason is frozen."""

    parent: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> str:
        self.parent[name] = name
        return name

    def root(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def join(self, one: str, two: str) -> None:
        first, second = self.root(one), self.root(two)
        if first != second:
            self.parent[second] = first
            if second in self.reasons:
                self.reasons.setdefault(first, self.reasons[second])

    def freeze(self, name: str, reason: str) -> None:
        self.reasons.setdefault(self.root(name), reason)


@dataclass(frozen=True)
class _Run:
    """Neighbouring blocks of a Sequential: a depth site. All but the first have outputs shaped like their inputs."""

    site: str
    blocks: tuple[str, ...]
    ends: tuple[fx.Node, ...]
    listed: bool
    """Whether a Sequential calls them, which a cut one leaves out."""


class _Builder:
    """Turns one torch.fx graph into a Network."""

    def __init__(
        self,
        graph: fx.GraphModule,
        module: nn.Module,
        examples: tuple[Tensor, ...],
        adds: Literal["join", "project"],
        normed: bool,
        ignored: Collection[str],
    ) -> None:
        self.graph, self.module, self.examples, self.adds, self.normed = graph.graph, module, examples, adds, normed
        self.modules = dict(module.named_modules())
        self.names = names(self.graph)
        self.tied = _tied(module)
        self.counted: set[int] = set()
        self.attributes = Counter(str(node.target) for node in self.graph.nodes if node.op == "get_attr")
        self.calls: dict[str, int] = {}
        for fxnode in self.graph.nodes:
            if fxnode.op == "call_module":
                self.calls[fxnode.target] = self.calls.get(fxnode.target, 0) + 1
        self.groups = _Groups()
        self.sources: dict[str, tuple[str, ...]] = {}  # node name -> group member of each segment
        self.passed: dict[str, tuple[str, ...]] = {}  # group member of a depth site -> those whose widths it passes on
        self.nodes: dict[str, Node] = {}
        self.ignored = ignored
        runs = [run for run in _runs(self.graph, self.modules) if not any(map(self._ignored, run.blocks))]
        self.runs = [run for run in runs if run.listed or _droppable(module, run.blocks, examples)]
        self.outputs: tuple[str, ...] = ()
        self.result: Callable[[tuple[Any, ...]], Any] = lambda values: values[0]
        self.first: dict[str, Node] = {}  # module -> the node that called it first

    def network(self) -> Network:
        renamed: dict[fx.Node, str] = {}  # where the consumers of a run's last block find their input
        for fxnode in self.graph.nodes:
            if fxnode.op == "get_attr" and fxnode.users:  # when what it is used with is known
                continue
            for source in fxnode.all_input_nodes:
                if self.names[source] not in self.nodes and source.op == "get_attr":
                    self._visit(source, renamed)
            if fxnode.op == "output":
                self._output(fxnode, renamed)
                continue
            self._visit(fxnode, renamed)
            for run in reversed(self.runs):  # the inner before the outer
                if run.ends[-1] is fxnode:
                    self._depth(run, renamed)
        self._settle()
        self._fuse()
        return self._finish()

    # -- one node ------------------------------------------------------------------------------------------------

    def _visit(self, fxnode: fx.Node, renamed: dict[fx.Node, str]) -> None:
        name = self.names[fxnode]
        sources = self._scaled(fxnode) or tuple(fxnode.all_input_nodes)
        inputs = tuple(renamed.get(source, self.names[source]) for source in sources)
        axis = self.nodes[inputs[0]].axis if inputs else 1
        kind = self._kind(fxnode, inputs[0] if inputs else "", axis)
        earlier = self.first.get(str(fxnode.target)) if fxnode.op == "call_module" and kind in SHARED else None
        if earlier is not None and not self._alike(earlier, kind, self.nodes[inputs[0]]):
            for bound in (earlier.name, *earlier.inputs):
                self._freeze(bound, f"{earlier.module} is called again with other channels")
            kind = "fixed"
        node = Node(
            name,
            kind,
            inputs,
            _runner(fxnode, sources),
            module=str(fxnode.target) if fxnode.op == "call_module" else "",
            blocks=self._blocks(fxnode),
            consumed=self.nodes[inputs[0]].segments if inputs else (),
            axis=axis,
        )
        if self.adds == "project" and node.kind == "join" and _plain_add(fxnode):
            node = self._project(node, fxnode)
        self.nodes[name] = getattr(self, f"_{node.kind}")(node, fxnode)
        if earlier is None:
            self.first.setdefault(node.module, self.nodes[name])
        elif node.kind != "fixed":
            self._share(self.nodes[name], earlier)

    def _kind(self, fxnode: fx.Node, source: str, axis: int) -> Kind:
        shape = fxnode.meta["shape"]
        if fxnode.op == "placeholder" and shape is not None:
            return "input"
        if shape is None:
            return "fixed" if fxnode.meta["tensors"] else "value"
        if self._scaled(fxnode):
            return "scale"
        if fxnode.op == "get_attr" and all(self._scaled(user) for user in fxnode.users):
            return "value"
        tensors = [source for source in fxnode.all_input_nodes if source.meta["shape"] is not None]
        if fxnode.op == "get_attr" or not tensors or tensors[0] is not fxnode.all_input_nodes[0] or len(shape) < 2:
            return "fixed"
        if fxnode.op == "call_module":
            if len(fxnode.args) != 1 or fxnode.kwargs or str(fxnode.target) in self.tied:
                return "fixed"
            return self._module_kind(self.modules[str(fxnode.target)], str(fxnode.target), shape, source, axis)
        return self._function_kind(fxnode, shape, tensors, axis)

    def _module_kind(self, module: nn.Module, path: str, shape: tuple[int, ...], source: str, axis: int) -> Kind:
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            return "layer_norm" if self._whole_norm(module, shape, source, axis) else "fixed"
        if axis != (len(shape) - 1 if isinstance(module, nn.Linear) else 1):
            return "map" if isinstance(module, POINTWISE) else "fixed"
        if _understood(module):
            if not isinstance(module, nn.Conv2d) or module.groups == 1:
                return "conv"
            return "grouped" if self._whole_groups(module, source) else "fixed"
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.affine and module.track_running_stats:
            return "norm"
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return "flatten"
        return "map" if isinstance(module, MAPS) else "fixed"

    def _scaled(self, fxnode: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """A tensor and the parameter of its channels that it is multiplied by, or that is added, and nothing else."""
        if fxnode.target not in JOINS or len(fxnode.all_input_nodes) != 2 or fxnode.op == "call_module":
            return None
        for given, param in permutations(fxnode.all_input_nodes):
            name, shape = self.names.get(given), given.meta["shape"]
            if param.op != "get_attr" or given.op == "get_attr" or shape is None or name is None:
                continue
            own, node = param.meta["shape"], self.nodes.get(name)
            if node is None or not len(own) <= len(shape) == len(fxnode.meta["shape"]):
                continue
            alone = len(param.users) == 1 and self.attributes[str(param.target)] == 1
            alone = alone and getattr(self.nodes.get(self.names[param]), "kind", "value") == "value"
            if alone and (1,) * (len(shape) - len(own)) + own == _only_at(node.axis, shape):
                return given, param
        return None

    def _follows(self, fxnode: fx.Node) -> bool:
        """Whether a reshape that leaves the channels alone does so at other widths: their number is not written out, or
        is that of a tensor, which has the same width then."""
        args = fxnode.args[1] if len(fxnode.args) > 1 and isinstance(fxnode.args[1], tuple | list) else fxnode.args[1:]
        if fxnode.target not in WRITTEN_OUT:
            return True
        if len(args) < 2 or fxnode.kwargs:
            return False
        if not isinstance(args[1], fx.Node):
            return bool(args[1] == -1)
        asked = _sized_by(args[1])
        if asked is None or asked[1] != self._axis(asked[0]):
            return False
        own, given = self.names[asked[0]], self.names[fxnode.all_input_nodes[0]]
        if self.nodes[own].segments != self.nodes[given].segments:
            return False
        for one, other in zip(self.sources[own], self.sources[given], strict=True):
            self.groups.join(one, other)  # or the reshape would fail at other widths
        return True

    def _whole_norm(
        self, module: nn.LayerNorm | nn.GroupNorm, shape: tuple[int, ...], source: str, axis: int
    ) -> bool:  # fmt: skip
        """Whether it does to the channels what a norm of its class does; of a user's class that is tried."""
        if isinstance(module, nn.GroupNorm):
            segments = self.nodes[source].segments
            each = module.num_channels // module.num_groups
            whole = (len(segments) == 1 or each == 1) and segments[0].repeat == 1
            whole = whole and all(own.base % module.num_groups == 0 for own in segments)
            return axis == 1 and type(module) is nn.GroupNorm and bool(module.affine) and whole
        if len(module.normalized_shape) != 1 or not module.elementwise_affine:
            return False
        if type(module) is nn.LayerNorm:
            return axis == len(shape) - 1
        given = torch.randn([2 if dim != axis else size for dim, size in enumerate(shape)]).to(module.weight)
        with torch.no_grad():
            return bool(torch.allclose(module(given), layer_norm(given, module, axis), atol=1e-5))

    def _whole_groups(self, module: nn.Conv2d, source: str) -> bool:
        """Whether each group has as many outputs as inputs, and none of them reaches over parts of a concatenation."""
        each = module.in_channels // module.groups
        return module.in_channels == module.out_channels and all(
            own.base % each == 0 and own.repeat == 1 for own in self.nodes[source].segments
        )

    def _function_kind(self, fxnode: fx.Node, shape: tuple[int, ...], tensors: list[fx.Node], axis: int) -> Kind:
        target: Any = fxnode.target
        first = tensors[0].meta["shape"]
        if target in JOINS:
            if len(tensors) == 1:
                return "map"
            alike = axis < len(shape) and all(self._axis(tensor) == axis for tensor in tensors)
            alike = alike and all(
                len(t.meta["shape"]) == len(shape) and t.meta["shape"][axis] == shape[axis] for t in tensors
            )
            return "join" if alike and len(tensors) == 2 else "fixed"
        if target in CONCATS:
            parts: Any = fxnode.args[0] if fxnode.args else fxnode.kwargs["tensors"]
            dim = fxnode.kwargs.get("dim", fxnode.args[1] if len(fxnode.args) > 1 else 0)
            alike = all(self._axis(tensor) == axis for tensor in tensors)
            return "concat" if dim in (axis, axis - len(shape)) and list(parts) == tensors and alike else "fixed"
        if target in MAP_FUNCTIONS or target in MAP_METHODS:
            return "map" if axis == 1 or target not in SPATIAL_FUNCTIONS else "fixed"
        if _moved(fxnode, axis) is not None:
            return "map"
        if axis != 1:
            return "fixed"
        flat = len(shape) == 2 and shape[1] == prod(first[1:])
        if flat and target in (torch.flatten, "flatten"):
            return "flatten"
        if flat and target in ("view", "reshape", torch.reshape) and fxnode.args[-1] == -1:
            return "flatten"
        if target in RESHAPES and shape[:2] == first[:2] and _only_ones(first[2:], shape[2:]) and self._follows(fxnode):
            return "map"
        return "fixed"

    # -- what each kind makes of its input -------------------------------------------------------------------------

    def _input(self, node: Node, fxnode: fx.Node) -> Node:
        return self._fresh(node, fxnode, "it is the network's input")

    def _fixed(self, node: Node, fxnode: fx.Node) -> Node:
        module = self.modules[node.module] if node.module else None
        what = f"{type(module).__name__} {node.module}" if module else node.name
        why = self._why_fixed(node, module)
        for source in node.inputs:
            self._freeze(source, f"{what}, which reads it, {why}")
        first = not any(other.module == node.module for other in self.nodes.values())
        new = [p for p in module.parameters() if id(p) not in self.counted] if module and first else []
        self.counted |= {id(parameter) for parameter in new}  # one that is tied counts once
        own = sum(parameter.numel() for parameter in new if parameter.requires_grad)
        last = len(fxnode.meta["shape"] or ()) - 1
        size = self._size(fxnode, last if isinstance(module, nn.Linear) else 1) if module else (1, 1)
        layer = _layer(module, size) if module and _understood(module) else None
        return replace(self._fresh(node, fxnode, f"{what} {why}"), layer=layer, params=fxnode.meta.get("params", own))

    def _why_fixed(self, node: Node, module: nn.Module | None) -> str:
        if node.module and self.calls[node.module] > 1:
            return "is called more than once"
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            return f"has {module.groups} groups"
        return "is not understood"

    def _value(self, node: Node, fxnode: fx.Node) -> Node:
        self.sources[node.name] = ()
        return node

    def _conv(self, node: Node, fxnode: fx.Node) -> Node:
        module = self.modules[node.module]
        self.sources[node.name] = (self.groups.add(node.name),)
        if self._ignored(node.module):
            self.groups.freeze(node.name, IGNORED)
        layer = _layer(module, self._size(fxnode, node.axis))
        return replace(node, segments=(Segment(layer.outputs),), layer=layer)

    def _ignored(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.ignored)

    def _grouped(self, node: Node, fxnode: fx.Node) -> Node:
        if self._ignored(node.module):
            self._freeze(node.inputs[0], IGNORED)
        return replace(self._map(node, fxnode), layer=_layer(self.modules[node.module], self._size(fxnode)))

    @staticmethod
    def _alike(earlier: Node, kind: Kind, source: Node) -> bool:
        """Whether a module may have the widths that it had when it was called before."""
        return earlier.kind == kind and earlier.consumed == source.segments and earlier.axis == source.axis

    def _share(self, node: Node, earlier: Node) -> None:
        """A module that is called again has the widths that it had."""
        pairs = [(node.name, earlier.name)] + [(node.inputs[0], earlier.inputs[0])] * (node.kind == "conv")
        for one, other in pairs:
            for left, right in zip(self.sources[one], self.sources[other], strict=True):
                self.groups.join(left, right)
        self.nodes[node.name] = replace(node, again=True)

    def _norm(self, node: Node, fxnode: fx.Node) -> Node:
        return self._same(node)

    def _layer_norm(self, node: Node, fxnode: fx.Node) -> Node:
        return replace(self._same(node), params=sum(p.requires_grad for p in self.modules[node.module].parameters()))

    def _scale(self, node: Node, fxnode: fx.Node) -> Node:
        param = next(source for source in fxnode.all_input_nodes if source.op == "get_attr")
        learns, own = "params" in param.meta, param.meta["shape"]
        place = node.axis - (len(fxnode.meta["shape"]) - len(own))
        return replace(self._same(node), param=str(param.target), params=int(learns), param_axis=place)

    def _map(self, node: Node, fxnode: fx.Node) -> Node:
        moved = _moved(fxnode, node.axis)
        if moved is not None:
            return replace(self._same(node), axis=moved, layer=self._pool(node, fxnode))
        return replace(self._same(node), layer=self._pool(node, fxnode))

    def _join(self, node: Node, fxnode: fx.Node) -> Node:
        one, two = (self.sources[name] for name in node.inputs[:2])
        if self.nodes[node.inputs[0]].segments != self.nodes[node.inputs[1]].segments:
            for source in node.inputs:
                self._freeze(source, f"{node.name} joins channels that are not laid out alike")
        else:
            for left, right in zip(one, two, strict=True):
                self.groups.join(left, right)
        node = self._same(node)
        layer = Layer("add", node.base, node.base, self._size(fxnode, node.axis)) if _plain_add(fxnode) else None
        return replace(node, layer=layer)

    def _concat(self, node: Node, fxnode: fx.Node) -> Node:
        self.sources[node.name] = tuple(member for name in node.inputs for member in self.sources[name])
        return replace(node, segments=tuple(s for name in node.inputs for s in self.nodes[name].segments))

    def _flatten(self, node: Node, fxnode: fx.Node) -> Node:
        area = prod(fxnode.all_input_nodes[0].meta["shape"][2:])
        self.sources[node.name] = self.sources[node.inputs[0]]
        return replace(node, segments=tuple(Segment(s.base, s.repeat * area) for s in node.consumed))

    def _same(self, node: Node) -> Node:
        self.sources[node.name] = self.sources[node.inputs[0]]
        return replace(node, segments=node.consumed)

    def _fresh(self, node: Node, fxnode: fx.Node, reason: str) -> Node:
        self.sources[node.name] = (self.groups.add(node.name),)
        self.groups.freeze(node.name, reason)
        shape: tuple[int, ...] = fxnode.meta["shape"] or ()
        axis = self._fixed_axis(node, fxnode, shape)
        return replace(node, axis=axis, segments=(Segment(shape[axis] if axis < len(shape) else 1),))

    def _fixed_axis(self, node: Node, fxnode: fx.Node, shape: tuple[int, ...]) -> int:
        """Where the channels of what is not understood are: last behind linear layers and layer norms, where they were
        if there are as many, else in the second dimension."""
        module = self.modules[node.module] if node.module else None
        if isinstance(module, nn.Linear | nn.LayerNorm):
            return len(shape) - 1
        given = fxnode.all_input_nodes[0].meta["shape"] if fxnode.all_input_nodes else None
        kept = given is not None and node.axis < min(len(shape), len(given)) and given[node.axis] == shape[node.axis]
        return node.axis if kept else 1

    def _freeze(self, name: str, reason: str) -> None:
        for member in self.sources[name]:
            self.groups.freeze(member, reason)

    def _output(self, fxnode: fx.Node, renamed: dict[fx.Node, str]) -> None:
        sources = fxnode.all_input_nodes
        self.outputs = tuple(renamed.get(source, self.names[source]) for source in sources)
        for name in self.outputs:
            self._freeze(name, OUTPUT)

        def result(values: tuple[Any, ...]) -> Any:
            return fx.node.map_arg(fxnode.args[0], dict(zip(sources, values, strict=True)).__getitem__)

        self.result = result

    # -- shortcuts and depth -----------------------------------------------------------------------------------------

    def _project(self, node: Node, fxnode: fx.Node) -> Node:
        """Where one operand of an add also goes elsewhere (an identity shortcut), put a project node on it."""
        operands = fxnode.all_input_nodes
        own = [_private(operand) for operand in operands]
        if own[0] == own[1]:
            return node
        skip, branch = (0, 1) if own[1] else (1, 0)
        source, other = node.inputs[skip], node.inputs[branch]
        name = self._fresh_name(self.names[fxnode].rsplit(":", 1)[0])
        consumed, segments = self.nodes[source].segments, self.nodes[other].segments
        layer = Layer("conv", self.nodes[source].base, self.nodes[other].base, self._size(fxnode), norm=self.normed)
        self.nodes[name] = Node(
            name, "project", (source, other), _first, segments=segments, consumed=consumed, blocks=node.blocks,
            layer=layer, normed=self.normed,
        )  # fmt: skip
        self.sources[name] = self.sources[other]
        inputs = tuple(name if index == skip else given for index, given in enumerate(node.inputs))
        return replace(node, inputs=inputs, consumed=segments)

    def _fresh_name(self, owner: str) -> str:
        stem = f"{owner}.project" if owner else "project"
        names = chain([stem], (f"{stem}{number}" for number in count(2)))
        return next(name for name in names if name not in self.modules and name not in self.nodes)

    def _depth(self, run: _Run, renamed: dict[fx.Node, str]) -> None:
        """After the last block of a run, a node that takes the output of the last one kept."""
        inputs = tuple(renamed.get(end, self.names[end]) for end in run.ends)
        segments = self.nodes[inputs[0]].segments
        if any(self.nodes[name].segments != segments or self.nodes[name].axis != 1 for name in inputs):
            self._forget(run)
            return
        name = f"{run.site}:depth"
        around = self._blocks(run.ends[-1])
        outer = around[: [site for site, _ in around].index(run.site)]
        self.nodes[name] = Node(
            name, "depth", inputs, _last, site=run.site, segments=segments, consumed=segments, blocks=outer
        )
        ends = list(zip(*(self.sources[source] for source in inputs), strict=True))
        members = [self.groups.add(f"{name}[{index}]") for index in range(len(ends))]
        self.passed |= dict(zip(members, ends, strict=True))
        self.sources[name] = tuple(members)
        renamed[run.ends[-1]] = name

    def _forget(self, run: _Run) -> None:
        """Drop a depth site whose blocks lay out their channels differently."""
        self.runs.remove(run)
        for name, node in self.nodes.items():
            self.nodes[name] = replace(node, blocks=tuple(block for block in node.blocks if block[0] != run.site))

    def _settle(self) -> None:
        """Give the ends of a depth site one width where adds join them, or where what follows binds any one of them."""
        waiting = dict(self.passed)
        while bound := [member for member in waiting if self.adds == "join" or self._bound(member)]:
            for member in bound:
                for end in waiting.pop(member):
                    self.groups.join(member, end)

    def _bound(self, member: str) -> bool:
        root = self.groups.root(member)
        return root in self.groups.reasons or any(other != member for other in self._members(root))

    def _blocks(self, fxnode: fx.Node) -> tuple[tuple[str, int], ...]:
        owner = self.names[fxnode] if fxnode.op == "call_module" else _owner(fxnode)
        return tuple(
            (run.site, index)
            for run in self.runs
            for index, block in enumerate(run.blocks)
            if owner == block or owner.startswith(f"{block}.")
        )

    # -- layers --------------------------------------------------------------------------------------------------------

    def _axis(self, fxnode: fx.Node) -> int:
        return self.nodes[self.names[fxnode]].axis

    def _size(self, fxnode: fx.Node, axis: int = 1) -> tuple[int, int]:
        """Height and width of the input."""
        shape = fxnode.all_input_nodes[0].meta["shape"]
        spatial = [size for dim, size in enumerate(shape) if dim not in (0, axis)]
        return (spatial[0], prod(spatial[1:])) if spatial else (1, 1)

    def _pool(self, node: Node, fxnode: fx.Node) -> Layer | None:
        module = self.modules[node.module] if node.module else None
        width = node.consumed[0].base
        before, after = fxnode.all_input_nodes[0].meta["shape"], fxnode.meta["shape"]
        size = self._size(fxnode, node.axis)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            op: Op = "max_pool" if isinstance(module, nn.MaxPool2d) else "avg_pool"
            stride = module.stride if module.stride is not None else module.kernel_size
            return Layer(
                op, width, width, size, kernel=_pair(module.kernel_size), stride=_pair(stride),
                padding=_pair(module.padding), dilation=_pair(getattr(module, "dilation", 1)),
            )  # fmt: skip
        channels = sum(own.base * own.repeat for own in node.consumed)
        is_global = len(before) == 4 and channels == prod(after[1:]) < prod(before[1:])
        return Layer("global_pool", width, width, size) if is_global else None

    def _fuse(self) -> None:
        """Give each layer the norm and the activation that follow it and nothing else reads."""
        readers: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for source in node.inputs:
                readers.setdefault(source, []).append(node.name)
        for name, node in list(self.nodes.items()):
            if node.kind not in ("conv", "grouped", "join", "fixed") or node.layer is None:
                continue
            norm, activation, end = "", "", name
            after = self._only(readers, end)
            if after is not None and after.kind == "norm" and node.kind != "join":
                norm, end = after.name, after.name
                after = self._only(readers, end)
            if after is not None and after.kind == "map":
                activation = self._activation(after)
            layer = replace(node.layer, norm=bool(norm), activation=activation)
            self.nodes[name] = replace(node, layer=layer, norm=norm)

    def _only(self, readers: dict[str, list[str]], name: str) -> Node | None:
        found = readers.get(name, [])
        return self.nodes[found[0]] if len(found) == 1 else None

    def _activation(self, node: Node) -> str:
        if node.module:
            module = type(self.modules[node.module])
            return next((name for name, kind in ACTIVATIONS.items() if kind is module), "")
        fxnode = next(key for key, name in self.names.items() if name == node.name)
        target: Any = fxnode.target
        return "relu" if target in ("relu", "relu_") else FUNCTION_ACTIVATIONS.get(target, "")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish(self) -> Network:
        producers: dict[str, list[str]] = {}
        frozen: dict[str, str] = {}
        for node in self.nodes.values():
            if node.kind not in ("conv", "fixed"):
                continue
            root = self.groups.root(node.name)
            reason = self.groups.reasons.get(root)
            if reason is None:
                producers.setdefault(root, []).append(node.name)
            else:
                frozen[node.module or node.name] = reason
        multiples = self._multiples()
        titles = {root: members[0] for root, members in producers.items()}
        nodes = tuple(self._sited(node, titles) for node in self.nodes.values())
        sites = {
            title: Site(
                title,
                "width",
                self.nodes[title].segments[0].base,
                tuple(dict.fromkeys(self.nodes[name].module for name in producers[root])),
                tuple(dict.fromkeys(self._consumers(root))),
                multiples.get(root, 1),
            )
            for root, title in titles.items()
        }
        for run in self.runs:
            sites[run.site] = Site(run.site, "depth", len(run.blocks), run.blocks)
        images = tuple(tuple(example.shape[1:]) for example in self.examples)
        return Network(self.module, nodes, sites, frozen, images[0], self.adds, images, self.outputs, self.result)

    def _multiples(self) -> dict[str, int]:
        """By group of producers, what its width must be a multiple of: groups of convolutions and norms stay whole."""
        found: dict[str, int] = {}
        for node in self.nodes.values():
            multiple = node.layer.each if node.kind == "grouped" and node.layer is not None else 1
            if node.kind == "layer_norm" and isinstance(norm := self.modules[node.module], nn.GroupNorm):
                multiple = norm.num_groups
            if multiple > 1:
                for root in {root for member in self.sources[node.name] for root in self._origins(member)}:
                    found[root] = lcm(found.get(root, 1), multiple)
        return found

    def _members(self, root: str) -> Iterator[str]:
        return (name for name in self.groups.parent if self.groups.root(name) == root)

    def _sited(self, node: Node, titles: dict[str, str]) -> Node:
        if node.kind not in ("conv", "grouped") or node.segments[0].repeat > 1 or len(node.segments) > 1:
            return node
        (member,) = self.sources[node.name]
        return replace(node, site=titles.get(self.groups.root(member), ""))

    def _consumers(self, root: str) -> Iterator[tuple[str, int, int]]:
        for node in self.nodes.values():
            if node.kind not in ("conv", "grouped", "norm", "layer_norm") or not node.module:
                continue
            offset = 0
            for member, segment in zip(self.sources[node.inputs[0]], node.consumed, strict=True):
                if root in self._origins(member):
                    yield node.module, offset, segment.repeat
                offset += segment.base * segment.repeat

    def _origins(self, member: str) -> set[str]:
        """The groups whose widths these channels may have: several after a depth site whose ends are free."""
        if member in self.passed and not self._bound(member):
            return {root for end in self.passed[member] for root in self._origins(end)}
        return {self.groups.root(member)}


def _runner(
    fxnode: fx.Node, sources: Sequence[fx.Node]
) -> Callable[[Callable[[str], nn.Module], tuple[Any, ...]], Any]:
    """Does what the node did, on values given in the order of these sources."""
    target: Any = fxnode.target

    def run(modules: Callable[[str], nn.Module], values: tuple[Any, ...]) -> Any:
        found = dict(zip(sources, values, strict=True))
        args = fx.node.map_arg(fxnode.args, found.__getitem__)
        kwargs = fx.node.map_arg(fxnode.kwargs, found.__getitem__)
        match fxnode.op:
            case "call_module":
                return modules(target)(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "get_attr":
                owner, _, attribute = target.rpartition(".")
                return getattr(modules(owner), attribute)
            case "placeholder":  # one that was not given: its default
                return args[0] if args else None
            case _:
                return target(*args, **kwargs)

    return run


def _first(_: Callable[[str], nn.Module], values: tuple[Any, ...]) -> Any:
    return values[0]


def _last(_: Callable[[str], nn.Module], values: tuple[Any, ...]) -> Any:
    return values[-1]


def _plain_add(fxnode: fx.Node) -> bool:
    """Whether this adds images of one shape."""
    shapes = {source.meta["shape"] for source in fxnode.all_input_nodes}
    return fxnode.target in ADDS and len(shapes) == 1 and len(fxnode.meta["shape"]) == 4


def _private(fxnode: fx.Node) -> bool:
    """Whether this value comes from a convolution, by norms and activations, and goes nowhere else on the way."""
    while len(fxnode.users) == 1 and fxnode.op == "call_module":
        module = fxnode.graph.owning_module.get_submodule(str(fxnode.target))  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            return True
        fxnode = fxnode.all_input_nodes[0]
    return False


def _tied(module: nn.Module) -> set[str]:
    """Modules that share a parameter with another one."""
    owners: dict[int, set[int]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(part))
    shared = {part for parts in owners.values() if len(parts) > 1 for part in parts}
    return {name for name, part in module.named_modules(remove_duplicate=False) if id(part) in shared}


def _understood(module: nn.Module) -> bool:
    """Whether a Layer describes this module, whose weight is a parameter of its own and not computed."""
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return False
    if isinstance(module, nn.Linear):
        return True
    if isinstance(module, nn.ConvTranspose2d):
        return module.groups == 1
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and _padding(module) is not None


def _padding(module: nn.Conv2d) -> tuple[int, int] | None:
    """In numbers; None where there is more of it on one side."""
    if module.padding == "valid":
        return (0, 0)
    if module.padding != "same":
        return _pair(module.padding)
    reach = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(each % 2 for each in reach) else (reach[0] // 2, reach[1] // 2)


def _layer(module: nn.Module, size: tuple[int, int]) -> Layer:
    if isinstance(module, nn.Linear):
        return Layer("linear", module.in_features, module.out_features, size, bias=module.bias is not None)
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    transposed = isinstance(module, nn.ConvTranspose2d)
    padding = _pair(module.padding) if isinstance(module, nn.ConvTranspose2d) else _padding(module)
    assert padding is not None
    return Layer(
        "conv_transpose" if transposed else "conv", module.in_channels, module.out_channels, size,
        kernel=_pair(module.kernel_size), stride=_pair(module.stride), padding=padding,
        dilation=_pair(module.dilation), groups=module.groups, bias=module.bias is not None,
        output_padding=_pair(module.output_padding) if transposed else (0, 0),
    )  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))


def _moved(fxnode: fx.Node, axis: int) -> int | None:
    """Where the channels are after dimensions were put in another order, or the mean was taken over some of them; None
    if that is not what the node does, or does to the channels or the batch."""
    target: Any = fxnode.target
    if fxnode.op not in ("call_function", "call_method") or not fxnode.args or not isinstance(fxnode.args[0], fx.Node):
        return None
    count = len(fxnode.args[0].meta["shape"] or ())
    named: Any = fxnode.kwargs.get("dims", fxnode.kwargs.get("dim"))
    rest: Any = fxnode.args[1:] if named is None else (named, *fxnode.args[1:])
    listed = rest[0] if rest and isinstance(rest[0], tuple | list) else rest
    dims = [dim % count for dim in listed if type(dim) is int]
    if target in (torch.permute, "permute"):
        return dims.index(axis) if len(dims) == count and dims[0] == 0 else None
    if target in (torch.transpose, torch.swapaxes, "transpose", "swapaxes"):
        order = list(range(count))
        if len(dims) != 2 or 0 in dims:
            return None
        order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
        return order.index(axis)
    if target in (torch.mean, "mean") and dims:
        over: Any = rest[0] if isinstance(rest[0], tuple | list) else rest[:1]
        gone = {dim % count for dim in over}
        if gone & {0, axis}:
            return None
        return axis if len(fxnode.meta["shape"]) == count else axis - sum(dim < axis for dim in gone)
    return None


def _sized_by(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The tensor, and the dimension, whose size this is: `x.size(1)`, `x.shape[1]` or an item of `x.size()`."""
    args = node.args
    if node.target == "size" and len(args) == 2 and isinstance(args[0], fx.Node) and isinstance(args[1], int):
        return args[0], args[1]
    if node.target is operator.getitem and isinstance(args[0], fx.Node) and isinstance(args[1], int):
        sizes = args[0]
        whole = (sizes.target == "size" and len(sizes.args) == 1) or (
            sizes.target is getattr and sizes.args[1:] == ("shape",)
        )
        if whole and isinstance(sizes.args[0], fx.Node):
            return sizes.args[0], args[1]
    return None


def _only_ones(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether sizes of 1 were put in or taken out, and nothing else."""
    return [size for size in before if size != 1] == [size for size in after if size != 1]


def _only_at(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size if dim == axis else 1 for dim, size in enumerate(shape))


def layer_norm(x: Tensor, norm: nn.Module, axis: int) -> Tensor:
    """Over the channels, which are in this dimension; `norm` has weight, bias and eps."""
    out = F.layer_norm(x.movedim(axis, -1), norm.weight.shape, norm.weight, norm.bias, norm.eps)  # type: ignore
    return out.movedim(-1, axis)


# -- depth sites -----------------------------------------------------------------------------------------------------


def _runs(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[_Run]:
    """Runs of blocks in which all but the first keep the shape of their input: of a Sequential, or called one after the
    other by a user's own forward pass, where they must add to what comes in (residual blocks)."""
    inside = _inside(graph)
    for path, module in modules.items():
        listed = type(module).forward is nn.Sequential.forward
        run: list[str] = []
        found: list[list[str]] = []
        for child, block in module.named_children():
            name = f"{path}.{child}" if path else child
            called = name in inside and (not path or not listed or path in _stack(inside[name][0]))  # not by its index
            composite = called and not isinstance(block, CONTAINERS) and any(True for _ in block.children())
            keeps = run and composite and _keeps_shape(inside, run[-1], name)
            if keeps and (listed or _residual(inside[name])):
                run.append(name)
                continue
            run = [name] if composite else []
            found.append(run)
        for blocks in found:
            if len(blocks) > 1:
                site = path if path and len(blocks) == len(list(module.children())) else f"{blocks[0]}+"
                yield _Run(site, tuple(blocks), tuple(inside[block][-1] for block in blocks), listed)


def _inside(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The nodes of every submodule, in order."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        owner = str(node.target) if node.op == "call_module" else _owner(node)
        parts = owner.split(".") if owner else []
        for length in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:length]), []).append(node)
    return found


def _keeps_shape(inside: dict[str, list[fx.Node]], before: str, block: str) -> bool:
    """Whether `block` reads the output of `before` and nothing else, and its output has the same shape."""
    own, end, source = set(inside[block]), inside[block][-1], inside[before][-1]
    outside = {given for node in own for given in node.all_input_nodes if given not in own}
    if outside != {source} or any(user not in own for user in source.users):
        return False
    if _leaving(inside[before]) or _leaving(inside[block]):
        return False
    return end.meta["shape"] is not None and end.meta["shape"] == source.meta["shape"]


@torch.no_grad()
def _droppable(module: nn.Module, blocks: Sequence[str], examples: tuple[Tensor, ...]) -> bool:
    """Whether the network still runs where an Identity stands for all blocks but the first: they may be called with
    further arguments, or asked for attributes."""
    cut = copy.deepcopy(module).eval()
    for block in blocks[1:]:
        cut.set_submodule(block, nn.Identity())
    try:
        cut(*(example.clone() for example in examples))
    except Exception:  # whatever a forward pass of the user's makes of that
        return False
    return True


def _residual(nodes: list[fx.Node]) -> bool:
    """Whether a block adds something to its input."""
    own = set(nodes)
    return any(node.target in ADDS and any(given not in own for given in node.all_input_nodes) for node in nodes)


def _leaving(nodes: list[fx.Node]) -> bool:
    """Whether anything but the last of a block's values is read outside it."""
    return any(user not in nodes for node in nodes[:-1] for user in node.users)
