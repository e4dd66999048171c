"""Saves and restores the state of a run: weights, optimizer, epoch and best score, in one file.

`last.npz` contains the complete state, `previous.npz` the state saved before it, and `best.npz` the
weights of the epoch with the best validation score. Files are written under a temporary name and
renamed, so that a kill or a full disk leaves the older file. Every array has a checksum, so that
damage is detected. Values that are not finite are never written. A run is resumed from the first
of the three files that is valid.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ccfnet_tf.errors import RunError
from ccfnet_tf.io.atomic_file import set_aside, write_atomic
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.runs.checkpoint_file import (
    FREE_SPACE,
    OTHERS,
    assign_model,
    read_arrays,
    refuse_other_model,
    refuse_other_type,
    refuse_to_write,
    write_arrays,
)
from ccfnet_tf.runs.progress import STATE, Progress, progress_of
from ccfnet_tf.training.distribution.collectives import Collectives
from ccfnet_tf.training.optimizer import PolyDecay

PREVIOUS = "previous.npz"
BEST = "best.npz"


def save_last(path: Path, model: Any, progress: Progress) -> None:
    """Saves the complete state of a run. The existing file becomes `previous.npz`.

    The metrics of an unfinished epoch are saved only for a single replica, because one machine
    cannot read those of the others.

    Raises:
        NotFiniteError: A value is not finite. No file has changed.
        ResourceError: The disk is full. Existing files are unchanged.
    """
    arrays = {**_model_arrays(model), **_training_arrays(model), STATE: _state(path, progress)}
    write_arrays(path, arrays, when=_describe(progress), before=partial(_keep_previous, path))


def save_best(path: Path, model: Any, progress: Progress) -> None:
    """Saves the weights and the progress.

    Raises:
        NotFiniteError: A value is not finite. Values of the optimizer are checked too, because
            `save_last` would refuse to save the matching state. No file has changed.
        ResourceError: The disk is full. Existing files are unchanged.
    """
    refuse_to_write(path, _training_arrays(model), when=_describe(progress))
    arrays = {**_model_arrays(model), STATE: _state(path, progress)}
    write_arrays(path, arrays, when=_describe(progress))


def _training_arrays(model: Any) -> dict[str, np.ndarray]:
    """Returns the variables of the optimizer and of the metrics; none if not compiled."""
    if not model.compiled:
        return {}
    sums = _metric_variables(model) if _is_single_replica(model) else []
    return {
        f"{kind}/{index:04d}": variable.numpy()
        for kind, variables in (("optimizer", model.optimizer.variables), ("metrics", sums))
        for index, variable in enumerate(variables)
    }


def _describe(progress: Progress) -> str:
    return f"at step {progress.step} (epochs done: {progress.epoch})"


def restore_figures(model: Any, values: Sequence[np.ndarray]) -> bool:
    """Restores the metrics of an unfinished epoch; returns whether they were restored."""
    if not (values and _is_single_replica(model)):
        return False
    for variable, value in zip(_metric_variables(model), values, strict=True):
        variable.assign(value)
    return True


def _metric_variables(model: Any) -> list[Any]:
    """Returns the variables of the model's metrics, in a fixed order."""
    return [variable for metric in model.metrics for variable in metric.variables]


def _is_single_replica(model: Any) -> bool:
    return int(model.distribute_strategy.num_replicas_in_sync) == 1


@dataclass(frozen=True)
class Restored:
    """State from which a run is resumed.

    Attributes:
        progress: Progress of the run.
        metrics: Values of the metric variables of the unfinished epoch, for `restore_figures`.
    """

    progress: Progress = field(default_factory=Progress)
    metrics: tuple[np.ndarray, ...] = ()


def restore(
    path: Path,
    model: Any,
    warn: Callable[[str], object] = lambda _: None,
    *,
    epochs: int | None = None,
) -> Restored:
    """Restores a model and its built optimizer from a file written by `save_last`.

    If the file is missing or cannot be used, `previous.npz` in the same folder is used, else
    `best.npz`. With `best.npz` the optimizer starts with new state, at the learning rate of that
    step. Unusable files are renamed, so that they do not replace a valid file at the next save.

    Args:
        path: A file written by `save_last`.
        model: A compiled model.
        warn: Called with a message if another file is used, or if metrics cannot be restored.
        epochs: Number of epochs of the run, which the progress may not exceed.

    Raises:
        RunError: None of the files can be used.
    """
    faults: list[str] = []
    unusable: list[Path] = []
    for file in (path, path.with_name(PREVIOUS), path.with_name(BEST)):
        try:
            arrays, progress = _read(file, model, epochs)
        except RunError as error:
            if file == path or file.is_file():
                faults.append(str(error).removesuffix(f"; {OTHERS}"))
            if file.is_file():
                unusable.append(file)
            continue
        if faults:
            names = ", ".join(f"{each.name} is now {set_aside(each).name}" for each in unusable)
            warn(
                f"warning: {'; '.join(faults)}; resuming from {file.name}, saved after epoch "
                f"{progress.epoch}"
                f"{', with a new optimizer state' if file.name == BEST else ''}"
                f"{f' ({names})' if names else ''}"
            )
        return _assign(arrays, progress, model, source=file, warn=warn)
    raise RunError(
        f"{'; '.join(faults)}; there is no other checkpoint to resume from: start another run with "
        "--out NEW"
    )


def _read(file: Path, model: Any, epochs: int | None) -> tuple[dict[str, np.ndarray], Progress]:
    """Reads a checkpoint and checks that it matches the model, which is not changed."""
    if not file.is_file():
        raise RunError(f"{file}: missing")
    arrays = read_arrays(file)
    refuse_other_model(named_variables(model), arrays, source=file)
    progress = progress_of(arrays.get(STATE), file, epochs)
    if file.name == BEST:
        return arrays, replace(progress, optimizer_begun=progress.step)
    _refuse_other_optimizer(model.optimizer, arrays, progress, source=file)
    return arrays, progress


def _refuse_other_optimizer(
    optimizer: Any, arrays: Mapping[str, np.ndarray], progress: Progress, *, source: Path
) -> None:
    variables = optimizer.variables
    keys = [key for key in arrays if key.startswith("optimizer/")]
    if sorted(keys) != [f"optimizer/{index:04d}" for index in range(len(variables))]:
        raise RunError(
            f"{source}: has {len(keys)} optimizer variables but this run has {len(variables)}; "
            "a run must be resumed with its original optimizer and precision"
        )
    for key, variable in zip(sorted(keys), variables, strict=True):
        saved = arrays[key]
        if saved.shape != tuple(variable.shape):
            raise RunError(
                f"{source}: '{key}' has shape {list(saved.shape)} but {variable.path} has "
                f"{list(variable.shape)}; a run must be resumed with its original optimizer"
            )
        refuse_other_type(key, saved, variable, source=source)
        steps = progress.step - progress.optimizer_begun
        if variable is _inner_optimizer(optimizer).iterations and not 0 <= saved <= steps:
            raise RunError(
                f"{source}: its optimizer has counted {saved} steps but the run has made {steps}"
            )


def _assign(
    arrays: Mapping[str, np.ndarray],
    progress: Progress,
    model: Any,
    *,
    source: Path,
    warn: Callable[[str], object],
) -> Restored:
    assign_model(model, arrays, source=source)
    if source.name != BEST:
        for index, variable in enumerate(model.optimizer.variables):
            variable.assign(arrays[f"optimizer/{index:04d}"])
    _shift_schedule(model.optimizer, progress)
    within = progress.step > progress.epoch * progress.steps
    keys = [key for key in sorted(arrays) if within and key.startswith("metrics/")]
    metrics = tuple(arrays[key] for key in keys)
    if metrics and _is_single_replica(model) and not _match(metrics, _metric_variables(model)):
        warn(
            f"warning: {source}: the metrics of its unfinished epoch do not match this version: "
            "they start from zero"
        )
        metrics = ()
    return Restored(progress, metrics)


def _match(values: Sequence[np.ndarray], variables: Sequence[Any]) -> bool:
    """Returns whether the values match the variables in number, shapes and types."""
    return [(v.shape, v.dtype.name) for v in values] == [
        (tuple(v.shape), v.dtype) for v in variables
    ]


def _shift_schedule(optimizer: Any, progress: Progress) -> None:
    """Makes the learning rate follow the steps of the run if the optimizer has new state.

    A new optimizer must count its steps from 0, because it corrects the bias of its moments by
    this count.
    """
    # Private attribute: Keras's public property returns the rate, not the schedule.
    schedule = _inner_optimizer(optimizer)._learning_rate
    if isinstance(schedule, PolyDecay):
        schedule.first_step = progress.optimizer_begun


def _inner_optimizer(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)  # inside LossScaleOptimizer


def _keep_previous(path: Path) -> None:
    """Links an existing file as `previous.npz`, so that it is kept when it is replaced."""
    if not path.is_file():
        return
    temporary = path.with_name(f".{PREVIOUS}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        temporary.replace(path.with_name(PREVIOUS))
    except OSError:  # a file system without hard links
        write_atomic(path.with_name(PREVIOUS), partial(_copy, path), fix=FREE_SPACE)


def _copy(path: Path, to: BinaryIO) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, to)


def _model_arrays(model: Any) -> dict[str, np.ndarray]:
    return {f"model/{key}": variable.numpy() for key, variable in named_variables(model).items()}


def _state(path: Path, progress: Progress) -> np.ndarray:
    score = {f"{STATE}: best_score": np.array(progress.best_score)}
    refuse_to_write(path, score, when=_describe(progress))
    return np.array(json.dumps(asdict(progress)))


def send(restored: Restored, model: Any, workers: Collectives) -> Progress:
    """Copies the chief's weights, optimizer state and progress to every worker.

    Returns:
        The progress of the chief.
    """
    variables = [*model.variables, *model.optimizer.variables]
    progress = restored.progress
    values = workers.from_chief(
        [np.array(list(asdict(progress).values()), np.float64), *(v.numpy() for v in variables)]
    )
    for variable, value in zip(variables, values[1:], strict=True):
        variable.assign(value)
    numbers = dict(zip(asdict(progress), values[0].tolist(), strict=True))
    score = numbers.pop("best_score")
    progress = Progress(best_score=score, **{key: int(value) for key, value in numbers.items()})
    _shift_schedule(model.optimizer, progress)
    return progress
