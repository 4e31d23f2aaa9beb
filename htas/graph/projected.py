"""A network with projections on its shortcuts: code made of its recorded steps, over the modules that it has."""

import operator
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from htas.data.nests import parts_of, replaced
from htas.graph.arch import Arch
from htas.graph.layer import CONVS, NORMS
from htas.graph.length import Length
from htas.graph.network import Network, Node, Step
from htas.graph.record import Call, Value
from htas.graph.steps import Step as Run


def projected(module: nn.Module, network: Network, arch: Arch) -> nn.Module:
    """The network at `arch`, whose resized `module` has no projections, with those that `arch` needs.

    It has the module names of the network, and a 1x1 convolution, with a norm, on each shortcut of another width.
    """
    for step in network.steps(arch):
        if step.node.kind == "project" and step.layer is not None:
            owner, _, name = step.node.name.rpartition(".")
            module.get_submodule(owner).add_module(name, _projection(step, module))
    graph = fx.GraphModule(module, Writer(module, network, arch).graph)
    modes = {name: part.training for name, part in module.named_modules()}
    for name, part in graph.named_modules():
        part.training = modes[name]
    if network.training is None:
        return graph
    return TwoModes(module, graph, fx.GraphModule(module, Writer(module, network.in_training, arch).graph))


class TwoModes(nn.Module):
    """One network in eval mode and in training, which take other steps on the same modules."""

    def __init__(self, module: nn.Module, evaluated: fx.GraphModule, trained: fx.GraphModule) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = module._modules, module._parameters, module._buffers
        self._non_persistent_buffers_set = module._non_persistent_buffers_set
        self._code = evaluated, trained
        """The code of both; in a tuple, where their modules are not counted again."""
        self.training = module.training

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs of the network for its inputs, [N, ...] each."""
        return type(self._code[self.training]).forward(self, *inputs)


def _is_plain(result: Any) -> bool:
    """Whether torch.fx can write down what a network returns: no objects in it but tuples, lists and dictionaries."""
    parts = None if isinstance(result, fx.Node) else parts_of(result)
    plain = type(result) in (list, tuple, dict) or hasattr(result, "_fields")
    return parts is None or (plain and all(map(_is_plain, parts.values())))


class Writer:
    """A torch.fx graph of the steps of a network at one arch."""

    def __init__(self, module: nn.Module, network: Network, arch: Arch) -> None:
        self.module, self.network, self.arch = module, network, arch
        self.widths = network.widths_at(arch)
        self.graph = fx.Graph()
        self.by_node: dict[str, fx.Node] = {}
        self.calls: dict[Call, fx.Node] = {}
        """What a step of several outputs makes."""
        self.params: dict[str, fx.Node] = {}
        for node in network.nodes:
            if all(block < arch.depths[site] for site, block in node.blocks):
                self.by_node[node.name] = self._node(node)
        outputs = tuple(self.by_node[name] for name in network.outputs)
        result = network.result(outputs)
        self.graph.output(result if _is_plain(result) else self.graph.call_function(network.result, (outputs,)))

    def _node(self, node: Node) -> fx.Node:
        inputs = [self.by_node[name] for name in node.inputs if name in self.by_node]
        match node.kind:
            case "input":
                return self.graph.placeholder(node.name.lstrip(":"))
            case "depth":
                return self.by_node[node.inputs[self.arch.depths[node.site] - 1]]
            case "project":
                there = node.name in dict(self.module.named_modules())
                return self.graph.call_module(node.name, (inputs[0],)) if there else inputs[0]
        if not isinstance(node.run, Run):
            return self._param(node.param)
        call = node.run.call
        if call not in self.calls:
            self.calls[call] = self._call(node.run, dict(zip(node.run.order, inputs, strict=False)))
        made = self.calls[call]
        for key in _way(call.result, call.outputs[node.run.output]) or ():
            made = self.graph.call_function(operator.getitem, (made, key))
        return made

    def _param(self, path: str) -> fx.Node:
        if path not in self.params:
            self.params[path] = self.graph.get_attr(path)
        return self.params[path]

    def _call(self, run: Run, known: Mapping[Value, fx.Node]) -> fx.Node:
        def put(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                tensor = known[leaf] if leaf in known else self._constant(leaf)
                return self.graph.call_method("detach", (tensor,)) if call.quiet else tensor
            return self._length(leaf, run, known)

        call = run.call
        args, kwargs = replaced(call.args, put), replaced(dict(call.kwargs), put)
        if call.module:
            return self.graph.call_module(call.module, args, kwargs)
        if call.name == "__setitem__":
            copy = self.graph.call_method("clone", (args[0],))
            self.graph.call_function(operator.setitem, (copy, *args[1:]))
            return copy
        function: Any = call.function
        if getattr(function, "__name__", "") == "__get__":
            return self.graph.call_function(getattr, (args[0], call.name))
        if function is getattr(Tensor, call.name, None):
            return self.graph.call_method(call.name, args, kwargs)
        return self.graph.call_function(function, args, kwargs)

    def _constant(self, value: Value) -> fx.Node:
        if value.param:
            return self._param(value.param)
        name = f"_constant{sum(each.startswith('_constant') for each in self.module._buffers)}"
        self.module.register_buffer(name, value.tensor, persistent=False)
        return self._param(name)

    def _length(self, leaf: Any, run: Run, known: Mapping[Value, fx.Node]) -> Any:
        """A size as the code that computes it; a number that a module holds as it is at these widths."""
        if not isinstance(leaf, Length):
            return leaf
        head, *rest = leaf.how
        if head == "size":
            return self.graph.call_method("size", (known.get(rest[0]) or self._constant(rest[0]), rest[1]))
        if isinstance(head, str):
            return run.counted[leaf.how].size(self.widths) if leaf.how in run.counted else int(leaf)
        parts = [self._length(each, run, known) for each in rest]
        if any(isinstance(part, fx.Node) for part in parts):
            return self.graph.call_function(head, tuple(parts))
        return head(*parts)


def _way(tree: Any, value: Value) -> list[Any] | None:
    """The keys that lead to a value in a nest."""
    if tree is value:
        return []
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    ways = (([key, *rest]) for key, each in pairs if (rest := _way(each, value)) is not None)
    return next(ways, None)


def _projection(step: Step, module: nn.Module) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    dims = len(step.layer.size) if step.layer is not None else 2
    parts["conv"] = CONVS[dims](step.channels_in, step.channels, 1, bias=False)
    if step.node.normed:
        parts["norm"] = NORMS[dims](step.channels)
    return nn.Sequential(parts).to(next(module.parameters())).train(module.training)
