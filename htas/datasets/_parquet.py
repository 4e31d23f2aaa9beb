"""Encoded images in the hub's parquet files, with every announced shard there."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from htas.data.split import Images, Part
from htas.datasets._pictures import decode
from htas.errors import UserError

if TYPE_CHECKING:
    import pyarrow


IMAGE = "img"
"""The column with structs whose field `bytes` is an encoded image."""


def shards(folder: Path, part: Part) -> list[Path]:
    """The parquet files of one part in order; raises UserError that names the one that is missing."""
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


def read_shards(files: list[Path], label: str) -> Images:
    """The images of all files, one after the other; `label` is the column of labels."""
    return Images.joined([_read_file(file, label) for file in files])


def read_table(table: "pyarrow.Table", label: str, where: str) -> Images:
    """The images of a table in memory; `where` names it in errors."""
    _check(table, label, where)
    labels = torch.tensor(table[label].to_pylist(), dtype=torch.int64)
    encoded = table[IMAGE].combine_chunks().field("bytes").to_pylist()
    named = ((f"row {row} of {where}", content) for row, content in enumerate(encoded))
    return Images(decode(named), labels)


def reason(error: Exception) -> str:
    """The first sentence of a library's message."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0].split(". ")[0].rstrip(".")


def _read_file(file: Path, label: str) -> Images:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} cannot be read as parquet ({reason(error)}); fetch it again") from error
    return read_table(table, label, where=str(file))


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
    if (
        not types.is_struct(image)
        or image.get_field_index("bytes") < 0
        or not types.is_binary(image.field("bytes").type)
    ):
        raise UserError(f"column {IMAGE!r} of {where} must hold encoded images under 'bytes', it is {image}")
