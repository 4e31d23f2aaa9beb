"""Read a network's free widths and depths out of its graph (torch.fx)."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from htas.graph.network import Kind, Network, Node, Segment, Site
from htas.layer import ACTIVATIONS, Layer, Op

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
MAPS = (*ACTIVATIONS.values(), *POOLS, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Upsample, nn.ZeroPad2d, nn.Softplus, nn.Mish)
MAP_FUNCTIONS = {
    F.relu, torch.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, F.leaky_relu,
    F.elu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, F.interpolate, F.mish,
}  # fmt: skip
MAP_METHODS = {"relu", "relu_", "sigmoid", "tanh", "contiguous", "clone", "detach", "float"}
FUNCTION_ACTIVATIONS = {
    F.relu: "relu", torch.relu: "relu", F.relu6: "relu6", F.silu: "silu", F.hardswish: "hardswish", F.gelu: "gelu",
}  # fmt: skip
ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
JOINS = ADDS | {operator.mul, operator.imul, torch.mul, operator.sub, torch.sub, torch.maximum, "mul", "mul_", "sub"}


def trace(
    module: nn.Module,
    example: Tensor,
    *,
    adds: Literal["join", "project"] = "join",
    project_norm: bool = True,
) -> Network:
    """What is free in `module`, found by running `example` ([N, C, H, W]) through it.

    `adds="join"` gives layers that are added one width; "project" gives each its own, with a 1x1 convolution (and a
    norm, if `project_norm`) on an identity shortcut where they differ. The module is not changed. Raises ValueError
    where torch.fx cannot follow the forward pass.
    """
    return _Builder(_captured(module, example), module, example, adds, project_norm).network()


def capture(module: nn.Module) -> fx.GraphModule:
    """The module as a torch.fx graph, whose nodes know which submodule they stand in; raises ValueError."""
    try:
        return fx.GraphModule(module, fx.Tracer().trace(module))
    except Exception as error:  # a forward pass may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{type(module).__name__} cannot be traced by torch.fx ({reason}); "
            "keep data-dependent control flow out of forward()"
        ) from error


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
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] if isinstance(entry, tuple) else key for key, entry in stack.items()]
    return str(paths[-1]) if paths else ""


def _captured(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """`capture`, with the shape of every node's value under meta["shape"] (None for no tensor)."""
    graph = capture(module)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            _Shapes(graph).run(example)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{type(module).__name__} does not run on an input of shape {tuple(example.shape)} ({reason})"
        ) from error
    finally:
        module.train(training)
    return graph


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
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


class _Builder:
    """Turns one torch.fx graph into a Network."""

    def __init__(
        self, graph: fx.GraphModule, module: nn.Module, example: Tensor, adds: Literal["join", "project"], normed: bool
    ) -> None:
        self.graph, self.module, self.example, self.adds, self.normed = graph.graph, module, example, adds, normed
        self.modules = dict(module.named_modules())
        self.names = names(self.graph)
        self.calls: dict[str, int] = {}
        for fxnode in self.graph.nodes:
            if fxnode.op == "call_module":
                self.calls[fxnode.target] = self.calls.get(fxnode.target, 0) + 1
        self.groups = _Groups()
        self.sources: dict[str, tuple[str, ...]] = {}  # node name -> group member of each segment
        self.nodes: dict[str, Node] = {}
        self.runs = list(_runs(self.graph, self.modules))

    def network(self) -> Network:
        renamed: dict[fx.Node, str] = {}  # where the consumers of a run's last block find their input
        last = {run.ends[-1]: run for run in self.runs}
        for fxnode in self.graph.nodes:
            if fxnode.op == "output":
                self._output(fxnode, renamed)
                continue
            self._visit(fxnode, renamed)
            if fxnode in last:
                self._depth(last[fxnode], renamed)
                renamed[fxnode] = f"{last[fxnode].site}:depth"
        self._fuse()
        return self._finish()

    # -- one node ------------------------------------------------------------------------------------------------

    def _visit(self, fxnode: fx.Node, renamed: dict[fx.Node, str]) -> None:
        name = self.names[fxnode]
        inputs = tuple(renamed.get(source, self.names[source]) for source in fxnode.all_input_nodes)
        node = Node(
            name,
            self._kind(fxnode),
            inputs,
            _runner(fxnode),
            module=str(fxnode.target) if fxnode.op == "call_module" else "",
            blocks=self._blocks(fxnode),
            consumed=self.nodes[inputs[0]].segments if inputs else (),
        )
        if node.kind == "join" and fxnode.target in ADDS and self.adds == "project":
            node = self._project(node, fxnode)
        self.nodes[name] = getattr(self, f"_{node.kind}")(node, fxnode)

    def _kind(self, fxnode: fx.Node) -> Kind:
        shape = fxnode.meta["shape"]
        if fxnode.op == "placeholder":
            return "input"
        if shape is None:
            return "value"
        tensors = [source for source in fxnode.all_input_nodes if source.meta["shape"] is not None]
        if fxnode.op == "get_attr" or not tensors or len(shape) < 2:
            return "fixed"
        if fxnode.op == "call_module":
            return self._module_kind(self.modules[str(fxnode.target)], str(fxnode.target))
        return self._function_kind(fxnode, shape, tensors)

    def _module_kind(self, module: nn.Module, path: str) -> Kind:
        if self.calls[path] > 1 and next(module.parameters(), None) is not None:
            return "fixed"
        if isinstance(module, nn.Linear):
            return "conv"
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            if module.groups == 1:
                return "conv"
            return "depthwise" if module.groups == module.in_channels == module.out_channels else "fixed"
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.affine and module.track_running_stats:
            return "norm"
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return "flatten"
        return "map" if isinstance(module, MAPS) else "fixed"

    def _function_kind(self, fxnode: fx.Node, shape: tuple[int, ...], tensors: list[fx.Node]) -> Kind:
        target: Any = fxnode.target
        first = tensors[0].meta["shape"]
        if target in JOINS:
            if len(tensors) == 1:
                return "map"
            return "join" if len({t.meta["shape"][1] for t in tensors}) == 1 and len(tensors) == 2 else "fixed"
        if target is torch.cat:
            dim = fxnode.kwargs.get("dim", fxnode.args[1] if len(fxnode.args) > 1 else 0)
            return "concat" if dim in (1, 1 - len(shape)) else "fixed"
        if target in MAP_FUNCTIONS or target in MAP_METHODS:
            return "map"
        if target in (torch.mean, "mean") and first[1] == shape[1] and _dims(fxnode) == {2, 3}:
            return "map"
        flat = len(shape) == 2 and shape[1] == prod(first[1:])
        if flat and target in (torch.flatten, "flatten"):
            return "flatten"
        if flat and target in ("view", "reshape", torch.reshape) and fxnode.args[-1] == -1:
            return "flatten"
        return "fixed"

    # -- what each kind makes of its input -------------------------------------------------------------------------

    def _input(self, node: Node, fxnode: fx.Node) -> Node:
        return self._fresh(node, fxnode, "it is the network's input")

    def _fixed(self, node: Node, fxnode: fx.Node) -> Node:
        what = type(self.modules[node.module]).__name__ if node.module else str(self.names[fxnode]).split(":")[-1]
        shared = node.module and self.calls[node.module] > 1
        reason = f"{what} {node.module or node.name} is " + ("called more than once" if shared else "not understood")
        for source in node.inputs:
            self._freeze(source, f"{reason}, and reads it")
        return self._fresh(node, fxnode, reason)

    def _value(self, node: Node, fxnode: fx.Node) -> Node:
        self.sources[node.name] = ()
        return node

    def _conv(self, node: Node, fxnode: fx.Node) -> Node:
        module = self.modules[node.module]
        self.sources[node.name] = (self.groups.add(node.name),)
        width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        if isinstance(module, nn.Linear) and len(fxnode.meta["shape"]) != 2:
            self.groups.freeze(node.name, "the linear layer's input has more than two dimensions")
            self._freeze(node.inputs[0], "a linear layer reads it along its last dimension")
        return replace(node, segments=(Segment(int(width)),), layer=_layer(module, self._size(fxnode)))

    def _depthwise(self, node: Node, fxnode: fx.Node) -> Node:
        return replace(self._map(node, fxnode), layer=_layer(self.modules[node.module], self._size(fxnode)))

    def _norm(self, node: Node, fxnode: fx.Node) -> Node:
        return self._same(node)

    def _map(self, node: Node, fxnode: fx.Node) -> Node:
        return replace(self._same(node), layer=self._pool(node, fxnode))

    def _join(self, node: Node, fxnode: fx.Node) -> Node:
        one, two = (self.sources[name] for name in node.inputs[:2])
        if [s for s in self.nodes[node.inputs[0]].segments] != [s for s in self.nodes[node.inputs[1]].segments]:
            for source in node.inputs:
                self._freeze(source, f"{node.name} joins channels that are not laid out alike")
        else:
            for left, right in zip(one, two, strict=True):
                self.groups.join(left, right)
        shapes = {source.meta["shape"] for source in fxnode.all_input_nodes}
        plain = fxnode.target in ADDS and len(shapes) == 1 and len(fxnode.meta["shape"]) == 4
        layer = Layer("add", node.consumed[0].base, node.consumed[0].base, self._size(fxnode)) if plain else None
        return replace(self._same(node), layer=layer)

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
        shape = fxnode.meta["shape"]
        return replace(node, segments=(Segment(shape[1] if len(shape) > 1 else 1),))

    def _freeze(self, name: str, reason: str) -> None:
        for member in self.sources[name]:
            self.groups.freeze(member, reason)

    def _output(self, fxnode: fx.Node, renamed: dict[fx.Node, str]) -> None:
        for source in fxnode.all_input_nodes:
            self._freeze(renamed.get(source, self.names[source]), "it is the network's output")

    # -- shortcuts and depth -----------------------------------------------------------------------------------------

    def _project(self, node: Node, fxnode: fx.Node) -> Node:
        """Where one operand of an add also goes elsewhere (an identity shortcut), put a project node on it."""
        operands = fxnode.all_input_nodes
        own = [_private(operand) for operand in operands]
        if own[0] == own[1]:
            return node
        skip, branch = (0, 1) if own[1] else (1, 0)
        source, other = node.inputs[skip], node.inputs[branch]
        name = f"{self.names[fxnode].rsplit(':', 1)[0]}.project"
        consumed, segments = self.nodes[source].segments, self.nodes[other].segments
        layer = Layer("conv", consumed[0].base, segments[0].base, self._size(fxnode), norm=self.normed)
        self.nodes[name] = Node(
            name, "project", (source, other), _first, segments=segments, consumed=consumed, blocks=node.blocks,
            layer=layer, normed=self.normed,
        )  # fmt: skip
        self.sources[name] = self.sources[other]
        inputs = tuple(name if index == skip else given for index, given in enumerate(node.inputs))
        return replace(node, inputs=inputs, consumed=segments)

    def _depth(self, run: _Run, renamed: dict[fx.Node, str]) -> None:
        inputs = tuple(renamed.get(end, self.names[end]) for end in run.ends)
        first = self.nodes[inputs[-1]]
        outer = self._blocks(run.ends[-1])[:-1]
        name = f"{run.site}:depth"
        self.nodes[name] = Node(
            name, "depth", inputs, _last, site=run.site, segments=first.segments, consumed=first.segments, blocks=outer
        )
        self.sources[name] = self.sources[inputs[-1]]
        if self.adds == "join":
            for other in inputs[:-1]:
                for one, two in zip(self.sources[inputs[-1]], self.sources[other], strict=True):
                    self.groups.join(one, two)

    def _blocks(self, fxnode: fx.Node) -> tuple[tuple[str, int], ...]:
        owner = self.names[fxnode] if fxnode.op == "call_module" else _owner(fxnode)
        return tuple(
            (run.site, index)
            for run in self.runs
            for index, block in enumerate(run.blocks)
            if owner == block or owner.startswith(f"{block}.")
        )

    # -- layers --------------------------------------------------------------------------------------------------------

    def _size(self, fxnode: fx.Node) -> tuple[int, int]:
        shape = fxnode.all_input_nodes[0].meta["shape"]
        return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)

    def _pool(self, node: Node, fxnode: fx.Node) -> Layer | None:
        module = self.modules.get(node.module)
        width = node.consumed[0].base
        before, after = fxnode.all_input_nodes[0].meta["shape"], fxnode.meta["shape"]
        size = self._size(fxnode)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            op: Op = "max_pool" if isinstance(module, nn.MaxPool2d) else "avg_pool"
            stride = module.stride if module.stride is not None else module.kernel_size
            return Layer(
                op, width, width, size, kernel=_pair(module.kernel_size), stride=_pair(stride),
                padding=_pair(module.padding),
            )  # fmt: skip
        is_global = len(before) == 4 and prod(after[2:]) == 1 and before[2:] != after[2:]
        return Layer("global_pool", width, width, size) if is_global else None

    def _fuse(self) -> None:
        """Give each layer the norm and the activation that follow it and nothing else reads."""
        readers: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for source in node.inputs:
                readers.setdefault(source, []).append(node.name)
        for name, node in list(self.nodes.items()):
            if node.kind not in ("conv", "depthwise", "join") or node.layer is None:
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
            if node.kind != "conv":
                continue
            root = self.groups.root(node.name)
            reason = self.groups.reasons.get(root)
            if reason is None and len({self.nodes[name].base for name in self._members(root)}) > 1:
                reason = "layers of different widths are joined"
            if reason is None:
                producers.setdefault(root, []).append(node.name)
            else:
                frozen[node.module] = reason
        titles = {root: members[0] for root, members in producers.items()}
        nodes = tuple(self._sited(node, titles) for node in self.nodes.values())
        sites = {
            title: Site(
                title,
                "width",
                self.nodes[title].segments[0].base,
                tuple(self.nodes[name].module for name in producers[root]),
                tuple(self._consumers(root)),
            )
            for root, title in titles.items()
        }
        for run in self.runs:
            sites[run.site] = Site(run.site, "depth", len(run.blocks), run.blocks)
        image = tuple(self.example.shape[1:])
        return Network(self.module, nodes, sites, frozen, image, self.adds)

    def _members(self, root: str) -> Iterator[str]:
        return (name for name in self.groups.parent if self.groups.root(name) == root)

    def _sited(self, node: Node, titles: dict[str, str]) -> Node:
        return replace(node, site=titles.get(self.groups.root(node.name), "")) if node.kind == "conv" else node

    def _consumers(self, root: str) -> Iterator[tuple[str, int, int]]:
        for node in self.nodes.values():
            if node.kind not in ("conv", "depthwise", "norm") or not node.module:
                continue
            offset = 0
            for member, segment in zip(self.sources[node.inputs[0]], node.consumed, strict=True):
                if self.groups.root(member) == root:
                    yield node.module, offset, segment.repeat
                offset += segment.base * segment.repeat


def _runner(fxnode: fx.Node) -> Callable[[Callable[[str], nn.Module], tuple[Any, ...]], Any]:
    """Does what the node did, on values given in the order of its inputs."""
    sources = fxnode.all_input_nodes
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
            case _:
                return target(*args, **kwargs)

    return run


def _first(_: Callable[[str], nn.Module], values: tuple[Any, ...]) -> Any:
    return values[0]


def _last(_: Callable[[str], nn.Module], values: tuple[Any, ...]) -> Any:
    return values[-1]


def _private(fxnode: fx.Node) -> bool:
    """Whether this value comes from a convolution, by norms and activations, and goes nowhere else on the way."""
    while len(fxnode.users) == 1 and fxnode.op == "call_module":
        module = fxnode.graph.owning_module.get_submodule(str(fxnode.target))  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d | nn.Linear):
            return True
        fxnode = fxnode.all_input_nodes[0]
    return False


def _layer(module: nn.Module, size: tuple[int, int]) -> Layer:
    if isinstance(module, nn.Linear):
        return Layer("linear", module.in_features, module.out_features, (1, 1), bias=module.bias is not None)
    assert isinstance(module, nn.Conv2d)
    return Layer(
        "conv", module.in_channels, module.out_channels, size, kernel=_pair(module.kernel_size),
        stride=_pair(module.stride), padding=_pair(module.padding), dilation=_pair(module.dilation),
        groups=module.groups, bias=module.bias is not None,
    )  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))


def _dims(fxnode: fx.Node) -> set[int]:
    dims: Any = fxnode.kwargs.get("dim", fxnode.args[1] if len(fxnode.args) > 1 else ())
    return {dim % 4 for dim in (dims if isinstance(dims, tuple | list) else (dims,))}


# -- depth sites -----------------------------------------------------------------------------------------------------


def _runs(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[_Run]:
    """Runs of blocks in a Sequential in which all but the first keep the shape of their input."""
    inside = _inside(graph)
    for path, module in modules.items():
        if not isinstance(module, nn.Sequential):
            continue
        run: list[str] = []
        found: list[list[str]] = []
        for child, block in module.named_children():
            name = f"{path}.{child}" if path else child
            composite = not isinstance(block, nn.Sequential) and any(True for _ in block.children())
            if run and composite and _keeps_shape(inside, run[-1], name):
                run.append(name)
                continue
            run = [name] if composite else []
            found.append(run)
        for blocks in found:
            if len(blocks) > 1:
                head = blocks[0].rsplit(".", 1)[-1]
                site = path if len(blocks) == len(list(module.children())) else f"{path}.{head}+"
                yield _Run(site, tuple(blocks), tuple(inside[block][-1] for block in blocks))


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
    if before not in inside or block not in inside:
        return False
    own, prior = set(inside[block]), inside[before]
    outside = {source for node in own for source in node.all_input_nodes if source not in own}
    if outside != {prior[-1]}:
        return False
    leaving = [node for node in prior[:-1] if any(user not in set(prior) for user in node.users)]
    readers_elsewhere = any(user not in own for user in prior[-1].users)
    return not leaving and not readers_elsewhere and inside[block][-1].meta["shape"] == prior[-1].meta["shape"]
