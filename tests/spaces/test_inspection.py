"""What `htas inspect` says, beside what a scripted device and a small network make of it by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scripted_device import scripted_device
from torch import Tensor, nn

from htas.cli import main
from htas.console.terminal import show
from htas.graph import trace
from htas.metrics.latency import Latency
from htas.run.networks import inspect as inspect_network
from htas.spaces.inspection import Inspection, inspect
from htas.timing.target import Target

TARGET = Target(threads=1, batch=1, shapes=((3, 8, 8),))


IMAGES = torch.zeros(1, 3, 8, 8)


class Small(nn.Module):
    """Two convolutions, of which one cannot change, since what follows is not understood; two blocks of residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.Conv2d(32, 16, 1, bias=False)
        self.blocks = nn.Sequential(Block(), Block())
        self.last = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(torch.cumsum(self.two(self.one(images)), 1))
        return self.last(x.mean((2, 3)))


class Block(nn.Module):
    """A narrow convolution, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(16, 8, 1, bias=False), nn.Conv2d(8, 16, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


@pytest.fixture(scope="module")
def found() -> Iterator[Inspection]:
    with scripted_device():
        yield inspect(trace(Small(), torch.zeros(1, 3, 8, 8)), lambda seconds: Latency(TARGET), 0.1)


def us(outputs: int) -> float:
    """What the scripted device takes for a layer: the 25th percentile of its two readings."""
    return 1.0025e-6 * (1 + -(-outputs // 8))


def test_layers_have_their_latency_and_the_reason_why_they_cannot_change(found):
    convs = [own for own in found.layers if own.layer.op != "add"]
    named = [(own.name, own.site, own.frozen) for own in convs]
    assert named[:3] == [
        ("one", "one", ""),
        ("two", "", "cumsum, which reads it, depends on the order of its channels"),
        ("blocks.0.down", "blocks.0.down", ""),
    ]
    assert [own.seconds for own in convs[:3]] == pytest.approx([us(32), us(16), us(8)])
    assert found.sum == pytest.approx(sum(us(own.layer.outputs) for own in found.layers))
    assert found.network.params(found.network.base) == sum(parameter.numel() for parameter in Small().parameters())


def test_a_site_saves_what_its_layers_take_less(found):
    sites = {own.site.name: own for own in found.sites}
    assert (sites["one"].half, sites["one"].saved) == (16, pytest.approx(us(32) - us(16)))
    assert (sites["blocks"].half, sites["blocks"].saved) == (1, pytest.approx(us(8) + 2 * us(16)))  # and the add
    assert sites["blocks"].seconds == pytest.approx(2 * (us(8) + 2 * us(16)))
    assert [own.saved for own in found.sites] == sorted((own.saved for own in found.sites), reverse=True)


def test_the_page_says_what_stays_and_why(tmp_path):
    with scripted_device():
        path, lines = inspect_network(trace(Small(), torch.zeros(1, 3, 8, 8)), TARGET, "small <net>", tmp_path)
    page = path.read_text()
    assert "small &lt;net&gt;" in page and "cumsum, which reads it, depends on the order of its channels" in page
    free, bound = 3 * 9 * 32 * 64, 32 * 16 * 64 + 2 * 2 * 16 * 8 * 64 + 16 * 4 + 4
    share = 100 * free / (free + bound)
    assert (
        str(lines).splitlines()[1]
        == f"3 width sites and 1 depth site; {share:.1f} % of the multiply-adds can be searched"
    )
    assert str(lines).splitlines()[2] == "frozen, but for the classes: 4"
    assert str(lines).splitlines()[3].startswith("checked: at other widths it runs, and runs backward in training")


def test_the_command_inspects_a_named_network_and_a_configuration(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with scripted_device():
        assert main(["inspect", "cifar_resnet:8", "--threads", "1"]) == 0
        assert "runs/inspect-cifar_resnet-8/inspect.html" in capsys.readouterr().out
        (tmp_path / "own.toml").write_text('family.depth = 14\ntarget.threads = 1\ndata.name = "digits"\n')
        assert main(["inspect", "own.toml"]) == 0
        assert "runs/own/inspect.html" in capsys.readouterr().out


def test_the_command_inspects_a_network_of_two_inputs(tmp_path: Path, capsys, monkeypatch):
    (tmp_path / "two_inputs.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Both(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.last = nn.Conv2d(1, 16, 3), nn.Linear(16 + 5, 3)\n"
        "    def forward(self, image, known):\n"
        "        return self.last(torch.cat([self.conv(image).mean((2, 3)), known], 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with scripted_device():
        assert main(["inspect", "custom:two_inputs:Both", "--image", "1,8,8/5", "--threads", "1"]) == 0
        assert "1 width site and 0 depth sites; 100.0 % of the multiply-adds" in capsys.readouterr().out
        assert main(["measure", "custom:two_inputs:Both", "--image", "1,8,8/5", "--threads", "1", "--rounds", "1"]) == 0
        assert main(["inspect", "custom:two_inputs:Both", "--image", "1,8,8", "--threads", "1"]) == 2
    said = capsys.readouterr().err
    assert "Both does not run on an input of shape (4, 1, 8, 8)" in said and "Traceback" not in said


def test_the_page_states_the_order_in_which_blocks_are_dropped(tmp_path):
    with scripted_device():
        network = trace(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Sequential(Block(), Block(), Block())), IMAGES)
        page = inspect_network(network, TARGET, "three", tmp_path)[0].read_text()
    assert "1.2, then 1.1; 1.0 stays" in page


class Whole(nn.Module):
    """Nothing of it can change but what the classes need."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.cumsum(self.one(images), 1).mean((2, 3)))


@pytest.mark.parametrize("terminal", [False, True])
def test_the_terminal_names_what_stays_and_why(terminal, tmp_path, capsys, monkeypatch):
    for name in ("Whole", "Small"):
        with scripted_device():
            network = trace(globals()[name](), torch.zeros(1, 3, 8, 8))
            _, table = inspect_network(network, TARGET, name, tmp_path)
        monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
        show([table], {}, False)
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        assert (
            f"{'one' if name == 'Whole' else 'two'}: cumsum, which reads it, depends on the order of its channels"
            in lines
        )
        assert any("smaller" in line for line in lines) == (name == "Small")


def test_a_long_list_of_what_stays_is_cut_on_the_terminal(tmp_path):
    class Many(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            for layer in self:
                images = torch.cumsum(layer(images), 1)
            return images

    with scripted_device():
        network = trace(Many(*(nn.Conv2d(3, 3, 1) for _ in range(25))), torch.zeros(1, 3, 8, 8))
        path, table = inspect_network(network, TARGET, "many", tmp_path)
    assert str(table).splitlines()[-1] == f"and {len(network.frozen) - 20} more frozen parts, in the page"
    assert all(name in path.read_text() for name in network.frozen)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["cifar_resnet:8", "--image", "32"], "--image must be channels, height and width with commas between"),
        (["cifar_resnet:8", "--design.adds=project"], "--design.adds=project is for a configuration"),
        (["own.toml", "--batch", "1"], "a configuration says what its network and target are, so leave out --batch"),
        (["cifar_resnet:9"], "family.depth must be"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_one_sentence(given, said, capsys):
    assert main(["inspect", *given]) == 2
    assert said in capsys.readouterr().err
