"""Checkpoints as files: named arrays in NumPy's `.npz`, nothing that could execute on load.

Keys: `model/<layer>/<variable>` for every variable of the network, and whatever training adds
(`optimizer/NNNN`, `state`). Shapes and types are those of the variables, and every value is finite:
neither writing nor reading lets NaN or infinity pass.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ccfnet_tf.errors import NotFiniteError, RunError, first_line
from ccfnet_tf.io.atomic_file import write_atomic

MODEL = "model/"
"""What keys of the network's own variables begin with."""

FREE_SPACE = "no checkpoint was damaged: free space and go on with --resume"
"""What to do when the disk is full."""

NOT_FINITE_ADVICE = (
    "go on with --resume, or begin anew in another --out with a lower train.learning_rate, "
    "train.clip_norm 1 or train.precision float32"
)
"""What to do when training arrived at values that are not finite."""

OTHERS = "take the other one of best.npz and last.npz, or train again"
"""What to do when a file is of no use."""

DAMAGE = (
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
    # Of a header that is no Python literal, or another one than a header's.
    SyntaxError,
    TypeError,
)
"""What reading a damaged `.npz` raises."""


def write_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    when: str = "",
    before: Callable[[], object] = lambda: None,
) -> None:
    """Writes arrays so that `path` is at any moment the older file or the new one, both whole.

    Args:
        path: The file.
        arrays: What it shall hold.
        when: The moment of the run that they are of, for messages.
        before: Called when the arrays were found fit to write, before anything is written.

    Raises:
        NotFiniteError: An array holds NaN or infinity; nothing was written, nor `before` called.
        ResourceError: The disk is full or cannot be written; an older file is unchanged.
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
        otherwise="no checkpoint was damaged: see that its folder can be written and go on with "
        "--resume",
    )


def refuse_to_write(path: Path, arrays: Mapping[str, np.ndarray], *, when: str = "") -> None:
    """Refuses arrays that hold NaN or infinity.

    Raises:
        NotFiniteError: The first of them, with the number of others.
    """
    fault = not_finite(arrays)
    if fault:
        at = f" {when}" if when else ""
        raise NotFiniteError(
            f"{path}: not written{at}: {fault}: every checkpoint stays as it was; "
            f"{NOT_FINITE_ADVICE}"
        )


def not_finite(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns which array holds NaN or infinity, and how many others do; empty where none does."""
    bad = [key for key, array in arrays.items() if not _is_finite(array)]
    if not bad:
        return ""
    array = arrays[bad[0]]
    strange = array[~np.isfinite(array)]
    more = f" (and {len(bad) - 1} more arrays)" if len(bad) > 1 else ""
    return f"'{bad[0]}' holds {strange[0]} in {strange.size} of its {array.size} values{more}"


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def read_arrays(path: Path, *, prefix: str = "") -> dict[str, np.ndarray]:
    """Reads every array whose key begins with `prefix`, whole, so that damage shows here.

    Raises:
        RunError: The file is missing or damaged, or an array that was read is not finite.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such checkpoint; train with `ccfnet-tf fit` first")
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.startswith(prefix)]
            # What is compressed could be of any size; nothing of ours is, so the members of a
            # sound file take no more than the file.
            if any(info.compress_type != zipfile.ZIP_STORED for info in members):
                raise ValueError("it is compressed, which checkpoints are not")
            if sum(info.file_size for info in members) > size:
                raise ValueError("it promises more than it holds")
            # Members are read whole before they are parsed: that is what checks their CRC.
            arrays = {
                info.filename.removesuffix(".npy"): parse_array(archive.read(info))
                for info in members
            }
    except DAMAGE as error:
        raise RunError(
            f"{path}: damaged checkpoint ({type(error).__name__}: {first_line(error)}); {OTHERS}"
        ) from error
    fault = not_finite(arrays)
    if fault:
        raise RunError(f"{path}: {fault}: it is of no use; {OTHERS}")
    return arrays


def assign_model(model: Any, arrays: Mapping[str, np.ndarray], *, source: Path) -> None:
    """Gives every variable of `model` its saved value; on an error none has changed.

    Args:
        model: A `CCFNet`.
        arrays: What `read_arrays` returned.
        source: The file they came from, for messages.

    Raises:
        RunError: A variable is missing, has another shape (another number of classes), or its
            values are of another type.
    """
    variables = _variables(model)
    refuse_other_model(variables, arrays, source=source)
    for key, variable in variables.items():
        variable.assign(arrays[f"{MODEL}{key}"])


def refuse_other_model(
    variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, source: Path
) -> None:
    """Refuses arrays that are not the values of these variables; arguments as `assign_model`'s.

    Raises:
        RunError: The first variable that has no value of its shape and type.
    """
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
        refuse_other_type(key, saved, variable, source=source)


def refuse_other_type(key: str, saved: np.ndarray, variable: Any, *, source: Path) -> None:
    """Refuses values of another type than the variable's, such as texts.

    Raises:
        RunError: They are.
    """
    if saved.dtype.name != variable.dtype:
        raise RunError(
            f"{source}: '{key}' holds {saved.dtype.name} where {variable.dtype} is needed: the "
            f"file was not written by ccfnet-tf; {OTHERS}"
        )


def load_matching(model: Any, arrays: Mapping[str, np.ndarray], *, source: Path) -> list[str]:
    """Gives every variable its saved value where there is one of its shape, for fine-tuning.

    Args:
        model: A `CCFNet`.
        arrays: What `read_arrays` returned.
        source: The file they came from, for messages.

    Returns:
        Keys of the variables that keep their own values, in the network's order.

    Raises:
        RunError: Nothing fits, or values are of another type.
    """
    left_out: list[str] = []
    matching: list[tuple[Any, np.ndarray]] = []
    for key, variable in _variables(model).items():
        saved = arrays.get(f"{MODEL}{key}")
        if saved is None or saved.shape != tuple(variable.shape):
            left_out.append(key)
        else:
            refuse_other_type(key, saved, variable, source=source)
            matching.append((variable, saved))
    if not matching:
        raise RunError(f"{source}: no array fits this network; give a run of the same backbone")
    for variable, saved in matching:
        variable.assign(saved)
    return left_out


def _variables(model: Any) -> dict[str, Any]:
    from ccfnet_tf.network.weights import named_variables

    return dict(named_variables(model))


def parse_array(data: bytes) -> np.ndarray:
    """Returns the array of an `.npy` member, whose header may promise anything.

    Raises:
        ValueError: It is none, or promises more than it holds; other errors are in `DAMAGE`.
    """
    file = io.BytesIO(data)
    formats = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in formats:
        raise ValueError(f"format {version} of NumPy is not one of ours")
    try:
        with warnings.catch_warnings():  # NumPy's of headers as Python 2 wrote them
            warnings.simplefilter("ignore", UserWarning)
            shape, _, dtype = formats[version](file)
    except (MemoryError, tokenize.TokenError) as error:  # brackets nested too deep, or not closed
        raise ValueError("a header that cannot be read") from error
    # Before NumPy makes room for it.
    if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"an array of type {dtype} and shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"shape {shape} of {dtype} is another size than what is there")
    return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))
