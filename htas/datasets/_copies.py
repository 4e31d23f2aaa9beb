"""How a local copy of a data set encodes its images, which its accuracies depend on."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def encoding(path: str) -> str:
    """`PNG images, lossless`, `JPEG images of quality 95`: by the first training image of a folder.

    In words where there is no folder.
    """
    if not path:
        return "from the Hugging Face hub"
    place = Path(path).expanduser()
    if not place.is_dir() or any(place.rglob("*.bin")):
        return "the publisher's binary files"
    for first in _first(place):
        return _encoded(first)
    return "the publisher's binary files"


def _first(place: Path) -> Iterator[bytes]:
    for file in sorted(place.rglob("train-*.parquet")):
        from pyarrow import parquet

        (row,) = next(parquet.ParquetFile(file).iter_batches(batch_size=1)).to_pylist()
        yield next(value["bytes"] for value in row.values() if isinstance(value, dict))
    for file in sorted(path for path in place.glob("train/*/*") if path.is_file()):
        yield file.read_bytes()


def _encoded(content: bytes) -> str:
    from PIL import Image

    image = Image.open(io.BytesIO(content))
    if image.format == "WEBP":  # which may be either
        return f"WEBP images, {'lossless' if content[12:16] == b'VP8L' else 'which lose a little'}"
    if image.format != "JPEG":
        return f"{image.format} images, lossless"
    quality = _quality(image)
    return f"JPEG images of quality {quality}, which lose a little" if quality else "JPEG images, which lose a little"


def _quality(image: Any) -> int | None:
    """The quality that gives a JPEG's tables; None where none of 1 to 100 does."""
    from PIL import Image

    table = image.quantization[0]
    for quality in range(100, 0, -1):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
        trial: Any = Image.open(buffer)
        if trial.quantization[0] == table:
            return quality
    return None
