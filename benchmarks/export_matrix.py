"""Every format and quantization of runs, side by side: `make matrix RUNS="..."`.

    python -m benchmarks.export_matrix RUN ... [--out FOLDER] [--size HxW] [--json FILE]

What is printed is Markdown: a table for each run, and what the exports said. What lies in FOLDER
already, from the same checkpoint, is not exported again, so that a broken-off matrix goes on.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ccfnet_tf.benchmark import compare
from ccfnet_tf.benchmark.machine import machine, others_line, refuse_lost_json, write_json
from ccfnet_tf.cli.parser import Parser
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
"""What is made of each run, as `Manifest.kind` calls it; a LiteRT file first: it has the size."""

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
    """A line of the table.

    Attributes:
        kind: One of `KINDS`, or `KERAS` for the run itself.
        place: What `benchmark` measures: the run's or the artifact's folder; None without one.
        manifest: What `export.json` says; None of the run, and of what was refused.
        refused: Why the export handed nothing over; empty where it did.
        size_mb: What is needed to answer, on disk.
        ms: Median milliseconds of an image, by threads.
    """

    kind: str
    place: Path | None = None
    manifest: Manifest | None = None
    refused: str = ""
    size_mb: float | None = None
    ms: dict[int, float] = field(default_factory=dict)


@dataclass
class Matrix:
    """What became of one run.

    Attributes:
        run: The run.
        size: Height and width that the LiteRT files take, and that all were timed at.
        gmac: 10^9 multiply-adds of an image of that size.
        rows: The lines.
        others: The largest share of the processors that other processes took, 0..1.
    """

    run: RunInfo
    size: Size
    gmac: float
    rows: list[Row]
    others: float | None


def main(args: list[str]) -> None:
    """Makes the matrix and prints it."""
    parser = Parser(
        prog="python -m benchmarks.export_matrix",
        description="Export runs in every format and quantization, and compare what came of it.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--out", default="export/models", help="where artifacts go, by run")
    parser.add_argument("--size", help="HxW of the LiteRT files (default: a test image's)")
    parser.add_argument("--json", type=Path, help="write the figures there")
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
    """Exports a run in every kind, and times what came of it.

    Args:
        run: A run with a checkpoint.
        out: Folder of its artifacts.
        size: HxW of the LiteRT files; a test image's where None.
        console: Where progress is shown.

    Raises:
        ConfigError: No LiteRT file could be made, so that there is no size to compare at.
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
        raise ConfigError(f"{run.path}: no LiteRT file could be made: {rows[0].refused}")
    at = parse_size(sizes[0])
    from ccfnet_tf.benchmark.flops import cost  # and with it TensorFlow, which is quiet by now

    rows.insert(0, Row(KERAS, run.path))
    others = _time(rows, at, console)
    return Matrix(run, at, cost(load_run(run.path), *at).total, rows, others)


def exported(run: RunInfo, kind: str, out: Path, size: str | None) -> Row:
    """Returns the line of an artifact, which is made unless it is there already."""
    if (there := find_artifact(run, kind, out, size)) is not None:
        return there
    format_, _, how = kind.partition(" ")
    of_boards = format_ == "tflite"
    command = [sys.executable, "-P", "-m", "ccfnet_tf", "export", str(run.path)]
    command += ["--format", format_, "--out", str(out)]
    command += ["--quantize" if of_boards else "--precision", how] if how else []
    command += ["--size", size] if size and of_boards else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return Row(kind, refused=said)
    row = find_artifact(run, kind, out, size)
    if row is None:
        raise ConfigError(f"{out}: the export said that it was done, and left no {kind} there")
    return row


def find_artifact(run: RunInfo, kind: str, out: Path, size: str | None) -> Row | None:
    """Returns the newest artifact of that kind and of the run's checkpoint as it is now."""
    checkpoint = run.checkpoint()
    for file in sorted(out.rglob(MANIFEST), key=lambda each: each.stat().st_mtime, reverse=True):
        manifest = read_manifest(file.parent)
        newer = file.stat().st_mtime >= checkpoint.stat().st_mtime
        as_asked = size is None or manifest.options.get("size", size) == size
        if manifest.kind == kind and newer and as_asked:
            return Row(kind, file.parent, manifest)
    return None


def _time(rows: list[Row], size: Size, console: Console) -> float | None:
    """Fills in milliseconds and megabytes; returns the largest share that others took."""
    shares = []
    for threads in THREADS:
        timed = [row for row in rows if row.place is not None]
        entries = compare.entries([str(row.place) for row in timed], openvino=False)
        # A GPU of software is of no use for times.
        own = [entry for entry in entries if entry.engine == "own"]
        tree = compare.compare(
            own, size=size, warm_up=WARM_UP, count=COUNT, threads=threads, console=console
        )
        for found in tree["rows"]:
            row = next(row for row in timed if str(row.place) == found["source"])
            row.ms[threads], row.size_mb = found["p50_ms"], found["size_mb"]
            shares.append(found["others_share"])
    return max((share for share in shares if share is not None), default=None)


def markdown(matrix: Matrix) -> list[str]:
    """Returns the lines of a run."""
    config, here = matrix.run.config, machine()
    height, width = matrix.size
    model, classes = config.model, len(matrix.run.taxonomy.names)
    head = (
        f"**{matrix.run.path.name}**: {model.backbone}, {model.head_channels}-channel heads, "
        f"{classes} classes, trained in {config.train.precision} on {config.data.format}; "
        f"{height}x{width}, {matrix.gmac:.3g} GMAC"
    )
    said = [
        f"- {row.kind}: {line}"
        for row in matrix.rows
        for line in ([row.refused] if row.refused else _worth_saying(row))
    ]
    lines = [head, "", _line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [_line(_cells(row)) for row in matrix.rows]
    lines += ["", *said] if said else []
    return [*lines, "", f"{here['processor']}; {others_line(matrix.others)}.", ""]


def as_json(matrix: Matrix) -> dict[str, Any]:
    """Returns all figures of a run."""
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


def _worth_saying(row: Row) -> list[str]:
    measured = row.manifest.measured if row.manifest else {}
    return [f"{name}: {said}" for name, said in measured.items() if not said.startswith("yes")]


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
    """Returns the first word of the verdict; the rest stands below the table."""
    said = row.manifest.measured.get("GPU", "") if row.manifest else ""
    return said.partition(":")[0]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CCFNetError as error:
        sys.exit(f"matrix: {error}")
