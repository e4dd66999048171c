"""Reads `evaluation.json`; every value is checked when it is accessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import read_json, shown

EVALUATION = "evaluation.json"

Curve = tuple[list[float], list[float]]
"""x and y of the points of a curve."""


@dataclass(frozen=True)
class Evaluated:
    """The content of an `evaluation.json`.

    Attributes:
        path: The file.
        tree: The parsed content.
    """

    path: Path
    tree: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Evaluated:
        """Reads a file.

        Raises:
            DataError: It is missing or not JSON, or contains no class.
        """
        if not path.is_file():
            raise DataError(
                f"{path}: no such file: run `ccfnet-tf evaluate {path.parent}` first, which "
                "writes it"
            )
        found = cls(path, read_json(path))
        if not found.classes:
            raise found._fault(("refine", "iou"), "no class")
        return found

    @property
    def split(self) -> str:
        """Name of the split: `train`, `val` or `test`."""
        value = self._text("split")
        if value not in ("train", "val", "test"):
            raise self._fault(("split",), shown(value))
        return value

    @property
    def wrapping(self) -> str:
        """The options of `evaluate` that change predictions; may be empty."""
        return self._text("wrapping") if "wrapping" in self.tree else ""

    @property
    def calibrated(self) -> bool | None:
        """Whether the run was calibrated; None in files of older versions."""
        value = self.tree.get("calibrated")
        return value if isinstance(value, bool) else None

    @property
    def warning(self) -> str:
        """The warning of the evaluation; empty if there is none."""
        return self._text("warning") if "warning" in self.tree else ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return tuple(self._object("refine", "iou"))

    def scores(self, head: str) -> tuple[str, ...]:
        """Returns the scores of a head's errors; files of older versions have fewer."""
        return tuple(self._object("scores", head))

    def number(self, *keys: str) -> float | None:
        """Returns a figure, -1 to 1; None if the file contains null.

        Raises:
            DataError: The key is missing or its value is something else.
        """
        return self._number(self._at(keys), keys)

    def count(self, *keys: str) -> int:
        """Returns an integer of at least 0; errors as in `number`."""
        return self._count(self._at(keys), keys)

    def by_class(self, *keys: str) -> list[float | None]:
        """Returns a number, or None, for each class in their order; errors as in `number`."""
        values = self._object(*keys)
        return [self._number(values.get(name), (*keys, name)) for name in self.classes]

    def confusion(self, head: str) -> np.ndarray | None:
        """Returns a confusion matrix, int64 [C, C], rows truth; None if the file has none."""
        value = self._object(head).get("confusion")
        if value is None:
            return None
        try:
            counts = np.array(value)
        except (ValueError, OverflowError) as error:
            raise self._fault((head, "confusion"), shown(value)) from error
        size = (len(self.classes),) * 2
        if (
            counts.shape != size
            or counts.dtype != np.int64
            or counts.min() < 0
            or counts.max() >= 2**40
        ):
            raise self._fault((head, "confusion"), f"{counts.dtype} {list(counts.shape)}")
        return counts

    def risk_coverage(self, head: str, score: str) -> Curve:
        """Returns coverage and risk of a score, both 0..1; errors as in `number`."""
        keys = ("scores", head, score, "risk_coverage")
        coverage, risk = (self._numbers((*keys, name)) for name in ("coverage", "risk"))
        if len(coverage) != len(risk):
            raise self._fault(keys, "lists of different lengths")
        return coverage, risk

    def reliability(self, head: str, score: str) -> list[tuple[int, float, float]]:
        """Returns pixels, mean probability and observed share of each bin that is not empty."""
        keys = ("scores", head, score, "reliability")
        bins = self._at(keys)
        if not isinstance(bins, list):
            raise self._fault(keys, shown(bins))
        found = []
        for each in bins:
            if not isinstance(each, dict):
                raise self._fault(keys, shown(each))
            predicted, observed = (
                self._number(each.get(name), keys) for name in ("predicted", "observed")
            )
            pixels = self._count(each.get("pixels"), keys)
            if pixels and predicted is not None and observed is not None:
                found.append((pixels, predicted, observed))
        return found

    def _text(self, key: str) -> str:
        value = self._at((key,))
        if not isinstance(value, str):
            raise self._fault((key,), shown(value))
        return value

    def _at(self, keys: tuple[str, ...]) -> Any:
        place: Any = self.tree
        for depth, key in enumerate(keys, 1):
            if not isinstance(place, dict) or key not in place:
                raise self._fault(keys[:depth], "missing")
            place = place[key]
        return place

    def _object(self, *keys: str) -> dict[str, Any]:
        value = self._at(keys)
        if not isinstance(value, dict):
            raise self._fault(keys, shown(value))
        return value

    def _numbers(self, keys: tuple[str, ...]) -> list[float]:
        values = self._at(keys)
        if not isinstance(values, list):
            raise self._fault(keys, shown(values))
        numbers = [self._number(value, keys) for value in values]
        return [number for number in numbers if number is not None]

    def _number(self, value: Any, keys: tuple[str, ...]) -> float | None:
        if value is None:
            return None
        if type(value) not in (int, float) or not -1 <= value <= 1:  # NaN is not
            raise self._fault(keys, shown(value))
        return float(value)

    def _count(self, value: Any, keys: tuple[str, ...]) -> int:
        if type(value) is not int or not 0 <= value < 2**60:
            raise self._fault(keys, shown(value))
        return value

    def _fault(self, keys: tuple[str, ...], found: str) -> DataError:
        return DataError(
            f"{self.path}: '{'.'.join(keys)}' is {found}: damaged, or written by another version: "
            "run `ccfnet-tf evaluate` again, on the same split"
        )
