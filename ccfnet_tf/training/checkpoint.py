"""What a run needs to go on: weights, optimizer, epoch and best score, in one file.

`last.npz` holds all of it, `previous.npz` what was last before; `best.npz` holds the weights of the
epoch with the best validation score. Files are written beside and renamed, so that a kill or a full
disk leaves the older one, and every array has a checksum, so that damage is noticed. Values that
are not finite are never written. A run goes on from the first of the three that is sound.
"""

from __future__ import annotations

import json
import math
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
from ccfnet_tf.network.weights import named_variables
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
from ccfnet_tf.training.distribution.collectives import Collectives
from ccfnet_tf.training.optimizer import PolyDecay

STATE = "state"
PREVIOUS = "previous.npz"
BEST = "best.npz"
_FARTHEST = 2**53  # steps; a float64, as which workers send them, counts no further


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
        optimizer_begun: Batches learned from before the optimizer began; above 0 where the run
            went on from weights alone.
    """

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    steps: int = 0
    optimizer_begun: int = 0


def save_last(path: Path, model: Any, progress: Progress) -> None:
    """Writes everything that a resumed run needs; the file before it becomes `previous.npz`.

    Figures of an epoch that is saved within are kept for a single replica: those of several
    machines cannot be read by one of them alone.

    Raises:
        NotFiniteError: A value is not finite; no file has changed.
        ResourceError: The disk is full; an older file is unchanged.
    """
    arrays = {**_model_arrays(model), **_training_arrays(model), STATE: _state(path, progress)}
    write_arrays(path, arrays, when=_when(progress), before=partial(_keep, path))


def save_best(path: Path, model: Any, progress: Progress) -> None:
    """Writes the weights alone, with the progress they were taken at.

    Raises:
        NotFiniteError: A value is not finite, be it one of the optimizer's, after which `save_last`
            would not write what goes with this file; no file has changed.
        ResourceError: The disk is full; an older file is unchanged.
    """
    refuse_to_write(path, _training_arrays(model), when=_when(progress))
    arrays = {**_model_arrays(model), STATE: _state(path, progress)}
    write_arrays(path, arrays, when=_when(progress))


def _training_arrays(model: Any) -> dict[str, np.ndarray]:
    """Returns what training adds to the weights: the optimizer's variables, and figures' sums.

    A model that is not compiled has none.
    """
    if not model.compiled:
        return {}
    sums = _figures(model) if _single(model) else []
    return {
        f"{kind}/{index:04d}": variable.numpy()
        for kind, variables in (("optimizer", model.optimizer.variables), ("metrics", sums))
        for index, variable in enumerate(variables)
    }


def _when(progress: Progress) -> str:
    return f"at step {progress.step} (epochs done: {progress.epoch})"


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


@dataclass(frozen=True)
class Restored:
    """Where a run goes on.

    Attributes:
        progress: How far it is.
        metrics: Sums behind the figures of the epoch that it was saved in, for `restore_figures`.
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
    """Puts model and built optimizer back to where `save_last` found them.

    Where the file is missing or of no use, `previous.npz` beside it is taken, else `best.npz`, of
    which the optimizer begins anew, at the rate of that moment. What was of no use gets another
    name, so that it cannot take the place of a sound file when the run is next saved.

    Args:
        path: What `save_last` wrote.
        model: A compiled model.
        warn: Called with a line where another file is taken, or where figures cannot go on.
        epochs: Those of the run, which no state may exceed.

    Raises:
        RunError: No file is left to go on from.
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
                f"warning: {'; '.join(faults)}; going on from {file.name}, saved after epoch "
                f"{progress.epoch}"
                f"{', whose optimizer begins anew' if file.name == BEST else ''}"
                f"{f' ({names})' if names else ''}"
            )
        return _put_back(arrays, progress, model, source=file, warn=warn)
    raise RunError(
        f"{'; '.join(faults)}; no other checkpoint is left to go on from: start another run with "
        "--out NEW"
    )


def _read(file: Path, model: Any, epochs: int | None) -> tuple[dict[str, np.ndarray], Progress]:
    """Returns what a checkpoint holds, all of which was found to fit; changes nothing."""
    if not file.is_file():
        raise RunError(f"{file}: missing")
    arrays = read_arrays(file)
    refuse_other_model(named_variables(model), arrays, source=file)
    progress = _progress(arrays.get(STATE), file, epochs)
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
            f"{source}: holds {len(keys)} optimizer variables where this run has {len(variables)}; "
            "a run resumes with the optimizer and precision it began with"
        )
    for key, variable in zip(sorted(keys), variables, strict=True):
        saved = arrays[key]
        if saved.shape != tuple(variable.shape):
            raise RunError(
                f"{source}: '{key}' has shape {list(saved.shape)} where {variable.path} has "
                f"{list(variable.shape)}; a run resumes with the optimizer it began with"
            )
        refuse_other_type(key, saved, variable, source=source)
        most = progress.step - progress.optimizer_begun
        if variable is _inner(optimizer).iterations and not 0 <= saved <= most:
            raise RunError(
                f"{source}: its optimizer has counted {saved} steps where the run made {most}"
            )


def _put_back(
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
    _begin_rate(model.optimizer, progress)
    within = progress.step > progress.epoch * progress.steps
    keys = [key for key in sorted(arrays) if within and key.startswith("metrics/")]
    metrics = tuple(arrays[key] for key in keys)
    if metrics and _single(model) and not _like(metrics, _figures(model)):
        warn(f"warning: {source}: its figures of an epoch under way are others: they begin anew")
        metrics = ()
    return Restored(progress, metrics)


def _like(values: Sequence[np.ndarray], variables: Sequence[Any]) -> bool:
    """Returns whether values have the number, shapes and types of variables."""
    return [(v.shape, v.dtype.name) for v in values] == [
        (tuple(v.shape), v.dtype) for v in variables
    ]


def _begin_rate(optimizer: Any, progress: Progress) -> None:
    """Makes the rate follow the run's steps, where the optimizer counts from a later one.

    An optimizer that began anew must count from 0: by its count it knows how far its moments can
    be trusted.
    """
    # Private: Keras's own property answers with the rate, not with what gives it.
    schedule = _inner(optimizer)._learning_rate
    if isinstance(schedule, PolyDecay):
        schedule.begun = progress.optimizer_begun


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)  # within the loss scaling


def read_epoch(path: Path) -> int:
    """Returns after how many epochs a checkpoint was saved; 0 where it cannot be told."""
    try:
        return _progress(read_arrays(path, prefix=STATE).get(STATE), path, None).epoch
    except RunError:
        return 0


def _progress(state: np.ndarray | None, source: Path, epochs: int | None) -> Progress:
    """Returns the progress that a checkpoint states.

    Raises:
        RunError: It states none, or one that no run can have.
    """
    if state is None:
        raise RunError(f"{source}: holds no '{STATE}', so how far the run was is not known")
    try:
        tree: Any = json.loads(str(state)) if state.dtype.kind == "U" and not state.ndim else None
    except (ValueError, RecursionError):
        tree = None
    fault = _fault(tree, epochs) if isinstance(tree, dict) else "no JSON object"
    if fault:
        raise RunError(f"{source}: its '{STATE}' is not the progress of this run: {fault}")
    return Progress(**tree)


def _fault(tree: dict[str, Any], epochs: int | None) -> str:
    """Returns what is wrong with a stored progress; empty where nothing is."""
    for key in tree:
        if key not in Progress.__dataclass_fields__:
            return f"unknown key '{key[:40]}'"
    # The others came later: files that were written before lack them.
    for key in ("epoch", "step", "best_score", "best_epoch"):
        if key not in tree:
            return f"no '{key}'"
    for key, value in tree.items():
        whole = type(value) is int and 0 <= value < _FARTHEST
        score = type(value) in (int, float) and -1 <= value <= 1  # NaN is not
        if not (score if key == "best_score" else whole):
            return f"{key} is {repr(value)[:40]}"
    return _contradiction(Progress(**tree), epochs)


def _contradiction(progress: Progress, epochs: int | None) -> str:
    """Returns which two numbers of a progress cannot both be true; empty where all can."""
    epoch, step, steps = progress.epoch, progress.step, progress.steps
    first, beyond = (epoch * steps, (epoch + 1) * steps) if steps else (epoch, math.inf)
    if epochs is not None and epoch > epochs:
        return f"epoch is {epoch}: the run has {epochs}"
    if not first <= step <= beyond or (epoch == epochs and steps and step > first):
        return f"step is {step}: epoch {epoch} of {steps} steps each ends elsewhere"
    if progress.best_epoch > epoch:
        return f"best_epoch is {progress.best_epoch}: epoch {epoch} is done"
    if progress.optimizer_begun > step:
        return f"optimizer_begun is {progress.optimizer_begun}: the run has made {step} steps"
    return ""


def _keep(path: Path) -> None:
    """Gives a file, if it is there, a second name, `previous.npz`, which outlives its own."""
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
    refuse_to_write(path, score, when=_when(progress))
    return np.array(json.dumps(asdict(progress)))


def send(restored: Restored, model: Any, workers: Collectives) -> Progress:
    """Gives every worker the chief's weights, optimizer and progress; returns the progress."""
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
    _begin_rate(model.optimizer, progress)
    return progress
