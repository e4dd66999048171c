"""What a run needs to go on: weights, optimizer, epoch and best score, in one file.

`last.npz` holds all of it; `best.npz` holds the weights of the epoch with the best validation
score. Files are written beside and renamed, so that a kill or a full disk leaves the older one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.errors import RunError
from ccfnet_tf.inference.checkpoint_file import assign_model, read_arrays, write_arrays
from ccfnet_tf.network.weights import named_variables

STATE = "state"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps taken.
        best_score: Best validation score so far; -1 before the first.
        best_epoch: The epoch that reached it.
    """

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0


def save_last(path: Path, model: Any, progress: Progress) -> None:
    """Writes everything that a resumed run needs.

    Raises:
        ResourceError: The disk is full; an older file is unchanged.
    """
    optimizer = {
        f"optimizer/{index:04d}": variable.numpy()
        for index, variable in enumerate(model.optimizer.variables)
    }
    write_arrays(path, {**_model_arrays(model), **optimizer, STATE: _state(progress)})


def save_best(path: Path, model: Any, progress: Progress) -> None:
    """Writes the weights alone, with the progress they were taken at."""
    write_arrays(path, {**_model_arrays(model), STATE: _state(progress)})


def restore(path: Path, model: Any) -> Progress:
    """Puts model and built optimizer back to where `save_last` found them.

    Raises:
        RunError: The file is damaged, or belongs to another network or optimizer.
    """
    arrays = read_arrays(path)
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
    return Progress(**json.loads(str(arrays[STATE])))


def _model_arrays(model: Any) -> dict[str, np.ndarray]:
    return {f"model/{key}": variable.numpy() for key, variable in named_variables(model).items()}


def _state(progress: Progress) -> np.ndarray:
    return np.array(json.dumps(asdict(progress)))
