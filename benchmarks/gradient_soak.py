"""Repeats one training step thousands of times and counts gradients that come out otherwise.

    python -m benchmarks.gradient_soak RUN [--data.root DIR]      a run's last.npz and its data
    python -m benchmarks.gradient_soak --config PRESET [--KEY VALUE ...]    random weights

Each setting runs in a process of its own: whether the gradients are ours or Keras's, the precision,
the largest instruction set that oneDNN may use (ONEDNN_MAX_CPU_ISA), and how kernels above 1x1
get their gradient. `--matrix` runs all of them. Before, a short process in the same setting says
which implementations oneDNN takes.
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
from ccfnet_tf.cli.fit_options import parse_config
from ccfnet_tf.cli.parser import Parser
from ccfnet_tf.config import RunConfig, find_config, to_yaml
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_USER_ERROR, CCFNetError, ConfigError
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.runs.run_folder import CHECKPOINTS, read_run

PRESET = "stanford_background"
NO_AMX = "AVX512_CORE_BF16"
"""The largest set below AMX, as ONEDNN_MAX_CPU_ISA takes it."""
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
    "ms a step",
    "variables",
)


@dataclass(frozen=True)
class Setting:
    """What one process runs in.

    Attributes:
        precision: What the hidden layers compute in.
        gradients: `ours` or `keras`.
        remedy: How kernels above 1x1 get their gradient where it is ours.
        isa: Value of ONEDNN_MAX_CPU_ISA; empty for all that the processor has.
    """

    precision: str
    gradients: str = _OURS
    remedy: str = REMEDIES[0]
    isa: str = ""


@dataclass
class Row:
    """What was found in a setting.

    Attributes:
        setting: Where it was found.
        log: What oneDNN said.
        counted: A `soak_one.Counted` as a dictionary.
        error: Why there are no counts; empty where there are.
    """

    setting: Setting
    log: Log
    counted: dict[str, Any]
    error: str = ""


def main(args: Sequence[str]) -> int:
    """Runs the settings and shows the table; returns the exit code."""
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
    """Returns all settings that differ on a processor with these instruction sets."""
    limits = ("", NO_AMX) if "amx_bf16" in sets else ("",)
    plain = [
        Setting(precision, gradients, isa=isa)
        for precision in PRECISIONS
        for gradients in (_OURS, _KERAS)
        for isa in limits
    ]
    return plain + [Setting("bfloat16", remedy=remedy) for remedy in REMEDIES[1:]]


def configured(options: argparse.Namespace, keys: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """Returns the configuration and the state to begin from.

    Raises:
        CCFNetError: The run or a key cannot be used.
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


def soaked(setting: Setting, request: dict[str, Any], said: Callable[[int], object]) -> Row:
    """Runs a setting: a step beside oneDNN's log, then all of them."""
    whole = request | {
        "precision": setting.precision,
        "own": setting.gradients == _OURS,
        "remedy": setting.remedy,
    }
    log = Log()
    short = run(whole | {"steps": 0, "fill": False}, environment(setting, verbose=True), log=log)
    if "error" in short:
        return Row(setting, log, {}, short["error"])
    counted = run(whole, environment(setting), said=said)
    return Row(setting, log, counted, counted.get("error", ""))


def environment(setting: Setting, *, verbose: bool = False) -> dict[str, str]:
    """Returns the environment of a setting's process.

    oneDNN is asked for: TensorFlow leaves it out by itself on processors without AVX512.
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
    said: Callable[[int], object] = lambda _: None,
) -> dict[str, Any]:
    """Returns the last thing that a process of `soak_one` says; an `error` where it died."""
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
                    said(last.get("step", 0))
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    if process.returncode or "step" in last or not last:
        return {"error": f"its process ended with {process.returncode}"}
    return last


@contextmanager
def load(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keeps as many cores busy with matrix products meanwhile."""
    command = [sys.executable, "-c", _LOAD, str(os.getpid())]
    started = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def markdown(rows: Sequence[Row], config: RunConfig, options: argparse.Namespace) -> list[str]:
    """Returns the table, and what stands below it."""
    here = machine("tensorflow", "keras")
    sets = ", ".join(instruction_sets()) or "instruction sets not known"
    log = rows[0].log
    what = (
        f"{config.model.backbone}, {config.data.crop}x{config.data.crop}, {config.train.batch} "
        f"images; beside {options.load} busy processes; new memory "
        f"{'filled with NaN' if options.fill else 'as it comes'}"
    )
    where = (
        f"{here['threads']} threads of {here['processor']} ({sets}); oneDNN "
        f"{log.version or '(said nothing)'}, {log.isa or 'isa not known'}; TensorFlow "
        f"{here['tensorflow']}"
    )
    table = [_line(_HEAD), _line(["---"] * len(_HEAD)), *[_line(_cells(row)) for row in rows]]
    return [what, where, "", *table, "", *[said for row in rows for said in _places(row)]]


def as_json(rows: Sequence[Row], config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Returns all that was found."""
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


def _places(row: Row) -> list[str]:
    where = f"{row.setting.precision}, {row.setting.gradients}, {row.setting.remedy}"
    return [
        f"{where}: {name} not finite in {count['not_finite']} steps, at indices {count['places']}"
        for name, count in row.counted.get("variables", {}).items()
        if count["not_finite"]
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def split_run(args: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Returns the run, which comes first or not at all, and the other arguments.

    Anywhere else the value of a key that the parser does not know would pass for it.
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
        epilog="Every key of the configuration is an option beside --config, as in fit: "
        "--model.backbone mobilenet_v2. RUN is a run folder with a last.npz, and comes first.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", help=f"preset or YAML file, without a RUN ({PRESET})")
    parser.add_argument("--data.root", dest="root", help="data; without it, scenes drawn here")
    parser.add_argument("--steps", type=int, default=2000, help="repetitions (%(default)s)")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside it (0)")
    parser.add_argument("--fill", action="store_true", help="NaN in all new memory (glibc)")
    parser.add_argument("--matrix", action="store_true", help="all settings, one after another")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument("--gradients", choices=(_OURS, _KERAS), default=_OURS)
    parser.add_argument(
        "--remedy", choices=REMEDIES, default=REMEDIES[0], help="for kernels above 1x1"
    )
    parser.add_argument("--isa", default="", help=f"ONEDNN_MAX_CPU_ISA; {NO_AMX}: no AMX")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the counts there")
    run, rest = split_run(args)
    options, keys = parser.parse_known_args(rest)
    options.run = run
    for name, least in (("steps", 1), ("load", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} is {getattr(options, name)}: it must be {least} or more")
    return options, keys


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"soak: {error}\n")
        sys.exit(EXIT_USER_ERROR)
