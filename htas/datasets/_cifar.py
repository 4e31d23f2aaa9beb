"""CIFAR's images: from the hub, or from a folder in one of the three layouts they are passed around in.

The publisher's binary files hold records of one or two label bytes and 3072 pixels, packed or unpacked.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar

import torch

from htas.data.split import Images, Part, Shape
from htas.datasets._encoded import IMAGE, SHAPE, CopiedDataset, read_parquet, read_pictures, read_table, reason
from htas.errors import UserError
from htas.files import path_of

HUB_FOLDERS = ("data", "plain_text", "cifar100")
"""Where the hub keeps the parquet files of these data sets."""


@dataclass(frozen=True)
class CifarSource:
    """The names of one CIFAR data set in each place."""

    hub: str
    """Its name on the hub."""
    label: str
    """Their column of labels."""
    file: str
    """The publisher's archive of binary files."""
    md5: str
    """As published with the archive."""
    folder: str
    """The folder inside."""
    train: tuple[str, ...]
    """Its files with training images, equally many in each."""
    test: tuple[str, ...]
    label_bytes: int
    """At the head of a record; the last one is the class."""
    pickles: tuple[str, ...]
    """Names of the Python version of the same data: its archive, its folder, a file in it."""
    train_images: int = 50_000
    test_images: int = 10_000

    def read(self, place: Path, part: Part) -> Images:
        """One part out of the publisher's archive, or of a folder with the unpacked files.

        Raises UserError where a file is missing or has another size, and for an archive of another checksum than the
        published one.
        """
        names, count = (self.train, self.train_images) if part == "train" else (self.test, self.test_images)
        contents = self._unpacked(place, names) if place.is_dir() else self._packed(place, names)
        record = self.label_bytes + prod(SHAPE)
        expected = record * (count // len(names))
        for name, content in contents.items():
            if len(content) != expected:
                raise UserError(
                    f"{place / name} has {len(content)} bytes, it must have {expected}; unpack {self.file} again"
                )
        whole = bytearray().join(contents[name] for name in names)
        records = torch.frombuffer(whole, dtype=torch.uint8).view(-1, record)
        return Images(records[:, self.label_bytes :].reshape(-1, *SHAPE), records[:, self.label_bytes - 1].long())

    def _packed(self, file: Path, names: Sequence[str]) -> dict[str, bytes]:
        with file.open("rb") as archive:
            checksum = hashlib.file_digest(archive, "md5").hexdigest()
        if checksum != self.md5:
            raise UserError(f"{file} has the MD5 checksum {checksum}, the published one is {self.md5}; fetch it again")
        contents = {}
        with tarfile.open(file, "r|gz") as stream:  # in one pass: seeking backwards would unpack it again for each
            for member in stream:
                name = Path(member.name).name
                if name in names and (content := stream.extractfile(member)):
                    contents[name] = content.read()
        return contents

    def _unpacked(self, folder: Path, names: Sequence[str]) -> dict[str, bytes]:
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing; unpack {self.file} there again")
        return {name: (folder / name).read_bytes() for name in names}


@dataclass(frozen=True)
class Cifar(CopiedDataset):
    """50,000 training and 10,000 test images of 32x32 pixels."""

    path: str = ""
    """A local copy: a folder in the hub's parquet layout, the publisher's binary archive (cifar-10-binary.tar.gz,
    cifar-100-binary.tar.gz) or a folder with it or its .bin files, or a folder of train/CLASS/*.png and
    test/CLASS/*.png; empty for the Hugging Face hub."""

    source: ClassVar[CifarSource]
    shapes: ClassVar[tuple[Shape, ...]] = (SHAPE,)
    flip: ClassVar[bool] = True
    crop: ClassVar[int] = 4

    def read(self, part: Part) -> Images:
        """All images of one part; raises UserError that names the file at fault."""
        if not self.path:
            return _from_hub(self.source, part)
        place = path_of(self.path, "data.path")
        try:
            return self._from_folder(place, part) if place.is_dir() else self._from_file(place, part)
        except OSError as error:
            raise UserError(f"{error.filename or place} cannot be read: {error.strerror or error}") from error

    def _from_folder(self, folder: Path, part: Part) -> Images:
        source = self.source
        for place in (folder, *(folder / name for name in HUB_FOLDERS)):
            if any(place.glob("*.parquet")):
                return read_parquet(place, part, source.label)
        if (folder / source.file).is_file():
            return source.read(folder / source.file, part)
        for place in (folder, folder / source.folder):
            if any((place / name).is_file() for name in (*source.train, *source.test)):
                return source.read(place, part)
        if (folder / "train").is_dir() or (folder / "test").is_dir():
            return read_pictures(folder, part, self.classes)
        for name in source.pickles:
            if (folder / name).exists():
                raise _pickled(source, folder / name)
        raise UserError(f"{folder} holds no images in a layout that is known; {_layouts(source)}")

    def _from_file(self, file: Path, part: Part) -> Images:
        if not file.exists():
            raise UserError(f"{file} does not exist; {_layouts(self.source)}")
        if file.name in self.source.pickles:
            raise _pickled(self.source, file)
        if file.name != self.source.file:
            raise UserError(f"{file} is neither a folder nor {self.source.file}; {_layouts(self.source)}")
        return self.source.read(file, part)


def _pickled(source: CifarSource, file: Path) -> UserError:
    return UserError(f"{file} is made of Python pickles, which can run any code when read; use {source.file} instead")


def _from_hub(source: CifarSource, part: Part) -> Images:
    import datasets

    try:
        rows = datasets.load_dataset(source.hub, split=part)
    except Exception as error:  # the library, its hub client and its HTTP client each raise kinds of their own
        raise UserError(
            f"cannot get {source.hub} from the Hugging Face hub ({reason(error)}); name a local copy with --data.path"
        ) from error
    table = rows.cast_column(IMAGE, datasets.Image(decode=False)).with_format("arrow")[:]
    return read_table(table, source.label, where=f"{source.hub} ({part})")


def _layouts(source: CifarSource) -> str:
    return (
        "data.path must be a folder with the hub's train-*.parquet and test-*.parquet files, "
        f"with {source.file} or its .bin files, or with train/CLASS/*.png and test/CLASS/*.png"
    )
