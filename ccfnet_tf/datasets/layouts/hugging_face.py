"""An image folder of the Hugging Face hub whose metadata lists the masks.

    ROOT/metadata.csv, metadata.jsonl           file_name, and a mask column such as mask_file_name
    ROOT/{train,validation,test}/metadata.csv   or one file per split
    ROOT/id2label.json, classes.txt, ...        the classes (see `class_files`)

Paths are relative to the metadata file. In a single file for all splits, the first folder of
file_name is the split; it is train if that folder is not a split. The mask column is the one whose
name ends in file_name or contains mask, label, annotation or segmentation.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import PARTS, part_named
from ccfnet_tf.datasets.class_files import find_own_classes
from ccfnet_tf.datasets.locate_images import path_parts
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError, unreadable
from ccfnet_tf.io.annotation_json import is_there
from ccfnet_tf.labels import Sample

FILES = ("metadata.csv", "metadata.jsonl")
_MASK_WORDS = ("mask", "label", "annotation", "segmentation")

Row = dict[str, str]


def signs(root: Path) -> str:
    """Returns the first metadata file in `root` with a mask column, or an empty string."""
    try:
        for path in _files(root):
            with path.open("rb") as file:
                head = file.readline(10_000)
            if b"file_name" in head and any(word.encode() in head for word in _MASK_WORDS):
                return path.relative_to(root).as_posix()
    except OSError:
        pass  # an unreadable folder is not recognised
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the metadata without opening images.

    Raises:
        DataError: There is no metadata, no mask column, no training image, or no class list.
    """
    parts: dict[str, list[Sample]] = {"train": []}
    faults: list[DataError] = []
    seen: set[str] = set()
    for path in _files(root):
        folder = path.parent.relative_to(root).as_posix()
        for where, row in _rows(path):
            inside = PurePosixPath(*path_parts(row["file_name"]))
            if not inside.name:
                raise DataError(f"{where}: file_name '{row['file_name'][:60]}': expected a path")
            image = path.parent / inside
            name = PurePosixPath(folder, inside).with_suffix("").as_posix()
            if name in seen:
                raise DataError(f"{where}: '{name[:60]}' is listed twice: list each image once")
            seen.add(name)
            label = path.parent.joinpath(*path_parts(row[_mask_column(row, where)]))
            absent = next((file for file in (image, label) if not is_there(file)), None)
            if absent is not None:
                faults.append(DataError(f"{where}: {absent}: no such file", kind="missing"))
                continue
            part = part_named(PurePosixPath(name).parts[0]) or "train"
            parts.setdefault(part, []).append(Sample(name, str(image), str(label)))
    if not parts["train"] and not faults:
        raise DataError(f"{root}: no {FILES[0]} or {FILES[1]} that lists training images")
    own = find_own_classes(root)
    if own is None:
        raise DataError(
            f"{root}: no class list defines the values of the masks: add classes.txt (one name "
            'per line, from value 0) or id2label.json ({"0": "background", ...})'
        )
    own = own.with_mask_values(data.mask_values)
    found = {part: tuple(parts[part]) for part in PARTS if part in parts}

    def load_label(sample: Sample) -> np.ndarray:
        return own.read_label(sample.label)

    return Listing(
        own.taxonomy,
        found["train"],
        found.get("val"),
        found.get("test", ()),
        with_images(load_label),
        load_label,
        unpaired=tuple(faults),
        mask_values=own.meaning,
        notes=own.notes,
    )


def _files(root: Path) -> list[Path]:
    patterns = [f"{folder}{name}" for folder in ("", "*/", "data/*/") for name in FILES]
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields the position (for messages) and the string values of each row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {unreadable(error)}") from error
    lines = io.StringIO(text, newline="")  # not splitlines: a value may contain U+2028
    rows = csv.DictReader(lines) if path.suffix == ".csv" else map(_json_row, lines)
    try:
        for number, row in enumerate(rows, start=1):
            texts = {key: value for key, value in row.items() if isinstance(value, str) and key}
            if not row:
                continue
            where = f"{path}: row {number}"
            if not texts.get("file_name", "").strip():
                raise DataError(f"{where}: no file_name: every row must have the path of an image")
            yield where, {key: value.strip().replace("\\", "/") for key, value in texts.items()}
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error}): expected a table with file_name") from error


def _json_row(line: str) -> dict[str, object]:
    row = json.loads(line) if line.strip() else {}
    return row if isinstance(row, dict) else {}


def _mask_column(row: Row, where: str) -> str:
    """Returns the mask column: its name matches, and its value is the path of a PNG."""
    fitting = [
        key
        for key, value in row.items()
        if key != "file_name" and value.lower().endswith(".png")
        if key.endswith("file_name") or any(word in key.lower() for word in _MASK_WORDS)
    ]
    named = [key for key in fitting if any(word in key.lower() for word in _MASK_WORDS)] or fitting
    if len(named) == 1:
        return named[0]
    what = f"several mask columns ({', '.join(named)})" if named else "no mask column"
    raise DataError(
        f"{where}: {what} (found: {', '.join(row)}): expected one such as mask_file_name, with "
        "one PNG per image"
    )
