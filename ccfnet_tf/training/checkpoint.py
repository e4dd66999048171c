"""What a run needs to go on: weights, optimizer, epoch and best score, in one file.

`last.npz` holds all of it, `previous.npz` what was last before; `best.npz` holds the weights of the
epoch with the best validation score. Files are written beside and renamed, so that a kill or a full
disk leaves the older one, and every array has a checksum, so that damage is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ccfnet_tf.errors import RunError
from ccfnet_tf.inference.atomic import write_atomic
from ccfnet_tf.inference.checkpoint_file import FREE_SPACE, assign_model, read_arrays, write_arrays
from ccfnet_tf.network.weights import named_variables
from ccfnet_tf.training.workers import Workers

STATE = "state"
PREVIOUS = "previous.npz"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch: Epochs finished.
        step: Batches learned from; more than those of the finished epochs where the run was saved
            within an epoch. The optimizer's own count leaves out steps that loss scaling skips.
        best_score: Best validation score so far; -1 before the first.
        best_epoch: The epoch that reached it.
        steps: Steps of an epoch; 0 where it is not known.
    """

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    steps: int = 0


def save_last(path: Path, model: Any, progress: Progress) -> None:
    """Writes everything that a resumed run needs; the file before it becomes `previous.npz`.

    Figures of an epoch that is saved within are kept for a single replica: those of several
    machines cannot be read by one of them alone.

    Raises:
        ResourceError: The disk is full; an older file is unchanged.
    """
    if path.is_file():
        _keep(path)
    optimizer = {
        f"optimizer/{index:04d}": variable.numpy()
        for index, variable in enumerate(model.optimizer.variables)
    }
    sums = _figures(model) if _single(model) else []
    figures = {f"metrics/{i:04d}": v.numpy() for i, v in enumerate(sums)}
    arrays = {**_model_arrays(model), **optimizer, **figures, STATE: _state(progress)}
    write_arrays(path, arrays)


def restore_figures(model: Any, values: Sequence[np.ndarray]) -> bool:
    """Goes on with the figures of an epoch where it was saved; returns whether they are whole."""
    if not (values and _single(model)):
        return False
    for variable, value in zip(_figures(model), values, strict=True):
        variable.assign(value)
    return True


def _figures(model: Any) -> list[Any]:
    """Returns the variables of the model's metrics, in a fixed order."""
    return [variable for metric in model.metrics for variable in metric.variables]


def _single(model: Any) -> bool:
    return int(model.distribute_strategy.num_replicas_in_sync) == 1


def save_best(path: Path, model: Any, progress: Progress) -> None:
    """Writes the weights alone, with the progress they were taken at."""
    write_arrays(path, {**_model_arrays(model), STATE: _state(progress)})


@dataclass(frozen=True)
class Restored:
    """Where a run goes on.

    Attributes:
        progress: How far it is.
        metrics: Sums behind the figures of the epoch that it was saved in, for `restore_figures`.
    """

    progress: Progress = field(default_factory=Progress)
    metrics: tuple[np.ndarray, ...] = ()


def restore(path: Path, model: Any, warn: Callable[[str], object] = lambda _: None) -> Restored:
    """Puts model and built optimizer back to where `save_last` found them.

    Args:
        path: What `save_last` wrote; where it is damaged, the file before it is taken.
        model: A compiled model.
        warn: Called with a line where that happened.

    Raises:
        RunError: Both files are damaged, or belong to another network or optimizer.
    """
    path, arrays = _read(path, warn)
    assign_model(model, arrays, source=path)
    variables = model.optimizer.variables
    saved = sum(key.startswith("optimizer/") for key in arrays)
    if saved != len(variables):
        raise RunError(
            f"{path}: holds {saved} optimizer variables where this run has {len(variables)}; "
            "a run resumes with the optimizer and precision it began with"
        )
    for index, variable in enumerate(variables):
        variable.assign(arrays[f"optimizer/{index:04d}"])
    metrics = tuple(arrays[key] for key in sorted(arrays) if key.startswith("metrics/"))
    return Restored(Progress(**json.loads(str(arrays[STATE]))), metrics)


def _read(path: Path, warn: Callable[[str], object]) -> tuple[Path, dict[str, np.ndarray]]:
    before = path.with_name(PREVIOUS)
    try:
        return path, read_arrays(path)
    except RunError as error:
        if not before.is_file():
            raise
        arrays = read_arrays(before)
        epoch = json.loads(str(arrays[STATE]))["epoch"]
        warn(f"warning: {error}; going on from {before.name}, saved after epoch {epoch}")
        return before, arrays


def _keep(path: Path) -> None:
    """Gives a file a second name, `previous.npz`, which outlives its own."""
    temporary = path.with_name(f".{PREVIOUS}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        temporary.replace(path.with_name(PREVIOUS))
    except OSError:  # a file system without hard links
        write_atomic(path.with_name(PREVIOUS), partial(_copy, path), mend=FREE_SPACE)


def _copy(path: Path, to: BinaryIO) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, to)


def _model_arrays(model: Any) -> dict[str, np.ndarray]:
    return {f"model/{key}": variable.numpy() for key, variable in named_variables(model).items()}


def _state(progress: Progress) -> np.ndarray:
    return np.array(json.dumps(asdict(progress)))


def send(restored: Restored, model: Any, workers: Workers) -> Progress:
    """Gives every worker the chief's weights, optimizer and progress; returns the progress."""
    variables = [*model.variables, *model.optimizer.variables]
    progress = restored.progress
    values = workers.from_chief(
        [np.array(list(asdict(progress).values()), np.float64), *(v.numpy() for v in variables)]
    )
    for variable, value in zip(variables, values[1:], strict=True):
        variable.assign(value)
    epoch, step, best_score, best_epoch, steps = values[0].tolist()
    return Progress(int(epoch), int(step), best_score, int(best_epoch), int(steps))
