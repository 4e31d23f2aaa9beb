"""Encoded images (PNG, JPEG, WebP), one by one or in a folder per class."""

import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from htas.data.split import Images, Part, Shape
from htas.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
SHAPE: Shape = (3, 32, 32)
"""Of a CIFAR image."""


def decode(named: Iterable[tuple[str, bytes | None]]) -> Tensor:
    """uint8 [N, 3, 32, 32] of (name, encoded bytes); raises UserError that names an image that cannot be used."""
    channels, height, width = SHAPE
    pixels = bytearray().join(_pixels(name, content, (width, height)) for name, content in named)
    images = torch.frombuffer(pixels, dtype=torch.uint8) if pixels else torch.empty(0, dtype=torch.uint8)
    return images.view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()


def read_pictures(folder: Path, part: Part, classes: int) -> Images:
    """The images of `part`/CLASS/*.png; labels follow the sorted names of the classes."""
    names = _classes(folder, classes)
    files = [(file, label) for label, name in enumerate(names) for file in image_files(folder / part / name)]
    images = decode((file, Path(file).read_bytes()) for file, _ in files)
    return Images(images, torch.tensor([label for _, label in files], dtype=torch.int64))


def _pixels(name: str, content: bytes | None, size: tuple[int, int]) -> bytes:
    from PIL import Image

    try:
        image = Image.open(BytesIO(content or b""), formats=FORMATS)
        if image.size == size:
            return (image if image.mode == "RGB" else image.convert("RGB")).tobytes()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} cannot be decoded as {' or '.join(FORMATS)}; replace it") from error
    raise UserError(f"{name} is {image.width}x{image.height} pixels, it must be {size[0]}x{size[1]}")


def _classes(folder: Path, classes: int) -> list[str]:
    """The names of the class folders, which training and test share, in the order of their labels."""
    train, test = class_folders(folder / "train"), class_folders(folder / "test")
    if len(train) != classes:
        raise UserError(f"{folder / 'train'} has {len(train)} class folders, it must have {classes}")
    for name in sorted(train ^ test):
        where = folder / ("test" if name in train else "train") / name
        raise UserError(f"{where} is missing; training and test must have the same class folders")
    return sorted(train, key=lambda name: (int(name) if name.isdecimal() else -1, name))


def class_folders(folder: Path) -> set[str]:
    """The names of the folders of classes; raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; give it one folder of images per class")
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}


def image_files(folder: Path) -> list[str]:
    """The paths of the images of a class, sorted; raises UserError where there is none."""
    files = sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
    if not files:
        raise UserError(f"{folder} has no images ({', '.join(SUFFIXES)}); add some")
    return files
