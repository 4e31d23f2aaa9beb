"""Follow channels through a torch.fx graph: the kind of every step, and which producers must agree."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import chain, count, permutations
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from htas.graph import _steps
from htas.graph._blocks import Run, droppable, runs_of
from htas.graph.capture import kept_whole, names, owner_of
from htas.graph.groups import Groups
from htas.graph.layer import ACTIVATIONS, Layer, Op
from htas.graph.network import OUTPUT, Kind, Node, Segment
from htas.graph.runner import first_value, last_value, runner

IGNORED = "design.ignored names it"
"""Why a width is frozen that the user wants as it is."""


class Follower:
    """Follows channels through one torch.fx graph: `follow` fills `nodes`, `sources`, `groups`, `outputs`, `result`."""

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
        self.whole = kept_whole(graph)
        self.modules = dict(module.named_modules())
        self.names = names(self.graph)
        self.tied = _steps.tied_in(module)
        self.counted: set[int] = set()
        self.attributes = Counter(str(node.target) for node in self.graph.nodes if node.op == "get_attr")
        self.calls: dict[str, int] = {}
        for fxnode in self.graph.nodes:
            if fxnode.op == "call_module":
                self.calls[fxnode.target] = self.calls.get(fxnode.target, 0) + 1
        self.groups = Groups()
        self.sources: dict[str, tuple[str, ...]] = {}  # node name -> group member of each segment
        self.nodes: dict[str, Node] = {}
        self.ignored = ignored
        runs = [run for run in runs_of(self.graph, self.modules) if not any(map(self._ignored, run.blocks))]
        self.runs = [run for run in runs if run.listed or droppable(module, run.blocks, examples)]
        self.outputs: tuple[str, ...] = ()
        self.result: Callable[[tuple[Any, ...]], Any] = lambda values: values[0]
        self.first: dict[str, Node] = {}  # module -> the node that called it first

    def follow(self) -> None:
        """Visit every step of the graph, in the order they run."""
        renamed: dict[fx.Node, str] = {}  # where the consumers of a run's last block find their input
        for fxnode in self.graph.nodes:
            if fxnode.op == "get_attr" and fxnode.users:  # visited with the node that uses it
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

    # -- one node ------------------------------------------------------------------------------------------------

    def _visit(self, fxnode: fx.Node, renamed: dict[fx.Node, str]) -> None:
        name = self.names[fxnode]
        sources = self._scaled(fxnode) or tuple(fxnode.all_input_nodes)
        inputs = tuple(renamed.get(source, self.names[source]) for source in sources)
        axis = self.nodes[inputs[0]].axis if inputs else 1
        kind = self._kind(fxnode, inputs[0] if inputs else "", axis)
        earlier = self.first.get(str(fxnode.target)) if fxnode.op == "call_module" and kind in _steps.SHARED else None
        if earlier is not None and not self._alike(earlier, kind, self.nodes[inputs[0]]):
            for bound in (earlier.name, *earlier.inputs):
                self._freeze(bound, f"{earlier.module} is called again with other channels")
            kind = "fixed"
        node = Node(
            name,
            kind,
            inputs,
            runner(fxnode, sources),
            module=str(fxnode.target) if fxnode.op == "call_module" else "",
            blocks=self._blocks(fxnode),
            consumed=self.nodes[inputs[0]].segments if inputs else (),
            axis=axis,
        )
        if self.adds == "project" and node.kind == "join" and _steps.plain_add(fxnode):
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
            return "map" if isinstance(module, _steps.POINTWISE) else "fixed"
        if _steps.understood(module):
            if not isinstance(module, nn.Conv2d) or module.groups == 1:
                return "conv"
            return "grouped" if self._whole_groups(module, source) else "fixed"
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.affine and module.track_running_stats:
            return "norm"
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return "flatten"
        return "map" if isinstance(module, _steps.MAPS) else "fixed"

    def _scaled(self, fxnode: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """A tensor and the parameter of its channels that it is multiplied by, or that is added, and nothing else."""
        if fxnode.target not in _steps.JOINS or len(fxnode.all_input_nodes) != 2 or fxnode.op == "call_module":
            return None
        for tensor, param in permutations(fxnode.all_input_nodes):
            name, shape = self.names.get(tensor), tensor.meta["shape"]
            if param.op != "get_attr" or tensor.op == "get_attr" or shape is None or name is None:
                continue
            size, node = param.meta["shape"], self.nodes.get(name)
            if node is None or not len(size) <= len(shape) == len(fxnode.meta["shape"]):
                continue
            alone = len(param.users) == 1 and self.attributes[str(param.target)] == 1
            alone = alone and getattr(self.nodes.get(self.names[param]), "kind", "value") == "value"
            if alone and (1,) * (len(shape) - len(size)) + size == _steps.only_at(node.axis, shape):
                return tensor, param
        return None

    def _follows(self, fxnode: fx.Node) -> bool:
        """Whether a reshape that leaves the channels alone does so at other widths: their number is not written out, or
        is that of a tensor, which has the same width then."""
        args = fxnode.args[1] if len(fxnode.args) > 1 and isinstance(fxnode.args[1], tuple | list) else fxnode.args[1:]
        if fxnode.target not in _steps.WRITTEN_OUT:
            return True
        if len(args) < 2 or fxnode.kwargs:
            return False
        if not isinstance(args[1], fx.Node):
            return bool(args[1] == -1)
        sized = _steps.sized_by(args[1])
        if sized is None or sized[1] != self._axis(sized[0]):
            return False
        like, source = self.names[sized[0]], self.names[fxnode.all_input_nodes[0]]
        if self.nodes[like].segments != self.nodes[source].segments:
            return False
        for one, other in zip(self.sources[like], self.sources[source], strict=True):
            self.groups.join(one, other)  # or the reshape would fail at other widths
        return True

    def _whole_norm(
        self, module: nn.LayerNorm | nn.GroupNorm, shape: tuple[int, ...], source: str, axis: int
    ) -> bool:  # fmt: skip
        """Whether it norms the channels as a norm of its class does; a user's class is run to see."""
        if isinstance(module, nn.GroupNorm):
            segments = self.nodes[source].segments
            each = module.num_channels // module.num_groups
            whole = (len(segments) == 1 or each == 1) and segments[0].repeat == 1
            whole = whole and all(segment.base % module.num_groups == 0 for segment in segments)
            return axis == 1 and type(module) is nn.GroupNorm and bool(module.affine) and whole
        if len(module.normalized_shape) != 1 or not module.elementwise_affine:
            return False
        if type(module) is nn.LayerNorm:
            return axis == len(shape) - 1
        example = torch.randn([2 if dim != axis else size for dim, size in enumerate(shape)]).to(module.weight)
        with torch.no_grad():
            return bool(torch.allclose(module(example), _steps.layer_norm(example, module, axis), atol=1e-5))

    def _whole_groups(self, module: nn.Conv2d, source: str) -> bool:
        """Whether each group has as many outputs as inputs, and none of them reaches over parts of a concatenation."""
        each = module.in_channels // module.groups
        return module.in_channels == module.out_channels and all(
            segment.base % each == 0 and segment.repeat == 1 for segment in self.nodes[source].segments
        )

    def _function_kind(self, fxnode: fx.Node, shape: tuple[int, ...], tensors: list[fx.Node], axis: int) -> Kind:
        target: Any = fxnode.target
        first = tensors[0].meta["shape"]
        if target in _steps.JOINS:
            if len(tensors) == 1:
                return "map"
            alike = axis < len(shape) and all(self._axis(tensor) == axis for tensor in tensors)
            alike = alike and all(
                len(t.meta["shape"]) == len(shape) and t.meta["shape"][axis] == shape[axis] for t in tensors
            )
            return "join" if alike and len(tensors) == 2 else "fixed"
        if target in _steps.CONCATS:
            parts: Any = fxnode.args[0] if fxnode.args else fxnode.kwargs["tensors"]
            dim = fxnode.kwargs.get("dim", fxnode.args[1] if len(fxnode.args) > 1 else 0)
            alike = all(self._axis(tensor) == axis for tensor in tensors)
            return "concat" if dim in (axis, axis - len(shape)) and list(parts) == tensors and alike else "fixed"
        if target in _steps.MAP_FUNCTIONS or target in _steps.MAP_METHODS:
            return "map" if axis == 1 or target not in _steps.SPATIAL_FUNCTIONS else "fixed"
        if _steps.moved(fxnode, axis) is not None:
            return "map"
        if axis != 1:
            return "fixed"
        flat = len(shape) == 2 and shape[1] == prod(first[1:])
        if flat and target in (torch.flatten, "flatten"):
            return "flatten"
        if flat and target in ("view", "reshape", torch.reshape) and fxnode.args[-1] == -1:
            return "flatten"
        if (
            target in _steps.RESHAPES
            and shape[:2] == first[:2]
            and _steps.only_ones(first[2:], shape[2:])
            and self._follows(fxnode)
        ):
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
        learnt = sum(parameter.numel() for parameter in new if parameter.requires_grad)
        last = len(fxnode.meta["shape"] or ()) - 1
        size = self._size(fxnode, last if isinstance(module, nn.Linear) else 1) if module else (1, 1)
        layer = _steps.layer_of(module, size) if module and _steps.understood(module) else None
        return replace(
            self._fresh(node, fxnode, f"{what} {why}"), layer=layer, params=fxnode.meta.get("params", learnt),
            macs=0 if layer else fxnode.meta["macs"],
        )  # fmt: skip

    def _why_fixed(self, node: Node, module: nn.Module | None) -> str:
        if node.module in self.whole:
            return self.whole[node.module]
        if node.module in self.tied:
            return "shares a weight with another module"
        if node.module and self.calls[node.module] > 1:
            return "is called more than once"
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module._parameters.get("weight"), nn.Parameter):
            return "has a weight that is computed"
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
        layer = _steps.layer_of(module, self._size(fxnode, node.axis))
        return replace(node, segments=(Segment(layer.outputs),), layer=layer)

    def _ignored(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.ignored)

    def _grouped(self, node: Node, fxnode: fx.Node) -> Node:
        if self._ignored(node.module):
            self._freeze(node.inputs[0], IGNORED)
        return replace(self._map(node, fxnode), layer=_steps.layer_of(self.modules[node.module], self._size(fxnode)))

    @staticmethod
    def _alike(earlier: Node, kind: Kind, source: Node) -> bool:
        """Whether a module may have the widths that it had when it was called before."""
        return earlier.kind == kind and earlier.consumed == source.segments and earlier.axis == source.axis

    def _share(self, node: Node, earlier: Node) -> None:
        """A module that is called again has the widths that it had."""
        pairs = [(node.name, earlier.name)] + [(node.inputs[0], earlier.inputs[0])] * (node.kind == "conv")
        for one, other in pairs:
            for member, first in zip(self.sources[one], self.sources[other], strict=True):
                self.groups.join(member, first)
        self.nodes[node.name] = replace(node, again=True)

    def _norm(self, node: Node, fxnode: fx.Node) -> Node:
        return self._same(node)

    def _layer_norm(self, node: Node, fxnode: fx.Node) -> Node:
        return replace(self._same(node), params=sum(p.requires_grad for p in self.modules[node.module].parameters()))

    def _scale(self, node: Node, fxnode: fx.Node) -> Node:
        param = next(source for source in fxnode.all_input_nodes if source.op == "get_attr")
        learns, size = "params" in param.meta, param.meta["shape"]
        place = node.axis - (len(fxnode.meta["shape"]) - len(size))
        return replace(self._same(node), param=str(param.target), params=int(learns), param_axis=place)

    def _map(self, node: Node, fxnode: fx.Node) -> Node:
        place = _steps.moved(fxnode, node.axis)
        if place is not None:
            return replace(self._same(node), axis=place, layer=self._pool(node, fxnode))
        return replace(self._same(node), layer=self._pool(node, fxnode))

    def _join(self, node: Node, fxnode: fx.Node) -> Node:
        one, two = (self.sources[name] for name in node.inputs[:2])
        if self.nodes[node.inputs[0]].segments != self.nodes[node.inputs[1]].segments:
            for source in node.inputs:
                self._freeze(source, f"{node.name} joins channels that are not laid out alike")
        else:
            for member, partner in zip(one, two, strict=True):
                self.groups.join(member, partner)
        node = self._same(node)
        layer = Layer("add", node.base, node.base, self._size(fxnode, node.axis)) if _steps.plain_add(fxnode) else None
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
        """The dimension of the channels after a step of an unknown kind: the last after linear layers and layer norms,
        the same as before if it has the same size, else the second."""
        module = self.modules[node.module] if node.module else None
        if isinstance(module, nn.Linear | nn.LayerNorm):
            return len(shape) - 1
        before = fxnode.all_input_nodes[0].meta["shape"] if fxnode.all_input_nodes else None
        same = before is not None and node.axis < min(len(shape), len(before)) and before[node.axis] == shape[node.axis]
        return node.axis if same else 1

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
        is_private = [_steps.private(operand) for operand in operands]
        if is_private[0] == is_private[1]:
            return node
        skip, branch = (0, 1) if is_private[1] else (1, 0)
        source, other = node.inputs[skip], node.inputs[branch]
        name = self._fresh_name(self.names[fxnode].rsplit(":", 1)[0])
        consumed, segments = self.nodes[source].segments, self.nodes[other].segments
        layer = Layer("conv", self.nodes[source].base, self.nodes[other].base, self._size(fxnode), norm=self.normed)
        self.nodes[name] = Node(
            name, "project", (source, other), first_value, segments=segments, consumed=consumed, blocks=node.blocks,
            layer=layer, normed=self.normed,
        )  # fmt: skip
        self.sources[name] = self.sources[other]
        inputs = tuple(name if index == skip else operand for index, operand in enumerate(node.inputs))
        return replace(node, inputs=inputs, consumed=segments)

    def _fresh_name(self, owner: str) -> str:
        stem = f"{owner}.project" if owner else "project"
        names = chain([stem], (f"{stem}{number}" for number in count(2)))
        return next(name for name in names if name not in self.modules and name not in self.nodes)

    def _depth(self, run: Run, renamed: dict[fx.Node, str]) -> None:
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
            name, "depth", inputs, last_value, site=run.site, segments=segments, consumed=segments, blocks=outer
        )
        ends = list(zip(*(self.sources[source] for source in inputs), strict=True))
        members = [self.groups.add(f"{name}[{index}]") for index in range(len(ends))]
        self.groups.passed |= dict(zip(members, ends, strict=True))
        self.sources[name] = tuple(members)
        renamed[run.ends[-1]] = name

    def _forget(self, run: Run) -> None:
        """Drop a depth site whose blocks lay out their channels differently."""
        self.runs.remove(run)
        for name, node in self.nodes.items():
            self.nodes[name] = replace(node, blocks=tuple(block for block in node.blocks if block[0] != run.site))

    def _blocks(self, fxnode: fx.Node) -> tuple[tuple[str, int], ...]:
        owner = self.names[fxnode] if fxnode.op == "call_module" else owner_of(fxnode)
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
                op, width, width, size, kernel=_steps.pair(module.kernel_size), stride=_steps.pair(stride),
                padding=_steps.pair(module.padding), dilation=_steps.pair(getattr(module, "dilation", 1)),
            )  # fmt: skip
        channels = sum(segment.base * segment.repeat for segment in node.consumed)
        is_global = len(before) == 4 and channels == prod(after[1:]) < prod(before[1:])
        return Layer("global_pool", width, width, size) if is_global else None

    def activation(self, node: Node) -> str:
        """The key in ACTIVATIONS of a map; empty for any other."""
        if node.module:
            module = type(self.modules[node.module])
            return next((name for name, kind in ACTIVATIONS.items() if kind is module), "")
        fxnode = next(key for key, name in self.names.items() if name == node.name)
        target: Any = fxnode.target
        return "relu" if target in ("relu", "relu_") else _steps.FUNCTION_ACTIVATIONS.get(target, "")
