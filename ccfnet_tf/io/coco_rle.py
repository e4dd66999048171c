"""COCO's run-length encoding (RLE): alternating numbers of pixels outside and inside a region.

Pixels are in column-major order. The first run is outside the region and may be 0. In the
compressed form, a string, each run is split into groups of 5 bits, lowest first. A group is stored
as the character with code 48 + group, plus 32 if more groups follow. The highest bit of the last
group is the sign. From the fourth run on, the difference to the second last run is stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import shown

_MAX_GROUPS = 7  # Groups of 5 bits per run: more than any image needs.


def read_runs(value: Any, size: tuple[int, int], where: str) -> list[int]:
    """Returns the run lengths stored as `counts` in a JSON file.

    Args:
        value: A list of integers (uncompressed) or a string (compressed).
        size: (H, W) of the image.
        where: Location, used at the start of error messages.

    Raises:
        DataError: `value` has another type, a run is negative, or the runs do not add up to H * W.
    """
    runs = unpack(value, where) if isinstance(value, str) else value
    if not isinstance(runs, list):
        raise DataError(f"{where}: 'counts' is {shown(value)}: expected a list or a string")
    for run in runs:
        if type(run) is not int or run < 0:
            raise DataError(f"{where}: a run of {shown(run)}: expected a number of pixels")
    if sum(runs) != size[0] * size[1]:
        raise DataError(
            f"{where}: the runs have {shown(sum(runs))} pixels in total: the image has "
            f"{size[1]}x{size[0]}"
        )
    return runs


def unpack(packed: str, where: str) -> list[int]:
    """Decodes the compressed form; the returned runs are not validated and may be negative.

    Raises:
        DataError: A character has a code outside 48..111, or the string ends within a run.
    """
    runs: list[int] = []
    value = groups = 0
    for character in packed:
        group = ord(character) - 48
        if not 0 <= group < 64 or groups == _MAX_GROUPS:
            raise DataError(f"{where}: 'counts' {shown(packed)}: damaged at {shown(character)}")
        value |= (group & 31) << (5 * groups)
        groups += 1
        if group & 32:
            continue
        if group & 16:
            value -= 1 << (5 * groups)
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = groups = 0
    if groups:
        raise DataError(f"{where}: 'counts' {shown(packed)}: ends within a number")
    return runs


def to_mask(runs: list[int], size: tuple[int, int]) -> np.ndarray:
    """Converts run lengths to a mask, bool [H, W], true inside the region.

    Args:
        runs: Run lengths that add up to H * W.
        size: (H, W).
    """
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size[1], size[0]).T
