"""Reads `images.csv` and `images.npz` of a run, which `image_table` writes."""

from __future__ import annotations

import csv
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccfnet_tf.errors import DataError, first_line
from ccfnet_tf.evaluation.image_table import CELLS
from ccfnet_tf.io.npz_file import DAMAGE, parse_array

IMAGES_CSV = "images.csv"
IMAGES_NPZ = "images.npz"

_LARGEST = 2**30
"""Largest size of the arrays of `images.npz` in bytes; a compressed file may claim any size."""

_AGAIN = "run `ccfnet-tf evaluate` again, on the same split"


@dataclass(frozen=True)
class ImageRow:
    """Figures of one image.

    Attributes:
        name: As `Sample.name`.
        pixels: Labelled pixels.
        accuracy: Pixel accuracy of refine, 0..1; None if no pixel is labelled.
        coarse_accuracy: Pixel accuracy of coarse.
        corrected: Errors of coarse that refine corrects, in pixels.
        spoiled: Right pixels of coarse that refine spoils.
        risk: Mean risk, 0..1; None if no pixel is labelled.
    """

    name: str
    pixels: int
    accuracy: float | None
    coarse_accuracy: float | None
    corrected: int
    spoiled: int
    risk: float | None


@dataclass(frozen=True, eq=False)
class ImageCells:
    """The confusion matrices of each image.

    Attributes:
        names: Names of N images.
        cells: Cells of each of `CELLS` that are not 0, int64 [M, 4]; columns image 0..N-1,
            truth, prediction, pixels.
    """

    names: tuple[str, ...]
    cells: dict[str, np.ndarray]


def read_rows(path: Path) -> list[ImageRow]:
    """Reads `images.csv`.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [_row(row) for row in csv.DictReader(file, strict=True)]
            if not rows:
                raise ValueError("no image")
            return rows
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: {_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{path}: damaged, or of an older version ({fault}): {_AGAIN}") from error


def read_cells(path: Path, classes: int) -> ImageCells:
    """Reads `images.npz` of an evaluation with `classes` classes.

    Raises:
        DataError: It is missing or damaged, or has other classes.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file: {_AGAIN}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            wanted = {name: members[f"{name}.npy"] for name in ("names", *CELLS)}
            if sum(info.file_size for info in wanted.values()) > _LARGEST:
                raise ValueError(f"its arrays take more than {_LARGEST} bytes")
            arrays = {name: parse_array(archive.read(info)) for name, info in wanted.items()}
        names, cells = arrays.pop("names"), arrays
        _refuse_other_cells(names, cells, classes)
    except DAMAGE as error:
        raise DataError(
            f"{path}: damaged, or of an older version ({type(error).__name__}: "
            f"{first_line(error)}): {_AGAIN}"
        ) from error
    return ImageCells(tuple(names.tolist()), cells)


def _refuse_other_cells(names: np.ndarray, cells: dict[str, np.ndarray], classes: int) -> None:
    """Raises ValueError if the arrays are not those of `ImageTable.to_npz`."""
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError("'names' is not a list of texts")
    for head, rows in cells.items():
        if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype != np.int64:
            raise ValueError(f"'{head}' is {rows.dtype} {list(rows.shape)}: expected int64 [M, 4]")
        limits = (names.size, classes, classes)
        for column, limit in zip(rows.T, limits, strict=False):
            if rows.size and not 0 <= column.min() <= column.max() < limit:
                raise ValueError(f"'{head}' holds {column.max()}: expected 0..{limit - 1}")
        if rows.size and not 0 < rows[:, 3].min() <= rows[:, 3].max() < 2**40:
            raise ValueError(f"'{head}' holds a count outside 1..2^40")


def _row(row: dict[str, str]) -> ImageRow:
    return ImageRow(
        name=row["image"],
        pixels=int(row["pixels"]),
        accuracy=_share(row["refine_pixel_accuracy"]),
        coarse_accuracy=_share(row["coarse_pixel_accuracy"]),
        corrected=int(row["corrected"]),
        spoiled=int(row["spoiled"]),
        risk=_share(row["mean_risk"]),
    )


def _share(text: str) -> float | None:
    if not text:
        return None
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"{text} is not from 0 to 1")
    return value
