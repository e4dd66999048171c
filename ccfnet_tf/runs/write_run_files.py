"""The files of a run folder that are meant for users and other programs.

config.yaml        resolved configuration of the run
classes.json       class names and colours, so that predict does not need the data
environment.json   versions, machine, command line
picture_sizes.json size of the largest image of the training split, for warnings of `predict`
data_digest.json   digests of the data when the run was started (`data_digest`)
metrics.csv        one row per epoch
previews/          one image per epoch
tensorboard/       the same metrics and images for TensorBoard
"""

from __future__ import annotations

import csv
import io
import json
import platform
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import DataError, without_secrets
from ccfnet_tf.io.atomic_file import set_aside, write_atomic
from ccfnet_tf.io.machine import commit, processor, usable_threads
from ccfnet_tf.io.parent_command import CONTINUE_WITH
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runs.run_folder import SIZES

_TRAINING = " (a training run with --resume)" if CONTINUE_WITH == "--resume" else ""
_AGAIN = f"run the command again{_TRAINING}"

LIBRARIES = ("ccfnet-tf", "tensorflow", "keras", "numpy", "opencv-python", "pillow")


def write_text(path: Path, text: str | bytes) -> None:
    """Writes a small file atomically, so that readers never see a truncated one.

    Raises:
        ResourceError: The disk is full or the folder is not writable. An existing file is kept.
    """
    write_atomic(
        path,
        lambda file: file.write(text.encode() if isinstance(text, str) else text),
        fix=f"free disk space, then {_AGAIN}",
        otherwise=f"make its folder writable, then {_AGAIN}",
    )


def write_classes(run: Path, taxonomy: Taxonomy) -> None:
    """Writes `classes.json`."""
    tree = {"names": list(taxonomy.names), "palette": [list(c) for c in taxonomy.palette]}
    write_text(run / "classes.json", json.dumps(tree, indent=1) + "\n")


def write_sizes(run: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Writes `picture_sizes.json`.

    Args:
        run: The run folder.
        sizes: Height and width of each image of the training split.
    """
    largest = max(sizes, key=max)
    write_text(run / SIZES, json.dumps({"largest": list(largest), "pictures": len(sizes)}) + "\n")


def write_environment(
    run: Path,
    devices: Sequence[str],
    precision: str,
    *,
    workers: int = 1,
    warn: Callable[[str], object] = lambda _: None,
) -> None:
    """Adds an entry for this start of the run to `environment.json`, for reproducibility.

    Args:
        run: The run folder.
        devices: TensorFlow's names of the devices.
        precision: Compute type of the run.
        workers: Number of workers.
        warn: Called with a message if the existing file is damaged. It is kept under another name.
    """
    path = run / "environment.json"
    start = {
        "command": [without_secrets(each) for each in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": usable_threads(),
        "commit": commit(),
        "devices": list(devices),
        "workers": workers,
        "precision": precision,
        "versions": {name: installed(name) for name in LIBRARIES},
    }
    starts = _starts(path) if path.is_file() else []
    if starts is None:
        warn(f"warning: {path}: damaged: kept as {set_aside(path).name}; a new file is written")
        starts = []
    write_text(path, json.dumps({"starts": [*starts, start]}, indent=1) + "\n")


def installed(library: str) -> str | None:
    """Returns the version of a library; None if it is not installed under this name."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _starts(path: Path) -> list[Any] | None:
    """Returns the starts listed in `environment.json`; None if the file is damaged."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    starts = tree.get("starts") if isinstance(tree, dict) else None
    return starts if isinstance(starts, list) else None


def epochs_written(path: Path) -> int:
    """Returns the number of epochs with a valid row in `metrics.csv`; 0 if the file is missing."""
    return len(_read_rows(path)[0])


def sound_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the valid rows of `metrics.csv`, one per epoch; none if the file is missing."""
    return _read_rows(path)[0]


def all_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.csv`, one per epoch; none if the file is missing.

    Raises:
        DataError: The file is damaged: a page would lack curves, or epochs, without a word.
    """
    if not path.is_file():
        return []
    rows, intact = _read_rows(path)
    fault = "a row that cannot be read"
    if not rows:
        fault = "no row of an epoch"
    elif intact:
        try:
            for cell in (cell for row in rows for cell in row.values() if cell):
                float(cell)
            return rows
        except ValueError as error:
            fault = str(error)
    raise DataError(
        f"{path}: damaged ({fault}): restore it from a copy, or remove it for a page without the "
        "curves of the training"
    )


def keep_sound_rows(path: Path, epochs_done: int, warn: Callable[[str], object]) -> None:
    """Repairs `metrics.csv` before a run is resumed; a damaged file is kept under another name.

    Args:
        path: The file.
        epochs_done: Number of finished epochs, each of which should have a row.
        warn: Called with a message if the file is damaged or rows are missing.

    Raises:
        ResourceError: The folder is not writable.
    """
    rows, intact = _read_rows(path)
    missing = [n for n in range(1, epochs_done + 1) if n not in {int(row["epoch"]) for row in rows}]
    if intact and not missing:
        return
    kept = "" if intact else f": kept as {set_aside(path).name}; its valid rows are kept"
    numbers = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
    gone = f"; the row of epoch {numbers} is lost" if missing else ""
    warn(f"warning: {path}: {'rows are missing' if intact else 'damaged'}{kept}{gone}")
    if rows and not intact:
        _write_rows(path, rows)


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Returns the valid rows of `metrics.csv`, one per epoch, and whether all rows are valid."""
    if not path.is_file():
        return [], True
    text = path.read_text(encoding="utf-8", errors="replace")
    rows: dict[str, dict[str, Any]] = {}
    intact = text.endswith("\n")
    complete_rows = text[: text.rfind("\n") + 1]  # the last number of a truncated row may be wrong
    try:
        for row in csv.DictReader(io.StringIO(complete_rows), strict=True):
            if _is_valid(row) and row["epoch"] not in rows:
                rows[row["epoch"]] = row
            else:
                intact = False
    except csv.Error:
        intact = False
    return list(rows.values()), intact


def _is_valid(row: dict[Any, Any]) -> bool:
    """Returns whether a row has exactly one value per column and a valid epoch number."""
    cells = [*row.keys(), *row.values()]
    # Too few or too many values give cells that are not strings; U+FFFD marks invalid UTF-8.
    if not all(isinstance(cell, str) and cell.isprintable() for cell in cells):
        return False
    return "\ufffd" not in "".join(cells) and bool(
        re.fullmatch("[1-9][0-9]{0,8}", row.get("epoch", ""), re.ASCII)
    )


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for each in rows for key in each))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row with its present names: older versions named attention's AUROC otherwise."""
    if "val_attention_auroc" in row:
        return row
    return {
        "val_attention_auroc" if key == "val_difficulty_auroc" else key: value
        for key, value in row.items()
    }


class MetricsTable:
    """Writes `metrics.csv`, atomically after each epoch, so that it never has a truncated row."""

    def __init__(self, path: Path, *, epochs_done: int) -> None:
        """Reads the rows of finished epochs. Later rows are dropped: their epoch is repeated."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if epochs_done:
            rows = [row for row in _read_rows(path)[0] if int(row["epoch"]) <= epochs_done]
            self.rows = [_renamed(row) for row in rows]

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row and writes the file."""
        self.rows.append(row)
        _write_rows(self.path, self.rows)
