"""CIFAR's original binary files: records of one or two label bytes and 3072 pixels, packed or unpacked."""

import hashlib
import tarfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from htas.data.split import Images, Part, Shape
from htas.errors import UserError


@dataclass(frozen=True)
class Archive:
    """One published archive of binary files."""

    file: str
    md5: str
    """As published with the archive."""
    folder: str
    """The folder inside."""
    train: tuple[str, ...]
    test: tuple[str, ...]
    train_images: int
    """In each training file."""
    test_images: int
    """In each test file."""
    label_bytes: int
    """At the head of a record; the last one is the class."""
    pickles: tuple[str, ...]
    """Names of the Python version of the same data: its archive, its folder, a file in it."""

    @property
    def files(self) -> tuple[str, ...]:
        """Every file with images."""
        return self.train + self.test


def read_archive(archive: Archive, file: Path, part: Part, shape: Shape) -> Images:
    """One part out of the packed archive; raises UserError where its checksum is another than the published one."""
    with file.open("rb") as packed:
        checksum = hashlib.file_digest(packed, "md5").hexdigest()
    if checksum != archive.md5:
        raise UserError(f"{file} has the MD5 checksum {checksum}, the published one is {archive.md5}; fetch it again")
    names = _names(archive, part)
    contents = _members(file, names)
    return _joined([_images(archive, contents[name], file / name, part, shape) for name in names])


def read_unpacked(archive: Archive, folder: Path, part: Part, shape: Shape) -> Images:
    """One part from the unpacked files; raises UserError where one is missing or of another size."""
    files = [folder / name for name in _names(archive, part)]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing; unpack {archive.file} there again")
    return _joined([_images(archive, file.read_bytes(), file, part, shape) for file in files])


def _names(archive: Archive, part: Part) -> tuple[str, ...]:
    return archive.train if part == "train" else archive.test


def _members(file: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """In one pass, as seeking backwards would unpack the archive again for each."""
    contents = {}
    with tarfile.open(file, "r|gz") as packed:
        for member in packed:
            name = Path(member.name).name
            if name in names and (content := packed.extractfile(member)):
                contents[name] = content.read()
    return contents


def _images(archive: Archive, content: bytes, where: Path, part: Part, shape: Shape) -> Images:
    record = archive.label_bytes + prod(shape)
    expected = record * (archive.train_images if part == "train" else archive.test_images)
    if len(content) != expected:
        raise UserError(f"{where} has {len(content)} bytes, it must have {expected}; unpack {archive.file} again")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
    labels = records[:, archive.label_bytes - 1].long()
    return Images(records[:, archive.label_bytes :].reshape(-1, *shape), labels)


def _joined(parts: list[Images]) -> Images:
    return Images(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
