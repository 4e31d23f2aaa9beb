"""What a report calls networks and spaces: as people would, not as a configuration spells them."""

from collections.abc import Mapping

from htas.report.result import Report, Result
from htas.text import NONE

FAMILIES = {"cifar_resnet": "ResNet", "imagenet_resnet": "ResNet", "mobilenet_v2": "MobileNetV2", "vgg": "VGG"}
SPACES = {
    "hardware": "measured widths",
    "tas": "TAS's widths",
    "grid": "evenly spaced widths",
    "explicit": "listed widths",
}


def is_searched(result: Result) -> bool:
    """Whether a search produced the network."""
    return result.space not in ("", "-", NONE, "none")


def family_name(family: str) -> str:
    """`ResNet-20` for `cifar_resnet:20`; a class of the user's has its own name; unknown families stay as they are."""
    kind, _, size = family.partition(":")
    size, _, variant = size.partition(":")
    if kind in ("given", "custom"):  # given:CLASS:DIGEST, custom:MODULE:FUNCTION
        return size if kind == "given" else family.removeprefix("custom:")
    if kind not in FAMILIES:
        return family
    if kind == "mobilenet_v2":
        return FAMILIES[kind] if size == "100" else f"{FAMILIES[kind]} at {size} % of its widths"
    return f"{FAMILIES[kind]}-{size}" + (f" ({variant})" if variant else "")


def report_title(report: Report) -> str:
    """The title of the page, with the families of its networks as people call them."""
    title = report.title
    for family in {result.family for result in report.results}:
        title = title.replace(family, family_name(family))
    return title


def space_name(space: str) -> str:
    """`TAS's widths` for `tas`; others stay as they are."""
    return SPACES.get(space, space)


def search_name(space: str) -> str:
    """`search among TAS's widths`; in a sweep, whose searches have budgets, `search for 60%`."""
    return f"search among {SPACES[space]}" if space in SPACES else f"search for {space}"


def network_names(report: Report) -> Mapping[str, str]:
    """By the name of each result what a sentence calls that network, such as `the searched network` or `ResNet-8`."""
    several = sum(map(is_searched, report.results)) > 1
    return {result.name: _network_name(result, several) for result in report.results}


def _network_name(result: Result, several: bool) -> str:
    family = family_name(result.family)
    kind, _, rest = result.name.partition(" ")
    if result.name == "base":
        return family
    if is_searched(result):
        return f"the searched network ({SPACES.get(result.name, result.name)})" if several else "the searched network"
    if kind == result.strategy == "uniform":
        return f"{family} with all widths {rest}"
    if kind == result.strategy == "stage":
        size, _, share = rest.partition(" ")
        return f"{family} with its layers at {size} narrowed {share}"
    if kind == result.strategy == "plain":
        member, space, blocks = rest.partition(" ")  # of a user's class: given:CLASS:DIGEST with 1, 1 blocks a stage
        return f"{family_name(member)}{space}{blocks}"
    return result.name


def row_names(report: Report) -> Mapping[str, str]:
    """What the first column of a table calls each network: its name in a sentence, without the article."""
    return {name: label.removeprefix("the ") for name, label in network_names(report).items()}


def at_the_start(sentence: str) -> str:
    """The sentence with a capital letter, where it starts with an article."""
    return f"T{sentence[1:]}" if sentence.startswith("the ") else sentence
