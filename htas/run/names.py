"""Networks by name, read without PyTorch: `cifar_resnet:164:bottleneck`, `custom:my_nets:make` (a function of your
own), and TAS's published ones, `tas:C010-ResNet32`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from htas.errors import UserError
from htas.files import from_json
from htas.plugins.values import REFUSED, Values, allowed, parse
from htas.run.config import TABLES
from htas.text import no_such


@dataclass(frozen=True)
class PublishedArch:
    """A CIFAR architecture published with TAS (NeurIPS 2019)."""

    dataset: str
    depth: int
    """Layers of the base ResNet."""
    block: Literal["basic", "bottleneck"]
    channels: list[int]
    """Channels of the image, then of each searched convolution, dropped ones included."""
    blocks: list[int]
    """Blocks that stay in each stage."""


@dataclass(frozen=True)
class FamilyNetwork:
    """A network of a model family."""

    family: str
    values: Values
    """Of the family's options, those that the name gives."""


def read_name(name: str) -> FamilyNetwork | PublishedArch:
    """The network that a name is of; raises UserError that names what there is."""
    family, _, rest = name.partition(":")
    if family == "tas":
        if rest not in published():
            raise UserError(no_such("TAS network", rest, published()))
        return published()[rest]
    parts = [rest] if family == "custom" else rest.split(":") if rest else []
    if "." in family and parts:  # a class of the user's own
        family, parts = f"{family}:{parts[0]}", parts[1:]
    options = TABLES["family"].options(family)
    if len(parts) > len(options):
        raise UserError(f"{name!r} has too many parts; write it as {family}:{':'.join(options)}")
    values = {}
    for option, text in zip(options.values(), parts, strict=False):
        try:
            values[option.name] = parse(text, option.hint)
        except REFUSED as error:
            raise UserError(f"{option.name} of {name!r} must be {allowed(option.hint)}, got {text!r}") from error
    TABLES["family"].check(family, {each.name: each.default for each in options.values()} | values)
    return FamilyNetwork(family, values)


@cache
def published() -> Mapping[str, PublishedArch]:
    """The architectures published with TAS, by name."""
    content = json.loads((files("htas") / "models" / "tas_published.json").read_text())
    return from_json(content, dict[str, PublishedArch], "tas_published.json")
