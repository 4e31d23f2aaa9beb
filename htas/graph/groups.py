"""Widths that must be equal: union-find over the producers of channels."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Groups:
    """Members whose widths are one, by group; each group is named by one member, its root.

    A member is a producer of channels, or a segment of what a depth site passes on.
    """

    parent: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    """By root, why the width of a group is frozen."""
    passed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By member of a depth site, the members whose widths it passes on: those of its blocks' outputs."""

    def add(self, name: str) -> str:
        """A new group of one member; returns its name."""
        self.parent[name] = name
        return name

    def root(self, name: str) -> str:
        """The root of a member's group."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def join(self, one: str, two: str) -> None:
        """Give two groups one width; it is frozen where either was."""
        first, second = self.root(one), self.root(two)
        if first != second:
            self.parent[second] = first
            if second in self.reasons:
                self.reasons.setdefault(first, self.reasons[second])

    def freeze(self, name: str, reason: str) -> None:
        """Freeze a member's group; the first reason stays."""
        self.reasons.setdefault(self.root(name), reason)

    def is_bound(self, member: str) -> bool:
        """Whether a member of a depth site has the width of anything else, or a frozen one."""
        root = self.root(member)
        return root in self.reasons or any(other != member for other in self._members(root))

    def origins(self, member: str) -> set[str]:
        """The groups whose widths these channels may have: several after a depth site whose ends are free."""
        if member in self.passed and not self.is_bound(member):
            return {root for end in self.passed[member] for root in self.origins(end)}
        return {self.root(member)}

    def settle(self, *, join_all: bool) -> None:
        """Give the ends of a depth site one width: of every site, or of those that something else binds."""
        waiting = dict(self.passed)
        while bound := [member for member in waiting if join_all or self.is_bound(member)]:
            for member in bound:
                for end in waiting.pop(member):
                    self.join(member, end)

    def _members(self, root: str) -> Iterator[str]:
        return (name for name in self.parent if self.root(name) == root)
