"""Counts as text: int64 arrays, compressed, in base64, for JSON."""

from __future__ import annotations

import base64
import binascii
import zlib
from math import prod
from typing import Any

import numpy as np


def pack(counts: np.ndarray) -> dict[str, Any]:
    """Returns an int64 array as a tree for JSON; most counts are 0 or small and take few bytes."""
    stored = np.ascontiguousarray(counts, "<i8").tobytes()
    data = base64.b64encode(zlib.compress(stored)).decode("ascii")
    return {"shape": list(counts.shape), "int64": data}


def unpack(tree: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns the int64 array that `pack` was given.

    Args:
        tree: What was read from JSON.
        shape: That it shall have; a side that is None may be any.

    Raises:
        ValueError: It is damaged, of another shape, or holds a number below 0.
        KeyError: A key is missing.
        TypeError: It is something else than a tree of `pack`.
    """
    found = tuple(int(side) for side in tree["shape"])
    fits = len(found) == len(shape) and all(
        side >= 0 and wanted in (None, side) for side, wanted in zip(found, shape, strict=False)
    )
    if not fits:
        raise ValueError(f"counts are of shape {list(found)}: expected {list(shape)}")
    size = 8 * prod(found)
    try:
        # No more than is needed is ever unpacked, whatever the data claim.
        stored = zlib.decompressobj().decompress(base64.b64decode(tree["int64"]), size + 1)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(f"counts are damaged ({error})") from error
    if len(stored) != size:
        raise ValueError(f"counts are damaged ({len(stored)} bytes instead of {size})")
    counts = np.frombuffer(stored, "<i8").astype(np.int64).reshape(found)
    if counts.size and counts.min() < 0:
        raise ValueError("a count is below 0")
    return counts
