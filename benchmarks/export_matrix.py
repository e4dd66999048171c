"""Exports runs in every format and quantization and compares them: `make matrix RUNS="..."`.

    python -m benchmarks.export_matrix RUN ... [--out FOLDER] [--size HxW] [--json FILE]

Prints Markdown: a table per run, followed by the remarks of the exports. Artifacts of the same
checkpoint that exist in FOLDER are reused, so an interrupted matrix can be resumed.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ccfnet_tf.benchmark import compare_latency
from ccfnet_tf.benchmark.machine import machine, others_line, refuse_lost_json, write_json
from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import CCFNetError, ConfigError
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.runs.run_folder import RunInfo, load_run, read_run
from ccfnet_tf.runtimes.letterbox import Size, parse_size
from ccfnet_tf.runtimes.manifest import MANIFEST, Manifest, read_manifest

KINDS = (
    "tflite none",
    "tflite fp16",
    "tflite dynamic",
    "tflite int8",
    "saved_model",
    "saved_model bfloat16",
    "onnx",
)
"""Exports of each run, named as in `Manifest.kind`; LiteRT is first as it determines the size."""

KERAS = "Keras"
THREADS = (1, 2)
COUNT = 10
WARM_UP = 2

_HEAD = (
    "file",
    "MB",
    "largest",
    "99.9th percentile",
    "other labels",
    *(f"ms, {threads} thread{'s' if threads > 1 else ''}" for threads in THREADS),
    "GPU",
)


@dataclass
class Row:
    """One row of the table.

    Attributes:
        kind: One of `KINDS`, or `KERAS` for the run itself.
        path: Folder of the run or artifact to time; None if the export was refused.
        manifest: Contents of `export.json`; None for the run itself and for refused exports.
        refused: Error message of a refused export; empty otherwise.
        size_mb: Size on disk of the files needed for prediction.
        ms: Median milliseconds per image, by number of threads.
    """

    kind: str
    path: Path | None = None
    manifest: Manifest | None = None
    refused: str = ""
    size_mb: float | None = None
    ms: dict[int, float] = field(default_factory=dict)


@dataclass
class Matrix:
    """The results of one run.

    Attributes:
        run: The run.
        size: Height and width of the LiteRT files, at which all rows are timed.
        gmac: 10^9 multiply-adds of an image of that size.
        rows: The rows of the table.
        others: The largest share of the processors that other processes used, 0..1.
    """

    run: RunInfo
    size: Size
    gmac: float
    rows: list[Row]
    others: float | None


def main(args: list[str]) -> None:
    """Creates the matrix and prints it."""
    parser = Parser(
        prog="python -m benchmarks.export_matrix",
        description="Export runs in every format and quantization, and compare the results.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument(
        "--out", default="export/models", help="parent of the artifacts of each run"
    )
    parser.add_argument("--size", help="HxW of the LiteRT files (default: size of a test image)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(args)
    refuse_lost_json(options.json)
    if options.size is not None:
        parse_size(options.size)
    runs = [read_run(run) for run in options.runs]
    for run in runs:
        run.checkpoint()
    start_tensorflow()
    console = new_console()
    matrices = []
    for run in runs:
        out = Path(options.out) / run.path.resolve().name
        matrices.append(measured(run, out, options.size, console))
        print("\n".join(markdown(matrices[-1])), flush=True)  # noqa: T201
    if options.json:
        write_json(options.json, {"runs": [as_json(each) for each in matrices]})


def measured(run: RunInfo, out: Path, size: str | None, console: Console) -> Matrix:
    """Exports a run in every kind and times the exports.

    Args:
        run: A run with a checkpoint.
        out: Folder for its artifacts.
        size: HxW of the LiteRT files; None for the size of a test image.
        console: Console for progress.

    Raises:
        ConfigError: All LiteRT exports were refused, so there is no size for the comparison.
    """
    rows = []
    with new_progress(console) as bar:
        task = bar.add_task("", total=len(KINDS))
        for kind in KINDS:
            bar.update(task, description=f"exporting {run.path.name}: {kind}")
            rows.append(exported(run, kind, out, size))
            bar.advance(task)
    found = [row.manifest.options for row in rows if row.manifest is not None]
    sizes = [options["size"] for options in found if "size" in options]
    if not sizes:
        raise ConfigError(f"{run.path}: no LiteRT file could be exported: {rows[0].refused}")
    at = parse_size(sizes[0])
    from ccfnet_tf.benchmark.flops import cost  # imports TensorFlow, silenced by now

    rows.insert(0, Row(KERAS, run.path))
    others = _time(rows, at, console)
    return Matrix(run, at, cost(load_run(run.path), *at).total, rows, others)


def exported(run: RunInfo, kind: str, out: Path, size: str | None) -> Row:
    """Returns the row of an artifact, which is exported unless it exists."""
    if (existing := find_artifact(run, kind, out, size)) is not None:
        return existing
    format_, _, variant = kind.partition(" ")
    is_litert = format_ == "tflite"
    command = [sys.executable, "-P", "-m", "ccfnet_tf", "export", str(run.path)]
    command += ["--format", format_, "--out", str(out)]
    command += ["--quantize" if is_litert else "--precision", variant] if variant else []
    command += ["--size", size] if size and is_litert else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        stderr = done.stderr.strip().splitlines() or [f"the export exited with {done.returncode}"]
        return Row(kind, refused=stderr[-1])
    row = find_artifact(run, kind, out, size)
    if row is None:
        raise ConfigError(f"{out}: the export succeeded but wrote no {kind} there")
    return row


def find_artifact(run: RunInfo, kind: str, out: Path, size: str | None) -> Row | None:
    """Returns the newest artifact of that kind from the current checkpoint of the run, or None."""
    checkpoint = run.checkpoint()
    for file in sorted(out.rglob(MANIFEST), key=lambda each: each.stat().st_mtime, reverse=True):
        manifest = read_manifest(file.parent)
        newer = file.stat().st_mtime >= checkpoint.stat().st_mtime
        same_size = size is None or manifest.options.get("size", size) == size
        if manifest.kind == kind and newer and same_size:
            return Row(kind, file.parent, manifest)
    return None


def _time(rows: list[Row], size: Size, console: Console) -> float | None:
    """Sets milliseconds and megabytes; returns the largest share used by other processes."""
    shares = []
    for threads in THREADS:
        timed = [row for row in rows if row.path is not None]
        entries = compare_latency.entries([str(row.path) for row in timed], openvino=False)
        # Times on a software GPU are meaningless.
        own = [entry for entry in entries if entry.engine == "own"]
        tree = compare_latency.compare(
            own, size=size, warm_up=WARM_UP, count=COUNT, threads=threads, console=console
        )
        for found in tree["rows"]:
            row = next(row for row in timed if str(row.path) == found["source"])
            row.ms[threads], row.size_mb = found["p50_ms"], found["size_mb"]
            shares.append(found["others_share"])
    return max((share for share in shares if share is not None), default=None)


def markdown(matrix: Matrix) -> list[str]:
    """Returns the table of a run as lines of Markdown."""
    config, here = matrix.run.config, machine()
    height, width = matrix.size
    model, classes = config.model, len(matrix.run.taxonomy.names)
    head = (
        f"**{matrix.run.path.name}**: {model.backbone}, {model.head_channels}-channel heads, "
        f"{classes} classes, trained in {config.train.precision} on {config.data.format}; "
        f"{height}x{width}, {matrix.gmac:.3g} GMAC"
    )
    remarks = [
        f"- {row.kind}: {line}"
        for row in matrix.rows
        for line in ([row.refused] if row.refused else _remarks(row))
    ]
    lines = [head, "", _line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [_line(_cells(row)) for row in matrix.rows]
    lines += ["", *remarks] if remarks else []
    return [*lines, "", f"{here['processor']}; {others_line(matrix.others)}.", ""]


def as_json(matrix: Matrix) -> dict[str, Any]:
    """Returns all figures of a run in the form of the JSON file."""
    return {
        "run": str(matrix.run.path),
        "size": matrix.size,
        "gmac": matrix.gmac,
        "machine": machine("tensorflow", "keras"),
        "others_share": matrix.others,
        "rows": [
            {
                "kind": row.kind,
                "refused": row.refused,
                "size_mb": row.size_mb,
                "ms": row.ms,
                "difference": row.manifest.difference if row.manifest else None,
                "measured": row.manifest.measured if row.manifest else {},
            }
            for row in matrix.rows
        ],
    }


def _remarks(row: Row) -> list[str]:
    measured = row.manifest.measured if row.manifest else {}
    return [f"{name}: {text}" for name, text in measured.items() if not text.startswith("yes")]


def _cells(row: Row) -> list[str]:
    if row.refused:
        return [row.kind, "", "", "", "refused", *[""] * (len(_HEAD) - 5)]
    cells = [row.kind, f"{row.size_mb:.1f}" if row.size_mb is not None else ""]
    if row.manifest is None:
        cells += ["", "", ""]
    else:
        found = row.manifest.difference
        cells += [f"{found['largest']:.1e}", f"{found['percentile']:.1e}"]
        cells.append(f"{100 * found['other_labels']:.3f} %")
    cells += [f"{row.ms[threads]:.0f}" if threads in row.ms else "" for threads in THREADS]
    return [*cells, _gpu(row)]


def _gpu(row: Row) -> str:
    """Returns the first word of the GPU result; the rest is printed below the table."""
    text = row.manifest.measured.get("GPU", "") if row.manifest else ""
    return text.partition(":")[0]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CCFNetError as error:
        sys.exit(f"matrix: {error}")
