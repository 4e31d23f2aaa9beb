"""A model family is plain PyTorch: no width choice, relaxation or cost ever enters its file.

Add one: a file here with one frozen dataclass that derives from ModelFamily; its fields are its options.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from htas.console.blame import blame
from htas.console.progress import say
from htas.errors import UserError
from htas.graph.draws import draw_again
from htas.graph.modes import evaluating
from htas.text import shapes

_NAMED: set[tuple[str, str]] = set()
"""Parameters, each with the title of its family, that have been named as keeping their values."""


class ModelFamily(ABC):
    """Networks of one kind. Implementations are frozen dataclasses; sites and resizing come from `htas.graph`."""

    @abstractmethod
    def build(self, classes: int) -> nn.Module:
        """The base network with weights drawn at random: [N, C, H, W] in, [N, classes] logits out."""

    @property
    @abstractmethod
    def title(self) -> str:
        """`cifar_resnet:20`: the base network's name in tables."""

    @property
    def project_norm(self) -> bool:
        """Whether a projection put on an identity shortcut (`adds = "project"`) has a norm."""
        return True

    def check(self, module: nn.Module, example: tuple[Tensor, ...], classes: int) -> None:
        """Raise UserError where a network of this family does not fit the inputs `example`, [N, *shape] each, or gives
        no logits [N, classes]."""
        check_logits(self.title, module, example, classes)

    @property
    def source(self) -> str:
        """What its networks depend on besides its options, such as the text of a user's file; when it changes, stages
        are done again."""
        return ""

    @property
    def inherits(self) -> bool:
        """Whether `build` gives trained weights, from which all that is made of them starts."""
        return False

    def member(self, blocks: int) -> str:
        """The name in tables of the plain network with this many blocks a stage."""
        return f"{self.title} with {blocks} blocks a stage"

    def reset(self, module: nn.Module) -> None:
        """Draw all weights of a network of this family again, in place, at any widths and depths: by the
        `reset_parameters`, or `_reset_parameters`, of its modules. Parameters that none of these draws keep their
        values, and are named once on stderr."""
        names = [name for name in draw_again(module) if (self.title, name) not in _NAMED]
        if names:
            _NAMED.update((self.title, name) for name in names)
            more = f" and {len(names) - 12} others" if len(names) > 12 else ""
            say(
                f"new weights: no module draws {', '.join(names[:12])}{more}, so the values there stay (a method "
                "reset_parameters of the module that holds them would draw them)"
            )


def check_logits(name: str, module: nn.Module, example: tuple[Tensor, ...], classes: int) -> None:
    """Raise UserError where the outputs of a network for `example`, [N, *shape] each, are no logits [N, classes]."""
    try:
        with evaluating(module), torch.no_grad():
            out = module(*example)
    except Exception as error:  # a user's code may raise anything
        sizes = shapes(each.shape for each in example)
        raise UserError(f"{name} does not run on images of shape {sizes}: {blame(error)}") from error
    if not isinstance(out, Tensor) or out.shape != (len(example[0]), classes):
        actual = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(
            f"{name} must give logits [N, {classes}], as the data set has {classes} classes; it gives {actual}"
        )


@contextmanager
def untrained_unchanged(module: nn.Module) -> Iterator[None]:
    """While weights are drawn: parameters that require no gradients keep their values, and so do the buffers of modules
    that have such parameters alone."""
    before: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []
    for part in module.modules():
        parameters: dict[str, Tensor | None] = part._parameters  # type: ignore[assignment]
        fixed = [name for name, each in parameters.items() if each is not None and not each.requires_grad]
        before += [
            (parameters, name, tensor, tensor.detach().clone())
            for name in fixed
            if (tensor := parameters[name]) is not None
        ]
        if fixed and not any(each is not None and each.requires_grad for each in parameters.values()):
            buffers = part._buffers
            before += [
                (buffers, name, tensor, tensor.clone()) for name, tensor in buffers.items() if tensor is not None
            ]
    yield
    with torch.no_grad():
        for holder, name, tensor, values in before:
            holder[name] = tensor
            tensor.copy_(values)


class KaimingFamily(ModelFamily):
    """A family that draws its convolutions Kaiming normal (fan out), and its linear weights from N(0, 0.01)."""

    linear_std: ClassVar[float | None] = 0.01
    """None for PyTorch's own linear layers."""

    def reset(self, module: nn.Module) -> None:
        """Norms are units; biases begin at 0, but for those of PyTorch's own linear layers."""
        super().reset(module)
        draw_kaiming(module, self.linear_std)


def draw_kaiming(module: nn.Module, linear_std: float | None = None) -> None:
    """Kaiming normal (fan out) convolutions and, where `linear_std` is there, linear weights from N(0, linear_std), all
    without bias at first."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear) and linear_std is not None:
            nn.init.normal_(part.weight, std=linear_std)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
