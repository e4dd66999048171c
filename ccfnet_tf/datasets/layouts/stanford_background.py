"""Stanford Background (Gould, Fulton, Koller, ICCV 2009) in its original layout.

    ROOT/images/<id>.jpg
    ROOT/labels/<id>.regions.txt     one row of class ids per line, -1 is unknown

The authors publish no list of folds. `stanford_background_folds.txt` defines five folds of 143
images; `data/make_stanford_folds.py` created it and documents the procedure.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import published_classes
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.labels import Sample

TAXONOMY = published_classes.taxonomy("stanford_background")

TWINS = (
    ("6000068", "6000318"),  # the same bytes, labelled twice
    ("6000117", "6000324"),
    ("6000257", "6000348"),
    ("1000288", "9000288"),  # nearly the same image
    ("1000875", "9000875"),
    ("1001184", "9001184"),
)
"""Pairs of near-duplicates; both images go to the same fold and the same side of a split."""


def signs(root: Path) -> str:
    """Returns the folders that identify this layout in `root`, or an empty string."""
    labels = (root / "labels").glob("*.regions.txt")
    return "images/ and labels/*.regions.txt" if next(labels, None) else ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists fold `data.fold` as the test split and the other four as the training split.

    Images are not opened.

    Raises:
        DataError: The folder does not have this layout.
        ConfigError: `data.fold` is not a fold.
    """
    if not ((root / "images").is_dir() and (root / "labels").is_dir()):
        inner = [p.parent.name for p in sorted(root.glob("*/labels")) if p.is_dir()]
        hint = f"; did you mean {root / inner[0]}?" if inner else ""
        raise DataError(
            f"{root}: contains no images/ and labels/: expected the folder iccv09Data of Stanford "
            f"Background (images/<id>.jpg, labels/<id>.regions.txt){hint}"
        )
    folds = fold_of()
    if not data.lists and data.fold not in folds.values():
        raise ConfigError(f"data.fold is {data.fold}: Stanford Background has folds 0 to 4")
    parts: dict[bool, list[Sample]] = {True: [], False: []}
    unpaired: list[DataError] = []
    there = {side: {p.name for p in (root / side).iterdir()} for side in ("images", "labels")}
    for name, fold in folds.items():
        files = {"images": f"{name}.jpg", "labels": f"{name}.regions.txt"}
        paths = {side: str(root / side / file) for side, file in files.items()}
        missing = [side for side, file in files.items() if file not in there[side]]
        if missing:
            unpaired += [_missing(paths[side], len(folds)) for side in missing]
        else:
            parts[fold == data.fold].append(Sample(name, paths["images"], paths["labels"]))

    def load_label(sample: Sample) -> np.ndarray:
        return read_regions(sample.label)

    return Listing(
        TAXONOMY,
        tuple(parts[False]),
        None,
        tuple(parts[True]),
        with_images(load_label),
        load_label,
        near_duplicates={name: pair[0] for pair in TWINS for name in pair},
        folds=len(set(folds.values())),
        unpaired=tuple(unpaired),
    )


def fold_of() -> dict[str, int]:
    """Returns image id -> fold 0..4, in the order of `stanford_background_folds.txt`."""
    text = resources.files("ccfnet_tf.datasets").joinpath("stanford_background_folds.txt")
    rows = [line.split() for line in text.read_text(encoding="ascii").splitlines()]
    return {row[0]: int(row[1]) for row in rows if row and row[0] != "#"}


def read_regions(path: str | Path) -> np.ndarray:
    """Reads a label file: rows of integers, -1 (unknown) or a class id 0..7.

    Returns:
        int32 [H, W], 0..7 or `VOID` (-1, as in the file).

    Raises:
        DataError: The file is missing or empty, its rows differ in length, or it contains another
            value.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: unpack the data set again") from error
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
                "row of a label must be as wide as the image"
            )
    return np.stack(rows).astype(np.int32)


def _row(line: bytes, path: str | Path, number: int) -> np.ndarray:
    """Returns one row of ids.

    Rows of single digits separated by single spaces are parsed without splitting, which is 15 times
    as fast.
    """
    line = line.strip()
    if b"8" not in line:
        line = line.replace(b"-1", b"8")  # one character per value
        digits, gaps = line[::2], line[1::2]
        if not digits.strip(b"012345678") and not gaps.strip(b" ") and len(line) % 2:
            row = np.frombuffer(digits, np.uint8).astype(np.int8) - 48
            return np.where(row == 8, -1, row)
        line = line.replace(b"8", b"-1")
    for word in line.split():
        if word not in (b"-1", b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"):
            shown = word[:20].decode(errors="replace")
            rule = "expected class ids 0..7 or -1 (unknown)"
            raise DataError(f"{path}: value '{shown}' in line {number}: {rule}", kind="value")
    return np.array([int(word) for word in line.split()], np.int8)


def _missing(path: str, count: int) -> DataError:
    return DataError(
        f"{path}: no such file: the data set has {count} images; unpack it again", kind="missing"
    )
