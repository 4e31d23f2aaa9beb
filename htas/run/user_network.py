"""The network of a call of htas.optimize: it has no name by which another process could build it."""

import copy
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from htas.errors import UserError
from htas.graph.capture import capture
from htas.models import ModelFamily
from htas.text import plural


@dataclass(frozen=True)
class UserNetwork(ModelFamily):
    """The user's network; only the process that called htas.optimize has it."""

    what: str
    """Name of its class."""
    digest: str
    """A digest of its weights, modules and forward pass."""
    trained: bool = True
    """Whether the base network and all others start from its weights; otherwise weights are drawn at random."""

    _module: ClassVar[nn.Module | None] = None
    """A copy of the network. No field, since a configuration is only text."""

    @staticmethod
    def of(module: nn.Module, *, trained: bool) -> "UserNetwork":
        """A family whose base network is a copy of this module."""
        family = UserNetwork(type(module).__name__, digest(module), trained)
        object.__setattr__(family, "_module", copy.deepcopy(module))
        return family

    def build(self, classes: int) -> nn.Module:
        """A copy of the network; raises UserError in another process."""
        if self._module is None:
            raise UserError(
                f"the network of this run, {self.what}, was given to htas.optimize in Python; call it again with the "
                "same network and this folder as out"
            )
        return copy.deepcopy(self._module)

    @property
    def inherits(self) -> bool:
        """Whether networks start from its weights."""
        return self.trained

    def member(self, blocks: int) -> str:
        """`Net with 2 blocks a stage`."""
        return f"{self.what} with {plural(blocks, 'block')} a stage"

    @property
    def title(self) -> str:
        """`given:Net:0123456789ab`."""
        return f"given:{self.what}:{self.digest}"


def digest(module: nn.Module) -> str:
    """A digest of a network's modules, forward pass and state."""
    sha = hashlib.sha256(repr(module).encode())
    with suppress(ValueError):  # tracing refuses it later
        sha.update(capture(module, 1).code.encode())
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]
