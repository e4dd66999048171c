"""The files of a run folder that people and programs read.

config.yaml        the run's resolved configuration
classes.json       names and colours, so that predict needs no data
environment.json   versions, machine, command
metrics.csv        a row an epoch
previews/          a picture an epoch
tensorboard/       the same figures and pictures for TensorBoard
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ccfnet_tf.inference.atomic import write_atomic
from ccfnet_tf.labels import Taxonomy

LIBRARIES = ("ccfnet-tf", "tensorflow", "keras", "numpy", "opencv-python", "pillow")


def write_text(path: Path, text: str) -> None:
    """Writes a whole small file beside and renames it, so that no reader sees half of it.

    Raises:
        ResourceError: The disk is full or the folder cannot be written; the older file stays.
    """
    write_atomic(
        path,
        lambda file: file.write(text.encode()),
        mend="free space, then run it again (a training run with --resume)",
        otherwise="see that its folder can be written, then run it again (a training run with "
        "--resume)",
    )


def write_classes(run: Path, taxonomy: Taxonomy) -> None:
    """Writes `classes.json`."""
    tree = {"names": list(taxonomy.names), "palette": [list(c) for c in taxonomy.palette]}
    write_text(run / "classes.json", json.dumps(tree, indent=1) + "\n")


def write_environment(
    run: Path, devices: Sequence[str], precision: str, *, workers: int = 1
) -> None:
    """Adds a start, or a resumed one, to `environment.json`: what is needed to repeat the run."""
    path = run / "environment.json"
    start = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": list(devices),
        "workers": workers,
        "precision": precision,
        "versions": {name: installed(name) for name in LIBRARIES},
    }
    starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.is_file() else []
    write_text(path, json.dumps({"starts": [*starts, start]}, indent=1) + "\n")


def installed(library: str) -> str | None:
    """Returns the version of a library, None where it came under another name."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def epochs_written(path: Path) -> int:
    """Returns how many epochs have a row in `metrics.csv`; 0 where there is no such file."""
    if not path.is_file():
        return 0
    text = path.read_text(encoding="utf-8", errors="replace")
    return sum(1 for _ in csv.DictReader(io.StringIO(text)))


class MetricsTable:
    """`metrics.csv`: rewritten whole each epoch, so that a kill cannot leave half a row."""

    def __init__(self, path: Path, *, epochs_done: int) -> None:
        """Keeps the rows of finished epochs; later ones belong to an epoch that is redone."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file() and epochs_done:
            rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
            self.rows = [row for row in rows if int(row["epoch"]) <= epochs_done]

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row and writes the file."""
        self.rows.append(row)
        columns = list(dict.fromkeys(key for each in self.rows for key in each))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
