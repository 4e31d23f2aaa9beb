"""A block at all of its widths, which learns a trained network's feature map alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.data.split import Batch
from htas.data.task import Inputs, Task, precise
from htas.errors import UserError
from htas.graph import Arch, Network, Node
from htas.graph.layout import Layout
from htas.graph.modes import copied, evaluating
from htas.graph.resize import widen
from htas.graph.verify import replayed
from htas.search.allocation import key
from htas.search.importance import not_finite
from htas.search.mixing import channelwise
from htas.search.segments import Block
from htas.search.slices import Slices
from htas.spaces.space import Space
from htas.training.layout import Narrow
from htas.training.loop import finite

FLAT = 0.01
"""Least variance of a channel that errors are divided by, as a share of the mean over channels."""
RIDGE = 1e-5
"""What is added to the variances of channels when others are predicted from them, as a share of their mean."""


@dataclass(frozen=True)
class Maps:
    """Of a batch of images what the trained network makes where a block begins, and where it ends, [N, ...] each."""

    entries: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...] = ()
    """Gradients of the trained network's loss, image by image, by the targets."""


def maps_of(
    network: Network, teacher: nn.Module, block: Block, targets: Sequence[Node], batches: Iterable[Batch],
    task: Task | None = None,
) -> Iterator[Maps]:  # fmt: skip
    """The feature maps of the teacher, the trained `network`, around a block, batch by batch; with slopes for a task.

    Raises UserError where they are not finite.
    """
    names = [node.name for node in (*block.entries, *targets)]
    for images, labels in batches:
        values: dict[str, Tensor] = {}
        with torch.no_grad(), evaluating(teacher):
            for node, value in replayed(
                network, teacher, network.base, images if isinstance(images, tuple) else (images,)
            ):
                if node.name in names:
                    values[node.name] = value.clone()  # the next step may change it in place
                if len(values) == len(set(names)):
                    break
        for name, value in values.items():
            _need_finite(name, value, images)
        ends = {node.name: values[node.name] for node in targets}
        slopes = () if task is None else _slopes(network, teacher, ends, labels, task, images)
        yield Maps(tuple(values[node.name] for node in block.entries), tuple(ends.values()), slopes)


def _slopes(
    network: Network, teacher: nn.Module, maps: Mapping[str, Tensor], labels: Any, task: Task, images: Inputs
) -> tuple[Tensor, ...]:
    """Gradients of the loss of single images by feature maps. Classes are drawn as the teacher finds them probable:
    their squares are then its Fisher information, also where it knows all labels by heart."""
    leaves = {name: value.clone().requires_grad_() for name, value in maps.items()}
    with evaluating(teacher):
        starts = {name: leaf.clone() for name, leaf in leaves.items()}  # steps may change them in place
        values = {**starts}
        for node, value in replayed(network, teacher, network.base, (), starts):
            values[node.name] = value
    for name in network.outputs:
        _need_finite(name, values[name], images)
    outputs: Any = precise(network.result(tuple(values[name] for name in network.outputs)))
    if task.classifies:
        classes = torch.distributions.Categorical(logits=outputs.detach().movedim(1, -1))
        labels = classes.sample()  # type: ignore[no-untyped-call]
    loss = task.loss(outputs, labels) * len(next(iter(maps.values())))
    if not loss.requires_grad:  # the network's forward turns gradients off
        return tuple(map(torch.zeros_like, leaves.values()))
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return tuple(
        torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves.values(), slopes, strict=True)
    )


def _need_finite(name: str, value: Tensor, images: Inputs) -> None:
    if not bool(value.isfinite().all()):
        raise UserError(f"what the trained network makes at {name} is not finite: {not_finite(finite(images))}")


def widest_of(network: Network, space: Space) -> dict[str, int]:
    """By site, and by what a depth site passes on, its widest."""
    widest = {site: max(choices) for site, choices in space.widths.items()}
    nodes = {node.name: node for node in network.nodes}
    for node in network.nodes:
        for segment in node.segments if node.kind == "depth" else ():
            if segment.site and segment.site not in network.sites:
                ends = [nodes[name].segments[0] for name in node.inputs]
                widest[segment.site] = max(widest[each.site] if each.site else each.base for each in ends)
    return widest


class Student(nn.Module):
    """A block of `network`, whose module has the trained weights, in the order of their importance.

    Weights are shared between the widths of the block: those of a narrower layer are the first of a wider one. Norms
    take the statistics of their batch.

    A width that reaches beyond the block, as that of a residual stream, is another there than in the teacher's map.
    Matrices of each such width lead from the teacher's channels to the block's, and back with a shift; they learn with
    the block. The error is therefore of all of the teacher's channels: it counts what a narrow stream cannot hold, as
    comparing the most important channels alone would not. At the start the first takes the most important channels, and
    the second predicts the others from these by least squares. Base widths need none.
    """

    def __init__(self, network: Network, space: Space, block: Block, targets: Sequence[Node], maps: Sequence[Maps]):
        super().__init__()
        self.network, self.block, self.targets = network, block, tuple(targets)
        widest = widest_of(network, space)
        self.body = copied(network.module)
        widen(self.body, network, widest)
        for part in self.body.modules():
            if type(part) is nn.Conv2d and part.padding_mode == "zeros":
                part.__class__ = Narrow  # at some of its widths, for which a convolution has a fault
        self.body.eval()
        self.slices = Slices(network, self.body, widest)
        self.nodes = {node.name: node for node in network.nodes}
        self.projections = nn.ParameterDict()
        for node in block.nodes:
            if node.kind == "project":
                self._add_projection(node, widest)
        self.into, self.back, self.shift = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.variances = [
            _variances([each.targets[at] for each in maps], node.axis) for at, node in enumerate(self.targets)
        ]
        self.products = [_products([each.targets[at] for each in maps], n.axis) for at, n in enumerate(self.targets)]

    # -- parameters ----------------------------------------------------------------------------------------------------

    def allocate(self, archs: Iterable[Arch]) -> None:
        """Add the adapters that these archs need."""
        for arch in archs:
            now = self.network.widths_at(arch)
            for node in self.block.entries:
                if (name := self._adapter(node, now)) and name not in self.into:
                    self.into[name] = nn.Parameter(self._chosen(node.layout, now))
            for at, node in enumerate(self.block.exits):
                if (name := self._adapter(node, now)) and name not in self.back:
                    matrix, shift = self._predicting(node.layout, now, self.products[at])
                    self.back[name], self.shift[name] = nn.Parameter(matrix), nn.Parameter(shift)

    def learnt(self) -> list[nn.Parameter]:
        """The parameters that the block uses."""
        tensors = dict(self.body.named_parameters(remove_duplicate=False))
        parameters = [*self.projections.values(), *self.into.values(), *self.back.values(), *self.shift.values()]
        for node in self.block.nodes:
            if node.param in tensors:
                parameters.append(tensors[node.param])
            elif node.module:
                parameters += self.body.get_submodule(node.module).parameters(recurse=node.called)
        return [each for each in {id(each): each for each in parameters}.values() if each.requires_grad]

    def _adapter(self, node: Node, now: Mapping[str, int]) -> str:
        """The name of the adapters of a feature map; empty where its channels are those of the base network."""
        sites = node.layout.sites
        if all(now[site] == self.network.base_widths[site] for site in sites):
            return ""
        return key(f"{node.name}/{'-'.join(str(now[site]) for site in sites)}")

    def _chosen(self, layout: Layout, now: Mapping[str, int]) -> Tensor:
        """The matrix that takes the channels of now from those of the base network."""
        there, here = layout.common(self.network.base_widths, now)
        matrix = torch.zeros(layout.size(now), layout.size(self.network.base_widths), device=self.products[0].device)
        matrix[here, there] = 1.0
        return matrix

    def _predicting(self, layout: Layout, now: Mapping[str, int], products: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix and the shift that make the base network's channels of those of now, by least squares."""
        there, here = layout.common(self.network.base_widths, now)
        rows = torch.cat([there, torch.tensor([len(products) - 1])]).to(products.device)
        squares = products[rows][:, rows]
        ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(rows), device=products.device, dtype=products.dtype)
        solution = torch.linalg.solve(squares + ridge, products[rows][:, :-1]).float()
        matrix = torch.zeros(layout.size(self.network.base_widths), layout.size(now), device=products.device)
        matrix[:, here.to(products.device)] = solution[:-1].T
        return matrix, solution[-1].clone()

    def _add_projection(self, node: Node, widest: Mapping[str, int]) -> None:
        sizes = [self.nodes[name].layout.size(widest) for name in node.inputs]
        self.projections[key(node.name)] = nn.Parameter(torch.eye(max(sizes))[: sizes[1], : sizes[0]].clone())
        if node.normed:
            self.projections[key(f"{node.name}/scale")] = nn.Parameter(torch.ones(sizes[1]))
            self.projections[key(f"{node.name}/shift")] = nn.Parameter(torch.zeros(sizes[1]))

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(self, entries: Sequence[Tensor], arch: Arch) -> tuple[Tensor, ...]:
        """What the block makes at the widths of an arch of the teacher's maps [N, ...], in the teacher's channels."""
        now = self.network.widths_at(arch)
        values: dict[str, Tensor] = {}
        for node, value in zip(self.block.entries, entries, strict=True):
            name = self._adapter(node, now)
            values[node.name] = channelwise(value, self.into[name], None, node.axis) if name else value
        for node in self.block.nodes:
            if not any(site in self.block.inner and number >= arch.depths[site] for site, number in node.blocks):
                values[node.name] = self._step(node, values, arch, now)
        outputs = []
        for node in self.block.exits:
            name, value = self._adapter(node, now), values[node.name]
            outputs.append(channelwise(value, self.back[name], self.shift[name], node.axis) if name else value)
        return tuple(outputs)

    def misses(self, maps: Maps, arch: Arch) -> list[Tensor]:
        """What the block makes less what the teacher makes, for each exit.

        Raises UserError where a block makes tensors of other sizes than the teacher.
        """
        outputs = self([each.clone() for each in maps.entries], arch)  # steps may change them in place
        for node, output, target in zip(self.targets, outputs, maps.targets, strict=True):
            if output.shape != target.shape:
                raise UserError(
                    f"the block that ends at {node.name} makes {list(output.shape)} where the trained network makes "
                    f"{list(target.shape)}; name {self.block.nodes[-1].module or 'its modules'} in design.ignored"
                )
        return [output - target for output, target in zip(outputs, maps.targets, strict=True)]

    def noise(self, misses: Sequence[Tensor]) -> Tensor:
        """Noise to signal: mean squared errors of channels over their variances, a scalar, the mean over channels."""
        means = [_flat(each, node.axis).square().mean(0) for each, node in zip(misses, self.targets, strict=True)]
        return torch.stack([(a / b).mean() for a, b in zip(means, self.variances, strict=True)]).mean()

    @staticmethod
    def loss(misses: Sequence[Tensor], maps: Maps) -> Tensor:
        """What errors add to the loss of the trained network, a scalar: the second order of its expansion, with the
        diagonal of the Fisher information, 1/2 E[(slope x error)^2] summed over channels and pixels."""
        parts = [(a * b).square().flatten(1).sum(1).mean() / 2 for a, b in zip(misses, maps.slopes, strict=True)]
        return torch.stack(parts).sum()

    def _step(self, node: Node, values: Mapping[str, Tensor], arch: Arch, now: Mapping[str, int]) -> Any:
        if node.kind == "value" and node.param:
            return self.slices.tensor(node.param, now)
        if node.kind == "depth":
            return values[node.inputs[arch.depths[node.site] - 1 if node.site in self.block.inner else -1]]
        inputs = tuple(values[name] for name in node.inputs)
        if node.kind == "norm":
            return self._norm(node, inputs[0], now)
        if node.kind == "project":
            return self._project(node, *inputs)
        if not node.module or not node.called or node.module not in self.slices.changing:
            return node.run(self.body.get_submodule, inputs, now)
        twin = self.slices.module(node.module, now)
        return node.run(lambda path: twin if path == node.module else self.body.get_submodule(path), inputs, now)

    def _norm(self, node: Node, value: Tensor, now: Mapping[str, int]) -> Tensor:
        owner: Any = self.body.get_submodule(node.module)
        weight, bias = (
            None if getattr(owner, name) is None else self.slices.tensor(f"{node.module}.{name}", now)
            for name in ("weight", "bias")
        )  # fmt: skip
        return F.batch_norm(value, None, None, weight, bias, True, 0.0, owner.eps)

    def _project(self, node: Node, shortcut: Tensor, other: Tensor) -> Tensor:
        inputs, outputs = shortcut.shape[1], other.shape[1]
        if inputs == outputs:
            return shortcut
        out = channelwise(shortcut, self.projections[key(node.name)][:outputs, :inputs], None, 1)
        if not node.normed:
            return out
        scale, shift = (self.projections[key(f"{node.name}/{name}")][:outputs] for name in ("scale", "shift"))
        return F.batch_norm(out, None, None, scale, shift, True)


def _flat(value: Tensor, axis: int) -> Tensor:
    """The channels of images and pixels, [N x pixels, channels]."""
    moved = value.movedim(axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _variances(maps: Sequence[Tensor], axis: int) -> Tensor:
    """The variance of each channel over all maps, [channels]; that of a channel that is flat is a share of the mean."""
    variances = torch.stack([_flat(each, axis).var(0, correction=0) for each in maps]).mean(0)
    return variances.clamp_min(FLAT * float(variances.mean())).clamp_min(1e-12)


def _products(maps: Sequence[Tensor], axis: int) -> Tensor:
    """Sums of the products of channels, and of a constant, over all maps: float64, [channels + 1, channels + 1]."""
    total: Any = 0.0
    for each in maps:
        flat = F.pad(_flat(each, axis), (0, 1), value=1.0)
        total = total + (flat.T @ flat).double() / len(flat)
    return torch.as_tensor(total / len(maps))
