"""Checkpoints as files: named arrays in NumPy's `.npz`, nothing that could execute on load.

Keys: `model/<layer>/<variable>` for every variable of the network, and whatever training adds
(`optimizer/NNNN`, `state`). Shapes are those of the variables.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ccfnet_tf.errors import RunError
from ccfnet_tf.inference.atomic import write_atomic

MODEL = "model/"
"""What keys of the network's own variables begin with."""

FREE_SPACE = "no checkpoint was damaged: free space and go on with --resume"
"""What to do when the disk is full."""

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    OSError,
)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays so that `path` is at any moment the older file or the new one, both whole.

    Raises:
        ResourceError: The disk is full or cannot be written; an older file is unchanged.
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    write_atomic(
        path,
        write,
        mend=FREE_SPACE,
        otherwise="no checkpoint was damaged: see that its folder can be written and go on with "
        "--resume",
    )


def read_arrays(path: Path, *, prefix: str = "") -> dict[str, np.ndarray]:
    """Reads every array whose key begins with `prefix`, whole, so that damage shows here.

    Raises:
        RunError: The file is missing or damaged.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such checkpoint; train with `ccfnet-tf fit` first")
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name for name in archive.namelist() if name.startswith(prefix)]
            # Members are read whole before they are parsed: that is what checks their CRC.
            return {name.removesuffix(".npy"): _array(archive.read(name)) for name in keys}
    except _DAMAGE as error:
        raise RunError(
            f"{path}: damaged checkpoint ({type(error).__name__}: {_first_line(error)}); take the "
            "other one of best.npz and last.npz, or train again"
        ) from error


def assign_model(model: Any, arrays: Mapping[str, np.ndarray], *, source: Path) -> None:
    """Gives every variable of `model` its saved value; on an error none has changed.

    Args:
        model: A `CCFNet`.
        arrays: What `read_arrays` returned.
        source: The file they came from, for messages.

    Raises:
        RunError: A variable is missing, or has another shape (another number of classes).
    """
    variables = _variables(model)
    for key, variable in variables.items():
        saved = arrays.get(f"{MODEL}{key}")
        if saved is None:
            raise RunError(
                f"{source}: holds no '{key}': it was saved from another network; "
                "config.yaml and checkpoints must come from one run"
            )
        if saved.shape != tuple(variable.shape):
            raise RunError(
                f"{source}: '{key}' has shape {list(saved.shape)} but the network needs "
                f"{list(variable.shape)}: another number of classes or head_channels; to "
                "fine-tune from it use --model.init_from"
            )
    for key, variable in variables.items():
        variable.assign(arrays[f"{MODEL}{key}"])


def load_matching(model: Any, arrays: Mapping[str, np.ndarray], *, source: Path) -> list[str]:
    """Gives every variable its saved value where there is one of its shape, for fine-tuning.

    Args:
        model: A `CCFNet`.
        arrays: What `read_arrays` returned.
        source: The file they came from, for messages.

    Returns:
        Keys of the variables that keep their own values, in the network's order.

    Raises:
        RunError: Nothing fits.
    """
    left_out: list[str] = []
    matching: list[tuple[Any, np.ndarray]] = []
    for key, variable in _variables(model).items():
        saved = arrays.get(f"{MODEL}{key}")
        if saved is None or saved.shape != tuple(variable.shape):
            left_out.append(key)
        else:
            matching.append((variable, saved))
    if not matching:
        raise RunError(f"{source}: no array fits this network; give a run of the same backbone")
    for variable, saved in matching:
        variable.assign(saved)
    return left_out


def _variables(model: Any) -> dict[str, Any]:
    from ccfnet_tf.network.weights import named_variables

    return dict(named_variables(model))


def _array(data: bytes) -> np.ndarray:
    return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no details"])[0]
