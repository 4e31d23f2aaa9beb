"""Any data set of images and labels on the Hugging Face hub, or a folder in its layout."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from htas.data.split import Part
from htas.datasets._streamed import ImageSource, Streamed
from htas.errors import UserError
from htas.files import path_of
from htas.text import first_line, listing


@dataclass(frozen=True)
class Hub(Streamed):
    """Images of the hub: fetched once, kept on disk, and decoded by worker processes as they are needed."""

    path: str = ""
    """Its name on the hub, `ethz/food101`, or a local folder of its parquet files or of train/CLASS/*.jpg."""
    config: str = ""
    """Which of its configurations, where it has several."""
    train: str = "train"
    """The split to train with."""
    test: str = "validation"
    """The split for accuracies."""
    image: str = "image"
    """The column with images."""
    label: str = "label"
    """The column with labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError("data.path must be a data set's name on the hub, or a folder; it is empty")
        path_of(self.path, "data.path")

    @property
    def classes(self) -> int:
        """As the label's type says, or one more than the largest label."""
        feature = self._table("train").features[self.label]
        named = getattr(feature, "num_classes", None)
        return int(named) if named else 1 + max(self.source("train").labels)

    def source(self, part: Part) -> ImageSource:
        """The rows of one part."""
        table = self._table(part)
        labels = list(table[self.label])
        if not all(isinstance(each, int) for each in labels):
            raise UserError(
                f"column {self.label!r} must hold whole numbers, the labels; class_encode_column makes them from text"
            )
        return ImageSource(table, labels, self.image)

    def _table(self, part: Part) -> Any:
        """The split, its columns checked."""
        table = _opened(self.path, self.config, self.test if part == "test" else self.train)
        names = table.column_names
        for option, column in (("image", self.image), ("label", self.label)):
            if column not in names:
                raise UserError(f"{self.path} has no column {column!r} (data.{option}); it has {listing(names)}")
        return table


@cache
def _opened(path: str, config: str, split: str) -> Any:
    """The split of a data set; raises UserError that says what there is."""
    import datasets

    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(path, config or None)
    except Exception as error:  # many kinds, of network, names and files
        raise UserError(f"{path} cannot be loaded from the hub ({first_line(error)}); check data.path") from error
    if split not in splits:
        raise UserError(f"{path} has no split {split!r}; it has {listing(splits)}: set data.train and data.test")
    return splits[split]
