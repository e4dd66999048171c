"""`ccfnet-tf benchmark`: measures the cost and the speed of networks on this machine.

A single run, or no argument, measures training and inference (`speed`). Anything else compares the
latency of several networks (`compare`).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ccfnet_tf.benchmark.machine import (
    Others,
    machine,
    new_table,
    others_line,
    refuse_lost_json,
    write_json,
)
from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, ConfigError
from ccfnet_tf.inference.segmenter_protocol import SMALLEST
from ccfnet_tf.io.console import new_console
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.runtimes.letterbox import Size, parse_size

if TYPE_CHECKING:
    from ccfnet_tf.benchmark.speed import Benchmark, Speed

PAPER = RunConfig(
    data=DataConfig(format="scenes", scenes=24),
    model=ModelConfig(backbone_weights="none"),
    train=TrainConfig(batch=2),
)
"""Measured if no run is given: the network of the paper with ResNet-50, on synthetic scenes."""

_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "": "{phase} {precision}".format_map,
    "ms per\nimage": "{ms_an_image:.0f}".format_map,
    "GFLOP/s of\na matmul's": "{gflops:.0f} of {matmul_gflops:.0f}".format_map,
    "share": "{share_of_matmul:.0%}".format_map,
    "peak\nMB": "{peak_memory_mb:.0f}".format_map,
    "reading\nms": "{ms_an_image_while_reading:.0f}".format_map,
    "waits": "{waiting_share:.1%}".format_map,
}
"""Column heading -> format of the cell, given a row of the JSON."""
_TRAINING_COLUMNS = 2
"""Number of trailing columns that apply only to training."""

_COMPARISON_OPTIONS = {"warm_up": 3, "count": 20, "threads": None, "openvino": False}
_RUN_OPTIONS = {"batch": None, "rounds": 3, "root": None}
"""Options that apply only to a comparison or only to a single run, with their defaults."""
_SIZE = (241, 241)


def main(args: list[str]) -> int:
    """Runs the command; returns the exit code."""
    options = new_parser().parse_args(args)
    for key in ("batch", "rounds", "warm-up", "count", "threads"):
        value = getattr(options, key.replace("-", "_"))
        if value is not None and value < 1:
            raise ConfigError(f"--{key} is {value}: it must be 1 or more")
    refuse_lost_json(options.json)
    sources = options.sources
    if options.compare or len(sources) > 1 or (sources and not _may_be_a_run(sources[0])):
        _refuse(options, _RUN_OPTIONS, "applies only to a single run, not to a comparison")
        return _compare(options)
    _refuse(
        options,
        _COMPARISON_OPTIONS,
        "applies only to comparisons: give an exported file, or --compare",
    )
    return _measure(options)


def new_parser() -> Parser:
    """Returns the argument parser of the command."""
    parser = Parser(
        prog="ccfnet-tf benchmark",
        description="With a single run folder: measures the speed of its network in training and "
        "inference, on one device and with random weights. Without SOURCE: measures the network "
        "of the paper with ResNet-50 on synthetic scenes. With an exported file or folder, the "
        "address of a server, several of them, or --compare: measures the latency per image of "
        "each, in separate processes.",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="run folder; exported folder, .tflite or .onnx file; address of a server",
    )
    size = "image size: HEIGHTxWIDTH, or the side of a square (default: crop size of the run; "
    parser.add_argument("--size", help=f"{size}{_SIZE[0]} in a comparison)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results to FILE")
    one = parser.add_argument_group("options of a single run")
    one.add_argument("--batch", type=int, help="images per step (default: batch size of the run)")
    one.add_argument(
        "--rounds", type=int, help="repetitions, of which the fastest counts (default: 3)"
    )
    one.add_argument("--data.root", dest="root", help="new location of the data set")
    many = parser.add_argument_group("options of a comparison")
    many.add_argument(
        "--compare", action="store_true", help="measure latency even for a single run folder"
    )
    many.add_argument("--warm-up", type=int, help="untimed predictions (default: 3)")
    many.add_argument("--count", type=int, help="timed predictions (default: 20)")
    many.add_argument("--threads", type=int, help="number of threads (default: all cores)")
    many.add_argument(
        "--openvino",
        action="store_true",
        help="also run ONNX files in OpenVINO, in float32 and bfloat16 (extra: openvino)",
    )
    parser.set_defaults(openvino=None)
    return parser


def _may_be_a_run(source: str) -> bool:
    """Returns whether to treat a source as a run; a missing path is reported as a missing run."""
    from ccfnet_tf.runs.run_folder import CONFIG
    from ccfnet_tf.runtimes.open_segmenter import SERVERS

    path = expanded(source)
    return not source.startswith(SERVERS) and (not path.exists() or (path / CONFIG).is_file())


def _refuse(options: Namespace, known: dict[str, Any], why: str) -> None:
    """Refuses options that would have no effect, and sets the defaults of the others.

    Raises:
        ConfigError: One of the options in `known` was given.
    """
    for key in known:
        if getattr(options, key) is not None:
            name = "data.root" if key == "root" else key.replace("_", "-")
            raise ConfigError(f"--{name} {why}")
    for key, value in {**_RUN_OPTIONS, **_COMPARISON_OPTIONS}.items():
        if getattr(options, key) is None:
            setattr(options, key, value)


def _compare(options: Namespace) -> int:
    from ccfnet_tf.benchmark import compare_latency

    size = _size(options.size) or _SIZE
    if not options.sources:
        raise ConfigError("--compare needs at least one SOURCE: give run folders or exported files")
    rows = compare_latency.entries(options.sources, openvino=options.openvino)
    console = new_console()
    tree = compare_latency.compare(
        rows,
        size=size,
        warm_up=options.warm_up,
        count=options.count,
        threads=options.threads,
        console=console,
    )
    console.print(compare_latency.table(tree))
    for line in compare_latency.notes(tree):
        console.print(line)
    if options.json:
        write_json(options.json, tree)
        console.print(f"written to {options.json}")
    return EXIT_FINDINGS if any(row["failed"] for row in tree["left_out"]) else EXIT_DONE


def _size(text: str | None) -> Size | None:
    """Parses `--size` to (H, W); raises ConfigError if it has neither form."""
    if text is None:
        return None
    size = parse_size(f"{text}x{text}" if text.isdecimal() else text)
    if min(size) < 1:
        raise ConfigError(f"--size is {text}: both sides must be 1 or more")
    return size


def _side(text: str | None) -> int | None:
    """Parses `--size` for a run; raises ConfigError if it is no valid crop size."""
    height, width = _size(text) or (None, None)
    if height != width:
        raise ConfigError(
            f"--size is {text}: a single run is trained on square crops: give one number"
        )
    if height is not None and height < SMALLEST:
        raise ConfigError(f"--size is {text}: the network needs at least {SMALLEST}")
    return height


def _measure(options: Namespace) -> int:
    side = _side(options.size)
    name, config = _config(options.sources[0] if options.sources else None, options.root)
    config = replace(
        config,
        data=replace(config.data, crop=side or config.data.crop),
        train=replace(config.train, batch=options.batch or config.train.batch),
    )
    console = new_console()
    start_tensorflow()
    from ccfnet_tf.benchmark.speed import measure

    others = Others()
    measured = measure(config, rounds=options.rounds, console=console)
    share = others.share()
    console.print(table(name, config, measured))
    for line in [*notes(measured), others_line(share)]:
        console.print(line)
    if options.json:
        write_json(options.json, as_json(name, config, measured) | {"others_share": share})
        console.print(f"written to {options.json}")
    return EXIT_DONE


def as_json(name: str, config: RunConfig, measured: Benchmark) -> dict[str, Any]:
    """Returns all results: times in milliseconds per image, memory in MB, shares in 0..1."""
    return {
        "network": name,
        "backbone": config.model.backbone,
        "head_channels": config.model.head_channels,
        "size": measured.size,
        "batch": measured.batch,
        "rounds": measured.rounds,
        "machine": machine("tensorflow", "keras"),
        "gmac": asdict(measured.cost) | {"sum": measured.cost.total},
        "matmul_gflops": measured.products,
        "speeds": [_as_json(measured, speed) for speed in measured.speeds],
        "left_out": measured.left_out,
    }


def table(name: str, config: RunConfig, measured: Benchmark) -> Table:
    """Returns the results as a table."""
    parts = " + ".join(f"{part} {value:.3g}" for part, value in asdict(measured.cost).items())
    result = new_table(
        f"{name}: {config.model.backbone}, {measured.size}x{measured.size} pixels, "
        f"{measured.batch} images per step",
        f"GMAC per image: {parts} = {measured.cost.total:.3g}",
        list(_COLUMNS),
    )
    for speed in measured.speeds:
        row = _as_json(measured, speed)
        columns = list(_COLUMNS.values())
        if speed.phase == "inference":
            columns = columns[:-_TRAINING_COLUMNS]
        result.add_row(*[format_cell(row) for format_cell in columns])
    return result


def notes(measured: Benchmark) -> list[str]:
    """Returns the explanations printed below the table."""
    host = machine()
    return [
        f"{host['threads']} threads of {host['processor']}; best of {measured.rounds} rounds",
        "training counts as three forward passes; peak: memory of the whole process;",
        "reading: steps while the data pipeline runs; waits: share of time waiting for batches",
        *[f"left out: {precision}: {why}" for precision, why in measured.left_out.items()],
    ]


def _config(run: str | None, root: str | None) -> tuple[str, RunConfig]:
    """Returns the name and the configuration of the network to measure."""
    if run is None:
        return "network of the paper", PAPER
    from ccfnet_tf.runs.run_data import with_data_at
    from ccfnet_tf.runs.run_folder import read_run

    return run, with_data_at(read_run(run), root).config


def _as_json(measured: Benchmark, speed: Speed) -> dict[str, Any]:
    per_image = 1000 / measured.batch
    rate, peak = measured.gflops(speed), measured.products[speed.precision]
    return {
        "phase": speed.phase,
        "precision": speed.precision,
        "ms_an_image": speed.seconds * per_image,
        "gflops": rate,
        "matmul_gflops": peak,
        "share_of_matmul": rate / peak,
        "peak_memory_mb": speed.memory,
        "ms_an_image_while_reading": speed.fed * per_image if speed.waiting is not None else None,
        "waiting_share": speed.waiting,
    }
