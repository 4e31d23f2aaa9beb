"""Every configuration that is shipped loads, says what it means, and fits the network it names."""

from pathlib import Path

import pytest
import torch

from htas import design
from htas.config import load
from htas.graph import trace

ROOT = Path(__file__).parent.parent
SHIPPED = [ROOT / "htas" / "demo.toml", *sorted((ROOT / "examples").rglob("*.toml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads_and_its_design_fits_its_network(path):
    config = load(path)
    example = torch.zeros(1, *config.data.shape)
    network = trace(config.family.build(config.data.classes), example, adds=config.design.adds)
    design.check(network, config.design)
    assert load(path).toml() == config.toml()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_search_lets_its_logits_move(path):
    config = load(path)
    images = {"digits": 1797 * 4 // 5, "cifar10": 50_000, "cifar100": 50_000}[config.data.name]
    steps = config.strategy.epochs * int(images * (1 - config.parts.validation)) // config.strategy.batch
    assert config.strategy.arch_lr * steps >= 10
