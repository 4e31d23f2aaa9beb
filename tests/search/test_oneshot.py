"""Strategies beside the differentiable one: what each draws, breeds, narrows or shrinks; the answers are known."""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from one_in import one_in
from torch import Tensor, nn

from htas.cost.counts import CountCost
from htas.cost.limits import Limit
from htas.cost.model import CostModel
from htas.data.split import Data, Split
from htas.errors import UserError
from htas.files import read_tensors
from htas.graph import trace
from htas.graph.arch import Arch
from htas.models.cifar_resnet import CifarResNet
from htas.search import oneshot
from htas.search.draw import Draw
from htas.search.moves import over
from htas.search.oneshot import Judge, SearchLoop
from htas.search.problem import Problem
from htas.spaces.space import Space
from htas.strategies import _sampled, morphnet, regularized
from htas.strategies._sampled import AROUND, best, near_limits, trimmed
from htas.strategies._trials import Trials, multiples, nearest
from htas.strategies.autoslim import AutoSlim, slimmer
from htas.strategies.differentiable import Differentiable, _Search
from htas.strategies.evolution import Evolution
from htas.strategies.morphnet import MorphNet, prices, scales
from htas.strategies.netadapt import NetAdapt, reductions
from htas.strategies.random import RandomSearch
from htas.strategies.regularized import Regularized, mutated, winner
from htas.strategies.scaled import Scaled
from htas.strategies.uniform import Uniform
from htas.training import loop
from htas.training.loop import set_rate

FAMILY = CifarResNet(14)
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclasses.dataclass(frozen=True)
class Sum(CostModel):
    """Widths added, those of blocks that are cut too, and ten for each block that is kept."""

    unit: str = "s"

    def cost(self, arch: Arch) -> float:
        return float(sum(arch.widths.values()) + 10 * sum(arch.depths.values()))

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError


def split(count: int, seed: int) -> Split:
    """Images of two classes, 8x8: dark and bright."""
    labels = torch.arange(count) % 2
    noise = torch.randint(100, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return Split((noise + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, (0.4,) * 3, (0.25,) * 3, False, 1)


def problem(folder: Path, most: float = 0.7, cost: CostModel | None = None, deep: bool = True) -> Problem:
    network = trace(FAMILY.build(2), torch.zeros(2, 3, 8, 8))
    widths = {name: (site.base // 4, site.base // 2, site.base) for name, site in network.widths.items()}
    space = Space("tiny", widths, {name: (1, 2) if deep else (2,) for name in network.depths})
    data = Data(2, (3, 8, 8), split(64, 0), split(32, 1), split(32, 2), split(16, 3))
    cost = cost or Sum()
    limit = Limit("macs", "some", cost, most * cost.cost(network.base))
    checkpoint = folder / "search.safetensors"
    return Problem(
        network, FAMILY.reset, data, space, cost, "cpu", 0, checkpoint, lambda: FAMILY.build(2), limits=(limit,)
    )


def planted(goal: Arch) -> Any:
    """Accuracies that fall with the widths and depths that an arch lacks to the goal's."""

    def accuracies(archs: Any) -> list[float]:
        sites = [*goal.widths, *goal.depths]
        return [1 - sum(abs(arch[site] / goal[site] - 1) for site in sites) / len(sites) for arch in archs]

    return accuracies


# -- what is drawn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1.0, 0.8])
def test_archs_are_drawn_at_random_near_the_limits(most, tmp_path):
    given = problem(tmp_path)
    rng = random.Random(0)
    archs = [near_limits(given, rng, most) for _ in range(200)]
    ratios = [over(given.limits, arch) for arch in archs]
    assert max(ratios) <= most and sum(0.9 * most <= ratio for ratio in ratios) > 180
    assert len(set(archs)) > 150 and all(arch in given.space for arch in archs)


def test_the_most_accurate_arch_within_the_limits_is_taken(tmp_path):
    given = problem(tmp_path)
    judge = Judge(lambda archs: [sum(arch.widths.values()) / 1e3 for arch in archs])
    judge([given.space.narrowest, given.space.widest])
    assert best(given, judge) == given.space.narrowest
    judge = Judge(lambda archs: [0.5] * len(archs))
    judge([given.space.widest])
    assert best(given, judge) == given.space.widest  # nothing else was judged


def test_a_judge_asks_once(tmp_path):
    asked: list[Arch] = []

    def accuracies(archs: Any) -> list[float]:
        asked.extend(archs)
        return [0.5] * len(archs)

    judge, archs = Judge(accuracies), [Arch({"a": 1}), Arch({"a": 2}), Arch({"a": 1})]
    assert judge(archs) == [0.5] * 3 and judge(archs[:2]) == [0.5] * 2 and asked == archs[:2]


@pytest.mark.parametrize(
    "kind",
    [
        RandomSearch,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (Evolution, Regularized)),
        NetAdapt,
        AutoSlim,
    ],
)
def test_a_planted_best_arch_is_nearly_found(kind, tmp_path):
    """Archs at random near the limits have half of what the goal has, or so; none is the goal by chance."""
    given = problem(tmp_path)
    goal = near_limits(given, random.Random(7))
    rng = random.Random(1)
    others = planted(goal)([near_limits(given, rng) for _ in range(50)])
    assert sorted(others)[25] < 0.7
    judge = Judge(planted(goal))
    kind(**({} if kind in (NetAdapt, AutoSlim) else {"archs": 400})).pick(given, judge)
    assert judge([best(given, judge)])[0] > 0.8
    assert over(given.limits, best(given, judge)) <= 1


@pytest.mark.slow
def test_evolution_judges_as_many_networks_as_asked_for(tmp_path):
    """Children over the limits, children known already, and archs that differ in cut blocks alone are not counted."""
    given = problem(tmp_path)
    judge = Judge(planted(near_limits(given, random.Random(7))))
    Evolution(archs=120, population=30).pick(given, judge)
    networks = {tuple((use.node, use.layer) for use in given.network.uses(arch)) for arch in judge.accuracies}
    assert len(judge.accuracies) == len(networks) == 120
    few = Space(
        "few", {**dict.fromkeys(given.space.widths, (8,)), "stem.conv": (4, 8)}, dict.fromkeys(given.space.depths, (1,))
    )
    judge = Judge(lambda archs: [0.5] * len(archs))
    Evolution(archs=50, population=10).pick(dataclasses.replace(given, space=few), judge)
    assert 1 <= len(judge.accuracies) <= 2


@pytest.mark.slow
def test_strategies_that_train_alike_share_a_supernet(tmp_path, monkeypatch):
    """The second one trains nothing, judges by the same weights, and counts the time that they took."""
    given = dataclasses.replace(problem(tmp_path), trained=tmp_path / "supernets" / "one.safetensors")
    options: Any = {"epochs": 2, "batch": 16, "archs": 5, "precision": "fp32"}
    one, other = RandomSearch(**options), Evolution(**options, population=3)
    assert one.supernet_key == other.supernet_key != RandomSearch().supernet_key and not Differentiable().supernet_key
    first = RandomSearch(**options).search(given)
    alone = Evolution(**options, population=3).search(problem(tmp_path / "alone"))
    given.checkpoint.unlink()
    monkeypatch.setattr(_sampled._Training, "learn", None)
    second = Evolution(**options, population=3).search(given)
    assert second.epochs == first.epochs and second.arch == alone.arch
    assert second.validate([second.arch]) == alone.validate([second.arch])


@pytest.mark.slow
@pytest.mark.parametrize("bred", [Evolution, Regularized])
def test_evolution_ends_nearer_a_planted_goal_than_random_draws(bred, tmp_path):
    given = problem(tmp_path)
    ends = []
    for kind in (bred, RandomSearch):
        accuracies = []
        for seed in range(4):
            judge = Judge(planted(near_limits(given, random.Random(100 + seed))))
            kind(archs=300).pick(dataclasses.replace(given, seed=seed), judge)
            accuracies.append(judge([best(given, judge)])[0])
        ends.append(sum(accuracies) / 4)
    assert ends[0] > ends[1]


def test_in_regularised_evolution_the_oldest_dies_however_good_it_is(tmp_path, monkeypatch):
    """The first four are the best that there will be: they are parents at the beginning, and never after four births.

    Each birth takes one that lives, so the parents of the fifth child on are children."""
    given, judged, parents = problem(tmp_path), [], []

    def accuracies(archs: Any) -> list[float]:
        judged.extend(archs)
        return [0.9 if judged.index(arch) < 4 else 0.1 for arch in archs]

    def child(given: Problem, rng: random.Random, parent: Arch) -> Arch | None:
        parents.append(parent)
        return next(arch for _ in range(100) if (arch := mutated(given, rng, parent)) and arch not in judged)

    monkeypatch.setattr(regularized, "mutated", child)
    Regularized(archs=20, population=4, sample=4).pick(given, Judge(accuracies))
    assert len(judged) == len(set(judged)) == 20 and len(parents) == 16
    assert parents[0] in judged[:4] and not set(parents[4:]) & set(judged[:4])
    assert all(parent in judged[birth : birth + 4] for birth, parent in enumerate(parents))


def test_a_sample_is_won_by_the_most_accurate_arch_within_the_limits(tmp_path):
    given = problem(tmp_path)
    narrow, even = given.space.narrowest, near_limits(given, random.Random(0))
    judge = Judge(lambda archs: [sum(arch.widths.values()) / 1e3 for arch in archs])
    assert winner(given, judge, [narrow, given.space.widest, even, narrow]) == even
    assert winner(given, judge, [given.space.widest]) == given.space.widest


def test_a_mutation_is_one_other_choice_of_a_network_near_the_limits(tmp_path):
    given, rng = problem(tmp_path), random.Random(0)
    parent = trimmed(given, near_limits(given, rng))
    children = [mutated(given, rng, parent) for _ in range(200)]
    assert len(set(children)) > 10 and parent not in children
    for child in children:
        assert child is not None and over(given.limits, child) <= 1 + AROUND
        differing = [site for site in given.space.choices if child[site] != parent[site]]
        cut = [site for site in differing if site in given.space.depths]
        assert len(differing) == 1 or len(cut) == 1, "a block that is cut has no widths"
    one = Space("one", {site: (width,) for site, width in parent.widths.items()}, {k: (2,) for k in parent.depths})
    assert mutated(dataclasses.replace(given, space=one), rng, parent) is None


def test_autoslim_narrows_by_a_choice_the_site_that_costs_least(tmp_path):
    """Accuracy falls with one site alone, so that one is narrowed last; a step is one choice of one site."""
    given = problem(tmp_path)
    widest, site = given.space.widest, "stages.1.0.conv1.conv"
    steps: list[list[Arch]] = []

    def accuracies(archs: Any) -> list[float]:
        steps.append(list(archs))
        return [arch[site] / widest[site] for arch in archs]

    judge = Judge(accuracies)
    AutoSlim().pick(given, judge)
    (first, second, *_), sites = steps, given.space.choices
    assert first == [widest] and len(second) == len(sites)
    for arch in second:
        (changed,) = [name for name in sites if arch[name] != widest[name]]
        assert arch[changed] == sites[changed][-2]
    for before, after in itertools.pairwise(steps):
        assert max(over(given.limits, arch) for arch in after) < max(over(given.limits, arch) for arch in before)
    assert best(given, judge)[site] == widest[site]
    assert over(given.limits, best(given, judge)) > 1 - AROUND


def test_autoslim_passes_over_choices_that_save_nothing(tmp_path):
    """Of the choices 16, 8 and 4 of a site the device computes 8 as slowly as 16."""

    class Blocks(Sum):
        def cost(self, arch: Arch) -> float:
            return float(sum({8: 16}.get(width, width) for width in arch.widths.values()))

    given = problem(tmp_path, cost=Blocks(), deep=False)
    archs = slimmer(given, given.space.widest)
    assert {min(arch[site] for arch in archs) for site in given.space.widths if given.space.widest[site] == 16} == {4}
    assert slimmer(given, given.space.narrowest) == []


def test_a_sandwich_has_the_widest_the_narrowest_and_two_at_random(tmp_path):
    given = problem(tmp_path)
    drawn = _sampled._Training(given, RandomSearch(epochs=1, batch=8, precision="fp32"))._archs(random.Random(0))
    assert len(drawn) == 4 and (drawn[0], drawn[3]) == (given.space.widest, given.space.narrowest)
    one = _sampled._Training(given, RandomSearch(epochs=1, batch=8, precision="fp32", sampling="uniform"))
    assert len(one._archs(random.Random(0))) == 1


def test_a_step_of_several_archs_adds_their_gradients(tmp_path):
    """Against losses by hand: of the labels for the first, half of the labels and half of its logits for the other."""
    given = problem(tmp_path)
    options = RandomSearch(epochs=1, batch=8, precision="fp32", lr=1.0, momentum=0.0, weight_decay=0.0)
    run = _sampled._Training(given, options)
    images, labels = next(given.data.weights.batches(8))
    draws = [Draw.of(arch, given.network) for arch in (given.space.widest, given.space.narrowest)]
    before = run.model.body.get_submodule("stem.conv").weight.detach().clone()
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    first = run.model(images, draws[0])
    other = run.model(images, draws[1])
    target = first.detach().softmax(1)
    soft = -(target * other.log_softmax(1)).sum(1).mean()
    hard = [nn.functional.cross_entropy(logits, labels) for logits in (first, other)]
    loss = (hard[0] + (hard[1] + soft) / 2) / 2
    (gradient,) = torch.autograd.grad(loss, run.model.body.get_submodule("stem.conv").weight)
    run.model.load_state_dict(state)
    found = run.learn(images, labels, draws)
    moved = run.model.body.get_submodule("stem.conv").weight.detach() - before
    torch.testing.assert_close(moved, -gradient, rtol=1e-3, atol=1e-6)
    assert float(found) == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("kind", one_in(3, [RandomSearch, MorphNet, Scaled]))
def test_an_interrupted_search_ends_as_an_uninterrupted_one(kind, tmp_path, monkeypatch):
    options = {"epochs": 2, "batch": 16, "precision": "fp32", **({"archs": 6} if kind is RandomSearch else {})}
    whole = kind(**options).search(problem(tmp_path / "whole", deep=kind is not MorphNet))
    writes = []
    original = loop.write_tensors

    def once(path: Path, tensors: Any, about: Any) -> None:
        original(path, tensors, about)
        writes.append(path)
        if len(writes) == 1:
            raise KeyboardInterrupt

    given = problem(tmp_path / "parts", deep=kind is not MorphNet)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_tensors", once)
        with pytest.raises(KeyboardInterrupt):
            kind(**options).search(given)
    again = kind(**options).search(given)
    assert again.arch == whole.arch
    assert [e.train_loss for e in again.epochs] == [e.train_loss for e in whole.epochs]
    assert again.validate([again.arch]) == whole.validate([whole.arch])


# -- narrowing and shrinking -------------------------------------------------------------------------------------------


def test_netadapt_narrows_each_site_until_the_round_keeps_its_cost(tmp_path):
    """From the widest, whose cost is 336 + 60: for 95 % of it 19.8 must go. Sites of 16 cannot give so much, nor can a
    block, which is 10; those of 32 give 24, those of 64 give 32."""
    given = problem(tmp_path)
    widest = given.space.widest
    whole = over(given.limits, widest)
    assert given.cost.cost(widest) == 336 + 60
    found = reductions(given, widest, 0.95 * whole)
    changed = {site: arch[site] for arch in found for site in given.space.choices if arch[site] != widest[site]}
    assert len(found) == len(given.space.choices)
    for site, choice in changed.items():
        base = widest[site]
        assert choice == {16: 4, 32: 8, 64: 32, 2: 1}[base], site


def test_netadapt_does_not_begin_where_nothing_is_to_be_narrowed(tmp_path):
    with pytest.raises(
        ValueError, match=r"strategy.begin: the base network takes 83.3 % of what .*; begin at the widest"
    ):
        NetAdapt(epochs=1, begin="base").search(problem(tmp_path, most=1.2))


def test_uniform_says_that_it_searches_no_depths(tmp_path, capsys):
    found = Uniform(epochs=1).search(problem(tmp_path))
    assert "uniform does not search depths and keeps all blocks" in capsys.readouterr().err
    assert found.why.endswith("all blocks kept")
    Uniform(epochs=1).search(problem(tmp_path, deep=False))
    assert "depths" not in capsys.readouterr().err


def test_random_judges_as_many_networks_as_asked_for_where_there_are_so_many(tmp_path):
    """Twenty use the limit, which leaves room for three wide sites of six; twenty draws find some of them twice."""
    given = problem(tmp_path, deep=False)
    sites = [site for site in given.space.widths if site.endswith("conv1.conv")]
    space = Space("few", {site: (8, 16) if site in sites else (16,) for site in given.space.widths}, given.space.depths)
    most = given.cost.cost(space.narrowest) + 3 * 8
    limits = (dataclasses.replace(given.limits[0], most=most),)
    given = dataclasses.replace(given, space=space, limits=limits)
    judge = Judge(lambda archs: [0.5] * len(archs))
    RandomSearch(archs=20).pick(given, judge)
    assert len(sites) == 6 and len(judge.accuracies) == 20
    rng = random.Random(given.seed)
    drawn = [near_limits(given, rng, rng.uniform(0.9, 1.1) if number % 3 == 2 else 1.0) for number in range(100)]
    assert list(judge.accuracies) == list(dict.fromkeys(drawn))[:20], (
        "in the order drawn: of equal ones the first is taken"
    )


def test_the_time_of_trials_is_told_after_an_interruption_too(tmp_path, monkeypatch):
    given, options = problem(tmp_path), {"epochs": 1, "batch": 16, "precision": "fp32"}
    whole = Scaled(**options).search(given)
    monkeypatch.setattr("htas.strategies._trials.Training", None)
    assert Scaled(**options).search(given).seconds == whole.seconds > 0


def test_the_nearest_choice_is_that_in_proportion():
    assert nearest((8, 16, 32), 11.0) == 8 and nearest((8, 16, 32), 11.4) == 16 and nearest((8, 32), 16) == 32


def test_multiples_of_the_base_widths_grow_together(tmp_path):
    given = problem(tmp_path)
    archs = multiples(given.network.base.widths, given.space, dict.fromkeys(given.space.depths, 2))
    assert archs[0] == Arch(given.space.narrowest.widths, dict.fromkeys(given.space.depths, 2))
    assert archs[-1] == given.space.widest and len(archs) == 3  # the choices are the same shares at every site


def test_uniform_takes_the_largest_multiple_within_the_limits_and_trains_nothing(tmp_path):
    given = problem(tmp_path)
    found = Uniform(epochs=1).search(given)
    assert set(found.arch.depths.values()) == {2} and found.epochs == () and not found.cheap
    assert over(given.limits, found.arch) <= 1
    wider = multiples(given.network.base.widths, given.space, dict(found.arch.depths))
    assert over(given.limits, wider[wider.index(found.arch) + 1]) > 1


def test_scaled_tries_one_network_for_each_depth_and_takes_the_most_accurate(tmp_path, monkeypatch):
    given = problem(tmp_path)
    asked: list[Arch] = []

    def judged(self: Any, arch: Arch) -> float:
        asked.append(arch)
        return 0.9 if set(arch.depths.values()) == {1} else 0.8

    monkeypatch.setattr("htas.strategies._trials.Trials._one", judged)
    found = Scaled(epochs=1).search(given)
    assert [set(arch.depths.values()) for arch in asked] == [{1}, {2}]
    assert set(found.arch.depths.values()) == {1} and over(given.limits, found.arch) <= 1
    assert list(found.pool[:2]) == asked and len(found.pool) > 2
    assert sorted(found.pool, key=found.worth, reverse=True)[:2] == asked, "what has not been tried comes after both"


def test_morphnet_knows_the_norms_and_the_price_of_every_site(tmp_path):
    given = problem(tmp_path, cost=CountCost(trace(FAMILY.build(2), torch.zeros(2, 3, 8, 8))), deep=False)
    norms = scales(given.network)
    assert norms.keys() == given.network.widths.keys() and all(norms.values())
    found = prices(given)
    site = "stages.2.1.conv1.conv"  # between two layers of 64 channels, at 2x2 pixels
    macs = 2 * 9 * 64 * 2 * 2
    assert found[site] == pytest.approx(macs / given.cost.cost(given.network.base), rel=0.01)


def test_a_channels_price_is_that_of_the_narrower_choice_that_saves_most(tmp_path):
    """On a device that takes blocks of eight channels, and is slower with four than with eight: of 16 channels, 8 fewer
    save 8 ms, 12 fewer 6 ms; so a channel costs 1 ms, and not half of one."""

    class Blocks(Sum):
        def cost(self, arch: Arch) -> float:
            return float(sum({4: 10, 8: 8, 16: 16}.get(width, 0) for width in arch.widths.values()))

    given = problem(tmp_path, cost=Blocks(), deep=False)
    found = prices(given)
    assert found["stages.0.0.conv1.conv"] == pytest.approx(1 / Blocks().cost(given.network.base))
    few = {**given.space.widths, "stages.0.0.conv1.conv": (16,), "stages.0.1.conv1.conv": (16, 18)}
    found = prices(dataclasses.replace(given, space=Space("few", few, given.space.depths)))
    assert found["stages.0.0.conv1.conv"] == found["stages.0.1.conv1.conv"] == 0.0, "18 channels are as fast as none"


def test_a_channel_is_dead_by_the_scales_that_the_base_network_had(tmp_path):
    run = morphnet._Shrinking(problem(tmp_path, deep=False), MorphNet(epochs=1, batch=16, precision="fp32", dead=0.2))
    site = "stages.2.1.conv1.conv"
    (scale,) = run.scales[site]
    with torch.no_grad():
        for scales_of_site in run.scales.values():
            for each in scales_of_site:
                each.mul_(0.5)  # all shrink alike: nothing is dead by that
        scale[:5] = 0.19
    alive = run.alive()
    assert alive[site] == 64 - 5
    assert all(alive[other] == base for other, base in run.problem.network.base.widths.items() if other != site)


def test_what_is_alive_is_expanded_evenly(tmp_path):
    """A site with a quarter of its channels alive, whose choices are a quarter, a half and the whole of 64."""
    given = problem(tmp_path, deep=False)
    alive = {site: float(base) for site, base in given.network.base.widths.items()}
    alive["stages.2.1.conv1.conv"] = 16.0
    archs = multiples(alive, given.space, given.space.widest.depths)
    pairs = {(arch.widths["stages.2.1.conv1.conv"], arch.widths["stages.2.0.conv1.conv"]) for arch in archs}
    assert {(16, 64), (32, 64), (64, 64)} <= pairs and (64, 32) not in pairs and (32, 32) not in pairs


def test_morphnets_regulariser_shrinks_what_is_alive(tmp_path):
    weak, strong = (
        MorphNet(epochs=2, batch=16, precision="fp32", strength=strength).search(problem(tmp_path / name, deep=False))
        for name, strength in (("weak", 0.0), ("strong", 5.0))
    )
    assert strong.epochs[-1].expected_cost < weak.epochs[-1].expected_cost


def test_morphnet_refuses_depths(tmp_path):
    with pytest.raises(ValueError, match=r"morphnet does not search depths.*--design.depth=false"):
        MorphNet().search(problem(tmp_path))


@pytest.mark.parametrize("kind", [RandomSearch, Evolution, Regularized, NetAdapt, AutoSlim, MorphNet, Uniform, Scaled])
def test_a_strategy_for_limits_asks_for_one(kind, tmp_path):
    given = dataclasses.replace(problem(tmp_path), limits=())
    with pytest.raises(ValueError, match=r"looks for the most accurate network within limits, and none is given"):
        kind().search(given)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RandomSearch(archs=0), "strategy.archs must be 1 or more, got 0"),
        (lambda: RandomSearch(start="there"), "strategy.start must be random, base or"),
        (lambda: Evolution(population=1), "strategy.population must be 2 or more, got 1"),
        (lambda: Evolution(crossover=2.0), r"strategy.crossover must lie in 0\.\.1, got 2.0"),
        (lambda: Regularized(population=1), "strategy.population must be 2 or more, got 1"),
        (lambda: Regularized(sample=0), r"strategy.sample must lie in 1..strategy.population, 50, got 0"),
        (lambda: Regularized(sample=51), r"strategy.sample must lie in 1..strategy.population, 50, got 51"),
        (lambda: NetAdapt(rounds=0), "strategy.rounds must be 1 or more, got 0"),
        (lambda: NetAdapt(begin="there"), "strategy.begin must be widest or base, got 'there'"),
        (lambda: MorphNet(dead=1.0), r"strategy.dead must lie in 0\.\.1, got 1.0"),
        (lambda: Scaled(depths=0), "strategy.depths must be 1 or more, got 0"),
        (lambda: Uniform(lr=0.0), "strategy.lr must be above 0, got 0.0"),
    ],
)
def test_an_option_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- divergence --------------------------------------------------------------------------------------------------------


def check(given: Problem, options: Differentiable | MorphNet, loss: float, number: int, rate: float) -> None:
    """What an epoch of a search makes of a mean loss at a learning rate."""
    run = (morphnet._Shrinking if isinstance(options, MorphNet) else _Search)(given, options)
    set_rate(run.sgd, rate)
    run.check(number, loss)


@pytest.mark.parametrize("loss", one_in(3, [float("nan"), float("inf"), 100.0]))
def test_divergence_names_the_epoch_the_rate_and_the_last_good_state(loss, tmp_path):
    given = problem(tmp_path)
    check(given, Differentiable(lr=0.1), 0.69, 3, 0.1)
    message = r"diverged in epoch 1 at a learning rate of 0.100: .*; lower strategy.lr or strategy.arch_lr, and"
    with pytest.raises(ValueError, match=message):
        check(given, Differentiable(lr=0.1), loss, 0, 0.1)
    message = (
        rf"diverged in epoch 4 at a learning rate of 0.0123: .* of epoch 3, is in {given.checkpoint}: begin again "
    )
    message += rf"from there at a lower rate with --strategy.start={given.checkpoint} --strategy.lr=0.03 and another"
    with pytest.raises(ValueError, match=message):
        check(given, Differentiable(lr=0.1), loss, 3, 0.0123)


def test_divergence_names_only_options_that_the_strategy_has(tmp_path):
    given = problem(tmp_path)
    with pytest.raises(ValueError, match=r"; lower strategy.lr, and name another"):
        check(given, MorphNet(), math.nan, 0, 0.1)
    message = rf"is in {given.checkpoint}: begin again at a lower rate with --strategy.lr=0.02 and another --out$"
    with pytest.raises(ValueError, match=message):
        check(given, MorphNet(lr=0.06), math.nan, 3, 0.1)


def test_a_trial_that_diverges_names_the_strategys_rate(tmp_path):
    given = problem(tmp_path)
    with pytest.raises(ValueError, match=r"trial 1 diverged in epoch 1 at .*; lower strategy.lr$"):
        Trials(given, Uniform(epochs=1, batch=8, lr=1e30, precision="fp32").recipe)([given.network.base])


def test_a_search_begins_again_from_the_checkpoint_of_one_that_diverged(tmp_path, monkeypatch):
    given = problem(tmp_path / "one", cost=CountCost(trace(FAMILY.build(2), torch.zeros(2, 3, 8, 8))))
    with monkeypatch.context() as patch:
        patch.setattr(oneshot, "LOST", 0.0)
        check = SearchLoop.check
        patch.setattr(SearchLoop, "check", lambda loop, number, loss: check(loop, number, loss) if number else None)
        with pytest.raises(ValueError, match=r"diverged in epoch 2"):
            Differentiable(epochs=3, batch=16, precision="fp32").search(given)
    kept = {k: v for k, v in read_tensors(given.checkpoint)[0].items() if k.startswith(oneshot.PREFIX)}
    options = Differentiable(epochs=1, batch=16, precision="fp32", start=str(given.checkpoint))
    begun = oneshot.build_supernet(given, options).state_dict()
    assert begun.keys() == {name.removeprefix(oneshot.PREFIX) for name in kept}
    assert all(torch.equal(tensor, kept[oneshot.PREFIX + name]) for name, tensor in begun.items())
    with pytest.raises(UserError, match="there is no file"):
        oneshot.build_supernet(given, dataclasses.replace(options, start="none.safetensors"))
