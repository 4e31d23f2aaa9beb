"""What a model family must keep."""

import pytest
import torch

from htas.graph import resize, trace
from htas.graph.arch import Arch
from htas.models import ModelFamily
from htas.testing.options import check_options


class FamilyContract:
    """Inherit it in a class `TestMine` that sets `family`, and `shape` where its networks take other images."""

    family: ModelFamily
    shape: tuple[int, ...] = (3, 32, 32)

    @pytest.fixture
    def plugin(self) -> ModelFamily:
        """The family; a fixture of this name in a subclass may give several."""
        return self.family

    def test_it_documents_its_options(self, plugin: ModelFamily) -> None:
        check_options(type(plugin), ModelFamily)

    def test_its_network_has_free_widths_and_can_be_resized(self, plugin: ModelFamily) -> None:
        module, images = plugin.build(7).eval(), torch.randn(2, *self.shape)
        plugin.check(module, (images[:1],), 7)
        assert module(images).shape == (2, 7)
        network = trace(module, images[:1], project_norm=plugin.project_norm)
        assert network.widths, "every width is frozen; `htas inspect` says why"
        assert torch.equal(resize(network, network.base)(images), module(images))
        halves = {
            name: max(1, each.base // 2 // each.multiple) * each.multiple for name, each in network.widths.items()
        }
        model = resize(network, Arch(halves, network.base.depths))
        plugin.reset(model)
        assert model.eval()(images).isfinite().all()

    def test_reset_draws_every_weight_and_repeats_under_a_seed(self, plugin: ModelFamily) -> None:
        module, states = plugin.build(7), []
        for _ in range(2):
            for value in module.state_dict().values():
                value.fill_(3)
            torch.manual_seed(5)
            plugin.reset(module)
            states.append({key: value.clone() for key, value in module.state_dict().items()})
        for key, value in states[0].items():
            assert not (value == 3).all(), f"reset leaves {key} as it was"
            assert torch.equal(value, states[1][key]), f"{key} does not follow the seed"

    def test_its_title_and_its_members_are_words_for_a_table(self, plugin: ModelFamily) -> None:
        assert plugin.title and plugin.member(1) and plugin.member(1) != plugin.member(2)
