"""Encodes int64 arrays for JSON: compressed, in base64."""

from __future__ import annotations

import base64
import binascii
import zlib
from math import prod
from typing import Any

import numpy as np


def pack(counts: np.ndarray) -> dict[str, Any]:
    """Encodes an int64 array; most counts are 0 or small and take few bytes."""
    stored = np.ascontiguousarray(counts, "<i8").tobytes()
    data = base64.b64encode(zlib.compress(stored)).decode("ascii")
    return {"shape": list(counts.shape), "int64": data}


def unpack(tree: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns the int64 array that `pack` was given.

    Args:
        tree: What was read from JSON.
        shape: The expected shape; None accepts any length.

    Raises:
        ValueError: It is damaged, has another shape, or contains a negative number.
        KeyError: A key is missing.
        TypeError: It is not the output of `pack`.
    """
    found = tuple(int(side) for side in tree["shape"])
    fits = len(found) == len(shape) and all(
        side >= 0 and wanted in (None, side) for side, wanted in zip(found, shape, strict=False)
    )
    if not fits:
        raise ValueError(f"counts are of shape {list(found)}: expected {list(shape)}")
    size = 8 * prod(found)
    try:
        # At most one byte more than expected is decompressed, whatever the data contain.
        stored = zlib.decompressobj().decompress(base64.b64decode(tree["int64"]), size + 1)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(f"counts are damaged ({error})") from error
    if len(stored) != size:
        raise ValueError(f"counts are damaged ({len(stored)} bytes instead of {size})")
    counts = np.frombuffer(stored, "<i8").astype(np.int64).reshape(found)
    if counts.size and counts.min() < 0:
        raise ValueError("a count is below 0")
    return counts
