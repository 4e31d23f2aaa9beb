"""Which channels stand or fall together: one element for every index of every dimension that could be narrowed.

A convolution's weight has an element for each of its outputs and inputs; steps tie elements (an addition ties the
channels that it adds) or freeze them. What is tied in the end is one channel of the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Elements by position along a dimension."""


@dataclass
class Channels:
    """Elements, the ties between them, and the reasons for those that cannot be dropped."""

    count: int = 1
    """Element 0 stands for whatever is no channel (zeros of a padding)."""
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    frozen: list[tuple[Ids, str]] = field(default_factory=list)
    _root: Ids = field(default_factory=lambda: np.zeros(1, np.int64))

    def new(self, count: int) -> Ids:
        """Fresh elements."""
        start, self.count = self.count, self.count + count
        return np.arange(start, start + count, dtype=np.int64)

    def tie(self, one: Ids, two: Ids) -> None:
        """Elements at the same position stand and fall together."""
        assert one.shape == two.shape
        if one is not two:
            self.ties.append((one, two))

    def freeze(self, ids: Ids, reason: str) -> None:
        """Elements that stay, and why; the first reason counts."""
        self.frozen.append((ids, reason))

    def roots(self, ids: Ids) -> Ids:
        """By element the one that stands for all that it is tied to so far."""
        self._settle()
        return self._root[ids]

    def classes(self) -> tuple[Ids, Mapping[int, str]]:
        """By element the one that stands for its class, and by class the reason why it is frozen."""
        self._settle()
        reasons: dict[int, str] = {int(self._root[0]): "zeros are padded to it"}
        first = np.full(self.count, len(self.frozen), np.int64)
        for place in range(len(self.frozen) - 1, -1, -1):  # the first reason counts: it is written last
            first[self._root[self.frozen[place][0]]] = place
        for one in np.flatnonzero(first < len(self.frozen)).tolist():
            reasons.setdefault(one, self.frozen[first[one]][1])
        return self._root, reasons

    def _settle(self) -> None:
        """Bring the roots up to date with the ties."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        if self.count > len(self._root):
            self._root = np.concatenate([self._root, np.arange(len(self._root), self.count, dtype=np.int64)])
        if not self.ties:
            return
        ones = self._root[np.concatenate([one.ravel() for one, _ in self.ties])]
        twos = self._root[np.concatenate([two.ravel() for _, two in self.ties])]
        self.ties.clear()
        roots, numbers = np.unique(np.concatenate([ones, twos]), return_inverse=True)
        first, second = numbers[: len(ones)], numbers[len(ones) :]
        links = coo_matrix((np.ones(len(ones), np.int8), (first, second)), shape=(len(roots), len(roots)))
        _, groups = connected_components(links, directed=False)
        least = np.full(groups.max() + 1, self.count, np.int64)
        np.minimum.at(least, groups, roots)
        change = np.arange(self.count, dtype=np.int64)
        change[roots] = least[groups]
        self._root = change[self._root]
