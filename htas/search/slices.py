"""Parameters, and whole modules, of a network as wide as its widest arch, cut to other widths."""

import copy
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from htas.graph import Network
from htas.graph.resize import set_count, set_sizes


class Slices:
    """The parts that narrower archs have of `body`, the network's module at the widths `widest`, by site."""

    def __init__(self, network: Network, body: nn.Module, widest: Mapping[str, int]) -> None:
        self.network, self.body, self.widest = network, body, widest
        self.changing = {path.rpartition(".")[0] for path in network.layouts} | {leaf[1] for leaf in network.counted}
        """Modules that change with widths."""

    def tensor(self, path: str, now: Mapping[str, int]) -> Tensor:
        """A parameter or buffer at the widths of now."""
        tensor: Tensor = attrgetter(path)(self.body)
        for dim, layout in enumerate(self.network.layouts.get(path, ())):
            if layout is None or layout.size(now) == tensor.shape[dim]:
                continue
            if len(layout.runs) == 1:
                tensor = tensor.narrow(dim, 0, layout.size(now))
            else:
                tensor = tensor.index_select(dim, layout.common(self.widest, now)[0].to(tensor.device))
        return tensor

    def module(self, path: str, now: Mapping[str, int]) -> Any:
        """A module with the parts of its parameters and buffers that the widths of now leave it."""
        module: Any = self.body.get_submodule(path)
        twin = copy.copy(module)
        for name in ("_parameters", "_buffers"):
            held = getattr(module, name)
            cut = {key: self.tensor(f"{path}.{key}", now) for key, each in held.items() if each is not None}
            twin.__dict__[name] = {**held, **cut}
        set_sizes(twin, whole=path in self.network.whole_groups)
        for (_, owner, name, place), layout in self.network.counted.items():
            if owner == path:
                set_count(twin, name, place, layout.size(now))
        return twin
