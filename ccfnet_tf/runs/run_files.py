"""The files of a run folder that people and programs read.

config.yaml        the run's resolved configuration
classes.json       names and colours, so that predict needs no data
environment.json   versions, machine, command
picture_sizes.json the largest image of the training split, for warnings of `predict`
data_digest.json   what the data were when the run began (`data_digest`)
metrics.csv        a row an epoch
previews/          an image an epoch
tensorboard/       the same figures and images for TensorBoard
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import without_secrets
from ccfnet_tf.io.atomic_file import set_aside, write_atomic
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runs.run_folder import SIZES

LIBRARIES = ("ccfnet-tf", "tensorflow", "keras", "numpy", "opencv-python", "pillow")


def write_text(path: Path, text: str | bytes) -> None:
    """Writes a whole small file beside and renames it, so that no reader sees half of it.

    Raises:
        ResourceError: The disk is full or the folder cannot be written; the older file stays.
    """
    write_atomic(
        path,
        lambda file: file.write(text.encode() if isinstance(text, str) else text),
        fix="free space, then run it again (a training run with --resume)",
        otherwise="see that its folder can be written, then run it again (a training run with "
        "--resume)",
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
    """Adds a start, or a resumed one, to `environment.json`: what is needed to repeat the run.

    Args:
        run: The run folder.
        devices: TensorFlow's names of them.
        precision: What the run computes in.
        workers: How many train together.
        warn: Called with a line where the file was damaged; it is kept under another name.
    """
    path = run / "environment.json"
    start = {
        "command": [without_secrets(each) for each in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": list(devices),
        "workers": workers,
        "precision": precision,
        "versions": {name: installed(name) for name in LIBRARIES},
    }
    starts = _starts(path) if path.is_file() else []
    if starts is None:
        warn(f"warning: {path}: damaged: kept as {set_aside(path).name}, and begun anew")
        starts = []
    write_text(path, json.dumps({"starts": [*starts, start]}, indent=1) + "\n")


def installed(library: str) -> str | None:
    """Returns the version of a library, None where it came under another name."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _starts(path: Path) -> list[Any] | None:
    """Returns the starts that `environment.json` lists; None where it is damaged."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    starts = tree.get("starts") if isinstance(tree, dict) else None
    return starts if isinstance(starts, list) else None


def epochs_written(path: Path) -> int:
    """Returns how many epochs have a sound row in `metrics.csv`; 0 where there is no such file."""
    return len(_read_rows(path)[0])


def keep_sound_rows(path: Path, epochs_done: int, warn: Callable[[str], object]) -> None:
    """Looks at `metrics.csv` before a run goes on; a damaged file is kept under another name.

    Args:
        path: The file.
        epochs_done: So many epochs should have a row.
        warn: Called with a line where the file was damaged, or lacks rows.

    Raises:
        ResourceError: The folder cannot be written.
    """
    rows, whole = _read_rows(path)
    lost = [n for n in range(1, epochs_done + 1) if n not in {int(row["epoch"]) for row in rows}]
    if whole and not lost:
        return
    kept = "" if whole else f": kept as {set_aside(path).name}, and its sound rows go on"
    numbers = ", ".join(map(str, lost[:5])) + (", ..." if len(lost) > 5 else "")
    gone = f"; no row of epoch {numbers} is left" if lost else ""
    warn(f"warning: {path}: {'lacks rows' if whole else 'damaged'}{kept}{gone}")
    if rows and not whole:
        _write_rows(path, rows)


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Returns the sound rows of `metrics.csv`, one an epoch, and whether all of them are sound."""
    if not path.is_file():
        return [], True
    text = path.read_text(encoding="utf-8", errors="replace")
    rows: dict[str, dict[str, Any]] = {}
    whole = text.endswith("\n")
    ended = text[: text.rfind("\n") + 1]  # of a row that is cut, the last number may be cut too
    try:
        for row in csv.DictReader(io.StringIO(ended), strict=True):
            if _is_sound(row) and row["epoch"] not in rows:
                rows[row["epoch"]] = row
            else:
                whole = False
    except csv.Error:
        whole = False
    return list(rows.values()), whole


def _is_sound(row: dict[Any, Any]) -> bool:
    """Returns whether a row has a value for each column, no more, and the number of an epoch."""
    cells = [*row.keys(), *row.values()]
    # A row that is cut, or too long, has cells of other kinds; U+FFFD was no UTF-8.
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


class MetricsTable:
    """`metrics.csv`: rewritten whole each epoch, so that a kill cannot leave half a row."""

    def __init__(self, path: Path, *, epochs_done: int) -> None:
        """Keeps the rows of finished epochs; later ones belong to an epoch that is redone."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if epochs_done:
            self.rows = [row for row in _read_rows(path)[0] if int(row["epoch"]) <= epochs_done]

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row and writes the file."""
        self.rows.append(row)
        _write_rows(self.path, self.rows)
