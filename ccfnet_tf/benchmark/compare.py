"""What is shipped, side by side: runs, exported files and servers, each in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ccfnet_tf.benchmark.machine import machine, new_table, others_line
from ccfnet_tf.benchmark.measure_process import Answered, Engine, Request
from ccfnet_tf.errors import ConfigError, printable, without_secrets
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.runtimes.letterbox import Size
from ccfnet_tf.runtimes.manifest import MANIFEST, REFERENCE
from ccfnet_tf.runtimes.sources import Source, find_source

PERCENTILES = (50, 90, 99)
_MB = 1e6
_LAST_WORDS = 200


def _short(key: str) -> Callable[[dict[str, Any]], str]:
    """Returns how a figure is shown: the fewer digits behind the point, the larger it is."""

    def show(row: dict[str, Any]) -> str:
        value = row[key]
        if value is None:
            return ""
        return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f}"

    return show


_COLUMNS: dict[str, Callable[[dict[str, Any]], str | Text]] = {
    "": lambda row: Text(printable(row["name"]) + "\n{engine}, {precision}".format_map(row)),
    **{f"p{each}\nms": _short(f"p{each}_ms") for each in PERCENTILES},
    "images\n/ s": _short("images_per_s"),
    "peak\nMB": _short("peak_memory_mb"),
    "cold\ns": _short("cold_start_s"),
    "size\nMB": _short("size_mb"),
}
"""Heading -> how a row of the JSON is shown there."""

_QUANTIZED = {
    "none": "float32",
    "fp16": "fp16 weights",
    "dynamic": "int8 weights",
    "int8": "int8",
}
"""What a LiteRT file computes in, or where that is float32, what its weights are kept in."""


@dataclass(frozen=True)
class Entry:
    """A row that is asked for.

    Attributes:
        name: What the user sees of the source.
        given: The source, as the user gave it.
        source: What it was found to be.
        engine: What runs it.
    """

    name: str
    given: str
    source: Source
    engine: Engine = "own"


def entries(sources: Sequence[str], *, openvino: bool) -> list[Entry]:
    """Returns the rows of these sources, and refuses what cannot be opened before any is measured.

    Args:
        sources: As `predict` takes them.
        openvino: Whether every ONNX file is measured in OpenVINO too.

    Raises:
        CCFNetError: A source cannot be used; or OpenVINO is not installed, or has no ONNX file.
    """
    if openvino and find_spec("openvino") is None:
        raise ConfigError("--openvino: it is not installed: pip install 'ccfnet-tf[openvino]'")
    rows = []
    for given in sources:
        source = find_source(given)
        rows.append(Entry(_name(source), given, source))
        if source.kind == "tflite":
            rows.append(Entry(_name(source), given, source, "litert_gpu"))
        if source.kind == "onnx" and openvino:
            rows.append(Entry(_name(source), given, source, "openvino_float32"))
            rows.append(Entry(_name(source), given, source, "openvino_bfloat16"))
    if openvino and not any(row.source.kind == "onnx" for row in rows):
        raise ConfigError("--openvino reads ONNX files: give an .onnx file or its folder too")
    return rows


def compare(
    rows: Sequence[Entry],
    *,
    size: Size,
    warm_up: int,
    count: int,
    threads: int | None,
    console: Console,
) -> dict[str, Any]:
    """Measures each row and returns all figures; `left_out` says why a row has none.

    Args:
        rows: What to measure.
        size: Height and width of the image in pixels; a file of another size fits it to its own.
        warm_up: Answers that are not counted.
        count: Answers that are.
        threads: How many compute; all cores if None.
        console: Where progress is shown.
    """
    measured: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    with new_progress(console) as bar:
        task = bar.add_task("", total=len(rows))
        for row in rows:
            bar.update(task, description=f"{row.name}, {_engine(row)}")
            asked = Request(row.given, row.engine, size, warm_up, count, threads, time.time())
            found = _in_a_process(asked)
            said = {"name": row.name, "source": without_secrets(row.given), "engine": _engine(row)}
            if isinstance(found, str):
                # That this machine lacks a GPU or bfloat16 is no fault of what was given.
                left_out.append(said | {"why": found, "failed": row.engine == "own"})
            else:
                measured.append(said | _figures(row, found))
            bar.advance(task)
    return {
        "size": size,
        "warm_up": warm_up,
        "count": count,
        "threads": threads,
        "machine": machine("tensorflow", "keras"),
        "rows": measured,
        "left_out": left_out,
    }


def table(tree: dict[str, Any]) -> Table:
    """Returns what a person looks at."""
    height, width = tree["size"]
    shown = new_table(
        f"An image of {height}x{width} pixels at a time",
        "from its array to labels and difficulty",
        list(_COLUMNS),
    )
    shown.columns[0].no_wrap = False  # a server's address may be longer than the terminal is wide
    for row in tree["rows"]:
        shown.add_row(*[show(row) for show in _COLUMNS.values()])
    return shown


def notes(tree: dict[str, Any]) -> list[str]:
    """Returns what the table does not say of itself."""
    here = tree["machine"]
    threads = tree["threads"] or here["threads"]
    shares = [row["others_share"] for row in tree["rows"] if row["others_share"] is not None]
    fewer = [
        f"{row['name']}, {row['engine']}: only {row['count']} counted: its time was up"
        for row in tree["rows"]
        if row["count"] < tree["count"]
    ]
    return [
        f"threads: {threads}, of {here['processor']}",
        f"{tree['warm_up']} answers to warm up, {tree['count']} counted; one at a time",
        "cold: from the start of a process to its first answer",
        "peak: memory of that process; of a server, its client's",
        others_line(max(shares, default=None)),
        *fewer,
        *[f"left out: {row['name']}, {row['engine']}: {row['why']}" for row in tree["left_out"]],
    ]


def _in_a_process(request: Request) -> Answered | str:
    """Returns what was measured, or why nothing was."""
    command = [sys.executable, "-P", "-m", "ccfnet_tf.benchmark.measure_process"]
    command.append(json.dumps(asdict(request)))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [""])[-1][:_LAST_WORDS]
        return f"its process ended with {done.returncode} ({said})"
    found = json.loads(lines[-1])
    return found["error"] if "error" in found else Answered(**found)


def _figures(row: Entry, found: Answered) -> dict[str, Any]:
    ms = np.array(found.ms)
    return {
        "precision": _precision(row),
        "count": len(ms),
        "warm_up": found.warm_up,
        **{f"p{each}_ms": float(np.percentile(ms, each)) for each in PERCENTILES},
        "images_per_s": float(1000 / ms.mean()),
        "peak_memory_mb": found.peak_memory_mb,
        "cold_start_s": found.cold_start_s,
        "others_share": found.others_share,
        "size_mb": _size_mb(row.source),
    }


def _name(source: Source) -> str:
    if source.kind == "server":
        return without_secrets(source.place)
    path = Path(source.place).resolve()
    if source.kind == "saved_model":
        return f"{path.parent.name}/{path.name}"
    return path.name if path.is_dir() else path.parent.name


def _engine(row: Entry) -> str:
    own = {
        "run": "Keras",
        "saved_model": "TensorFlow",
        "tflite": "LiteRT",
        "onnx": "onnxruntime",
        "server": "served",
    }
    others = {
        "litert_gpu": "LiteRT GPU",
        "openvino_float32": "OpenVINO",
        "openvino_bfloat16": "OpenVINO",
    }
    return others.get(row.engine, own[row.source.kind])


def _precision(row: Entry) -> str:
    if row.source.kind == "server":
        return "the server's"
    if row.engine == "openvino_bfloat16":
        return "bfloat16"
    options = row.source.manifest.options if row.source.manifest else {}
    if row.source.kind == "tflite":
        return _QUANTIZED[options.get("quantize", "none")]
    return options.get("precision", "float32")


def _size_mb(source: Source) -> float | None:
    """Returns the size on disk of what is needed to answer."""
    if source.kind == "server":
        return None
    if source.kind == "run":
        return read_run(source.place).checkpoint().stat().st_size / _MB
    path = Path(source.place)
    files = path.rglob("*") if path.is_dir() else [path]
    needed = [file for file in files if file.is_file() and file.name not in (MANIFEST, REFERENCE)]
    return sum(file.stat().st_size for file in needed) / _MB
