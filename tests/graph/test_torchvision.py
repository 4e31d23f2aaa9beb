"""Every network of torchvision in benchmarks/networks.txt: traced, and right at other widths and depths."""

import pytest
from graph.library_networks import LISTED, check_listed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", LISTED["torchvision"])
def test_a_network_is_free_and_right_at_other_widths(name: str) -> None:
    check_listed(name)
