"""Compares the speed of runs, exported files and servers, each in a separate process."""

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

from ccfnet_tf.benchmark.latency_process import Engine, Measurement, Request
from ccfnet_tf.benchmark.machine import machine, new_table, others_line
from ccfnet_tf.errors import ConfigError, printable, without_secrets
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.runtimes.letterbox import Size
from ccfnet_tf.runtimes.manifest import MANIFEST, REFERENCE
from ccfnet_tf.runtimes.open_segmenter import Source, find_source

PERCENTILES = (50, 90, 99)
_MB = 1e6
_MAX_MESSAGE = 200


def _format(key: str) -> Callable[[dict[str, Any]], str]:
    """Returns a formatter of a figure: larger values have fewer decimals."""

    def show(row: dict[str, Any]) -> str:
        value = row[key]
        if value is None:
            return ""
        return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f}"

    return show


_COLUMNS: dict[str, Callable[[dict[str, Any]], str | Text]] = {
    "": lambda row: Text(printable(row["name"]) + "\n{engine}, {precision}".format_map(row)),
    **{f"p{each}\nms": _format(f"p{each}_ms") for each in PERCENTILES},
    "images\n/ s": _format("images_per_s"),
    "peak\nMB": _format("peak_memory_mb"),
    "cold\ns": _format("cold_start_s"),
    "size\nMB": _format("size_mb"),
}
"""Maps a column heading to the formatter of a row of the JSON."""

_QUANTIZED = {
    "none": "float32",
    "fp16": "fp16 weights",
    "dynamic": "int8 weights",
    "int8": "int8",
}
"""Description of a LiteRT file's data type, or of its weights if it computes in float32."""


@dataclass(frozen=True)
class Entry:
    """A requested row of the table.

    Attributes:
        name: Displayed name of the source.
        given: The source as the user specified it.
        source: The checked source.
        engine: Engine that runs the network.
    """

    name: str
    given: str
    source: Source
    engine: Engine = "own"


def entries(sources: Sequence[str], *, openvino: bool) -> list[Entry]:
    """Returns the rows of these sources; checks every source before any is measured.

    Args:
        sources: Sources as accepted by `predict`.
        openvino: Whether ONNX files are also measured in OpenVINO.

    Raises:
        CCFNetError: A source cannot be used, OpenVINO is not installed, or `openvino` is set and
            no source is an ONNX file.
    """
    if openvino and find_spec("openvino") is None:
        raise ConfigError(
            "--openvino: OpenVINO is not installed: pip install 'ccfnet-tf[openvino]'"
        )
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
    """Measures each row.

    Args:
        rows: The rows to measure.
        size: Height and width of the image in pixels; files with a fixed size resize it.
        warm_up: Predictions before the timed ones.
        count: Timed predictions.
        threads: Number of threads; one per core if None.
        console: Console for progress.

    Returns:
        All figures; `left_out` contains the rows that could not be measured, with reasons.
    """
    measured: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    with new_progress(console) as bar:
        task = bar.add_task("", total=len(rows))
        for row in rows:
            bar.update(task, description=f"{row.name}, {_engine(row)}")
            request = Request(row.given, row.engine, size, warm_up, count, threads, time.time())
            result = _measure_in_process(request)
            text = {"name": row.name, "source": without_secrets(row.given), "engine": _engine(row)}
            if isinstance(result, str):
                # Only the default engine must work; a machine may lack a GPU or bfloat16.
                left_out.append(text | {"why": result, "failed": row.engine == "own"})
            else:
                measured.append(text | _figures(row, result))
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
    """Formats the figures as a table."""
    height, width = tree["size"]
    rendered = new_table(
        f"An image of {height}x{width} pixels at a time",
        "from its array to labels and maps",
        list(_COLUMNS),
    )
    rendered.columns[0].no_wrap = False  # a server's address may exceed the terminal's width
    for row in tree["rows"]:
        rendered.add_row(*[show(row) for show in _COLUMNS.values()])
    return rendered


def notes(tree: dict[str, Any]) -> list[str]:
    """Returns notes below the table: conditions, definitions and rows left out."""
    here = tree["machine"]
    threads = tree["threads"] or here["threads"]
    shares = [row["others_share"] for row in tree["rows"] if row["others_share"] is not None]
    fewer = [
        f"{row['name']}, {row['engine']}: only {row['count']} timed: the time limit was reached"
        for row in tree["rows"]
        if row["count"] < tree["count"]
    ]
    return [
        f"threads: {threads}, of {here['processor']}",
        f"{tree['warm_up']} predictions to warm up, {tree['count']} timed; one at a time",
        "cold: from the start of a process to its first prediction",
        "peak: memory of the process; for a server, of its client",
        others_line(max(shares, default=None)),
        *fewer,
        *[f"left out: {row['name']}, {row['engine']}: {row['why']}" for row in tree["left_out"]],
    ]


def _measure_in_process(request: Request) -> Measurement | str:
    """Returns the measurement, or the reason for a failure."""
    command = [sys.executable, "-P", "-m", "ccfnet_tf.benchmark.latency_process"]
    command.append(json.dumps(asdict(request)))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        text = (done.stderr.strip().splitlines() or [""])[-1][:_MAX_MESSAGE]
        return f"the process failed with exit code {done.returncode} ({text})"
    result = json.loads(lines[-1])
    return result["error"] if "error" in result else Measurement(**result)


def _figures(row: Entry, result: Measurement) -> dict[str, Any]:
    ms = np.array(result.ms)
    return {
        "precision": _precision(row),
        "count": len(ms),
        "warm_up": result.warm_up,
        **{f"p{each}_ms": float(np.percentile(ms, each)) for each in PERCENTILES},
        "images_per_s": float(1000 / ms.mean()),
        "peak_memory_mb": result.peak_memory_mb,
        "cold_start_s": result.cold_start_s,
        "others_share": result.others_share,
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
    """Returns the size of the files that prediction needs."""
    if source.kind == "server":
        return None
    if source.kind == "run":
        return read_run(source.place).checkpoint().stat().st_size / _MB
    path = Path(source.place)
    files = path.rglob("*") if path.is_dir() else [path]
    needed = [file for file in files if file.is_file() and file.name not in (MANIFEST, REFERENCE)]
    return sum(file.stat().st_size for file in needed) / _MB
