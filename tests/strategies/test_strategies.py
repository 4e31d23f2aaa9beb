"""Every strategy keeps the contract; the differentiable search draws, charges and steps as TAS and eq. 6 say."""

import dataclasses
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from one_in import one_in
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from htas import plugins, strategies
from htas.cost.counts import CountCost
from htas.cost.limits import Limit
from htas.cost.model import CostModel
from htas.errors import UserError
from htas.files import read_tensors
from htas.graph import trace
from htas.graph.arch import Arch
from htas.models.cifar_resnet import CifarResNet
from htas.search.problem import Problem, rivals
from htas.search.record import EpochRecord
from htas.spaces.space import Space
from htas.strategies import Strategy
from htas.strategies.differentiable import Differentiable, Logits, Multiplier, _Search, penalty, verdict
from htas.testing import StrategyContract
from htas.testing.strategy import problem as tiny
from htas.training.recipe import cosine

FAMILY = CifarResNet(14)
QUICK = {
    **{"epochs": 3, "batch": 8, "precision": "fp32", "archs": 12, "population": 4, "sample": 2, "rounds": 3},
    **{"episodes": 6, "explore": 2},
}
"""Options that make a search short, of those that a strategy has."""


pytestmark = pytest.mark.usefixtures("one_thread")


def limited(folder: Path, family: CifarResNet = FAMILY) -> Problem:
    """With a limit on multiply-adds."""
    return tiny(folder, family=family)


def problem(folder: Path, **changes: Any) -> Problem:
    """Without."""
    return dataclasses.replace(limited(folder), **{"limits": (), **changes})


def quick(name: str) -> Strategy:
    kind: type[Any] = plugins.find(strategies, Strategy, name)  # type: ignore[type-abstract]
    fields = {field.name for field in dataclasses.fields(kind)}
    made: Strategy = kind(**{option: value for option, value in QUICK.items() if option in fields})
    return made


# -- the contract ------------------------------------------------------------------------------------------------------


LONG = ("autoslim", "blockwise", "evolution", "most", "netadapt", "random", "regularized", "scaled", "tas")
"""Strategies whose contract is tested with the slow tests."""


class TestEveryStrategy(StrategyContract):
    """All files of the folder; MorphNet has no depths, and the differentiable search weighs the cost."""

    @pytest.fixture(
        params=[
            pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in plugins.names(strategies)
        ]
    )
    def plugin(self, request: pytest.FixtureRequest) -> Strategy:
        if request.param == "amc":
            reason = "Stable-Baselines3 is not installed: pip install 'htas[amc]'"
            pytest.importorskip("stable_baselines3", reason=reason)
        self.keeps_limits = request.param not in ("differentiable", "tas")
        self.searches_depths = request.param != "morphnet"
        strategy = quick(request.param)
        assert strategy.title.startswith(request.param)
        assert strategy.charged == ("macs" if request.param == "tas" else "table")
        return strategy


@pytest.mark.parametrize("name", plugins.names(strategies))
def test_a_plan_knows_what_a_search_costs(name: str) -> None:
    few, many = (quick(name).training_images(count) for count in (100, 10_000))
    assert 0 < few <= many


# -- draws -------------------------------------------------------------------------------------------------------------


def logits(table: list[list[float]], widths: Mapping[str, tuple[int, ...]], depths: Any = None) -> Logits:
    made = Logits(Space("test", widths, depths or {}), {site: 3 for site in depths or {}}, torch.Generator())
    with torch.no_grad():
        made.table.copy_(torch.tensor(table))
    return made


def test_logits_start_near_zero_and_alike_for_a_seed():
    space = Space("test", {f"site{i}": tuple(range(1, 9)) for i in range(200)}, {})
    one, two = (Logits(space, {}, torch.Generator().manual_seed(7)).table for _ in range(2))
    assert torch.equal(one, two) and one.shape == (200, 8)
    assert float(one.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_a_draw_takes_two_different_widths_with_their_renormalised_softmax():
    made = logits([[0.5, -0.2, 0.1], [1.0, 0.0, 0.0]], {"a": (4, 8, 12), "b": (3, 5)})
    for seed in range(50):
        draw = made.draw(0.7, torch.Generator().manual_seed(seed))
        noise = -torch.empty(2, 3).exponential_(generator=torch.Generator().manual_seed(seed)).log()
        for row, (site, choices) in enumerate(made.space.widths.items()):
            count = len(choices)
            soft = torch.softmax((torch.log_softmax(made.table[row, :count], 0) + noise[row, :count]) / 0.7, 0)
            chosen, shares = draw.widths[site]
            places = [choices.index(width) for width in chosen]
            assert len(set(chosen)) == 2
            torch.testing.assert_close(shares, soft[places] / soft[places].sum())
            assert float(shares.detach().sum()) == pytest.approx(1)


def test_depth_weights_are_the_softmax_of_all_choices_at_their_blocks():
    made = logits([[0.3, 0.2, 0.0], [0.1, -0.4, 0.0]], {"a": (4, 8, 12)}, {"stage": (1, 3), "fixed": (2,)})
    draw = made.draw(1.0, torch.Generator().manual_seed(0))
    noise = -torch.empty(2, 3).exponential_(generator=torch.Generator().manual_seed(0)).log()
    soft = torch.softmax(torch.log_softmax(made.table[1, :2], 0) + noise[1, :2], 0)
    first, second, third = draw.depths["stage"]
    assert second == 0.0
    torch.testing.assert_close(torch.stack([first, third]), soft)
    assert draw.depths["fixed"] == [0.0, 1.0, 0.0]


def test_the_frequencies_of_pairs_are_those_of_the_multinomial_law_under_gumbel_noise():
    table, temperature = [0.8, 0.0, -0.5], 0.9
    made = logits([table], {"a": (0 + 1, 2, 3)})
    generator = torch.Generator().manual_seed(1)
    count = 3000
    drawn = Counter(made.draw(temperature, generator).widths["a"][0] for _ in range(count))
    rng = random.Random(2)
    law: Counter[tuple[int, int]] = Counter()
    for _ in range(count):  # the law, averaged over noise drawn by the inverse of its distribution function
        z = [(logit - math.log(-math.log(rng.random()))) / temperature for logit in table]
        weights = [math.exp(value - max(z)) for value in z]
        p = [weight / sum(weights) for weight in weights]
        for first, second in permutations(range(3), 2):
            law[first + 1, second + 1] += p[first] * p[second] / (1 - p[first]) / count
    for pair, share in law.items():
        assert drawn[pair] / count == pytest.approx(share, abs=4 * math.sqrt(share / count) + 0.01), pair


def test_the_loss_reaches_only_the_two_drawn_logits_of_a_row():
    made = logits([[0.1, 0.2, 0.3, 0.4]] * 2, {"a": (1, 2, 3, 4), "b": (1, 2, 3, 4)})
    draw = made.draw(2.0, torch.Generator().manual_seed(0))
    sum(draw.widths[site][1][0] * factor for site, factor in (("a", 3.0), ("b", -2.0))).backward()
    for row, site in enumerate("ab"):
        chosen = [width - 1 for width in draw.widths[site][0]]
        gradient = made.table.grad[row]
        others = [index for index in range(4) if index not in chosen]
        assert gradient[others].abs().max() < 1e-7
        first, second = draw.widths[site][1].tolist()
        wanted = (3.0 if site == "a" else -2.0) * first * second / 2.0  # softmax's derivative over the temperature
        torch.testing.assert_close(gradient[chosen], torch.tensor([wanted, -wanted]))


def test_a_site_with_one_choice_has_no_logits_and_is_always_that():
    made = Logits(Space("test", {"a": (7,), "b": (2, 4)}, {"stage": (3,)}), {"stage": 3}, torch.Generator())
    assert made.table.shape == (1, 2)
    draw = made.draw(1.0, torch.Generator())
    assert draw.widths["a"] == ((7,), (1.0,)) and draw.depths["stage"] == [0.0, 0.0, 1.0]
    assert made.argmax().widths["a"] == 7 and made.argmax().depths == {"stage": 3}
    widths, depths = made.probabilities()
    assert widths["a"].tolist() == [1.0] and depths["stage"].tolist() == [1.0]


def test_a_space_with_one_arch_has_nothing_to_search():
    made = Logits(Space("test", {"a": (7,)}, {}), {}, torch.Generator())
    assert made.draw(1.0, torch.Generator()).widths == {"a": ((7,), (1.0,))}
    assert made.argmax() == Arch({"a": 7}) and made.top() == 1.0 and made.entropies() == {}


def test_probabilities_argmax_and_top_are_of_the_plain_softmax_of_each_row():
    made = logits([[0.0, math.log(3), 9.0], [math.log(2), math.log(2), math.log(4)]], {"a": (4, 8), "b": (1, 2, 3)})
    widths, _ = made.probabilities()
    torch.testing.assert_close(widths["a"], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(widths["b"], torch.tensor([0.25, 0.25, 0.5]))
    assert made.argmax() == Arch({"a": 8, "b": 3})
    assert made.top() == pytest.approx((0.75 + 0.5) / 2)


def test_the_temperature_falls_as_in_tas():
    strategy = Differentiable()
    wanted = {0.0: 5.0, 0.25: 4.28, 0.5: 2.55, 0.75: 0.82, 0.9: 0.22, 1.0: 0.1}
    for share, temperature in wanted.items():
        assert cosine(strategy.hottest, strategy.coldest, share) == pytest.approx(temperature, abs=0.005)


def test_the_temperature_and_the_learning_rate_of_an_epoch_are_those_of_its_start(tmp_path):
    search = _Search(problem(tmp_path), Differentiable(epochs=4, batch=8, anneal="epoch", precision="fp32"))
    records = [search.epoch(epoch, Silent()) for epoch in (0, 2)]
    assert [record.temperature for record in records] == pytest.approx([5.0, 2.55])
    assert search.sgd.param_groups[0]["lr"] == pytest.approx(0.05)


def test_annealing_by_step_goes_all_the_way_within_one_epoch(tmp_path):
    options = Differentiable(epochs=1, batch=8, anneal="step", precision="fp32")
    search = _Search(problem(tmp_path), options)
    last = 1 - 1 / search.steps
    assert search.epoch(0, Silent()).temperature == pytest.approx(cosine(5.0, 0.1, last))
    assert search.sgd.param_groups[0]["lr"] == pytest.approx(cosine(0.1, 0.0, last))


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_lambda_multiplies_the_expected_cost():
    expected = torch.tensor(0.8, requires_grad=True)
    loss = penalty(Differentiable(weight=1.5), expected, 0.0)
    loss.backward()
    assert loss.item() == pytest.approx(1.2) and expected.grad.item() == pytest.approx(1.5)


@pytest.mark.parametrize(
    "argmax, loss, gradient",
    [
        (0.60, 2 * math.log(0.8), 2 / 0.8),  # above the ratio: pushed down
        (0.44, -2 * math.log(0.8), -2 / 0.8),  # below the ratio less the tolerance: pushed up
        (0.47, 0.0, 0.0),
        (0.50, 0.0, 0.0),
        (0.45, 0.0, 0.0),
    ],
)
def test_the_band_pushes_the_expected_cost_to_where_the_argmax_should_be(argmax, loss, gradient):
    options = Differentiable(loss="band", weight=2.0, ratio=0.5, tolerance=0.05)
    expected = torch.tensor(0.8, requires_grad=True)
    found = penalty(options, expected, argmax)
    found.backward()
    assert found.item() == pytest.approx(loss) and expected.grad.item() == pytest.approx(gradient)


def record(top: float, expected: float, argmax: float) -> EpochRecord:
    return EpochRecord(1, 0.1, 1.0, 1.0, 0.5, expected, argmax, top, 1.0)


@pytest.mark.parametrize(
    "top, expected, argmax, converged",
    [
        (0.60, 1.0, 1.0, True),
        (0.59, 1.0, 1.0, False),
        (0.90, 1.0, 1.09, True),
        (0.90, 1.0, 0.91, True),
        (0.90, 1.0, 1.11, False),
        (0.90, 0.5, 0.44, False),
    ],
)
def test_a_search_has_converged_when_it_is_sure_and_costs_what_it_expects(top, expected, argmax, converged):
    found, why = verdict(record(top, expected, argmax))
    assert found is converged
    assert f"{top:.2f}" in why


# -- the steps ---------------------------------------------------------------------------------------------------------


def weights_of(search: _Search) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in search.model.named_parameters()}


@pytest.mark.parametrize("loss", ["lambda", "band"])
def test_the_architecture_step_moves_the_logits_and_no_weight_has_a_gradient(loss, tmp_path):
    search = _Search(problem(tmp_path), Differentiable(precision="fp32", loss=loss))
    search.model.train()
    weights, table = weights_of(search), search.logits.table.detach().clone()
    images, labels = next(search.problem.data.validation.batches(8))
    search._arch_step(images, labels, 1.0, torch.Generator(), learn=True)
    assert all(parameter.grad is None for parameter in search.model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(search).items())
    assert not torch.equal(search.logits.table, table)
    assert all(parameter.requires_grad for parameter in search.model.parameters())


def test_the_weight_step_moves_weights_and_leaves_the_logits(tmp_path):
    search = _Search(problem(tmp_path), Differentiable(precision="fp32"))
    search.model.train()
    weights, table = weights_of(search), search.logits.table.detach().clone()
    images, labels = next(search.problem.data.weights.batches(8))
    search._weight_step(images, labels, 1.0, torch.Generator())
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in weights_of(search).items())
    assert torch.equal(search.logits.table, table) and search.logits.table.grad is None


def test_logits_rest_while_only_the_weights_warm_up(tmp_path):
    search = _Search(problem(tmp_path), Differentiable(epochs=2, warmup=1, batch=8, precision="fp32"))
    table = search.logits.table.detach().clone()
    search.epoch(0, Silent())
    assert torch.equal(search.logits.table, table)
    search.epoch(1, Silent())
    assert not torch.equal(search.logits.table, table)


@pytest.mark.slow
def test_a_heavy_lambda_finds_the_narrowest_arch_and_the_course_shows_it(tmp_path):
    given = problem(tmp_path)
    found = Differentiable(epochs=20, batch=8, arch_lr=0.3, weight=100.0, precision="fp32").search(given)
    assert found.arch == given.space.narrowest and found.converged
    costs = [epoch.expected_cost for epoch in found.epochs]
    assert costs[-1] < costs[0]
    base = given.cost.cost(given.network.base)
    assert found.epochs[-1].argmax_cost == pytest.approx(given.cost.cost(given.space.narrowest) / base)


def test_a_search_that_diverges_within_an_epoch_names_it_its_rate_and_the_last_good_state(tmp_path, monkeypatch):
    given, steps = problem(tmp_path), []
    step = _Search._weight_step

    def broken(search: _Search, *rest: Any) -> Tensor:
        steps.append(1)
        if len(steps) == 4 + 2:  # of four steps of the second epoch
            next(search.model.parameters()).data.fill_(float("nan"))
        return step(search, *rest)

    monkeypatch.setattr(_Search, "_weight_step", broken)
    with pytest.raises(ValueError) as caught:
        Differentiable(epochs=3, batch=4, lr=0.3, anneal="epoch", precision="fp32").search(given)
    said = str(caught.value)
    assert said.startswith("the search diverged in epoch 2 at a learning rate of 0.225: its loss is nan; ")
    assert f"the last good state, of epoch 1, is in {given.checkpoint}: begin again from there" in said
    assert said.endswith(f"with --strategy.start={given.checkpoint} --strategy.lr=0.1 and another --out")
    assert all(torch.isfinite(tensor).all() for tensor in read_tensors(given.checkpoint)[0].values())
    assert len(steps) < 4 + 4


def test_an_expected_cost_waits_for_the_device_as_often_at_any_depth(tmp_path):
    """Scalars that are read of tensors in an architecture step with a limit: as many for 9 blocks as for 6."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counts = []
    for depth in (14, 20):
        given = limited(tmp_path, family=CifarResNet(depth))
        search = _Search(given, Differentiable(precision="fp32", batch=4))
        images, labels = next(given.data.validation.draws(4, 1, generator=torch.Generator(), augment=False))
        with Reads() as reads:
            search._arch_step(images, labels, 5.0, torch.Generator().manual_seed(0), learn=True)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.gpu
def test_a_pair_of_steps_waits_for_the_gpu_as_often_at_any_depth(tmp_path):
    counts = []
    for depth in (14, 20):
        given = dataclasses.replace(limited(tmp_path, family=CifarResNet(depth)), device="cuda")
        search = _Search(given, Differentiable(batch=4))
        images, labels = (tensor.cuda() for tensor in (torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])))
        for mode in ("default", "warn"):  # what is done once comes in the first pair
            torch.cuda.set_sync_debug_mode(mode)
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                search._weight_step(images, labels, 5.0, torch.Generator().manual_seed(0))
                search._arch_step(images, labels, 5.0, torch.Generator().manual_seed(0), learn=True)
        torch.cuda.set_sync_debug_mode("default")
        counts.append(len(found))
    assert counts[0] == counts[1] > 0


def test_a_search_that_diverges_says_what_to_lower(tmp_path):
    with pytest.raises(ValueError, match=r"the search diverged.*; lower strategy.lr or strategy.arch_lr"):
        Differentiable(epochs=2, batch=8, lr=1e30, precision="fp32").search(problem(tmp_path))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "strategy.epochs must be 1 or more, got 0"),
        ({"batch": 0}, "strategy.batch must be 1 or more, got 0"),
        ({"epochs": 3, "warmup": 3}, r"strategy.warmup must lie in 0\.\.2, got 3"),
        ({"arch_lr": 0.0}, "strategy.arch_lr must be above 0, got 0.0"),
        ({"weight": -1.0}, "strategy.weight must be 0 or more, got -1.0"),
        ({"cost": "watts"}, "strategy.cost must be one of table, paper, energy, .*, got 'watts'"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Differentiable(**options)


# -- validation --------------------------------------------------------------------------------------------------------


def test_a_search_may_start_from_the_trained_base_network(tmp_path):
    torch.manual_seed(5)
    base = FAMILY.build(2)
    given = problem(tmp_path, base=lambda: base)
    search = _Search(given, Differentiable(precision="fp32", start="base"))
    weights = search.model.body.get_submodule("stages.2.1.conv1.conv").weight
    assert torch.equal(weights, base.get_submodule("stages.2.1.conv1.conv").weight)
    anew = _Search(dataclasses.replace(given, base=None), Differentiable(precision="fp32", start="random"))
    assert not torch.equal(anew.model.body.get_submodule("stages.2.1.conv1.conv").weight, weights)


def test_a_search_may_start_from_the_supernet_that_another_has_kept(tmp_path):
    given = problem(tmp_path / "checkpoints")
    first = Differentiable(epochs=1, batch=8, precision="fp32", keep=True)
    first.search(given)
    kept = given.supernet
    assert kept.name == f"supernet-{given.space.name}.safetensors" and kept.exists()
    tensors, _ = read_tensors(kept)
    search = _Search(dataclasses.replace(given, seed=9), Differentiable(precision="fp32", start=str(kept)))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in search.model.state_dict().items())
    narrower = Space(given.space.name, {s: w[:1] for s, w in given.space.widths.items()}, given.space.depths)
    with pytest.raises(UserError, match=r"holds the supernet of another network or space.*start from base"):
        _Search(dataclasses.replace(given, space=narrower), Differentiable(start=str(kept)))
    with pytest.raises(UserError, match=r"there is no file .*other\.safetensors"):
        _Search(given, Differentiable(start=str(tmp_path / "other.safetensors")))
    with pytest.raises(ValueError, match=r"random, base or the \.safetensors file of a supernet, got 'bass'"):
        Differentiable(start="bass")


def test_what_is_not_constrained_is_charged_beside_the_penalty(tmp_path):
    """Parameters are limited and latency is not: lambda still presses on it; limited latency is charged once."""
    given = problem(tmp_path)
    base = given.network.base
    params = Limit("params", "50%", CountCost(given.network, "params"), 0.5 * given.network.params(base))
    macs = Limit("macs", "50%", CountCost(given.network, "macs"), 0.5 * given.network.macs(base))

    def charged(cost: str, limit: Limit) -> float:
        own = dataclasses.replace(given, limits=(limit,))
        return float(_Search(own, Differentiable(cost=cost, weight=2.0, precision="fp32"))._penalty().detach())

    shares = _Search(given, Differentiable()).logits.probabilities()
    led = float(Multiplier((params,), given.space).penalty(*shares).detach())
    expected = float(_Search(given, Differentiable())._expected().detach())
    assert charged("params", params) == pytest.approx(led)
    assert charged("macs", params) == pytest.approx(led + 2.0 * expected)
    assert charged("macs", macs) != pytest.approx(charged("macs", params))


def test_validating_archs_moves_no_weight(tmp_path):
    search = _Search(problem(tmp_path), Differentiable(epochs=1, batch=8, precision="fp32"))
    search.epoch(0, Silent())
    weights = weights_of(search)
    search.validate([search.problem.space.widest])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(search).items())


def test_a_validated_arch_has_norm_statistics_of_its_own(tmp_path):
    """Those of one batch that holds all images of the weights' half are that batch's mean and variance."""
    search = _Search(problem(tmp_path), Differentiable(epochs=1, batch=8, precision="fp32"))
    arch = search.problem.space.widest
    search.validate([arch])
    images, _ = next(search.problem.data.weights.batches(16))
    stem = search.model.body.get_submodule("stem")
    out = nn.functional.conv2d(images, stem.conv.weight[:16], padding=1)
    norm = stem.norm["16"]
    torch.testing.assert_close(norm.running_mean, out.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, out.var((0, 2, 3)), rtol=1e-3, atol=1e-4)


# -- rivals ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sum(CostModel):
    """The sum of all widths and depths."""

    unit: str = "1"

    def cost(self, arch: Arch) -> float:
        return float(sum(arch.widths.values()) + sum(arch.depths.values()))

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError


def test_rivals_cost_about_the_same_and_are_distinct_and_others(tmp_path):
    given = problem(tmp_path, cost=Sum())
    for arch in (given.space.sample(random.Random(0)), given.space.sample(random.Random(1), -2.0)):
        found = rivals(given, arch, 20, seed=3)
        assert len(set(found)) == 20 and arch not in found
        assert all(other in given.space for other in found)
        assert all(abs(Sum().cost(other) / Sum().cost(arch) - 1) <= 0.05 for other in found)
        assert found == rivals(given, arch, 20, seed=3)
        assert found != rivals(given, arch, 20, seed=4)


def test_where_few_archs_cost_the_same_the_nearest_are_the_rivals(tmp_path):
    given = problem(tmp_path, cost=Sum())
    found = rivals(given, given.space.narrowest, 3, seed=0, tolerance=1e-9)
    costs = [Sum().cost(other) for other in found]
    assert len(set(found)) == 3 and given.space.narrowest not in found
    assert costs == sorted(costs) and costs[0] - Sum().cost(given.space.narrowest) <= 4


class Silent:
    """A bar that nobody sees."""

    def step(self, figures: str = "", by: int = 1) -> None:
        """Nothing."""


# -- resuming ----------------------------------------------------------------------------------------------------------


def without_seconds(epochs: tuple[EpochRecord, ...]) -> list[EpochRecord]:
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in epochs]


def interrupted_at(monkeypatch: pytest.MonkeyPatch, method: str, epoch: int) -> Callable[[], None]:
    """Raise KeyboardInterrupt at that call of a method of the search; returns what undoes it."""
    original, calls = getattr(_Search, method), iter(range(100))

    def patched(self: _Search, *args: Any) -> Any:
        if next(calls) == epoch:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(_Search, method, patched)
    return lambda: monkeypatch.setattr(_Search, method, original)


def test_a_space_of_one_arch_is_searched_too(tmp_path):
    given = problem(tmp_path)
    one = {name: choices[:1] for name, choices in given.space.widths.items()}
    space = Space("one", one, {name: (2,) for name in given.space.depths})
    found = Differentiable(epochs=1, batch=8, precision="fp32").search(dataclasses.replace(given, space=space))
    assert found.arch == space.widest and found.converged
    assert found.epochs[0].expected_cost == pytest.approx(found.epochs[0].argmax_cost, rel=1e-3)


@pytest.mark.parametrize(
    "start, method, at",
    one_in(3, [("random", "epoch", 1), ("base", "epoch", 3), ("random", "keep", 2)]),
)
def test_an_interrupted_search_ends_as_an_uninterrupted_one_to_the_last_bit(start, method, at, tmp_path, monkeypatch):
    strategy = Differentiable(epochs=5, batch=8, warmup=1, arch_lr=0.05, precision="fp32", start=start)
    trained = FAMILY.build(2)
    whole = problem(tmp_path / "whole", base=lambda: trained)
    wanted = strategy.search(whole)
    undo = interrupted_at(monkeypatch, method, at)
    given = problem(tmp_path / "parts", base=lambda: trained)
    with pytest.raises(KeyboardInterrupt):
        strategy.search(given)
    undo()
    found = strategy.search(given)
    assert found.arch == wanted.arch
    assert without_seconds(found.epochs) == without_seconds(wanted.epochs)
    (left, _), (right, _) = read_tensors(given.checkpoint), read_tensors(whole.checkpoint)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    archs = [given.space.narrowest, given.space.widest]
    assert found.validate(archs) == wanted.validate(archs)


def test_a_search_that_is_done_is_only_read_again(tmp_path, monkeypatch):
    given = problem(tmp_path)
    strategy = Differentiable(epochs=2, batch=8, precision="fp32")
    first = strategy.search(given)
    interrupted_at(monkeypatch, "epoch", 0)
    again = strategy.search(given)
    assert again.arch == first.arch and again.epochs == first.epochs


class Dropping(nn.Module):
    """A network that draws at random as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.drop(self.second(self.first(images).relu()).relu().mean((2, 3))))


@pytest.mark.slow
def test_dropout_draws_the_same_after_an_interruption(tmp_path, monkeypatch):
    network = trace(Dropping(), torch.zeros(2, 3, 8, 8))
    space = Space("tiny", {name: (4, 8) for name in network.widths}, {})
    strategy = Differentiable(epochs=3, batch=8, precision="fp32", start="random")
    changes = {"network": network, "space": space, "cost": CountCost(network)}
    wanted = strategy.search(problem(tmp_path / "whole", **changes))
    undo = interrupted_at(monkeypatch, "epoch", 2)
    with pytest.raises(KeyboardInterrupt):
        strategy.search(problem(tmp_path / "parts", **changes))
    undo()
    torch.manual_seed(99)
    found = strategy.search(problem(tmp_path / "parts", **changes))
    assert without_seconds(found.epochs) == without_seconds(wanted.epochs)


def test_one_multiplier_says_where_no_multiple_keeps_the_limit(tmp_path):
    """The least that it can take is about a sixteenth."""
    within, beyond = (quick("uniform").search(tiny(tmp_path, most=most)).why for most in (0.6, 0.02))
    assert "within the limits, all blocks kept" in within
    assert beyond.startswith("none of ") and "is predicted within the limits" in beyond
