"""The supernet equals the network that is cut out of it, and its mixtures a plain computation of TAS's formulas."""

import copy
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from one_in import one_in
from torch import Tensor, nn

from htas.graph import Network, resize, trace
from htas.graph.arch import Arch
from htas.models import ModelFamily
from htas.models.cifar_resnet import CifarResNet
from htas.search.draw import MOMENTUM, Draw
from htas.search.mixing import interpolation
from htas.search.supernet import Supernet
from htas.spaces.space import Space

FAMILIES = [CifarResNet(14), CifarResNet(20), CifarResNet(11, "bottleneck"), CifarResNet(20, "bottleneck")]
CLASSES = 5


@pytest.fixture(autouse=True)
def _float64_on_one_thread() -> Iterator[None]:
    """So that rounding flips no ReLU; two threads would wait for each other longer than these networks compute."""
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(kind)


def traced(family: CifarResNet, adds: str) -> Network:
    return trace(family.build(CLASSES), torch.zeros(2, 3, 8, 8), adds=adds, project_norm=family.project_norm)


def four_widths(network: Network) -> Space:
    """About a third, a half, three quarters and one and a half times the base, at all depths."""
    widths = {n: (s.base // 3, s.base // 2, 3 * s.base // 4, 3 * s.base // 2) for n, s in network.widths.items()}
    return Space("test", widths, {n: tuple(range(1, s.base + 1)) for n, s in network.depths.items()})


def supernet(
    network: Network, space: Space, family: ModelFamily, shortcut: str = "project", mix: str = "interpolate"
) -> Supernet:
    """With every norm's weights, biases and running statistics at distinct random values."""
    return shaken(Supernet(network, space, family.reset, shortcut, mix))


def shaken(module: Any) -> Any:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return module


def assert_near(found: Tensor, wanted: Tensor, what: str = "") -> None:
    """Equal but for rounding in many layers."""
    assert found.shape == wanted.shape, what
    error = (found - wanted).norm() / wanted.norm().clamp_min(1e-3)
    assert error < 1e-9, f"{what}: relative error {error:.2g}"


# -- one width per site, one depth per stage ---------------------------------------------------------------------------


def source(made: Supernet, name: str) -> nn.Module:
    """Where the weights of a module of the resized network come from: the body, or a shortcut's projection."""
    owner, found, part = name.partition(".project.")
    if found:
        projection = made.projections[owner.replace(".", "/") + "/project"]
        assert isinstance(projection, nn.ModuleDict)
        return projection[part]
    return made.body.get_submodule(name)


def pairs(made: Supernet, net: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Every layer of the resized network, with the layer, or that width's norm, of the supernet."""
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            norms = source(made, name)
            assert isinstance(norms, nn.ModuleDict)
            yield name, module, norms[str(module.num_features)]
        elif isinstance(module, nn.Conv2d | nn.Linear):
            yield name, module, source(made, name)


def same_slices(made: Supernet, net: nn.Module) -> None:
    """Give the resized network the first outputs and inputs of every weight, and its widths' norms."""
    with torch.no_grad():
        for _, module, wide in pairs(made, net):
            if isinstance(module, nn.BatchNorm2d):
                module.load_state_dict(wide.state_dict())
                continue
            rows, columns = module.weight.shape[:2]
            module.weight.copy_(wide.weight[:rows, :columns])
            if module.bias is not None:
                module.bias.copy_(wide.bias[:rows])


@pytest.mark.parametrize("training", one_in(2, [True, False]), ids=["train", "eval"])
@pytest.mark.parametrize("adds", ["join", "project"])
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.title, marks=[pytest.mark.slow] if f == FAMILIES[-1] else []) for f in FAMILIES],
)
def test_one_width_per_site_and_depth_one_hot_equal_the_resized_network(family, adds, training):
    network = traced(family, adds)
    space = four_widths(network)
    made = supernet(network, space, family).train(training)
    rng = random.Random(family.depth)
    for arch in (space.narrowest, space.sample(rng), space.sample(rng, 3.0)):
        net = resize(network, arch).train(training)
        same_slices(made, net)
        images = torch.randn(8, 3, 8, 8)
        labels = torch.arange(8) % CLASSES
        wanted = net(images)
        found = made(images, Draw.of(arch, network))
        assert_near(found, wanted, "outputs")
        made.zero_grad()
        F.cross_entropy(wanted, labels).backward()
        F.cross_entropy(found, labels).backward()
        used = set()
        for name, module, wide in pairs(made, net):
            for field, parameter in module.named_parameters():
                gradient = wide.get_parameter(field).grad
                inside = tuple(slice(size) for size in parameter.shape)
                assert_near(gradient[inside], parameter.grad, f"{name}.{field}")
                rest = gradient.clone()
                rest[inside] = 0
                assert not rest.any(), f"{name}.{field} has a gradient outside its slice"
                used.add(wide.get_parameter(field))
            if isinstance(module, nn.BatchNorm2d):
                assert_near(wide.running_mean, module.running_mean, f"{name}.running_mean")
                assert_near(wide.running_var, module.running_var, f"{name}.running_var")
        assert all(parameter.grad is None for parameter in made.parameters() if parameter not in used)


def test_projections_and_cut_blocks_are_among_what_was_compared():
    network = traced(CifarResNet(20), "project")
    space = four_widths(network)
    made = supernet(network, space, CifarResNet(20))
    nets = [resize(network, space.sample(random.Random(20), tilt)) for tilt in (0.0, 3.0)]
    names = [{name for name, _, _ in pairs(made, net)} for net in nets]
    assert any(".project." in name for name in names[0] | names[1])
    assert names[0] != names[1]


class TwoBranches(nn.Module):
    """Without norms: two branches concatenated, then a convolution, flattened for two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.after = nn.Conv2d(10, 5, 3, stride=2, padding=1)
        self.hidden = nn.Linear(5 * 4 * 4, 7)
        self.last = nn.Linear(7, 3)

    def forward(self, images: Tensor) -> Tensor:
        joined = torch.cat([self.left(images).relu(), self.right(images).relu()], 1)
        return self.last(self.hidden(self.after(joined).relu().flatten(1)).relu())


class Plain(ModelFamily):
    """Resets as PyTorch does."""

    def build(self, classes: int) -> nn.Module:
        return TwoBranches()

    @property
    def title(self) -> str:
        return "two branches"


def two_branches() -> tuple[Network, Space]:
    network = trace(TwoBranches(), torch.zeros(2, 3, 8, 8))
    widths = {"left": (2, 5, 6), "right": (3, 6, 9), "after": (2, 4, 8), "hidden": (3, 7, 9)}
    assert network.widths.keys() == widths.keys()
    return network, Space("test", widths, {})


@pytest.mark.parametrize("left, right, after, hidden", [(2, 3, 2, 3), (5, 9, 4, 7), (6, 3, 8, 9)])
def test_concatenated_and_flattened_channels_are_found_by_their_place(left, right, after, hidden):
    network, space = two_branches()
    made = supernet(network, space, Plain())
    arch = Arch({"left": left, "right": right, "after": after, "hidden": hidden})
    net = resize(network, arch)
    beside = [*range(left), *range(6, 6 + right)]  # the supernet has room for 6 channels of the left branch
    flat = range(after * 16)  # channel by channel, 4x4 each
    columns = {"left": range(3), "right": range(3), "after": beside, "hidden": flat, "last": range(hidden)}
    places = {}
    with torch.no_grad():
        for name, chosen in columns.items():
            module, wide = net.get_submodule(name), made.body.get_submodule(name)
            places[name] = (torch.arange(len(module.weight))[:, None], torch.tensor(list(chosen))[None])
            module.weight.copy_(wide.weight[places[name]])
            module.bias.copy_(wide.bias[: len(module.bias)])
    images = torch.randn(4, 3, 8, 8)
    wanted, found = net(images), made(images, Draw.of(arch, network))
    assert_near(found, wanted)
    wanted.square().sum().backward()
    found.square().sum().backward()
    for name, place in places.items():
        module, wide = net.get_submodule(name), made.body.get_submodule(name)
        assert_near(wide.weight.grad[place], module.weight.grad, name)
        assert wide.weight.grad.norm() == pytest.approx(float(module.weight.grad.norm()), rel=1e-9)
        assert_near(wide.bias.grad[: len(module.bias)], module.bias.grad, name)


# -- two widths per site, soft depths ----------------------------------------------------------------------------------


def interpolated(features: Tensor, width: int) -> Tensor:
    """TAS's channel-wise interpolation, as TAS writes it."""
    height, breadth = features.shape[2:]
    return F.adaptive_avg_pool3d(features, (width, height, breadth))


def padded(features: Tensor, channels: int) -> Tensor:
    return F.pad(features, (0, 0, 0, 0, 0, channels - features.shape[1]))


def normed(norms: nn.ModuleDict, features: Tensor, training: bool) -> Tensor:
    norm = norms[str(features.shape[1])]
    return F.batch_norm(
        features, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, MOMENTUM, norm.eps
    )


class ByTheBook:
    """A ResNet as TAS computes it: everything at full width, one candidate after the other."""

    def __init__(self, made: Supernet, draw: Draw, training: bool) -> None:
        self.body, self.projections = made.body, made.projections
        self.sites = {node.module: node.site for node in made.network.nodes if node.kind == "conv"}
        self.widened = interpolated if made.mix == "interpolate" else padded
        self.joined, self.pad = made.network.adds == "join", made.shortcut == "pad"
        self.draw, self.training = draw, training

    def __call__(self, images: Tensor) -> Tensor:
        features = F.relu(self.conv_norm("stem", images))
        for stage, blocks in enumerate(self.body.stages):
            ends = []
            for block in range(len(blocks)):
                features = self.block(f"stages.{stage}.{block}", features)
                ends.append(features)
            shares = self.draw.depths[f"stages.{stage}"]
            used = [(share, end) for share, end in zip(shares, ends, strict=True) if share > 0]
            widest = max(end.shape[1] for _, end in used)
            features = sum(share * self.widened(end, widest) for share, end in used)
        pooled = features.mean((2, 3))
        linear = self.body.classifier
        return F.linear(pooled, linear.weight[:, : pooled.shape[1]], linear.bias)

    def block(self, name: str, inputs: Tensor) -> Tensor:
        first, *others = self.convs(name)
        branch = self.conv_norm(first, inputs)
        for other in others:
            branch = self.conv_norm(other, F.relu(branch))
        kind = self.body.get_submodule(f"{name}.shortcut")
        if hasattr(kind, "norm"):
            shortcut = self.conv_norm(f"{name}.shortcut", inputs)
        elif isinstance(kind, nn.Sequential):
            shortcut = self.mixed(f"{name}.shortcut.1", F.avg_pool2d(inputs, 2), None)
        elif self.joined:
            shortcut = inputs
        elif self.pad:
            wide = max(inputs.shape[1], branch.shape[1])
            shortcut, branch = padded(inputs, wide), padded(branch, wide)
        else:
            shortcut = self.projected(name, inputs)
        return F.relu(branch + shortcut)

    def convs(self, name: str) -> list[str]:
        """Those of the branch of a block, two or three."""
        block = self.body.get_submodule(name)
        return [f"{name}.conv{number}" for number in (1, 2, 3) if getattr(block, f"conv{number}", None) is not None]

    def conv_norm(self, name: str, inputs: Tensor) -> Tensor:
        return self.mixed(f"{name}.conv", inputs, self.body.get_submodule(f"{name}.norm"))

    def mixed(self, name: str, inputs: Tensor, norms: nn.ModuleDict | None) -> Tensor:
        conv = self.body.get_submodule(name)
        full = F.conv2d(padded(inputs, conv.in_channels), conv.weight, None, conv.stride, conv.padding)
        chosen, shares = self.draw.widths[self.sites[name]]
        total = 0
        for share, width in zip(shares, chosen, strict=True):
            part = full[:, :width]
            part = part if norms is None else normed(norms, part, self.training)
            total = total + share * self.widened(part, max(chosen))
        return total

    def projected(self, name: str, inputs: Tensor) -> Tensor:
        """The shortcut as wide as each candidate of the block's last convolution: itself, or 1x1 and norm."""
        site = self.sites[f"{self.convs(name)[-1]}.conv"]
        chosen, shares = self.draw.widths[site]
        total = 0
        for share, width in zip(shares, chosen, strict=True):
            part = inputs
            if width != inputs.shape[1]:
                parts = self.projections[name.replace(".", "/") + "/project"]
                full = F.conv2d(padded(inputs, parts["conv"].in_channels), parts["conv"].weight)
                part = full[:, :width]
                part = normed(parts["norm"], part, self.training) if len(parts["norm"]) else part
            total = total + share * self.widened(part, max(chosen))
        return total


def mixture(space: Space, rng: random.Random) -> tuple[Draw, list[Tensor]]:
    """Two widths per site and every depth, with weights that take gradients."""
    leaves = []

    def shares(count: int) -> Tensor:
        leaves.append(torch.softmax(torch.randn(count), 0).requires_grad_())
        return leaves[-1]

    widths = {site: (tuple(rng.sample(choices, 2)), shares(2)) for site, choices in space.widths.items()}
    return Draw(widths, {site: shares(len(choices)) for site, choices in space.depths.items()}), leaves


def gradients(loss: Tensor, made: Supernet, leaves: list[Tensor]) -> Mapping[str, Tensor | None]:
    made.zero_grad()
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    found = {name: parameter.grad for name, parameter in made.named_parameters()}
    return {**found, **{f"mixture {index}": leaf.grad for index, leaf in enumerate(leaves)}}


def mixtures() -> Iterator[Any]:
    """Every way to mix; those of the quick tests have nearly every pair of two choices, the others are slow."""
    choices = (
        [CifarResNet(14), CifarResNet(20, "bottleneck")],
        ["join", "project", "pad"],
        ["interpolate", "pad"],
        [True, False],
    )
    for family, kind, mix, training in itertools.product(*choices):
        adds, shortcut = ("join", "project") if kind == "join" else ("project", kind)
        odd = (family.block == "basic") ^ (mix == "pad") ^ training or (family.block == "bottleneck" and kind != "pad")
        name = f"{family.block}-{kind}-{mix}-{'train' if training else 'eval'}"
        yield pytest.param(family, adds, shortcut, mix, training, id=name, marks=[pytest.mark.slow] if odd else [])


@pytest.mark.parametrize("family, adds, shortcut, mix, training", list(mixtures()))
def test_a_mixture_and_its_gradients_equal_the_plain_computation(family, adds, shortcut, mix, training):
    network = traced(family, adds)
    space = four_widths(network)
    for seed in range(2):
        made = supernet(network, space, family, shortcut, mix).train(training)
        plain = copy.deepcopy(made)
        draw, leaves = mixture(space, random.Random(seed))
        images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
        wanted = ByTheBook(plain, draw, training)(images)
        found = made(images, draw)
        assert_near(found, wanted, "outputs")
        right = gradients(F.cross_entropy(wanted, labels), plain, leaves)
        given = gradients(F.cross_entropy(found, labels), made, leaves)
        for name, gradient in right.items():
            if gradient is None:
                assert given[name] is None or not given[name].any(), name
            else:
                assert_near(given[name], gradient, name)
        for (name, buffer), other in zip(made.named_buffers(), plain.buffers(), strict=True):
            assert_near(buffer.double(), other.double(), name)


@pytest.mark.parametrize("training", one_in(2, [True, False]), ids=["train", "eval"])
@pytest.mark.parametrize("mix", ["interpolate", "pad"])
@pytest.mark.parametrize("adds", ["join", "project"])
def test_widths_may_share_the_norm_of_the_widest(adds, mix, training):
    """As a supernet of norms for every width computes it, whose tensors are the first ones of the widest's."""
    family = CifarResNet(14)
    network = traced(family, adds)
    space = four_widths(network)
    made = shaken(Supernet(network, space, family.reset, mix=mix, norms="shared")).train(training)
    apart = Supernet(network, space, family.reset, mix=mix).train(training)
    own, others = dict(made.named_parameters()), dict(apart.named_parameters())
    assert own.keys() < others.keys() and {name for name in others if ".norm." not in name} < own.keys()
    apart.load_state_dict(made.state_dict(), strict=False)
    for group in apart.modules():
        if isinstance(group, nn.ModuleDict) and len(group) and all(name.isdigit() for name in group):
            whole = group[max(group, key=int)]
            for norm in group.values():
                for part in ("weight", "bias", "running_mean", "running_var"):
                    getattr(norm, part).data.copy_(getattr(whole, part)[: norm.num_features])
    draw, leaves = mixture(space, random.Random(3))
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    wanted, found = apart(images, draw), made(images, draw)
    assert_near(found, wanted)
    right = gradients(F.cross_entropy(wanted, labels), apart, leaves)
    for name, gradient in gradients(F.cross_entropy(found, labels), made, leaves).items():
        if ".norm." not in name:
            assert gradient is right[name] is None or torch.allclose(gradient, right[name], atol=1e-12), name
        elif gradient is not None:
            stem, _, part = name.rsplit(".", 2)
            total = torch.zeros_like(gradient)
            for other, given in right.items():
                if other.startswith(f"{stem}.") and other.endswith(f".{part}") and given is not None:
                    total[: len(given)] += given
            assert_near(gradient, total, name)


def test_in_a_mixture_an_input_as_wide_as_a_candidate_is_its_own_shortcut():
    """The case that a projected shortcut treats apart is met: once with one candidate, once with none."""
    family = CifarResNet(14)
    network = traced(family, "project")
    space = four_widths(network)
    made = supernet(network, space, family).eval()
    arch = space.widest
    for chosen in [(8, 24), (5, 12)]:
        draw = Draw.of(arch, network)
        shares = torch.tensor([0.3, 0.7])
        draw = Draw({**draw.widths, "stages.0.1.conv2.conv": (chosen, shares)}, draw.depths)
        images = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            assert_near(made(images, draw), ByTheBook(made, draw, False)(images))


def test_a_mixture_without_norms_equals_the_plain_computation():
    network, space = two_branches()
    made = supernet(network, space, Plain())
    draw, leaves = mixture(space, random.Random(0))
    images = torch.randn(4, 3, 8, 8)

    def mixed(name: str, full: Tensor) -> Tensor:
        chosen, shares = draw.widths[name]
        spatial = full if full.dim() == 4 else full[:, :, None, None]
        parts = [share * interpolated(spatial[:, :c], max(chosen)) for c, share in zip(chosen, shares, strict=True)]
        return sum(parts).view(full.shape[0], max(chosen), *full.shape[2:])

    body = made.body
    left = padded(mixed("left", body.left(images)).relu(), 6)
    right = padded(mixed("right", body.right(images)).relu(), 9)
    after = mixed("after", body.after(torch.cat([left, right], 1))).relu()
    hidden = mixed("hidden", body.hidden(padded(after, 8).flatten(1))).relu()
    wanted = body.last(F.pad(hidden, (0, 9 - hidden.shape[1])))
    right_ones = gradients(wanted.square().sum(), made, leaves)
    found = made(images, draw)
    assert_near(found, wanted)
    for name, gradient in gradients(found.square().sum(), made, leaves).items():
        assert_near(gradient, right_ones[name], name)


@pytest.mark.parametrize("adds", ["join", "project"])
@pytest.mark.parametrize("family", one_in(2, FAMILIES), ids=lambda f: f"{f.depth}-{f.block}")
def test_a_supernet_that_inherits_from_the_trained_base_network_computes_what_that_does(family, adds):
    network = traced(family, adds)
    widths = {name: (site.base // 2, site.base, 2 * site.base) for name, site in network.widths.items()}
    made = Supernet(network, Space("test", widths, four_widths(network).depths), family.reset).eval()
    trained = shaken(family.build(CLASSES)).eval()
    made.inherit(trained)
    images = torch.randn(2, 3, 8, 8)
    assert_near(made(images, Draw.of(network.base, network)), trained(images))


def test_concatenated_channels_are_inherited_to_their_places():
    network, _ = two_branches()
    widths = {name: (site.base // 2, site.base, 2 * site.base) for name, site in network.widths.items()}
    made = Supernet(network, Space("test", widths, {}), Plain().reset)
    trained = shaken(TwoBranches())
    made.inherit(trained)
    images = torch.randn(2, 3, 8, 8)
    assert_near(made(images, Draw.of(network.base, network)), trained(images))


class Masked(nn.Module):
    """A factor for each channel, and one for all, that its state_dict leaves out."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)
        self.register_buffer("mask", factor * torch.arange(1.0, 7.0).view(6, 1, 1), persistent=False)
        self.register_buffer("factor", torch.tensor([factor]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.two(self.one(images) * self.mask).mean((2, 3)) * self.factor


def test_buffers_that_a_state_dict_leaves_out_are_inherited():
    network = trace(Masked(1.0), torch.zeros(2, 3, 8, 8))
    ((name, site),) = network.widths.items()
    made = Supernet(network, Space("test", {name: (3, 6, 12)}, {}), Plain().reset)
    assert site.base == 6
    trained = Masked(3.0)
    made.inherit(trained)
    images = torch.randn(2, 3, 8, 8)
    assert_near(made(images, Draw.of(network.base, network)), trained(images))


def test_depths_of_weight_zero_are_not_run():
    family = CifarResNet(20)
    network = traced(family, "join")
    space = four_widths(network)
    made = supernet(network, space, family)
    before = copy.deepcopy(made.state_dict())
    made(torch.randn(2, 3, 8, 8), Draw.of(space.narrowest, network))
    changed = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name[14] for name in changed if "stages" in name} == {"0"}  # body.stages.S.BLOCK


class Activated(nn.Module):
    """Two searched layers with a norm and an activation each."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3)
        self.between, self.then, self.activation = nn.BatchNorm2d(12), nn.Linear(12, 2), activation

    def forward(self, images: Tensor) -> Tensor:
        images = self.activation(self.norm(self.first(images)))
        return self.then(self.activation(self.between(self.second(images))).mean((2, 3)))


@pytest.mark.parametrize("activation, block", [(nn.ReLU(), 8), (nn.Sigmoid(), 1)])
def test_whole_blocks_of_channels_are_computed_only_where_zeros_stay_zeros(activation, block):
    """A sigmoid makes halves of the zeros behind a candidate; so there every candidate has its own channels only."""
    network = trace(Activated(activation), torch.zeros(2, 3, 8, 8))
    space = Space("test", {name: (6, 9, 12) for name in network.widths}, {})
    made = supernet(network, space, Plain())
    assert made._block == block
    draw = Draw({name: ((6, 9), (0.4, 0.6)) for name in network.widths}, {})
    images = torch.randn(4, 3, 8, 8)
    found = made(images, draw)
    made._block = 1
    assert_near(found, made(images, draw))
    made._block = 8
    wrong = (found - made(images, draw)).norm() > 1e-6 * found.norm()
    assert bool(wrong) == (block == 1), "where zeros do not stay zeros, whole blocks would be wrong"


def test_interpolation_is_adaptive_average_pooling():
    for narrow in range(1, 41):
        for wide in range(1, 41):
            columns = torch.eye(narrow).view(1, narrow, narrow, 1)
            wanted = F.adaptive_avg_pool3d(columns, (wide, narrow, 1)).view(wide, narrow)
            torch.testing.assert_close(interpolation(narrow, wide), wanted)


# -- bf16 --------------------------------------------------------------------------------------------------------------


def test_in_bf16_all_gradients_point_where_those_in_fp32_do():
    """Those of the shares too, whose sums of products bf16 takes another way."""
    torch.set_default_dtype(torch.float32)
    family = CifarResNet(14)
    network = traced(family, "join")
    space = four_widths(network)
    made = Supernet(network, space, family.reset, "project", "interpolate")
    images, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % CLASSES
    found = []
    for bf16 in (False, True):
        rng = random.Random(0)
        leaves = {site: torch.tensor([0.3, 0.7], requires_grad=True) for site in space.widths}
        depths = {site: torch.tensor([0.4, 0.6], requires_grad=True) for site in space.depths}
        pairs = {site: (tuple(rng.sample(choices, 2)), leaves[site]) for site, choices in space.widths.items()}
        draw = Draw(pairs, {site: list(shares) for site, shares in depths.items()})
        made.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = made(images, draw)
        F.cross_entropy(output.float(), labels).backward()
        weights = [p.grad.flatten() for p in made.parameters() if p.grad is not None]
        found.append(
            [torch.cat([leaf.grad for leaf in part.values()]) for part in (leaves, depths)] + [torch.cat(weights)]
        )
    for one, other in zip(*found, strict=True):
        assert F.cosine_similarity(one, other, dim=0) > 0.98


class Preactivated(nn.Module):
    """A block whose shortcut is added before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.before, self.after, self.then = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        images = self.stem(images)
        images = images + self.conv(self.before(images).relu())
        return self.then(self.after(images).relu().mean((2, 3)))


@pytest.mark.parametrize("stem, conv", [(4, 6), (12, 6), (4, 8), (12, 8)])
def test_a_norm_after_a_padded_sum_has_every_width_that_the_sum_may_have(stem, conv):
    network = trace(Preactivated(), torch.zeros(2, 3, 8, 8), adds="project")
    space = Space("test", {"stem": (4, 12), "conv": (6, 8)}, {})
    made = Supernet(network, space, lambda module: None, "pad", "pad")
    found = made(torch.randn(4, 3, 8, 8), Draw.of(Arch({"stem": stem, "conv": conv}, {}), network))
    assert found.shape == (4, 2) and found.isfinite().all()
