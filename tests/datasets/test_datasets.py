"""Every data set keeps the contract, every layout is read, and every bad file gets its sentence."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import Generator, Tensor

from htas import datasets, plugins
from htas.data.split import Images, Part, Split, augmented, proportional
from htas.datasets import Dataset, load
from htas.datasets._cifar import Cifar
from htas.datasets.cifar10 import Cifar10
from htas.datasets.cifar100 import Cifar100
from htas.datasets.digits import Digits
from htas.errors import UserError
from htas.testing import DatasetContract
from htas.testing.plugin import check_options

CIFAR: dict[str, type[Cifar]] = {"cifar10": Cifar10, "cifar100": Cifar100}
SHAPE = (3, 32, 32)
PARTS: tuple[Part, Part] = ("train", "test")


# Small copies of CIFAR in each layout: two training images and one test image a class, pixels drawn at random.


def images(part: Part, classes: int) -> Images:
    """Labels run 0 1 2 ... 0 1 2 ..., the order in which the files hold them."""
    count = classes * (2 if part == "train" else 1)
    generator = Generator().manual_seed(count)
    pixels = torch.randint(256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % classes)


def encoded(image: Tensor, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, kind, **options)
    return file.getvalue()


def write_parquet(folder: Path, name: str, *, shards: int = 2, kind: str = "PNG") -> Path:
    source = CIFAR[name].source
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(PARTS, (shards, 1), strict=True):
        whole = images(part, CIFAR[name].classes)
        for number, picks in enumerate(torch.arange(len(whole)).chunk(count)):
            rows = [{"bytes": encoded(whole.images[pick], kind), "path": None} for pick in picks]
            kinds = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
            columns = {"img": pyarrow.array(rows, kinds), source.label: whole.labels[picks].numpy()}
            parquet.write_table(pyarrow.table(columns), folder / f"{part}-{number:05}-of-{count:05}.parquet")
    return folder


def write_bins(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The original files, but short: the expected number of images is made to fit."""
    archive = CIFAR[name].source
    folder.mkdir(parents=True, exist_ok=True)
    for part, files in zip(PARTS, (archive.train, archive.test), strict=True):
        whole = images(part, CIFAR[name].classes)
        for file, picks in zip(files, torch.arange(len(whole)).chunk(len(files)), strict=True):
            coarse = torch.full((len(picks), archive.label_bytes - 1), 7)
            labels = torch.cat([coarse, whole.labels[picks, None]], 1).to(torch.uint8)
            (folder / file).write_bytes(torch.cat([labels, whole.images[picks].flatten(1)], 1).numpy().tobytes())
    expect(name, monkeypatch, train_images=2 * CIFAR[name].classes, test_images=CIFAR[name].classes)
    return folder


def write_archive(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files packed as published, with the expected checksum made to fit."""
    bins = write_bins(folder / "unpacked", name, monkeypatch)
    archive = CIFAR[name].source
    packed = folder / archive.file
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(bins, archive.folder)
    expect(name, monkeypatch, md5=hashlib.md5(packed.read_bytes()).hexdigest())
    return packed


def write_pictures(folder: Path, name: str) -> Path:
    classes = CIFAR[name].classes
    for part in PARTS:
        whole = images(part, classes)
        for number, (image, label) in enumerate(zip(whole.images, whole.labels, strict=True)):
            place = folder / part / f"class{label:03}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:04}.png").write_bytes(encoded(image))
    return folder


def expect(name: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    source = CIFAR[name].source
    monkeypatch.setattr(CIFAR[name], "source", replace(source, **changes))


def equal(one: Images, two: Images) -> bool:
    return torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)


@dataclass(frozen=True)
class Planted(Dataset):
    """Images whose pixels say where they are, or whatever a test plants."""

    classes: int = 3
    train: Images | None = None
    test: Images | None = None

    shapes = ((1, 4, 4),)
    mean = (0.5,)
    std = (0.25,)
    flip = True
    crop = 1

    def read(self, part: Part) -> Images:
        planted = self.train if part == "train" else self.test
        if planted is not None:
            return planted
        count, start = (60, 0) if part == "train" else (30, 100)
        numbers = torch.arange(start, start + count).to(torch.uint8)
        return Images(numbers.view(-1, 1, 1, 1).repeat(1, 1, 4, 4), torch.arange(count) % self.classes)


def numbers(split: Split) -> list[int]:
    """Which of the planted images are here, in order."""
    return split.images[:, 0, 0, 0].tolist()


def split_of(count: int, *, flip: bool = True, crop: int = 1) -> Split:
    """One image of ever different pixels, `count` times over."""
    image = torch.arange(1, 3 * 4 * 5 + 1, dtype=torch.uint8).view(1, 3, 4, 5).repeat(count, 1, 1, 1)
    return Split(image, torch.arange(count), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), flip, crop)


# The contract


STREAMED = ("hub", "image_folder")  # tests/test_streamed.py


class TestEveryDataset(DatasetContract):
    """All files of the folder that keep their images in memory, on a small folder where one is needed."""

    @pytest.fixture(params=[name for name in plugins.names(datasets) if name not in STREAMED])
    def plugin(self, request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
        kind: Callable[..., Dataset] = plugins.find(datasets, Dataset, request.param)
        return kind(path=str(write_parquet(tmp_path, request.param))) if request.param in CIFAR else kind()


@pytest.mark.parametrize("name", STREAMED)
def test_a_streamed_data_set_documents_its_options(name: str) -> None:
    check_options(plugins.find(datasets, Dataset, name), Dataset)


def test_a_data_set_from_elsewhere_is_named_as_it_is_configured() -> None:
    assert Planted().name == f"{__name__}:Planted"


# load


def test_weights_and_validation_divide_the_training_part_class_by_class() -> None:
    data = load(Planted(), validation=0.25)
    assert numbers(data.train) == list(range(60))
    assert sorted(numbers(data.weights) + numbers(data.validation)) == list(range(60))
    assert data.weights.labels.bincount().tolist() == [15, 15, 15]
    assert data.validation.labels.bincount().tolist() == [5, 5, 5]


def test_labels_stay_with_their_images() -> None:
    data = load(Planted(), limit=20)
    for split in (data.train, data.weights, data.validation):
        assert [number % 3 for number in numbers(split)] == split.labels.tolist()


def test_no_test_image_gets_into_any_other_split() -> None:
    data = load(Planted())
    assert numbers(data.test) == list(range(100, 130))
    assert max(numbers(data.train)) < 100


def test_the_seed_decides_the_division_and_nothing_else_does() -> None:
    one, same, other = (load(Planted(), seed=seed) for seed in (1, 1, 2))
    assert numbers(one.validation) == numbers(same.validation) != numbers(other.validation)
    assert numbers(one.train) == numbers(other.train) and numbers(one.test) == numbers(other.test)


def test_a_limit_keeps_the_same_few_of_every_class() -> None:
    one, other = load(Planted(), limit=12, seed=1), load(Planted(), limit=12, seed=2)
    assert one.train.labels.bincount().tolist() == one.test.labels.bincount().tolist() == [4, 4, 4]
    assert numbers(one.train) == numbers(other.train)
    assert len(load(Planted(), limit=1000).train) == 60


def test_a_share_is_exact_and_within_one_in_each_class() -> None:
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 11)[torch.randperm(23, generator=Generator().manual_seed(3))]
    for count in range(24):
        chosen = proportional(labels, count, seed=count)
        assert chosen.sum() == count
        for label, size in enumerate((7, 5, 11)):
            assert abs(chosen[labels == label].sum().item() - size * count / 23) < 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation": 0.0}, "between 0 and 1, got 0.0"),
        ({"validation": 1.0}, "between 0 and 1, got 1.0"),
        ({"validation": 0.001}, "leaves one side empty"),
        ({"limit": 1}, "leaves one side empty"),
        ({"limit": -1}, "0 (all images) or more, got -1"),
    ],
)
def test_an_option_of_load_that_cannot_be_met_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(Planted(), **options)
    assert sentence in str(caught.value)


BLACK = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (BLACK.float(), torch.arange(3), "must be uint8 [1, 4, 4], they are float32 [1, 4, 4]"),
        (BLACK[..., :3], torch.arange(3), "must be uint8 [1, 4, 4], they are uint8 [1, 4, 3]"),
        (BLACK, torch.arange(2), "must have one int64 label for each of 3 images, it has int64 [2]"),
        (BLACK, torch.arange(3).float(), "it has float32 [3]"),
        (BLACK, torch.arange(1, 4), "must lie in 0 to 2, they are 1 to 3"),
        (BLACK, torch.arange(-1, 2), "must lie in 0 to 2, they are -1 to 1"),
        (BLACK, torch.tensor([0, 1, 1]), "has images of 2 classes only, it must have 3"),
        (BLACK[:0], torch.arange(0), "has no images"),
    ],
)
def test_what_a_data_set_reads_is_checked(images: Tensor, labels: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(Planted(train=Images(images, labels)))
    assert sentence in str(caught.value)
    assert "the train part of" in str(caught.value)


# Batches


def test_batches_without_a_seed_are_every_image_in_order_normalised() -> None:
    split = load(Planted()).test
    batches = list(split.batches(8))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 6]
    assert torch.cat([labels for _, labels in batches]).tolist() == split.labels.tolist()
    expected = (split.images.double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(torch.cat([batch for batch, _ in batches]), expected.float())


def test_every_channel_is_normalised_by_its_own_figures() -> None:
    split = split_of(2)
    batch, _ = next(split.batches(2))
    for channel, (mean, std) in enumerate(zip(split.mean, split.std, strict=True)):
        expected = (split.images[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(batch[:, channel], expected.float())


def test_drop_last_leaves_out_the_short_batch_only() -> None:
    split = load(Planted()).test
    assert [len(labels) for _, labels in split.batches(8, drop_last=True)] == [8, 8, 8]
    assert [len(labels) for _, labels in split.batches(10, drop_last=True)] == [10, 10, 10]
    assert [len(labels) for _, labels in split.batches(30, drop_last=True)] == [30]


def test_the_seed_decides_the_order_of_the_batches() -> None:
    def order(seed: int) -> list[int]:
        return torch.cat([labels for _, labels in split_of(50).batches(7, seed=seed)]).tolist()

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(50)) != order(1)


def test_the_seed_decides_the_augmentation() -> None:
    def batch(seed: int) -> Tensor:
        return next(split_of(50).batches(50, seed=seed, augment=True))[0]

    assert torch.equal(batch(1), batch(1))
    assert not torch.equal(batch(1), batch(2))


def test_augmentation_does_not_change_the_stored_images() -> None:
    split = split_of(10)
    before = split.images.clone()
    list(split.batches(5, seed=0, augment=True))
    assert torch.equal(split.images, before)


def test_channels_last_changes_the_layout_only() -> None:
    split = split_of(6)
    for augment in (False, True):
        plain, _ = next(split.batches(6, seed=0, augment=augment))
        last, _ = next(split.batches(6, seed=0, augment=augment, channels_last=True))
        assert torch.equal(plain, last)
        assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)


def windows(image: Tensor, crop: int, flip: bool) -> list[Tensor]:
    """Every outcome of the augmentation of one image, by plain loops."""
    channels, height, width = image.shape
    canvas = torch.zeros(channels, height + 2 * crop, width + 2 * crop, dtype=image.dtype)
    canvas[:, crop : crop + height, crop : crop + width] = image
    places = [(top, left) for top in range(2 * crop + 1) for left in range(2 * crop + 1)]
    cut = [canvas[:, top : top + height, left : left + width] for top, left in places]
    return cut + [one.flip(2) for one in cut] if flip else cut


@pytest.mark.parametrize("crop", [0, 1, 2])
@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_gives_every_crop_and_mirroring_and_no_other_image(crop: int, flip: bool) -> None:
    split = split_of(2000)
    possible = torch.stack(windows(split.images[0], crop, flip))
    drawn = augmented(split.images, crop=crop, flip=flip, generator=Generator().manual_seed(0))
    matches = (drawn[:, None] == possible).flatten(2).all(2)
    assert matches.sum(1).tolist() == [1] * 2000
    assert (matches.sum(0) > 2000 / len(possible) / 2).all()


def test_augmentation_treats_each_image_by_its_own_draw() -> None:
    images = torch.randint(256, (20, 3, 6, 5), dtype=torch.uint8, generator=Generator().manual_seed(5))
    drawn = augmented(images, crop=2, flip=True, generator=Generator().manual_seed(7))
    again = Generator().manual_seed(7)
    tops, lefts = torch.randint(5, (2, 20), generator=again)
    mirrored = torch.rand(20, generator=again) < 0.5
    for number, image in enumerate(images):
        place = int(tops[number] * 5 + lefts[number]) + 25 * int(mirrored[number])
        assert torch.equal(drawn[number], windows(image, 2, True)[place])


def test_padding_is_black_before_normalising() -> None:
    split = Split(torch.full((40, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(40).long(), (0.5,), (0.25,), False, 1)
    batch, _ = next(split.batches(40, seed=0, augment=True))
    assert sorted(set(batch.flatten().tolist())) == [-2.0, 2.0]


def test_a_sample_is_drawn_with_replacement_and_keeps_its_labels() -> None:
    split = load(Planted()).train
    batch, labels = next(split.draws(600, 1, generator=Generator().manual_seed(0)))
    drawn = ((batch[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().long()
    assert torch.equal(drawn % 3, labels)
    assert set(drawn.tolist()) == set(range(60))


def test_a_sample_follows_its_generator_alone() -> None:
    def drawn(seed: int) -> Tensor:
        return next(split_of(30).draws(10, 1, generator=Generator().manual_seed(seed), augment=True))[0]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize(
    ("size", "options", "sentence"),
    [
        (0, {}, "at least 1 image, got 0"),
        (2, {"augment": True}, "need a seed"),
        (11, {"drop_last": True}, "a full batch of 11 cannot be made of 10 images"),
    ],
)
def test_batches_that_cannot_be_made_are_refused_at_once(size: int, options: dict[str, bool], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        split_of(10).batches(size, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_draws_the_same() -> None:
    here, there = load(Planted()).train, load(Planted(), device="cuda").train
    for one, other in zip(here.batches(16, seed=3, augment=True), there.batches(16, seed=3, augment=True), strict=True):
        assert torch.equal(one[1], other[1].cpu())
        torch.testing.assert_close(one[0], other[0].cpu())


# digits


def test_digits_are_enlarged_bilinearly() -> None:
    from sklearn.datasets import load_digits

    small = load_digits().images
    at = (np.arange(32) + 0.5) / 4 - 0.5
    wide = np.stack([np.stack([np.interp(at, np.arange(8), row) for row in image]) for image in small[:5]])
    large = np.stack([np.stack([np.interp(at, np.arange(8), line) for line in image.T]).T for image in wide])
    expected = torch.from_numpy(large * 255 / 16)
    both = torch.cat([Digits().read("train").images, Digits().read("test").images])
    assert torch.equal(both[:, :1].expand(-1, 3, -1, -1), both)
    for image in expected:
        assert (both[:, 0] - image).abs().amax((1, 2)).min() < 0.51


def test_digits_divide_into_four_fifths_and_one_fifth_of_every_class() -> None:
    from sklearn.datasets import load_digits

    train, test = Digits().read("train"), Digits().read("test")
    whole = torch.from_numpy(load_digits().target).bincount()
    assert (len(train), len(test)) == (1438, 359)
    assert torch.equal(train.labels.bincount() + test.labels.bincount(), whole)
    assert ((test.labels.bincount() - whole * 359 / 1797).abs() < 1).all()


def test_the_figures_of_digits_are_those_of_its_training_part() -> None:
    pixels = Digits().read("train").images.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(Digits.mean, abs=5e-5)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(Digits.std, abs=5e-5)


# CIFAR: every layout gives the same tensors


@pytest.fixture(params=sorted(CIFAR))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def cifar(name: str, path: Path | str) -> Dataset:
    return (Cifar10 if name == "cifar10" else Cifar100)(path=str(path))


def reads_as_written(name: str, path: Path) -> bool:
    classes = CIFAR[name].classes
    return all(equal(cifar(name, path).read(part), images(part, classes)) for part in PARTS)


@pytest.mark.parametrize("under", ["", "data", "plain_text", "cifar100"])
def test_parquet_files_are_found_where_the_hub_keeps_them(tmp_path: Path, under: str) -> None:
    write_parquet(tmp_path / under, "cifar100")
    assert reads_as_written("cifar100", tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_parquet_shards_are_joined_in_order(tmp_path: Path, name: str, kind: str) -> None:
    assert reads_as_written(name, write_parquet(tmp_path, name, shards=3, kind=kind))


def test_jpeg_images_are_decoded(tmp_path: Path) -> None:
    grey = torch.full((20, *SHAPE), 128, dtype=torch.uint8)
    rows = [{"bytes": encoded(image, "JPEG"), "path": None} for image in grey]
    table = pyarrow.table({"img": rows, "label": list(range(10)) * 2})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    assert torch.equal(cifar("cifar10", tmp_path).read("train").images, grey)


def test_an_unpacked_archive_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bins(tmp_path / CIFAR[name].source.folder, name, monkeypatch)
    assert reads_as_written(name, folder)
    assert reads_as_written(name, tmp_path)


def test_a_packed_archive_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = write_archive(tmp_path, name, monkeypatch)
    assert reads_as_written(name, packed)
    assert reads_as_written(name, tmp_path)


def test_a_folder_of_images_per_class_is_read_in_the_order_of_the_names(tmp_path: Path, name: str) -> None:
    read = cifar(name, write_pictures(tmp_path, name)).read("train")
    written = images("train", CIFAR[name].classes)
    order = written.labels.argsort(stable=True)
    assert equal(read, Images(written.images[order], written.labels[order]))


def test_class_folders_with_numbers_for_names_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    write_pictures(tmp_path, "cifar100")
    for folder in tmp_path.glob("*/class*"):
        folder.rename(folder.with_name(str(int(folder.name[5:]))))
    assert equal(cifar("cifar100", tmp_path).read("test"), images("test", 100))


def test_grey_pictures_become_three_equal_channels(tmp_path: Path) -> None:
    file = next(write_pictures(tmp_path, "cifar10").glob("test/class000/*"))
    Image.new("L", (32, 32), 77).save(file)
    assert cifar("cifar10", tmp_path).read("test").images[0].unique().tolist() == [77]


def test_the_hub_is_asked_for_what_it_calls_the_data_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets as hub

    source = CIFAR[name].source

    def load_dataset(path: str, split: Part) -> hub.Dataset:
        assert path == f"uoft-cs/{name}"
        whole = images(split, CIFAR[name].classes)
        pictures = [{"bytes": encoded(image), "path": None} for image in whole.images]
        columns = {"img": pictures, source.label: whole.labels.tolist()}
        return hub.Dataset.from_dict(columns).cast_column("img", hub.Image())

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    for part in PARTS:
        assert equal(cifar(name, "").read(part), images(part, CIFAR[name].classes))


def test_the_published_checksums_are_the_ones_expected() -> None:
    assert Cifar10.source.md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert Cifar100.source.md5 == "03b5dce01913d631647c71ecec9e9cb8"


# CIFAR: every bad file gets one sentence that names it


def refused(path: Path | str, *words: str, name: str = "cifar10", part: Part = "train") -> None:
    with pytest.raises(UserError) as caught:
        cifar(name, path).read(part)
    message = str(caught.value)
    assert "\n" not in message and ". " not in message
    for word in words:
        assert word in message


def test_a_hub_out_of_reach_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets as hub

    def load_dataset(path: str, split: str) -> None:
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub.\nSee above.")

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    refused("", "uoft-cs/cifar10", "Couldn't reach", "--data.path")


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere does not exist", "train-*.parquet", "cifar-10-binary.tar.gz", "CLASS/*.png")


def test_a_folder_of_no_known_layout_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path), "no images in a layout that is known")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar.zip").touch()
    refused(tmp_path / "cifar.zip", "cifar.zip is neither a folder nor cifar-10-binary.tar.gz")


@pytest.mark.parametrize("file", ["cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta"])
def test_pickles_are_refused_in_favour_of_the_binary_archive(tmp_path: Path, file: str) -> None:
    (tmp_path / file).touch()
    refused(tmp_path, file, "pickles", "use cifar-10-binary.tar.gz")
    refused(tmp_path / file, file, "pickles", "use cifar-10-binary.tar.gz")


@pytest.mark.parametrize("missing", ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"])
def test_a_missing_shard_is_named(tmp_path: Path, missing: str) -> None:
    write_parquet(tmp_path, "cifar10", shards=3)
    (tmp_path / missing).unlink()
    refused(tmp_path, f"{missing} is missing")


def test_a_part_without_shards_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path, "cifar10")
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    refused(tmp_path, "has no test-00000-of-0000N.parquet", part="test")


def test_shards_of_two_copies_are_not_mixed(tmp_path: Path) -> None:
    write_parquet(tmp_path, "cifar10", shards=1)
    write_parquet(tmp_path, "cifar10", shards=2)
    refused(tmp_path, "3 files for the 2 train shards")


@pytest.mark.parametrize("left", [0, 3, 1000, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, left: int) -> None:
    file = write_parquet(tmp_path, "cifar10") / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:left])
    refused(tmp_path, "train-00001-of-00002.parquet cannot be read as parquet")


def test_a_shard_damaged_inside_is_named(tmp_path: Path) -> None:
    file = write_parquet(tmp_path, "cifar10") / "train-00000-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[4:40] = bytes(36)
    file.write_bytes(content)
    refused(tmp_path, "train-00000-of-00002.parquet")


def test_the_other_cifar_is_refused(tmp_path: Path) -> None:
    refused(write_parquet(tmp_path, "cifar100"), "has no column 'label', only img, fine_label")


PICTURE = {"bytes": encoded(torch.zeros(*SHAPE, dtype=torch.uint8)), "path": None}
SMALL = {"bytes": encoded(torch.zeros(3, 28, 30, dtype=torch.uint8)), "path": None}
CUT = {"bytes": encoded(torch.zeros(*SHAPE, dtype=torch.uint8))[:60], "path": None}


@pytest.mark.parametrize(
    ("img", "label", "sentence"),
    [
        ([PICTURE, SMALL], [0, 1], "row 1 of"),
        ([PICTURE, SMALL], [0, 1], "is 30x28 pixels, it must be 32x32"),
        ([PICTURE, CUT], [0, 1], "row 1 of"),
        ([PICTURE, {"bytes": b"GIF89a", "path": None}], [0, 1], "cannot be decoded as PNG or JPEG or WEBP"),
        ([PICTURE, {"bytes": None, "path": "a.png"}], [0, 1], "cannot be decoded"),
        ([PICTURE, None], [0, 1], "column 'img' of"),
        (["a.png", "b.png"], [0, 1], "must hold encoded images under 'bytes', it is string"),
        ([PICTURE, PICTURE], [0, None], "column 'label' of"),
        ([PICTURE, PICTURE], [0.0, 1.0], "must hold whole numbers"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, img: list[Any], label: list[Any], sentence: str) -> None:
    file = tmp_path / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.table({"img": img, "label": label}), file)
    refused(tmp_path, sentence, str(file))


def test_an_archive_of_another_checksum_is_refused(tmp_path: Path, name: str) -> None:
    archive = CIFAR[name].source
    (tmp_path / archive.file).write_bytes(b"half an archive")
    found = hashlib.md5(b"half an archive").hexdigest()
    refused(tmp_path, archive.file, found, archive.md5, "fetch it again", name=name)


def test_a_missing_bin_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bins(tmp_path, "cifar10", monkeypatch)
    (tmp_path / "data_batch_3.bin").unlink()
    refused(tmp_path, "data_batch_3.bin is missing", "cifar-10-binary.tar.gz")


def test_a_truncated_bin_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_bins(tmp_path, "cifar10", monkeypatch) / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-3073])
    refused(tmp_path, "data_batch_3.bin has 9219 bytes, it must have 12292")


def test_too_few_class_folders_are_counted(tmp_path: Path) -> None:
    refused(write_pictures(tmp_path, "cifar10"), "train has 10 class folders, it must have 100", name="cifar100")


def test_a_class_without_a_folder_is_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, "cifar10") / "test" / "class004"
    folder.rename(folder.with_name("typo"))
    refused(tmp_path, "test/class004 is missing")


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    next((write_pictures(tmp_path, "cifar10") / "test" / "class004").iterdir()).unlink()
    refused(tmp_path, "test/class004 has no images", part="test")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, "cifar10")
    (tmp_path / "test").rename(tmp_path / "tests")
    refused(tmp_path, "test is missing")


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    file = next(write_pictures(tmp_path, "cifar10").glob("train/class007/*"))
    file.write_bytes(file.read_bytes()[:100])
    refused(tmp_path, f"{file} cannot be decoded")


# The real thing


@pytest.fixture(scope="module", params=sorted(CIFAR))
def real(request: pytest.FixtureRequest) -> Dataset:
    root = Path(os.environ.get("HTAS_DATA", "data"))
    if not (root / request.param).is_dir():
        pytest.skip(f"no {root / request.param}; name a folder that has it in HTAS_DATA")
    return cifar(request.param, root / request.param)


@pytest.mark.slow
@pytest.mark.data
def test_real_cifar_has_the_published_size_and_figures(real: Dataset) -> None:
    assert real.encoding.endswith(("images, lossless", "which lose a little", "binary files"))
    data = load(real, validation=0.5)
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert set(data.train.labels.bincount().tolist()) == {50_000 // real.classes}
    assert set(data.test.labels.bincount().tolist()) == {10_000 // real.classes}
    assert set(data.validation.labels.bincount().tolist()) == {25_000 // real.classes}
    pixels = data.train.images.transpose(0, 1).flatten(1)
    for channel, (mean, std) in enumerate(zip(real.mean, real.std, strict=True)):
        values = pixels[channel].double()
        assert values.mean().item() == pytest.approx(mean * 255, abs=0.05)
        assert values.std().item() == pytest.approx(std * 255, abs=0.06)


@pytest.mark.parametrize(
    ("suffix", "options", "said"),
    [
        ("png", {}, "PNG images, lossless"),
        ("jpg", {"quality": 95}, "JPEG images of quality 95, which lose a little"),
        ("jpg", {"quality": 60}, "JPEG images of quality 60, which lose a little"),
        ("webp", {"lossless": True}, "WEBP images, lossless"),
        ("webp", {"quality": 80}, "WEBP images, which lose a little"),
    ],
)
def test_an_accuracy_says_how_its_images_were_kept(
    suffix: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    place = tmp_path / "train" / "cat"
    place.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / f"0.{suffix}", **options)
    assert Cifar10(path=str(tmp_path)).encoding == said


def test_images_of_the_publisher_and_of_the_hub_are_called_so(tmp_path: Path) -> None:
    assert Cifar10().encoding == "from the Hugging Face hub"
    (tmp_path / "data_batch_1.bin").write_bytes(b"")
    assert Cifar10(path=str(tmp_path)).encoding == "the publisher's binary files"


@pytest.mark.parametrize("name", sorted(CIFAR))
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("PNG", "PNG images, lossless"),
        ("WEBP", "WEBP images, lossless"),
        ("JPEG", "JPEG images of quality 75, which lose a little"),
    ],
)
def test_the_encoding_of_a_parquet_copy_is_that_of_its_images(name: str, kind: str, said: str, tmp_path: Path) -> None:
    assert cifar(name, write_parquet(tmp_path, name, kind=kind)).encoding == said
