"""Stanford Background (Gould, Fulton, Koller, ICCV 2009) in its original layout.

    ROOT/images/<id>.jpg
    ROOT/labels/<id>.regions.txt     a row of class ids a line, -1 where unknown

The authors publish no list of folds, so `stanford_background_folds.txt` fixes five of 143
pictures; `data/make_stanford_folds.py` made it and says how.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.listing import Listing
from ccfnet_tf.datasets.pictures import read_image
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample, Taxonomy

TAXONOMY = Taxonomy(
    names=("sky", "tree", "road", "grass", "water", "building", "mountain", "foreground object"),
    palette=(
        (128, 190, 235),
        (34, 110, 50),
        (128, 118, 128),
        (130, 190, 70),
        (40, 90, 170),
        (190, 80, 60),
        (150, 120, 80),
        (240, 190, 40),
    ),
)

TWINS = (
    ("6000068", "6000318"),  # the same bytes, labelled twice
    ("6000117", "6000324"),
    ("6000257", "6000348"),
    ("1000288", "9000288"),  # nearly the same picture
    ("1000875", "9000875"),
    ("1001184", "9001184"),
)
"""Pairs that a fold, and a validation share, must not split."""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the four training folds and the test fold `data.fold`; no picture is opened.

    Raises:
        DataError: The folder is not the set, or pictures or labels of it are missing.
    """
    if not ((root / "images").is_dir() and (root / "labels").is_dir()):
        inner = [p.parent.name for p in sorted(root.glob("*/labels")) if p.is_dir()]
        hint = f"; did you mean {root / inner[0]}?" if inner else ""
        raise DataError(
            f"{root}: no images/ and labels/ in it: expected the folder iccv09Data of Stanford "
            f"Background (images/<id>.jpg, labels/<id>.regions.txt){hint}"
        )
    folds = fold_of()
    _refuse_missing(root / "images", [f"{name}.jpg" for name in folds])
    _refuse_missing(root / "labels", [f"{name}.regions.txt" for name in folds])
    parts: dict[bool, list[Sample]] = {True: [], False: []}
    for name, fold in folds.items():
        sample = Sample(
            name, str(root / "images" / f"{name}.jpg"), str(root / "labels" / f"{name}.regions.txt")
        )
        parts[fold == data.fold].append(sample)
    kin = {name: pair[0] for pair in TWINS for name in pair}
    return Listing(TAXONOMY, tuple(parts[False]), None, tuple(parts[True]), kin)


def load(sample: Sample, data: DataConfig, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns picture and label, whose sizes may still differ."""
    return read_image(sample.image), load_label(sample, data, classes)


def load_label(sample: Sample, data: DataConfig, classes: int) -> np.ndarray:
    """Returns the label, int32 [H, W]."""
    return read_regions(sample.label)


def fold_of() -> dict[str, int]:
    """Returns picture id -> fold 0..4, in the order of the shipped list."""
    text = resources.files("ccfnet_tf.datasets").joinpath("stanford_background_folds.txt")
    rows = [line.split() for line in text.read_text(encoding="ascii").splitlines()]
    return {row[0]: int(row[1]) for row in rows if row and row[0] != "#"}


def read_regions(path: str | Path) -> np.ndarray:
    """Reads a label file: rows of integers, -1 (unknown) or a class id 0..7.

    Returns:
        int32 [H, W], 0..7 or `VOID` (which is -1 as in the file).

    Raises:
        DataError: Missing, empty, rows of unequal length, letters, another value.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    lines = raw.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = [_row(line, path, number) for number, line in enumerate(lines, start=1)]
    if not rows:
        raise DataError(f"{path}: empty: expected rows of class ids -1..7")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}: {len(row)} values in line {number}, {len(rows[0])} in line 1: every "
                "row of a label is as wide as the picture"
            )
    return np.stack(rows).astype(np.int32)


def _row(line: bytes, path: str | Path, number: int) -> np.ndarray:
    """Returns one row of ids; one digit and one space in turn is the fast road (15 times)."""
    line = line.strip()
    if b"8" not in line:
        line = line.replace(b"-1", b"8")  # one character a value
        digits, gaps = line[::2], line[1::2]
        if not digits.strip(b"012345678") and not gaps.strip(b" ") and len(line) % 2:
            row = np.frombuffer(digits, np.uint8).astype(np.int8) - 48
            return np.where(row == 8, -1, row)
        line = line.replace(b"8", b"-1")
    for word in line.split():
        if word not in (b"-1", b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"):
            shown = word[:20].decode(errors="replace")
            raise DataError(
                f"{path}: value '{shown}' in line {number}: expected class ids 0..7 or -1 (unknown)"
            )
    return np.array([int(word) for word in line.split()], np.int8)


def _refuse_missing(folder: Path, names: list[str]) -> None:
    there = {path.name for path in folder.iterdir()}
    missing = [name for name in names if name not in there]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{folder / missing[0]}: no such file{more}: the set has {len(names)} pictures; "
            "unpack it anew"
        )
