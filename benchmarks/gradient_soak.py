"""Repeats one training step thousands of times and counts gradients that differ.

    python -m benchmarks.gradient_soak RUN [--data.root DIR]      last.npz and data of a run
    python -m benchmarks.gradient_soak --config PRESET [--KEY VALUE ...]    random weights

Each setting runs in a separate process. A setting consists of the gradients (of this package or
of Keras), the precision, the largest instruction set that oneDNN may use (ONEDNN_MAX_CPU_ISA), and
the implementation of the gradient of kernels above 1x1. `--matrix` runs all of them. Before each
setting, a short process in the same setting lists the implementations that oneDNN selects.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from benchmarks import REPOSITORY
from benchmarks.onednn_log import Log, instruction_sets
from ccfnet_tf.benchmark.machine import machine, refuse_lost_json, write_json
from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.cli.fit_options import parse_config
from ccfnet_tf.config import RunConfig, find_config, to_yaml
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_USER_ERROR, CCFNetError, ConfigError
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.runs.run_folder import CHECKPOINTS, read_run

PRESET = "stanford_background"
NO_AMX = "AVX512_CORE_BF16"
"""Value of ONEDNN_MAX_CPU_ISA for the largest instruction set below AMX."""
PRECISIONS = ("bfloat16", "float32")
REMEDIES = ("columns", "none", "channels", "slices", "float32")
_OURS, _KERAS = "ours", "keras"

_LOAD = """
import os, sys
import numpy as np
side = np.random.default_rng(0).random((512, 512))
while os.getppid() == int(sys.argv[1]):
    side @ side
"""
_HEAD = (
    "precision",
    "gradients",
    "oneDNN up to",
    "kernel gradients by",
    "steps",
    "differ",
    "not finite",
    "ms per step",
    "variables",
)


@dataclass(frozen=True)
class Setting:
    """The setting of one process.

    Attributes:
        precision: Compute type of the hidden layers.
        gradients: `ours` for the gradients of this package, or `keras`.
        remedy: Implementation of the gradient of kernels above 1x1, for `ours`.
        isa: Value of ONEDNN_MAX_CPU_ISA; empty for no limit.
    """

    precision: str
    gradients: str = _OURS
    remedy: str = REMEDIES[0]
    isa: str = ""


@dataclass
class Row:
    """The result of a setting.

    Attributes:
        setting: The setting.
        log: The log of oneDNN.
        counted: A `gradient_soak_process.Counted` as a dictionary.
        error: Error message if there are no counts; empty otherwise.
    """

    setting: Setting
    log: Log
    counted: dict[str, Any]
    error: str = ""


def main(args: Sequence[str]) -> int:
    """Runs the settings, prints the table and returns the exit code."""
    options, keys = _parse(args)
    refuse_lost_json(options.json)
    config, checkpoint = configured(options, keys)
    settings = matrix(instruction_sets()) if options.matrix else [_setting(options)]
    request = {
        "config": to_yaml(config),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "fill": options.fill,
        "steps": options.steps,
    }
    console, rows = new_console(), list[Row]()
    with new_progress(console) as bar, load(options.load):
        task = bar.add_task("", total=len(settings) * options.steps)
        for index, setting in enumerate(settings):
            bar.update(task, description=" ".join(filter(None, asdict(setting).values())))
            done = index * options.steps
            rows.append(soaked(setting, request, partial(_advance, bar, task, done)))
            if options.json:
                write_json(options.json, as_json(rows, config, options))
    for line in markdown(rows, config, options):
        console.print(line)
    sound = all(_is_sound(row) for row in rows)
    return EXIT_DONE if sound else EXIT_FINDINGS


def _is_sound(row: Row) -> bool:
    counted = row.counted
    return (
        not row.error
        and counted["first_finite"]
        and not (counted["differ"] or counted["not_finite"])
    )


def _advance(bar: Progress, task: TaskID, done: int, step: int) -> None:
    bar.update(task, completed=done + step)


def matrix(sets: Sequence[str]) -> list[Setting]:
    """Returns all distinct settings for a processor with these instruction sets."""
    limits = ("", NO_AMX) if "amx_bf16" in sets else ("",)
    plain = [
        Setting(precision, gradients, isa=isa)
        for precision in PRECISIONS
        for gradients in (_OURS, _KERAS)
        for isa in limits
    ]
    return plain + [Setting("bfloat16", remedy=remedy) for remedy in REMEDIES[1:]]


def configured(options: argparse.Namespace, keys: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """Returns the configuration and the checkpoint to start from (None for random weights).

    Raises:
        CCFNetError: The run or a key is invalid.
    """
    if options.run is not None:
        if options.config or keys:
            raise ConfigError("a RUN has its own configuration: leave out --config and keys")
        info = read_run(options.run)
        root = options.root or info.config.data.root
        config = replace(info.config, data=replace(info.config.data, root=root))
        info.checkpoint("last")
        return config, info.path / CHECKPOINTS / "last.npz"
    data = ["--data.root", options.root] if options.root else ["--data.format", "scenes"]
    keys = ["--model.backbone_weights", "none", *data, *keys]
    return parse_config(find_config(options.config or PRESET), keys), None


def soaked(setting: Setting, request: dict[str, Any], report: Callable[[int], object]) -> Row:
    """Runs a setting: first one step with the log of oneDNN, then all repetitions."""
    complete = request | {
        "precision": setting.precision,
        "own": setting.gradients == _OURS,
        "remedy": setting.remedy,
    }
    log = Log()
    short = run(complete | {"steps": 0, "fill": False}, environment(setting, verbose=True), log=log)
    if "error" in short:
        return Row(setting, log, {}, short["error"])
    counted = run(complete, environment(setting), report=report)
    return Row(setting, log, counted, counted.get("error", ""))


def environment(setting: Setting, *, verbose: bool = False) -> dict[str, str]:
    """Returns the environment of the process of a setting.

    oneDNN is enabled explicitly: by default TensorFlow disables it on processors without AVX512.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **({"ONEDNN_MAX_CPU_ISA": setting.isa} if setting.isa else {}),
        **({"ONEDNN_VERBOSE": "1"} if verbose else {}),
    }


def run(
    request: dict[str, Any],
    environment: dict[str, str],
    *,
    log: Log | None = None,
    report: Callable[[int], object] = lambda _: None,
) -> dict[str, Any]:
    """Returns the last message of a `gradient_soak_process`, or an `error` if it was killed."""
    command = [sys.executable, "-P", "-m", "benchmarks.gradient_soak_process", json.dumps(request)]
    log, last = log or Log(), dict[str, Any]()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                if not log.read(line) and line.startswith("{"):
                    last = json.loads(line)
                    report(last.get("step", 0))
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    if process.returncode or "step" in last or not last:
        return {"error": f"the process exited with {process.returncode}"}
    return last


@contextmanager
def load(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Context in which `count` processes compute matrix products."""
    command = [sys.executable, "-c", _LOAD, str(os.getpid())]
    started = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def markdown(rows: Sequence[Row], config: RunConfig, options: argparse.Namespace) -> list[str]:
    """Returns the table and the lines around it as Markdown."""
    here = machine("tensorflow", "keras")
    sets = ", ".join(instruction_sets()) or "unknown instruction sets"
    log = rows[0].log
    what = (
        f"{config.model.backbone}, {config.data.crop}x{config.data.crop}, {config.train.batch} "
        f"images; {options.load} busy processes in parallel; new memory "
        f"{'filled with NaN' if options.fill else 'not filled'}"
    )
    where = (
        f"{here['threads']} threads of {here['processor']} ({sets}); oneDNN "
        f"{log.version or '(no log)'}, {log.isa or 'unknown instruction set'}; TensorFlow "
        f"{here['tensorflow']}"
    )
    table = [_line(_HEAD), _line(["---"] * len(_HEAD)), *[_line(_cells(row)) for row in rows]]
    return [what, where, "", *table, "", *[line for row in rows for line in _indices(row)]]


def as_json(rows: Sequence[Row], config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Returns all results in the form of the JSON file."""
    return {
        "machine": machine("tensorflow", "keras"),
        "instruction_sets": instruction_sets(),
        "backbone": config.model.backbone,
        "crop": config.data.crop,
        "batch": config.train.batch,
        "load": options.load,
        "fill": options.fill,
        "rows": [asdict(row) for row in rows],
    }


def _cells(row: Row) -> list[str]:
    setting, counted = row.setting, row.counted
    gradients = "Keras's" if setting.gradients == _KERAS else f"ours, {setting.remedy}"
    kernels = ", ".join(row.log.implementations) or "not oneDNN"
    cells = [setting.precision, gradients, setting.isa or "all", kernels]
    if row.error:
        return [*cells, "", "", "", "", row.error]
    worst = sorted(counted["variables"].items(), key=lambda item: -item[1]["differ"])
    names = ", ".join(f"{name} {count['differ']}" for name, count in worst[:3])
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    figures = [counted["steps"], counted["differ"], counted["not_finite"]]
    return [*cells, *map(str, figures), f"{1000 * counted['seconds']:.0f}", names + more]


def _indices(row: Row) -> list[str]:
    where = f"{row.setting.precision}, {row.setting.gradients}, {row.setting.remedy}"
    return [
        f"{where}: {name} not finite in {count['not_finite']} steps, at indices {count['places']}"
        for name, count in row.counted.get("variables", {}).items()
        if count["not_finite"]
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def split_run(args: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Returns the run (None if absent) and the other arguments.

    The run must be the first argument. Elsewhere it could not be distinguished from the value of a
    configuration key, which the parser does not know.
    """
    if args and not args[0].startswith("-"):
        return args[0], args[1:]
    return None, args


def _setting(options: argparse.Namespace) -> Setting:
    return Setting(options.precision, options.gradients, options.remedy, options.isa)


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m benchmarks.gradient_soak",
        usage="python -m benchmarks.gradient_soak [RUN] [--OPTION ...]",
        description=__doc__.split("\n")[0],
        epilog="With --config, every configuration key is an option, as in fit: "
        "--model.backbone mobilenet_v2. RUN is a run folder with a last.npz; it must come first.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", help=f"preset or YAML file, if no RUN is given (default: {PRESET})"
    )
    parser.add_argument("--data.root", dest="root", help="data set (default: synthetic scenes)")
    parser.add_argument(
        "--steps", type=int, default=2000, help="number of repetitions (default: %(default)s)"
    )
    parser.add_argument(
        "--load", type=int, default=0, help="number of busy processes in parallel (default: 0)"
    )
    parser.add_argument("--fill", action="store_true", help="fill all new memory with NaN (glibc)")
    parser.add_argument("--matrix", action="store_true", help="run all settings in sequence")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument("--gradients", choices=(_OURS, _KERAS), default=_OURS)
    parser.add_argument(
        "--remedy", choices=REMEDIES, default=REMEDIES[0], help="gradient of kernels above 1x1"
    )
    parser.add_argument("--isa", default="", help=f"ONEDNN_MAX_CPU_ISA; {NO_AMX} disables AMX")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the counts to this file")
    run, rest = split_run(args)
    options, keys = parser.parse_known_args(rest)
    options.run = run
    for name, minimum in (("steps", 1), ("load", 0)):
        if getattr(options, name) < minimum:
            raise ConfigError(f"--{name} is {getattr(options, name)}: it must be {minimum} or more")
    return options, keys


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"soak: {error}\n")
        sys.exit(EXIT_USER_ERROR)
