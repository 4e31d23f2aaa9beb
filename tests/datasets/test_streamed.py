"""Image folders and hub data sets: decoded as they are asked for, in this process and in others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripted_device import scripted_device
from torch import Generator, Tensor, nn

from htas.datasets import load
from htas.datasets._streamed import AREA, RATIO, SHORTER, _drawn
from htas.datasets.hub import Hub
from htas.datasets.image_folder import ImageFolder
from htas.errors import UserError
from htas.files import from_json, read_json
from htas.report.result import Result
from htas.run import config
from htas.run import stages as pipeline
from htas.run.run import open_run
from htas.training.recipe import Recipe
from htas.training.train import Training, evaluate

pytestmark = pytest.mark.timeout(180)  # whole runs

NAMES = ("blue", "green", "red")
SIZES = ((40, 30), (24, 24), (25, 61), (400, 300))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes by colour, of many sizes: twelve training and four validation images each."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(NAMES):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                wide, high = SIZES[number % len(SIZES)]
                pixels = rng.integers(0, 120, (high, wide, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 120
                suffix = "png" if number % 2 else "jpg"
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number:02}.{suffix}")
    return tmp_path


def folder_of(path: Path, **options: Any) -> ImageFolder:
    return ImageFolder(**{"path": str(path), "size": 16, "workers": 0, **options})


def all_of(source: Any, **options: Any) -> tuple[Tensor, Tensor]:
    found = list(source.batches(5, **options))
    return torch.cat([inputs for inputs, _ in found]), torch.cat([labels for _, labels in found])


def test_a_folder_is_read_class_by_class_and_divided_by_class(folder: Path) -> None:
    data = load(folder_of(folder), validation=0.25)
    assert (data.classes, data.shapes) == (3, ((3, 16, 16),))
    assert [len(part) for part in (data.train, data.weights, data.validation, data.test)] == [36, 27, 9, 12]
    images, labels = all_of(data.test)
    assert images.shape == (12, 3, 16, 16) and images.dtype == torch.float32
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    _, held = all_of(data.validation)
    assert held.bincount().tolist() == [3, 3, 3]


def test_what_is_not_augmented_is_the_middle_of_the_image_normalised(folder: Path) -> None:
    data = load(folder_of(folder))
    images, _ = all_of(data.test)
    path = folder / "val" / "blue" / "01.png"  # 24 x 24
    side = SHORTER * 24
    box = (12 - side / 2, 12 - side / 2, 12 + side / 2, 12 + side / 2)
    pixels = np.asarray(Image.open(path).resize((16, 16), Image.Resampling.BILINEAR, box=box)) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    torch.testing.assert_close(images[1].permute(1, 2, 0).double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_a_large_jpeg_decoded_at_a_part_of_its_size_is_nearly_the_whole_one(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 640), np.linspace(0, 255, 480))
    for part in ("train", "val"):
        (tmp_path / part / "one").mkdir(parents=True)
        pixels = np.stack([x, y, np.full_like(x, 128)], 2).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / part / "one" / "0.jpg", quality=95)
        Image.fromarray(pixels).save(tmp_path / part / "one" / "1.png")
    images, _ = all_of(load(folder_of(tmp_path), validation=0.5).test)
    assert float((images[0] - images[1]).abs().max()) < 0.1  # of a range of 4.4


def test_workers_decode_the_same_and_augment_by_the_seed(folder: Path) -> None:
    here, there = load(folder_of(folder)).train, load(folder_of(folder, workers=2)).train
    for one, other in zip(all_of(here, seed=3), all_of(there, seed=3), strict=True):
        assert torch.equal(one, other)
    drawn = [all_of(there, seed=seed, augment=True)[0] for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], all_of(there, seed=3)[0])
    draws = [
        torch.cat([labels for _, labels in there.draws(7, 9, generator=Generator().manual_seed(seed), augment=True)])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert len(draws[0]) == 63 and set(draws[0].tolist()) == {0, 1, 2}


def test_an_augmented_crop_lies_within_the_image_and_has_the_usual_shares() -> None:
    torch.manual_seed(0)
    shares, ratios = [], []
    for _ in range(2000):
        left, top, right, bottom = _drawn((200, 150))
        assert 0 <= left < right <= 200 + 1e-6 and 0 <= top < bottom <= 150 + 1e-6
        shares.append((right - left) * (bottom - top) / (200 * 150))
        ratios.append((right - left) / (bottom - top))
    assert min(shares) >= AREA[0] - 1e-6 and max(shares) <= AREA[1] and min(shares) < 0.1 and max(shares) > 0.9
    assert RATIO[0] - 1e-6 <= min(ratios) < 0.77 and 1.3 < max(ratios) <= RATIO[1] + 1e-6


@pytest.mark.slow
def test_a_network_learns_from_a_folder_by_workers(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = load(folder_of(folder, workers=2))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    recipe = Recipe(epochs=12, warmup=0, batch=9, lr=0.05, precision="fp32")
    place = {"device": "cpu", "checkpoint": tmp_path / "last.safetensors", "title": "own"}
    Training(model, data.train, recipe, seed=0, **place).run()
    assert evaluate(model, data.test, device="cpu", precision="fp32") == 1.0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_broken_is_named(folder: Path, workers: int) -> None:
    broken = folder / "val" / "green" / "02.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError) as caught:
        all_of(load(folder_of(folder, workers=workers)).test)
    assert str(caught.value).startswith(f"{broken} cannot be decoded (") and str(caught.value).endswith("; replace it")
    assert "\n" not in str(caught.value)
    # holds PyTorch's iterator in a cycle, and the garbage collector would wait 5 s for each of its workers
    caught.value.__context__.__traceback__ = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / "val").rename(path / "held"), "has no folder val or validation or test; it must have"),
        (lambda path: (path / "val" / "red").rename(path / "val" / "rot"), "val/red is missing; both parts must have"),
        (lambda path: [file.unlink() for file in (path / "train" / "red").iterdir()], "train/red has no images"),
    ],
)
def test_a_folder_that_lacks_something_says_what(folder: Path, change: Any, said: str) -> None:
    change(folder)
    with pytest.raises(UserError, match=said):
        load(folder_of(folder))


def test_options_of_a_folder_are_checked() -> None:
    with pytest.raises(ValueError, match=r"data\.size must be 1 or more, got 0"):
        ImageFolder(path="somewhere", size=0)
    with pytest.raises(ValueError, match=r"data\.workers must be -1 .* got -2"):
        ImageFolder(path="somewhere", workers=-2)
    with pytest.raises(UserError, match=r"data\.path must be the folder that has train/ and val/; it is empty"):
        load(ImageFolder())


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same images as parquet files, as the hub has them."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    place = tmp_path_factory.mktemp("hub")
    features = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=list(NAMES)))
    for part, called in (("train", "train"), ("val", "test")):
        files = [path for name in NAMES for path in sorted((folder / part / name).iterdir())]
        rows = {"picture": list(map(str, files)), "kind": [NAMES.index(path.parent.name) for path in files]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(place / f"{called}-00000-of-00001.parquet")
    return place


def hub_of(place: Path, **options: Any) -> Hub:
    own = {"path": str(place), "size": 16, "workers": 0, "test": "test", "image": "picture", "label": "kind"}
    return Hub(**{**own, **options})


def test_a_table_of_the_hub_is_the_folder_that_it_was_made_of(hub: Path, folder: Path) -> None:
    one, other = load(hub_of(hub, workers=2)), load(folder_of(folder))
    assert one.classes == 3
    for mine, theirs in zip((one.train, one.test), (other.train, other.test), strict=True):
        for own, wanted in zip(all_of(mine), all_of(theirs), strict=True):
            assert torch.equal(own, wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"test": "validation"}, r"has no split 'validation'; it has "),
        ({"image": "image"}, r"has no column 'image' \(data\.image\); it has picture, kind"),
        ({"label": "picture"}, r"column 'picture' must hold whole numbers"),
        ({"path": ""}, r"data\.path must be a data set's name on the hub, or a folder; it is empty"),
    ],
)
def test_what_the_hub_has_not_is_said(hub: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(hub_of(hub, **options))


@pytest.mark.slow
def test_a_whole_run_on_a_folder(folder: Path, tmp_path: Path) -> None:
    options = [
        "family.depth=8", "data.name=image_folder", f"data.path={folder}", "data.size=16", "data.workers=1",
        "target.threads=1", "survey.rounds=1", "survey.store=none", "survey.undecided=1", "design.groups=4",
        "design.spaces=hardware", "strategy.epochs=1", "strategy.batch=6", "strategy.precision=fp32", "train.epochs=2",
        "train.warmup=0", "train.rest=0", "train.batch=6", "train.precision=fp32", "constraints.macs=60%",
    ]  # fmt: skip
    with scripted_device():
        pipeline.run_all(open_run(config.load(None, options), tmp_path / "run"), "htas run")
    rows = [from_json(row, Result, "row") for row in read_json(tmp_path / "run" / "measure.json")["results"]]
    assert [row.name for row in rows][:2] == ["base", "hardware"]
    assert rows[1].macs <= 0.6 * rows[0].macs and rows[0].accuracy is not None
