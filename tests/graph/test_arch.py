"""Archs as keys of a mapping and as JSON."""

import json

from htas.files import from_json, to_json
from htas.graph.arch import Arch


def test_equal_archs_are_one_key_whatever_the_order_of_their_sites() -> None:
    one, two = Arch({"a": 1, "b": 2}, {"d": 3}), Arch({"b": 2, "a": 1}, {"d": 3})
    assert one == two
    assert {one: "x"}[two] == "x"
    assert one != Arch({"a": 1, "b": 2}, {"d": 2})


def test_an_arch_answers_for_widths_and_depths() -> None:
    arch = Arch({"a": 1}, {"d": 3})
    assert (arch["a"], arch["d"]) == (1, 3)


def test_an_arch_does_not_change_with_the_mapping_it_was_made_of() -> None:
    widths = {"a": 1}
    arch = Arch(widths)
    widths["a"] = 2
    assert arch["a"] == 1
    assert arch.depths == {}


def test_an_arch_reads_back_from_json() -> None:
    arch = Arch({"b": 2, "a": 1}, {"d": 3})
    assert from_json(json.loads(json.dumps(to_json(arch))), Arch, "it") == arch
