"""Encoded images (PNG, JPEG, WebP): one by one, in the hub's parquet files, or in a folder per class."""

import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from htas.data.split import Images, Part, Shape
from htas.datasets import MOST_CLASSES, Dataset
from htas.errors import UserError
from htas.files import path_of
from htas.text import first_line

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
SHAPE: Shape = (3, 32, 32)
"""Of a CIFAR image."""
IMAGE = "img"
"""The column of CIFAR's parquet files with structs whose field `bytes` is an encoded image."""


@dataclass(frozen=True)
class CopiedDataset(Dataset):
    """A data set of which there are copies that encode its images in different ways; accuracies depend on these."""

    path: str = ""
    """A local copy; empty for the Hugging Face hub."""

    def __post_init__(self) -> None:
        path_of(self.path, "data.path")

    @property
    def encoding(self) -> str:
        """`PNG images, lossless`, `JPEG images of quality 95`: by the first training image of a folder.

        In words where there is no folder.
        """
        if not self.path:
            return "from the Hugging Face hub"
        place = path_of(self.path, "data.path")
        encoded = place.is_dir() and not any(place.rglob("*.bin"))
        first = next(_training_images(place), None) if encoded else None
        return "the publisher's binary files" if first is None else _encoding_of(first)


def _training_images(place: Path) -> Iterator[bytes]:
    for file in sorted(place.rglob("train-*.parquet")):
        from pyarrow import parquet

        (row,) = next(parquet.ParquetFile(file).iter_batches(batch_size=1)).to_pylist()
        yield next(value["bytes"] for value in row.values() if isinstance(value, dict))
    yield from (path.read_bytes() for path in sorted(place.glob("train/*/*")) if path.is_file())


def _encoding_of(content: bytes) -> str:
    from PIL import Image

    image = Image.open(BytesIO(content))
    if image.format == "WEBP":  # which may be either
        return f"WEBP images, {'lossless' if content[12:16] == b'VP8L' else 'which lose a little'}"
    if image.format != "JPEG":
        return f"{image.format} images, lossless"
    quality = _quality(image)
    return f"JPEG images{f' of quality {quality}' if quality else ''}, which lose a little"


def _quality(image: Any) -> int | None:
    """The quality that gives a JPEG's tables; None where none of 1 to 100 does."""
    from PIL import Image

    for quality in range(100, 0, -1):
        buffer = BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
        trial: Any = Image.open(buffer)
        if trial.quantization[0] == image.quantization[0]:
            return quality
    return None


def class_names(train: Path, test: Path) -> set[str]:
    """The class folders of both parts; raises UserError where a part, or one of its class folders, is missing."""
    for part in (train, test):
        if not part.is_dir():
            raise UserError(f"{part} is missing; give it one folder of images per class")
    train_names, test_names = ({each.name for each in _entries(part) if _is_folder(each)} for part in (train, test))
    for name in sorted(train_names ^ test_names):
        where = (test if name in train_names else train) / name
        raise UserError(f"{where} is missing; both parts must have the same class folders")
    return train_names


def labelled_files(folder: Path, names: Sequence[str]) -> list[tuple[str, int]]:
    """The paths of the images of all classes, sorted in each, and their labels, which follow `names`.

    Raises UserError where a class has none.
    """
    files: list[tuple[str, int]] = []
    for label, place in enumerate(folder / name for name in names):
        images = sorted(entry.path for entry in _entries(place) if entry.name.lower().endswith(SUFFIXES))
        if not images:
            raise UserError(f"{place} has no images ({', '.join(SUFFIXES)}); add some")
        files += [(image, label) for image in images]
    return files


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; raises UserError where it cannot be read."""
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); data.path must name folders of images") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder that is not hidden; a link to itself is none."""
    try:
        return entry.is_dir() and not entry.name.startswith(".")
    except OSError:
        return False


def read_pictures(folder: Path, part: Part, classes: int) -> Images:
    """The images of `part`/CLASS/*.png; labels follow the sorted names of the classes, numbers by their size."""
    names = class_names(folder / "train", folder / "test")
    if len(names) != classes:
        raise UserError(f"{folder / 'train'} has {len(names)} class folders, it must have {classes}")
    order = sorted(names, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    files = labelled_files(folder / part, order)
    images = _decoded((file, _content(file)) for file, _ in files)
    return Images(images, torch.tensor([label for _, label in files]))


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); replace it") from error


def read_parquet(folder: Path, part: Part, label: str) -> Images:
    """The images of one part in all its parquet files; `label` is the column of labels.

    Raises UserError that names the file at fault, or the one that is missing.
    """
    return Images.joined([_read_file(file, label) for file in _shards(folder, part)])


def read_table(table: "pyarrow.Table", label: str, where: str) -> Images:
    """The images of a table in memory; `where` names it in errors."""
    _check(table, label, where)
    listed = table[label].to_pylist()
    if listed and not max(map(abs, listed)) < MOST_CLASSES:
        raise UserError(f"column {label!r} of {where} holds {max(listed, key=abs)}, which is no label of a class")
    labels = torch.tensor(listed, dtype=torch.int64)
    encoded = table[IMAGE].combine_chunks().field("bytes").to_pylist()
    return Images(_decoded((f"row {row} of {where}", content) for row, content in enumerate(encoded)), labels)


def reason(error: Exception) -> str:
    """The first sentence of a library's message."""
    return first_line(error).split(". ")[0].rstrip(".")


def _shards(folder: Path, part: Part) -> list[Path]:
    """The parquet files of one part in order."""
    pattern = re.compile(rf"{part}-(\d{{5}})-of-(\d{{5}})(-[0-9a-f]+)?\.parquet")
    files = sorted(
        (int(match[2]), int(match[1]), file) for file in folder.iterdir() if (match := pattern.fullmatch(file.name))
    )
    if not files:
        raise UserError(f"{folder} has no {part}-00000-of-0000N.parquet; copy the {part} files of the data set there")
    total = files[-1][0]
    numbers = [number for announced, number, _ in files if announced == total]
    for number in range(total):
        if number not in numbers:
            raise UserError(f"{folder / f'{part}-{number:05}-of-{total:05}.parquet'} is missing; copy it there too")
    if len(files) != total:
        raise UserError(f"{folder} has {len(files)} files for the {total} {part} shards; remove those of another copy")
    return [file for *_, file in files]


def _read_file(file: Path, label: str) -> Images:
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(file)
        _check_memory(opened.metadata, str(file))
        table = opened.read()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} cannot be read as parquet ({reason(error)}); fetch it again") from error
    return read_table(table, label, where=str(file))


def _check_memory(metadata: Any, where: str) -> None:
    """Raise UserError where what a parquet file says of its rows does not fit into this machine's memory."""
    import psutil

    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    needed = sum(max(0, group.total_byte_size) for group in groups) + max(0, metadata.num_rows) * prod(SHAPE)
    if needed > (free := psutil.virtual_memory().available):
        raise UserError(
            f"{where} has {metadata.num_rows:,} rows, which take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB of "
            "memory are free; fetch it again, or free some"
        )


def _check(table: "pyarrow.Table", label: str, where: str) -> None:
    from pyarrow import types

    for name in (IMAGE, label):
        if name not in table.column_names:
            raise UserError(f"{where} has no column {name!r}, only {', '.join(table.column_names)}")
        if table[name].null_count:
            raise UserError(f"column {name!r} of {where} has empty rows; fetch it again")
    if not types.is_integer(table.schema.field(label).type):
        raise UserError(f"column {label!r} of {where} must hold whole numbers")
    image = table.schema.field(IMAGE).type
    encoded = types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not encoded or not types.is_binary(image.field("bytes").type):
        raise UserError(f"column {IMAGE!r} of {where} must hold encoded images under 'bytes', it is {image}")


def _decoded(named: Iterable[tuple[str, bytes | None]]) -> Tensor:
    """uint8 [N, 3, 32, 32] of (name, encoded bytes); raises UserError that names an image that cannot be used."""
    channels, height, width = SHAPE
    pixels = bytearray().join(_pixels(name, content, (width, height)) for name, content in named)
    images = torch.frombuffer(pixels, dtype=torch.uint8) if pixels else torch.empty(0, dtype=torch.uint8)
    return images.view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()


def unreadable() -> tuple[type[Exception], ...]:
    """What Pillow raises for an image that cannot be decoded, or whose header asks for more pixels than any has."""
    from PIL import Image

    return (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def _pixels(name: str, content: bytes | None, size: tuple[int, int]) -> bytes:
    from PIL import Image

    try:
        image = Image.open(BytesIO(content or b""), formats=FORMATS)
        if image.size == size:
            return image.convert("RGB").tobytes()
    except unreadable() as error:
        raise UserError(f"{name} cannot be decoded as {' or '.join(FORMATS)} ({reason(error)}); replace it") from error
    raise UserError(f"{name} is {image.width}x{image.height} pixels, it must be {size[0]}x{size[1]}")
