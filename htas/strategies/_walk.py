"""A walk through the sites of a network, which keeps a share of each and leaves the limits in reach."""

from htas.graph.arch import Arch
from htas.search.moves import changed, leanest, over
from htas.search.problem import Problem

FEATURES = 12
"""Numbers in a state."""


class Walk:
    """From the first site to the last: numbers of blocks first, then the widths of the blocks that are kept, in the
    order of the network; sites with one choice are passed over."""

    def __init__(self, problem: Problem) -> None:
        self.limits, self.space, self.network = problem.limits, problem.space, problem.network
        order = (*self.network.depths, *self.network.widths)
        self.sites = [site for site in order if len(self.space.choices[site]) > 1]
        self.lean, self.whole = leanest(self.limits, self.space), over(self.limits, self.space.widest)
        rows = {site: self._sizes(site) for site in self.sites}
        most = [max(1e-9, *column) for column in zip(*rows.values(), strict=True)] if rows else []
        self.sizes = {site: [each / top for each, top in zip(row, most, strict=True)] for site, row in rows.items()}
        """Features of each site that never change, 0 to 1."""
        self.begin()

    def begin(self) -> None:
        """Go back to the first site."""
        self.picks: dict[str, int] = {}
        self.share = 1.0
        """What was kept of the site before."""
        self.rest = [site for site in self.sites if site in self.space.depths]
        """Sites that are still to be walked through; widths follow the numbers of blocks."""
        self._go_on()

    @property
    def done(self) -> bool:
        """Whether every site has its choice."""
        return not self.rest

    @property
    def arch(self) -> Arch:
        """With the narrowest choices at sites that no block has, or that are still to come."""
        return self._completed(self.space.narrowest)

    @property
    def state(self) -> list[float]:
        """FEATURES numbers, 0 to 1, of the next site, as the paper's eq. 1: which one it is, its channels or blocks,
        its inputs, height, width, stride, kernel, whether it is one of depth, the share of the cost that it can save;
        the shares of the cost that are saved so far, and that later sites can save; the share kept of the site
        before."""
        least, most = (over(self.limits, self._completed(arch)) for arch in (self.lean, self.space.widest))
        place = len(self.picks) / max(1, len(self.sites))
        sizes = self.sizes[self.rest[0]] if self.rest else [0.0] * 8
        return [place, *sizes, 1 - most / self.whole, (most - least) / self.whole, self.share]

    def take(self, action: float) -> None:
        """Keep a share of the next site: the narrowest choice at 0, the widest at 1, and of the choices with which the
        later sites can still keep the limits the nearest to the share."""
        site, *self.rest = self.rest
        choices = self.space.choices[site]
        aim = choices[0] + action * (choices[-1] - choices[0])
        base = self._completed(self.lean)
        for choice in sorted(choices, key=lambda each: abs(each - aim)):
            if over(self.limits, changed(base, site, choice)) <= 1:
                break
        else:
            choice = base[site]
        self.picks[site], self.share = choice, choice / choices[-1]
        if site in self.space.depths:
            self._go_on()

    def _go_on(self) -> None:
        """After the last number of blocks to the widths; blocks that are cut have none."""
        if not self.rest:
            used = {each for use in self.network.uses(self.arch) for each in use.sites}
            self.rest = [site for site in self.sites if site in used]

    def _completed(self, rest: Arch) -> Arch:
        """The choices so far, and another arch's at the other sites."""
        return self.space.arch({site: self.picks.get(site, rest[site]) for site in self.space.choices})

    def _sizes(self, site: str) -> list[float]:
        widest, choices = self.space.widest, self.space.choices[site]
        saving = 1 - over(self.limits, changed(widest, site, choices[0])) / self.whole
        layer = next((use.layer for use in self.network.uses(widest) if site in use.sites), None)
        sizes = [0, 0, 0, 0, 0]
        if layer is not None:
            sizes = [layer.inputs, layer.size[0], layer.size[-1], layer.stride[0], layer.kernel[0]]
        return [float(choices[-1]), *map(float, sizes), float(site in self.space.depths), max(0.0, saving)]
