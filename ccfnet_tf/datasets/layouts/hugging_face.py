"""An image folder of the Hugging Face hub, with masks that its metadata names.

    ROOT/metadata.csv, metadata.jsonl       file_name, and a column of masks such as mask_file_name
    ROOT/{train,validation,test}/metadata.csv   or one a part; paths are relative to their file
    ROOT/id2label.json, classes.txt, ...    the classes (see `class_files`)

In one file for all, the first folder of file_name is the part (train where it is none). The column
of masks is the one whose name ends in file_name, or holds mask, label, annotation or segmentation.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, with_pictures
from ccfnet_tf.datasets.class_files import find_own_classes
from ccfnet_tf.datasets.find_images import path_parts
from ccfnet_tf.datasets.name_lists import PARTS, part_named
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.json_files import is_there
from ccfnet_tf.labels import Sample

FILES = ("metadata.csv", "metadata.jsonl")
_WORDS = ("mask", "label", "annotation", "segmentation")

Row = dict[str, str]


def signs(root: Path) -> str:
    """Returns the first metadata file in `root`; empty where there is none that names masks."""
    try:
        for path in _files(root):
            with path.open("rb") as file:
                head = file.readline(10_000)
            if b"file_name" in head and any(word.encode() in head for word in _WORDS):
                return path.relative_to(root).as_posix()
    except OSError:
        pass  # what cannot be looked at shows no sign
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the metadata; no image is opened.

    Raises:
        DataError: No metadata, none that names masks, nothing to learn from, or no class list.
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
                raise DataError(f"{where}: '{name[:60]}' is there already: once each")
            seen.add(name)
            label = path.parent.joinpath(*path_parts(row[_mask_column(row, where)]))
            absent = next((file for file in (image, label) if not is_there(file)), None)
            if absent is not None:
                faults.append(DataError(f"{where}: {absent}: no such file", kind="missing"))
                continue
            part = part_named(PurePosixPath(name).parts[0]) or "train"
            parts.setdefault(part, []).append(Sample(name, str(image), str(label)))
    if not parts["train"] and not faults:
        raise DataError(f"{root}: no {FILES[0]} or {FILES[1]} that names images to learn from")
    own = find_own_classes(root)
    if own is None:
        raise DataError(
            f"{root}: nothing says what the values of the masks mean: add classes.txt (a name a "
            'line, from value 0) or id2label.json ({"0": "background", ...})'
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
        with_pictures(load_label),
        load_label,
        unpaired=tuple(faults),
        mask_values=own.meaning,
        notes=own.notes,
    )


def _files(root: Path) -> list[Path]:
    patterns = [f"{folder}{name}" for folder in ("", "*/", "data/*/") for name in FILES]
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields the place and the texts of each row that names an image."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error})") from error
    lines = io.StringIO(text, newline="")  # not splitlines: a text may hold U+2028
    rows = csv.DictReader(lines) if path.suffix == ".csv" else map(_json_row, lines)
    try:
        for number, row in enumerate(rows, start=1):
            texts = {key: value for key, value in row.items() if isinstance(value, str) and key}
            if not row:
                continue
            where = f"{path}: row {number}"
            if not texts.get("file_name", "").strip():
                raise DataError(f"{where}: no file_name: every row names its image")
            yield where, {key: value.strip().replace("\\", "/") for key, value in texts.items()}
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error}): expected a table with file_name") from error


def _json_row(line: str) -> dict[str, object]:
    row = json.loads(line) if line.strip() else {}
    return row if isinstance(row, dict) else {}


def _mask_column(row: Row, where: str) -> str:
    """Returns the column of masks: of names that fit, those whose text is a PNG's."""
    fitting = [
        key
        for key, value in row.items()
        if key != "file_name" and value.lower().endswith(".png")
        if key.endswith("file_name") or any(word in key.lower() for word in _WORDS)
    ]
    named = [key for key in fitting if any(word in key.lower() for word in _WORDS)] or fitting
    if len(named) == 1:
        return named[0]
    what = f"several columns of masks ({', '.join(named)})" if named else "no column of masks"
    raise DataError(
        f"{where}: {what} (found: {', '.join(row)}): expected one such as mask_file_name, with a "
        "PNG for each image"
    )
