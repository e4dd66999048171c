"""How far a run has got, as its checkpoints say."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.errors import RunError
from ccfnet_tf.runs.checkpoint_file import read_arrays

STATE = "state"
"""Key of the progress in a checkpoint."""

_MAX_COUNT = 2**53  # workers exchange counts as float64, which is exact up to here


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        epoch: Number of finished epochs.
        step: Number of finished steps. Includes steps of an unfinished epoch if the run was saved
            within it, and steps skipped by loss scaling, which the optimizer does not count.
        best_score: Best validation score so far; -1 before the first one.
        best_epoch: Epoch of the best score.
        steps: Steps per epoch; 0 if unknown.
        optimizer_begun: Number of finished steps when the optimizer was created; above 0 if the
            run was resumed from weights without the state of the optimizer.
    """

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    steps: int = 0
    optimizer_begun: int = 0


def read_epoch(path: Path) -> int:
    """Returns the number of finished epochs of a checkpoint; 0 if it cannot be determined."""
    try:
        return progress_of(read_arrays(path, prefix=STATE).get(STATE), path, None).epoch
    except RunError:
        return 0


def progress_of(state: np.ndarray | None, source: Path, epochs: int | None) -> Progress:
    """Returns the progress stored in a checkpoint.

    Raises:
        RunError: The progress is missing or invalid.
    """
    if state is None:
        raise RunError(f"{source}: '{STATE}' is missing, so the progress of the run is unknown")
    try:
        tree: Any = json.loads(str(state)) if state.dtype.kind == "U" and not state.ndim else None
    except (ValueError, RecursionError):
        tree = None
    fault = _fault(tree, epochs) if isinstance(tree, dict) else "not a JSON object"
    if fault:
        raise RunError(f"{source}: its '{STATE}' does not match this run: {fault}")
    return Progress(**tree)


def _fault(tree: dict[str, Any], epochs: int | None) -> str:
    """Describes the first error in a stored progress; empty if it is valid."""
    for key in tree:
        if key not in Progress.__dataclass_fields__:
            return f"unknown key '{key[:40]}'"
    # The other keys were added later; older files do not have them.
    for key in ("epoch", "step", "best_score", "best_epoch"):
        if key not in tree:
            return f"'{key}' is missing"
    for key, value in tree.items():
        is_count = type(value) is int and 0 <= value < _MAX_COUNT
        is_score = type(value) in (int, float) and -1 <= value <= 1  # false for NaN
        if not (is_score if key == "best_score" else is_count):
            return f"{key} is {repr(value)[:40]}"
    return _contradiction(Progress(**tree), epochs)


def _contradiction(progress: Progress, epochs: int | None) -> str:
    """Describes the first contradiction between two values of a progress; empty if none."""
    epoch, step, steps = progress.epoch, progress.step, progress.steps
    first, last = (epoch * steps, (epoch + 1) * steps) if steps else (epoch, math.inf)
    if epochs is not None and epoch > epochs:
        return f"epoch is {epoch}: the run has {epochs}"
    if not first <= step <= last or (epoch == epochs and steps and step > first):
        return f"step is {step}: this contradicts epoch {epoch} with {steps} steps per epoch"
    if progress.best_epoch > epoch:
        return f"best_epoch is {progress.best_epoch}: only {epoch} epochs are finished"
    if progress.optimizer_begun > step:
        return f"optimizer_begun is {progress.optimizer_begun}: the run has made {step} steps"
    return ""
