"""Where CIFAR images come from: the hub, or a folder in one of the three layouts they are passed around in."""

from dataclasses import dataclass
from pathlib import Path

from htas.data.split import Images, Part, Shape
from htas.datasets._binary import Archive, read_archive, read_unpacked
from htas.datasets._parquet import Columns, read_shards, read_table, reason, shards
from htas.datasets._pictures import read_pictures
from htas.errors import UserError


@dataclass(frozen=True)
class CifarSource:
    """What one CIFAR data set is called in each place."""

    hub: str
    """Its name on the hub."""
    folder: str
    """The folder of its parquet files there."""
    columns: Columns
    archive: Archive
    classes: int
    shape: Shape


def read(source: CifarSource, path: str, part: Part) -> Images:
    """All images of one part, from the hub if `path` is empty; raises UserError that names what is at fault."""
    if not path:
        return _from_hub(source, part)
    place = Path(path).expanduser()
    try:
        return _from_folder(source, place, part) if place.is_dir() else _from_file(source, place, part)
    except OSError as error:
        raise UserError(f"{error.filename or place} cannot be read: {error.strerror or error}") from error


def _from_folder(source: CifarSource, folder: Path, part: Part) -> Images:
    archive = source.archive
    for place in (folder, *(folder / name for name in ("data", "plain_text", source.folder))):
        if any(place.glob("*.parquet")):
            return read_shards(shards(place, part), source.columns, source.shape)
    if (folder / archive.file).is_file():
        return read_archive(archive, folder / archive.file, part, source.shape)
    for place in (folder, folder / archive.folder):
        if any((place / name).is_file() for name in archive.files):
            return read_unpacked(archive, place, part, source.shape)
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return read_pictures(folder, part, source.classes, source.shape)
    for name in archive.pickles:
        if (folder / name).exists():
            raise _pickled(archive, folder / name)
    raise UserError(f"{folder} holds no images in a layout that is known; {_wanted(archive)}")


def _from_file(source: CifarSource, file: Path, part: Part) -> Images:
    if not file.exists():
        raise UserError(f"{file} does not exist; {_wanted(source.archive)}")
    if file.name in source.archive.pickles:
        raise _pickled(source.archive, file)
    if file.name != source.archive.file:
        raise UserError(f"{file} is neither a folder nor {source.archive.file}; {_wanted(source.archive)}")
    return read_archive(source.archive, file, part, source.shape)


def _pickled(archive: Archive, file: Path) -> UserError:
    return UserError(f"{file} is made of Python pickles, which can run any code when read; use {archive.file} instead")


def _from_hub(source: CifarSource, part: Part) -> Images:
    import datasets

    try:
        rows = datasets.load_dataset(source.hub, split=part)
    except Exception as error:  # the library, its hub client and its HTTP client each raise kinds of their own
        raise UserError(
            f"cannot get {source.hub} from the Hugging Face hub ({reason(error)}); name a local copy with --data.path"
        ) from error
    table = rows.cast_column(source.columns.image, datasets.Image(decode=False)).with_format("arrow")[:]
    return read_table(table, source.columns, source.shape, where=f"{source.hub} ({part})")


def _wanted(archive: Archive) -> str:
    return (
        "data.path must be a folder with the hub's train-*.parquet and test-*.parquet files, "
        f"with {archive.file} or its .bin files, or with train/CLASS/*.png and test/CLASS/*.png"
    )
