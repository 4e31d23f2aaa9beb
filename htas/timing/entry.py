"""The readings of one layer in one survey, as a store and its tables have them."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Any

from htas.errors import UserError
from htas.timing.measurement import Measurement

WORDS = ("place", "metric", "survey", "layer", "unit", "date")
LISTS: Mapping[str, type] = {"doubts": str, "remarks": str, "readings": float, "levels": float, "anchor": float}
"""Columns with JSON lists, and the type of their items; the long ones are last, as a query need not read them from the
disk."""
COLUMNS = (*WORDS, "context", *LISTS)


def now() -> str:
    """This moment, in UTC and to the microsecond, so that dates sort as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Entry:
    """The readings of one layer in one survey. Raises UserError where they cannot be stored."""

    place: str
    """Digest of all that readings depend on: device, runtime, versions, precision, threads, batch, affinity, quota."""
    metric: str
    """`latency`"""
    layer: str
    """Layer.key, or other JSON with sorted keys that says what was measured."""
    measurement: Measurement
    """With the survey it belongs to."""
    anchor: tuple[float, ...] = ()
    """Readings of the anchor layer, from the same rounds."""
    doubts: tuple[str, ...] = ()
    """Why the survey distrusts these readings, besides the measurement's own remarks."""
    date: str = field(default_factory=now, compare=False)
    """ISO 8601 with a zone, converted to UTC."""

    def __post_init__(self) -> None:
        for name, word in (("place", self.place), ("metric", self.metric), ("survey", self.survey)):
            if not word:
                raise UserError(f"{name} of a stored measurement must not be empty")
        if not _is_canonical(self.layer):
            raise UserError(f"layer of a stored measurement must be JSON as Layer.key writes it, got {self.layer!r}")
        if not _fits("context", dict(self.measurement.context)):
            raise UserError(
                f"the context of a stored measurement must be words by name, got {self.measurement.context}"
            )
        if not all(0 < each < inf for each in (*self.measurement.values, *self.measurement.levels, *self.anchor)):
            raise UserError(f"readings must be finite and above 0 to be stored, got others for {self.layer}")
        object.__setattr__(self, "date", _in_utc(self.date))

    @property
    def survey(self) -> str:
        """The survey that its readings belong to."""
        return self.measurement.survey

    def json(self) -> dict[str, Any]:
        """As plain JSON values; `Entry.of` reads them back."""
        readings = self.measurement
        words = (self.place, self.metric, readings.survey, self.layer, readings.unit, self.date)
        texts = (self.doubts, readings.remarks)
        numbers = (list(map(float, each)) for each in (readings.values, readings.levels, self.anchor))
        return dict(zip(COLUMNS, (*words, dict(readings.context), *map(list, texts), *numbers), strict=True))

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Entry":
        """The entry that `json` gave; raises UserError that names the field at fault."""
        for name in COLUMNS:
            if not _fits(name, content[name]):
                short = value if len(value := repr(content[name])) <= 60 else f"{value[:57]}..."
                raise UserError(f"{name} is not what htas store export writes there: {short}")
        values, levels, anchor = (tuple(map(float, content[name])) for name in ("readings", "levels", "anchor"))
        source = (content["unit"], dict(content["context"]), content["survey"])
        measurement = Measurement(values, *source, levels, tuple(content["remarks"]))
        words = (content["place"], content["metric"], content["layer"])
        return Entry(*words, measurement, anchor, tuple(content["doubts"]), content["date"])

    @staticmethod
    def of_row(row: Mapping[str, Any]) -> "Entry":
        """The entry in a row of a table, whose lists and mappings may be JSON text; raises ValueError, which UserError
        is too."""
        return Entry.of(
            {
                name: json.loads(row[name]) if name not in WORDS and isinstance(row[name], str) else row[name]
                for name in COLUMNS
            }
        )

    def row(self) -> dict[str, str]:
        """One text for each column; lists and mappings as JSON."""
        return {name: value if name in WORDS else json.dumps(value) for name, value in self.json().items()}


def _in_utc(date: str) -> str:
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UserError(f"date must be ISO 8601 with a zone, such as 2026-11-23T04:05:06+00:00, got {date!r}")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _is_canonical(layer: str) -> bool:
    """Whether equal work would have an equal key: a JSON object with its names in order."""
    try:
        content = json.loads(layer)
    except ValueError:
        return False
    return isinstance(content, dict) and json.dumps(content, sort_keys=True) == layer


def _fits(column: str, value: object) -> bool:
    """Whether a value is of its column's kind; numbers are those that a float can hold."""
    if column in WORDS:
        return isinstance(value, str)
    if column == "context":
        return isinstance(value, dict) and all(isinstance(each, str) for each in (*value, *value.values()))
    if not isinstance(value, list):
        return False
    if LISTS[column] is str:
        return all(isinstance(each, str) for each in value)
    return all(type(each) in (int, float) and abs(each) <= sys.float_info.max for each in value)
