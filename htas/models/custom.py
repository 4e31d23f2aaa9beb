"""The user's own network, by the function that makes it."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from htas.console.blame import blame
from htas.errors import UserError
from htas.models import ModelFamily, check_logits
from htas.plugins import is_path
from htas.plugins.trust import need_trust

BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Custom(ModelFamily):
    """A network of your own, from a function `make()` or `make(classes)` that returns it."""

    factory: str
    """The function, as 'package.module:function'. It is called with the number of classes if it takes an argument."""

    def __post_init__(self) -> None:
        module, _, function = self.factory.partition(":")
        if not is_path(module) or not function:
            raise UserError(f"family.factory must be 'package.module:function', got {self.factory!r}")

    def build(self, classes: int) -> nn.Module:
        """The network that the function returns; raises UserError with the file and line where it fails."""
        make = self._function()
        try:
            parameters = inspect.signature(make).parameters
        except (ValueError, TypeError) as error:  # written in C, without a signature
            raise UserError(f"{self.factory} does not say what it takes ({error}); wrap it in a function") from error
        taking = [name for name, each in parameters.items() if each.default is each.empty and each.kind in BY_PLACE]
        if len(taking) > 1:
            raise UserError(
                f"{self.factory} must take nothing or the number of classes; it takes {', '.join(taking)}: wrap it in "
                "a function that gives the others"
            )
        named = {"classes", "num_classes"} & set(parameters)
        try:
            network = make(**{named.pop(): classes}) if named else make(*[classes] * len(taking))
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            raise UserError(f"{self.factory} raised {blame(error)}") from error
        if not isinstance(network, nn.Module):
            raise UserError(f"{self.factory} must return an nn.Module, it returned {type(network).__name__}")
        return network

    def check(self, module: nn.Module, example: tuple[Tensor, ...], classes: int) -> None:
        """Raise UserError where the outputs for `example`, [N, *shape] each, are not logits [N, classes]."""
        check_logits(self.factory, module, example, classes)

    @property
    def source(self) -> str:
        """The text of the file that the function stands in."""
        file = getattr(self._module(), "__file__", None)
        return Path(file).read_text(encoding="utf-8", errors="replace") if file else ""

    @property
    def title(self) -> str:
        """`custom:my_nets:make`."""
        return f"custom:{self.factory}"

    def _function(self) -> Callable[..., Any]:
        path, _, name = self.factory.partition(":")
        module = self._module()
        if not callable(function := getattr(module, name, None)):
            there = [each for each, thing in vars(module).items() if callable(thing) and not each.startswith("_")]
            raise UserError(f"{path} has no function {name!r}; it has {', '.join(there[:8]) or 'none'}")
        return function  # type: ignore[no-any-return]

    def _module(self) -> ModuleType:
        need_trust(self.factory, "family.factory")
        path = self.factory.partition(":")[0]
        try:
            return importlib.import_module(path)
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{path}.".startswith(f"{missing}."):
                raise UserError(
                    f"there is no module {missing!r}; run where {missing}.py lies, or write family.factory as "
                    f"'package.module:function', got {self.factory!r}"
                ) from error
            raise UserError(f"{path} cannot be imported: {blame(error)}") from error
