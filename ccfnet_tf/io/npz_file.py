"""Reads NumPy's `.npz` files, which may be damaged or made to exhaust memory."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

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
    # Raised if the header is not a Python literal, or not the literal of a header.
    SyntaxError,
    TypeError,
)
"""Exceptions that reading a damaged `.npz` file raises."""


def read_stored(path: Path, *, prefix: str = "") -> dict[str, np.ndarray]:
    """Reads every array whose key starts with `prefix`, completely, so that damage is detected.

    Needs no more memory than the file has bytes, because compressed arrays are refused.

    Raises:
        ValueError: An array is compressed, or is not one. Other exceptions are listed in `DAMAGE`.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.startswith(prefix)]
        # A compressed member could expand to any size. Stored members of an undamaged file are
        # not larger than the file.
        if any(info.compress_type != zipfile.ZIP_STORED for info in members):
            raise ValueError("it is compressed; expected an uncompressed file, as of numpy.savez")
        if sum(info.file_size for info in members) > size:
            raise ValueError("its members are larger than the file")
        # Members are read completely before they are parsed, because this checks their CRC.
        return {
            info.filename.removesuffix(".npy"): parse_array(archive.read(info)) for info in members
        }


def parse_array(data: bytes) -> np.ndarray:
    """Parses the array of an `.npy` member, whose header is not trusted.

    Raises:
        ValueError: It is not an array, or its header does not match its size. Other exceptions
            are listed in `DAMAGE`.
    """
    file = io.BytesIO(data)
    formats = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in formats:
        raise ValueError(f"NumPy format {version} is not supported")
    try:
        with warnings.catch_warnings():  # NumPy warns about headers written by Python 2
            warnings.simplefilter("ignore", UserWarning)
            shape, _, dtype = formats[version](file)
    except (MemoryError, tokenize.TokenError) as error:  # brackets nested too deeply, or unclosed
        raise ValueError("its header cannot be read") from error
    # Checked before NumPy allocates memory.
    if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"an array of type {dtype} and shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"shape {shape} of {dtype} does not match the size of its data")
    return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))


def not_finite(arrays: Mapping[str, np.ndarray]) -> str:
    """Describes the first array with NaN or infinity and the number of others; empty if none."""
    bad = [key for key, array in arrays.items() if not _is_finite(array)]
    if not bad:
        return ""
    array = arrays[bad[0]]
    values = array[~np.isfinite(array)]
    more = f" (and {len(bad) - 1} more arrays)" if len(bad) > 1 else ""
    return f"'{bad[0]}' has {values[0]} in {values.size} of its {array.size} values{more}"


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
