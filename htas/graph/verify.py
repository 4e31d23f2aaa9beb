"""Whether a traced network is what it says: checked on fresh inputs before anything relies on it."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from htas.data.nests import leaves_in, tensors_in
from htas.graph.arch import Arch
from htas.graph.modes import copied, evaluating
from htas.graph.network import Network, Node
from htas.graph.resize import resize

CLOSE = 1e-4
"""Differences of outputs, as a share of the largest output, up to which they are equal."""


ALIKE = (0.4,)
"""Share of the channels that stay, at every site."""
UNEVEN = (0.4, 1.2, 0.5, 1.3, 0.7)
"""The same, site after site: what is right at one factor for all, or for fewer channels, may be wrong at others."""


def resized_at(network: Network, sites: Sequence[str], shares: Sequence[float]) -> Arch:
    """The base arch with these shares of the channels of sites, again from the first when they end."""
    widths = dict(network.base.widths)
    for name, share in zip(widths, itertools.cycle(shares), strict=False):
        if name in sites:
            site = network.sites[name]
            atoms = site.base // site.multiple
            widths[name] = max(1, round(atoms * share), (share > 1) * (atoms + 1)) * site.multiple
    return Arch(widths, network.base.depths)


def at_one_width(network: Network, sites: Sequence[str]) -> Arch:
    """The base arch where these sites have one width, as near as they can, since what Python compares is equal there;
    and a block less."""
    widths, names = dict(network.base.widths), [name for name in sites if name in network.widths]
    narrowest = min((widths[name] for name in names), default=0)
    depths = {name: max(1, depth - (name in sites)) for name, depth in network.base.depths.items()}
    return Arch(widths | {name: network.sites[name].near(narrowest) for name in names}, depths)


def failure(network: Network, examples: tuple[Tensor, ...], sites: Sequence[str], *, trains: bool) -> str:
    """Why the network with these sites narrower, wider, equal or with a block less is not right; empty where it is.

    It runs on fresh inputs with another number of images, every tensor in it has the channels foretold, it has the
    parameters foretold, and, where it `trains`, it runs forward and backward in training.
    """
    uneven, equal = resized_at(network, sites, UNEVEN), at_one_width(network, sites)
    return _failure(network, examples, uneven, trains=trains) or _failure(network, examples, equal, trains=False)


def _failure(network: Network, examples: tuple[Tensor, ...], arch: Arch, *, trains: bool) -> str:
    try:
        small = resize(network, arch)
        real = sum(parameter.numel() for parameter in small.parameters() if parameter.requires_grad)
        if real != network.params(arch):
            return f"has {real} parameters where {network.params(arch)} are foretold"
        inputs = fresh(examples, len(examples[0]) + 1)
        with evaluating(small), torch.no_grad():
            out = small(*(each.clone() for each in inputs))
            if sentence := _replayed(network, small, arch, inputs, out):
                return sentence
        if trains:
            return _in_training(network, small, arch, fresh(examples, max(2, len(examples[0]))))
    except Exception as error:  # whatever a network of the user's makes of other widths
        return f"does not run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def starved(network: Network, examples: tuple[Tensor, ...], sites: Sequence[str], *, trains: bool) -> str:
    """Why the network cannot do with the least widths at these sites; empty where it runs, backward in training too,
    and gives numbers where the base network does."""
    widths = {name: network.sites[name].least for name in sites}
    arch, inputs = (
        Arch({**network.base.widths, **widths}, network.base.depths),
        fresh(examples, max(2, len(examples[0]))),
    )
    channels = "one channel" if max(widths.values(), default=1) == 1 else "as few channels"
    try:
        small = resize(network, arch)
        outputs = list(_outputs(small, inputs, trains=trains))
    except Exception as error:  # whatever a network of the user's makes of few channels
        return (
            f"does not run with {channels}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    if _finite(outputs) or not _finite(list(_outputs(copied(network.module), inputs, trains=trains))):
        return ""
    return f"gives numbers that are not finite with {channels}"


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...], *, trains: bool) -> Iterator[Any]:
    """What a network, which is changed, gives in eval mode and in training, with its gradients."""
    with evaluating(model), torch.no_grad():
        yield model(*(each.clone() for each in inputs))
    if trains:
        torch.manual_seed(0)
        outputs = model.train()(*(each.clone() for each in inputs))
        total: Any = sum(each.float().mean() for each in tensors_in(outputs) if _differentiable(each))
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        yield outputs
        yield [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _finite(outputs: Sequence[Any]) -> bool:
    return all(bool(each.isfinite().all()) for output in outputs for each in tensors_in(output))


def failure_in_training(network: Network, examples: tuple[Tensor, ...]) -> str:
    """Why the steps of training do not compute what the network does in training, at base widths."""
    small = resize(network, network.base)
    return _in_training(network, small, network.base, fresh(examples, max(2, len(examples[0]))))


def _in_training(network: Network, small: nn.Module, arch: Arch, inputs: tuple[Tensor, ...]) -> str:
    """Why `small`, which is the network at `arch`, does not compute in training what its steps do; it runs backward,
    too."""
    before = [(buffer, buffer.clone()) for buffer in small.buffers()]
    torch.manual_seed(0)
    out = small.train()(*(each.clone() for each in inputs))
    total: Any = sum(each.float().mean() for each in tensors_in(out) if _differentiable(each))
    if isinstance(total, Tensor) and total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    if network.training is None:
        return ""
    with torch.no_grad():
        for buffer, values in before:
            buffer.copy_(values)
        torch.manual_seed(0)
        sentence = _replayed(network.in_training, small, arch, inputs, out)
    return f"in training {sentence}" if sentence else ""


def permuted(network: Network, examples: tuple[Tensor, ...], sites: Sequence[str]) -> str:
    """Why channels of these sites cannot change places; empty where the outputs stay the same when they do."""
    generator = torch.Generator().manual_seed(0)
    free = [name for name in sites if name in network.widths and name not in network.fixed_order]
    orders: dict[str, Tensor] = {}
    for together, atoms in _together(network, free):
        orders |= dict.fromkeys(together, torch.randperm(atoms, generator=generator))
    twin = copied(network.module)
    reorder(twin, network, orders)
    inputs = fresh(examples, len(examples[0]))
    if _alike_on(network.module, twin, inputs) or _alike_precisely(network.module, twin, inputs):
        return ""
    return "computes something else when its channels change places"


def planted(network: Network, examples: tuple[Tensor, ...], sites: Sequence[str]) -> str:
    """Why the network with fewer channels at these sites is not the one in which nobody reads the others; empty where
    it is.

    Sites of which a step reads all channels together (a norm over them, a mean, a product) are left out.
    """
    mixed = _mixed(network)
    free = [name for name in sites if name in network.widths and name not in mixed]
    free = [name for together, _ in _together(network, free) for name in together]
    arch = resized_at(network, free, ALIKE)
    widths, twin = network.widths_at(arch), copied(network.module)
    with torch.no_grad():
        for node in network.nodes:
            layouts = network.layouts.get(f"{node.module}.weight", ())
            if node.kind != "conv" or node.layer is None or not layouts:
                continue
            turned = node.layer.op == "conv_transpose"
            layout = layouts[0 if turned else 1]
            if layout is not None:
                weight = twin.get_parameter(f"{node.module}.weight")
                unread = torch.ones(weight.shape[0 if turned else 1], dtype=torch.bool)
                unread[layout.common(network.base_widths, widths)[0]] = False
                weight.index_fill_(0 if turned else 1, unread.nonzero().flatten(), 0)
    small, inputs = resize(network, arch), fresh(examples, len(examples[0]))
    if _alike_on(twin, small, inputs) or _alike_precisely(twin, small, inputs):
        return ""
    return "computes something else than the whole network in which its other channels are not read"


def _together(network: Network, sites: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """These sites, and what depth sites pass on, in groups whose channels meet at shortcuts, each with its number of
    atoms; no group that is not whole, or whose channels are not as many."""
    runs = {run.site: run for node in network.nodes for run in node.layout.runs}
    groups = {name: {name} for name in ("", *runs, *sites)}
    nodes = {node.name: node for node in network.nodes}
    pairs = [(node.consumed, node.segments) for node in network.nodes if node.kind == "project"]
    depths = [node for node in network.nodes if node.kind == "depth"]
    pairs += [(nodes[name].segments, node.segments) for node in depths for name in node.inputs]
    for one, other in pairs:
        for a, b in zip(one, other, strict=True):
            joined = groups[a.site] | groups[b.site]
            groups |= dict.fromkeys(joined, joined)
    whole = {name for name in runs if name in sites or name not in {"", *network.sites}}
    for group in {id(each): sorted(each) for each in groups.values() if each <= whole}.values():
        if len({(runs[name].atoms, runs[name].multiple) for name in group}) == 1:
            yield group, runs[group[0]].atoms


def _mixed(network: Network) -> set[str]:
    """Sites of which some step reads all channels together, or not by a weight of its own."""
    mixed = set(network.fixed_order)
    read = {node.param for node in network.nodes if node.param}  # by forward itself, whatever it makes of them
    mixed |= {site for path in read for layout in network.layouts.get(path, ()) if layout for site in layout.sites}
    for node in network.nodes:
        alone = node.called if node.kind in ("conv", "grouped") else node.kind in APART or _each_alone(node)
        mixed |= set() if alone else {segment.site for segment in node.consumed if segment.site}
    return mixed


APART = ("norm", "join", "concat", "flatten", "scale", "depth", "value")
"""Kinds of nodes that keep channels apart."""
TOGETHER = ("softmax", "log_softmax", "normalize", "softmin")
"""Maps whose every output depends on all channels."""


def _each_alone(node: Node) -> bool:
    call = getattr(node.run, "call", None)
    return node.kind == "map" and call is not None and call.name.strip("_") not in TOGETHER


def _alike_on(one: nn.Module, two: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether two networks compute the same in eval mode."""
    with torch.no_grad(), evaluating(one), evaluating(two):
        return alike(one(*(each.clone() for each in inputs)), two(*(each.clone() for each in inputs)))


def _alike_precisely(one: nn.Module, two: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """As above in double precision: a deep network without training may amplify rounding."""
    doubled = tuple(each.double() if each.is_floating_point() else each for each in inputs)
    try:
        return _alike_on(copied(one).double(), copied(two).double(), doubled)
    except Exception:  # a network that computes in one precision only
        return False


@torch.no_grad()
def reorder(module: nn.Module, network: Network, orders: Mapping[str, Tensor]) -> None:
    """Put the channels of sites into other places, in place: `orders` has the atoms, [atoms] by site."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for path, layouts in network.layouts.items():
        if path not in tensors:  # another name of a tensor that has its place
            continue
        for dim, layout in enumerate(layouts):
            index = layout.ordered(orders) if layout is not None else None
            if index is not None:
                tensors[path].copy_(tensors[path].index_select(dim, index.to(tensors[path].device)))


def fresh(examples: tuple[Tensor, ...], images: int) -> tuple[Tensor, ...]:
    """Random inputs like the examples, of another number of images."""
    generator = torch.Generator().manual_seed(images)
    made = []
    for example in examples:
        shape = (images, *example.shape[1:])
        if example.is_floating_point():
            made.append(torch.randn(shape, generator=generator).to(example.dtype))
        else:
            made.append(example[torch.arange(images) % len(example)])
    return tuple(made)


def alike(one: Any, two: Any) -> bool:
    """Whether two outputs are equal but for rounding; those without a tensor are not."""
    ones, twos = leaves_in(one), leaves_in(two)
    same = len(ones) == len(twos) and all(_close(a, b) for a, b in zip(ones, twos, strict=True))
    return same and bool(tensors_in(one))


def _close(one: Any, two: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return isinstance(one, Tensor) == isinstance(two, Tensor)
    if one.shape != two.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    if bool(torch.isnan(one).any()):
        return bool((torch.isnan(one) == torch.isnan(two)).all())
    return bool((one - two).abs().max() <= CLOSE * one.abs().max().clamp_min(1e-6)) if one.numel() else True


def _differentiable(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.is_floating_point()


def _replayed(network: Network, module: nn.Module, arch: Arch, inputs: tuple[Tensor, ...], out: Any) -> str:
    """Why the recorded steps, on the tensors of `module`, do not compute what it computes; empty where they do."""
    widths = network.widths_at(arch)
    values: dict[str, Any] = {}
    for node, value in replayed(network, module, arch, inputs):
        values[node.name] = value
        if isinstance(value, Tensor) and node.layout.free and node.axis < value.dim():
            size = node.layout.size(widths)
            if value.shape[node.axis] != size:
                return f"has {value.shape[node.axis]} channels at {node.name} where {size} are foretold"
    result = network.result(tuple(values[name] for name in network.outputs))
    return "" if alike(out, result) else "computes something else than its recorded steps"


def replayed(
    network: Network, module: nn.Module, arch: Arch, inputs: tuple[Tensor, ...],
    maps: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[Node, Any]]:  # fmt: skip
    """The recorded steps on the tensors of `module`, which is the network at `arch`, each with what it computes; those
    alone that follow from `maps`, outputs of steps by name, where these are given in the place of inputs."""
    widths = network.widths_at(arch)
    values: dict[str, Any] = dict(maps or {})
    images = iter(inputs)
    for node in network.nodes:
        if any(block >= arch.depths[site] for site, block in node.blocks) or node.name in values:
            continue
        read = node.inputs[arch.depths[node.site] - 1 :][:1] if node.kind == "depth" else node.inputs
        if maps is not None and (node.kind == "input" or not values.keys() >= set(read)):
            continue
        if node.kind == "input":
            values[node.name] = next(images).clone()
        elif node.kind == "depth":
            values[node.name] = values[node.inputs[arch.depths[node.site] - 1]]
        elif node.kind == "project":
            shortcut, there = values[node.inputs[0]], node.name in dict(module.named_modules())
            values[node.name] = module.get_submodule(node.name)(shortcut) if there else shortcut
        else:
            run: Callable[..., Any] = node.run
            if node.kind == "norm" and not node.called:
                values[node.name] = normed(module.get_submodule(node.module), values[node.inputs[0]])
            else:
                values[node.name] = run(module.get_submodule, tuple(values[name] for name in node.inputs), widths)
        yield node, values[node.name]


def normed(owner: Any, value: Tensor) -> Tensor:
    """What a batch norm's function makes of a value with the tensors of the module that owns them."""
    return nn.functional.batch_norm(
        value, owner.running_mean, owner.running_var, owner.weight, owner.bias, owner.training, 0.0, owner.eps
    )
