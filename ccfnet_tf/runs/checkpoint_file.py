"""Checkpoint files: named arrays in NumPy's `.npz` format, which cannot execute code on load.

Keys are `model/<layer>/<variable>` for every variable of the network, and those that training adds
(`optimizer/NNNN`, `metrics/NNNN`, `state`). Arrays have the shapes and types of the variables.
Writing and reading raise an error for values that are not finite.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ccfnet_tf.errors import NotFiniteError, RunError, first_line
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.io.npz_file import DAMAGE, not_finite, read_stored
from ccfnet_tf.io.parent_command import CONTINUE_WITH

MODEL = "model/"
"""Prefix of the keys of the network's variables."""

FREE_SPACE = f"no checkpoint was damaged: free disk space and continue with {CONTINUE_WITH}"
"""Advice when the disk is full."""

NOT_FINITE_ADVICE = (
    f"continue with {CONTINUE_WITH}, or start again in another --out with a lower "
    "train.learning_rate, train.clip_norm 1 or train.precision float32"
)
"""Advice when values became non-finite in training."""

OTHERS = (
    "restore it from a backup, replace it by a copy of the other one of best.npz and last.npz, or "
    "train again"
)
"""Advice when a checkpoint cannot be used."""


def write_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    when: str = "",
    before: Callable[[], object] = lambda: None,
) -> None:
    """Writes arrays atomically: at any time, `path` is either the complete old or new file.

    Args:
        path: The file.
        arrays: Arrays by key.
        when: Describes the state of the run that the arrays belong to, for messages.
        before: Called after the arrays were checked, before anything is written.

    Raises:
        NotFiniteError: An array contains NaN or infinity. Nothing was written, and `before` was
            not called.
        ResourceError: The disk is full or not writable. An existing file is unchanged.
    """
    refuse_to_write(path, arrays, when=when)
    before()

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    write_atomic(
        path,
        write,
        fix=FREE_SPACE,
        otherwise="no checkpoint was damaged: make its folder writable and continue with "
        f"{CONTINUE_WITH}",
    )


def refuse_to_write(path: Path, arrays: Mapping[str, np.ndarray], *, when: str = "") -> None:
    """Checks that all arrays are finite.

    Raises:
        NotFiniteError: An array contains NaN or infinity. The message names the first one and the
            number of others.
    """
    fault = not_finite(arrays)
    if fault:
        at = f" {when}" if when else ""
        raise NotFiniteError(
            f"{path}: not written{at}: {fault}: existing checkpoints are unchanged; "
            f"{NOT_FINITE_ADVICE}"
        )


def read_arrays(path: Path, *, prefix: str = "") -> dict[str, np.ndarray]:
    """Reads every array whose key starts with `prefix`, completely, so that damage is detected.

    Raises:
        RunError: The file is missing or damaged, or an array that was read is not finite.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such checkpoint; train with `ccfnet-tf fit` first")
    try:
        arrays = read_stored(path, prefix=prefix)
    except DAMAGE as error:
        raise RunError(
            f"{path}: damaged checkpoint ({type(error).__name__}: {first_line(error)}); {OTHERS}"
        ) from error
    fault = not_finite(arrays)
    if fault:
        raise RunError(f"{path}: {fault}: the checkpoint cannot be used; {OTHERS}")
    return arrays


def assign_model(model: Any, arrays: Mapping[str, np.ndarray], *, source: Path) -> None:
    """Assigns the saved values to all variables of `model`; if it fails, none has changed.

    Args:
        model: A `CCFNet`.
        arrays: Arrays from `read_arrays`.
        source: The file that the arrays were read from, for messages.

    Raises:
        RunError: A variable is missing, or has another shape (another number of classes) or type.
    """
    variables = _variables(model)
    refuse_other_model(variables, arrays, source=source)
    for key, variable in variables.items():
        variable.assign(arrays[f"{MODEL}{key}"])


def refuse_other_model(
    variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, source: Path
) -> None:
    """Checks that the arrays match the variables of a network.

    Args:
        variables: Variables of the network by name.
        arrays: Arrays from `read_arrays`.
        source: The file that the arrays were read from, for messages.

    Raises:
        RunError: A variable has no array of its shape and type.
    """
    for key, variable in variables.items():
        saved = arrays.get(f"{MODEL}{key}")
        if saved is None:
            raise RunError(
                f"{source}: '{key}' is missing: the file was saved from another network; "
                "config.yaml and checkpoints must belong to the same run"
            )
        if saved.shape != tuple(variable.shape):
            raise RunError(
                f"{source}: '{key}' has shape {list(saved.shape)} but the network needs "
                f"{list(variable.shape)}: the number of classes or head_channels differs; to "
                "fine-tune from it use --model.init_from"
            )
        refuse_other_type(key, saved, variable, source=source)


def refuse_other_type(key: str, saved: np.ndarray, variable: Any, *, source: Path) -> None:
    """Checks that saved values have the type of their variable.

    Raises:
        RunError: The values have another type, such as strings.
    """
    if saved.dtype.name != variable.dtype:
        raise RunError(
            f"{source}: '{key}' has type {saved.dtype.name}, expected {variable.dtype}: the "
            f"file was not written by ccfnet-tf; {OTHERS}"
        )


def load_matching(model: Any, arrays: Mapping[str, np.ndarray], *, source: Path) -> list[str]:
    """Assigns saved values to the variables whose shape matches, for fine-tuning.

    Args:
        model: A `CCFNet`.
        arrays: Arrays from `read_arrays`.
        source: The file that the arrays were read from, for messages.

    Returns:
        Keys of the variables that were not assigned, in the network's order.

    Raises:
        RunError: No array matches, or an array has another type than its variable.
    """
    unmatched: list[str] = []
    matching: list[tuple[Any, np.ndarray]] = []
    for key, variable in _variables(model).items():
        saved = arrays.get(f"{MODEL}{key}")
        if saved is None or saved.shape != tuple(variable.shape):
            unmatched.append(key)
        else:
            refuse_other_type(key, saved, variable, source=source)
            matching.append((variable, saved))
    if not matching:
        raise RunError(f"{source}: no array matches this network; use a run with the same backbone")
    for variable, saved in matching:
        variable.assign(saved)
    return unmatched


def _variables(model: Any) -> dict[str, Any]:
    from ccfnet_tf.network.backbone_weights import named_variables

    return dict(named_variables(model))
