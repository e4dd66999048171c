"""Time: of a step, so that a budget in minutes gives epochs, and what is left of a study."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.console import Console

from ccfnet_tf.config import RunConfig, to_yaml
from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.machine import processor, usable_threads
from ccfnet_tf.labels import Sample
from ccfnet_tf.pipeline.worker_sharding import by_example
from ccfnet_tf.reproduce.plan import Plan, PlannedRun, Timing
from ccfnet_tf.reproduce.recipes import with_keys
from ccfnet_tf.runs.progress import read_epoch
from ccfnet_tf.runs.run_command import run_command
from ccfnet_tf.runs.run_folder import CHECKPOINTS, METRICS
from ccfnet_tf.runs.write_run_files import sound_rows, write_text

STEPS = 8
"""Steps of each of the two timed epochs. The first one also builds and traces the network."""


def measure(config: RunConfig, folder: Path, console: Console) -> Timing:
    """Trains two short epochs with `fit`, and returns their durations.

    The second epoch has the ratio of training and validation images of the complete data, so its
    time per step includes the validation. What an epoch costs apart from its images (previews and
    checkpoints) makes the result slightly too large.

    Args:
        config: Configuration of the cascade, whose epochs the budget limits.
        folder: Where the timed run is written. A finished one is not repeated, if it had the same
            configuration on the same machine.
        console: Where the start is reported.

    Raises:
        ConfigError: There are fewer training images than a batch.
        RunError: `fit` failed.
    """
    parts, batch = read_parts(config.data, config.seed), config.train.batch
    steps = by_example(parts.train, batch).steps
    timed = min(STEPS, steps)
    run, path = folder / "run", folder / "config.yaml"
    short = _shortened(config, parts, timed * batch, folder / "lists")
    text = f"# {processor()}, {usable_threads()} cores\n{to_yaml(short)}"
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if before != text or len(sound_rows(run / METRICS)) < 2:
        console.print(f"timing {2 * timed} steps of the cascade: {run}")
        if run.exists():  # a resumed run would trace the network in its second epoch
            shutil.rmtree(run)
        write_text(path, text)
        arguments = ["fit", "--out", str(run), "--config", str(path)]
        run_command(arguments, name="timing", resume="the same command")
    return _timing(run / METRICS, timed, steps)


def _timing(metrics: Path, timed: int, steps: int) -> Timing:
    try:
        first, second = (float(row["seconds"]) for row in sound_rows(metrics)[:2])
    except (KeyError, ValueError) as error:
        raise DataError(f"{metrics}: damaged: remove its folder, then start again") from error
    # Both are rounded, so a very short epoch may be 0.
    return Timing(round(max(0.0, first - second), 2), max(0.001, round(second / timed, 3)), steps)


def _shortened(config: RunConfig, parts: Parts, images: int, lists: Path) -> RunConfig:
    """Returns the configuration of two epochs on the first images of each split."""
    val = round(images * len(parts.val) / len(parts.train))
    _write_list(lists / "train.txt", parts.train[:images])
    _write_list(lists / "val.txt", parts.val[: max(val, min(1, len(parts.val)))])
    _write_list(lists / "test.txt", parts.test[:1])
    data = replace(config.data, lists=str(lists), fold=0, absent_classes="allow")
    return with_keys(replace(config, data=data), {"train.epochs": 2})


def _write_list(path: Path, samples: Sequence[Sample]) -> None:
    write_text(path, "".join(f"{sample.name}\n" for sample in samples))


def minutes_left(plan: Plan, runs: Sequence[PlannedRun], folder: Path) -> float | None:
    """Returns about how long the epochs that are left of some runs take.

    An epoch takes the median of those of the same recipe before, or else of those of all recipes:
    the first epoch of a run is longer, and of an interrupted one only the end may be known. Before
    the first one, the time per step that was measured for a budget counts.

    Args:
        plan: The plan of the study.
        runs: Some of its runs.
        folder: Folder of the study.

    Returns:
        Minutes; None if no epoch has been trained and no step was timed.
    """
    spent: dict[str, list[float]] = {}
    for run in plan.runs:
        spent.setdefault(run.recipe, []).extend(_epoch_seconds(folder / run.name / METRICS))
    every = [seconds for found in spent.values() for seconds in found]
    if not every and plan.timing is not None:
        every = [plan.timing.step_seconds * plan.timing.steps]
    if not every:
        return None
    left = 0.0
    for run in runs:
        epochs = max(0, plan.epochs - read_epoch(folder / run.name / CHECKPOINTS / "last.npz"))
        left += epochs * median(spent.get(run.recipe) or every) / 60
    return left


def _epoch_seconds(metrics: Path) -> list[float]:
    """Returns the durations of the epochs of a run. What is damaged is reported by others."""
    try:
        found = [float(row["seconds"]) for row in sound_rows(metrics)]
    except (OSError, KeyError, ValueError):
        return []
    return [seconds for seconds in found if math.isfinite(seconds)]
