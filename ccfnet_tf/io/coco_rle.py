"""COCO's run lengths: how many pixels outside and inside a region follow each other, in turn.

Pixels are counted down the columns, from left to right; the first run is outside and may be 0.
Packed as text, a run is written in pieces of 5 bits from the lowest, each as the character of 48
plus the piece, plus 32 where more pieces follow. The highest bit of the last piece is the sign.
From the fourth run on, what is written is the difference to the run before the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.json_files import shown

_MOST_PIECES = 7  # of 5 bits each: more than any image needs


def read_runs(value: Any, size: tuple[int, int], where: str) -> list[int]:
    """Returns the runs of an image from what a JSON file holds as `counts`.

    Args:
        value: A list of whole numbers, or a text.
        size: (H, W).
        where: Place that messages begin with.

    Raises:
        DataError: Neither, a negative run, or runs that do not add up to H * W.
    """
    runs = unpack(value, where) if isinstance(value, str) else value
    if not isinstance(runs, list):
        raise DataError(f"{where}: 'counts' is {shown(value)}: expected a list or a text")
    for run in runs:
        if type(run) is not int or run < 0:
            raise DataError(f"{where}: a run of {shown(run)}: expected a number of pixels")
    if sum(runs) != size[0] * size[1]:
        raise DataError(
            f"{where}: runs of {shown(sum(runs))} pixels together: the image has "
            f"{size[1]}x{size[0]}"
        )
    return runs


def unpack(packed: str, where: str) -> list[int]:
    """Returns the runs that a text holds; they may still be negative.

    Raises:
        DataError: Other characters than 48..111, or a text that ends within a number.
    """
    runs: list[int] = []
    value = pieces = 0
    for character in packed:
        piece = ord(character) - 48
        if not 0 <= piece < 64 or pieces == _MOST_PIECES:
            raise DataError(f"{where}: 'counts' {shown(packed)}: damaged at {shown(character)}")
        value |= (piece & 31) << (5 * pieces)
        pieces += 1
        if piece & 32:
            continue
        if piece & 16:
            value -= 1 << (5 * pieces)
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = pieces = 0
    if pieces:
        raise DataError(f"{where}: 'counts' {shown(packed)}: ends within a number")
    return runs


def to_mask(runs: list[int], size: tuple[int, int]) -> np.ndarray:
    """Returns bool [H, W], true inside the region.

    Args:
        runs: Lengths that add up to H * W.
        size: (H, W).
    """
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size[1], size[0]).T
