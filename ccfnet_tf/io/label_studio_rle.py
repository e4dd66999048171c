"""Label Studio's run-length encoding (RLE) of brush masks: RGBA values packed bit by bit.

The header has 32 bits for the number of values, 5 bits for the width of a value minus 1, and four
times 4 bits for the possible widths of a run length, minus 1. Each run has one flag bit, two bits
that select the width of its length, the length minus 1, and either one repeated value (flag 1) or
one value per element (flag 0). The alpha channel, every fourth value, is the mask.
"""

from __future__ import annotations

import numpy as np

from ccfnet_tf.errors import DataError

_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
"""Widths of a run length that `from_brush` uses, those of Label Studio's own converter."""


class _BitReader:
    """Reads bytes bit by bit, highest bit first."""

    def __init__(self, packed: bytes, where: str) -> None:
        self._packed = packed
        self._where = where
        self._position = 0

    def read(self, count: int) -> int:
        """Returns the next `count` bits, at most 32, as an integer."""
        first, end = self._position // 8, self._position + count
        if end > 8 * len(self._packed):
            raise DataError(f"{self._where}: the brush's 'rle' ends too early: export it again")
        self._position = end
        last = (end + 7) // 8
        chunk = int.from_bytes(self._packed[first:last], "big")
        return chunk >> (8 * last - end) & (1 << count) - 1


def to_brush(packed: bytes, size: tuple[int, int], where: str) -> np.ndarray:
    """Decodes a brush mask, bool [H, W].

    Args:
        packed: Bytes listed as `rle` in the JSON file.
        size: (H, W) of the image.
        where: Location, used at the start of error messages.

    Raises:
        DataError: The data are damaged or have another size.
    """
    bits = _BitReader(packed, where)
    count, width = bits.read(32), bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    if count != 4 * size[0] * size[1]:
        raise DataError(
            f"{where}: the brush's 'rle' has {count} values: expected 4 for each of "
            f"{size[1]}x{size[0]} pixels",
            kind="size",
        )
    brush = np.zeros(size[0] * size[1], bool)
    position = 0
    while position < count:
        same = bits.read(1)
        end = position + 1 + bits.read(lengths[bits.read(2)])
        if end > count:
            raise DataError(f"{where}: the brush's 'rle' has more values than its header declares")
        if same:
            brush[position // 4 : end // 4] = bits.read(width) > 0
        else:
            for index in range(position, end):
                value = bits.read(width)
                if index % 4 == 3:
                    brush[index // 4] = value > 0
        position = end
    return brush.reshape(size)


def from_brush(brush: np.ndarray) -> bytes:
    """Encodes a brush mask, bool [H, W], with 255 in all four channels inside the mask.

    Returns:
        Bytes; `list` of them is the `rle` of a region. `to_brush` decodes them.
    """
    inside = np.asarray(brush, bool).ravel()
    if not inside.size:
        raise ValueError(f"a brush of shape {list(brush.shape)} has no pixels")
    starts = np.flatnonzero(np.diff(inside, prepend=not inside[0]))
    lengths = 4 * np.diff(starts, append=inside.size)  # four channels
    parts = [f"{4 * inside.size:032b}{_VALUE_BITS - 1:05b}"]
    parts += [f"{bits - 1:04b}" for bits in _LENGTH_BITS]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        parts += _run(length, 255 * int(inside[start]))
    text = "".join(parts)
    count = -(-len(text) // 8)
    return int(text.ljust(8 * count, "0"), 2).to_bytes(count, "big")


def _run(length: int, value: int) -> list[str]:
    """Returns the bits of equal values, in runs of at most 2 ** 16."""
    longest = 1 << _LENGTH_BITS[-1]
    runs = [longest] * (length // longest) + [length % longest] * (length % longest > 0)
    texts = []
    for run in runs:
        choice = next(i for i, bits in enumerate(_LENGTH_BITS) if run <= 1 << bits)
        texts.append(f"1{choice:02b}{run - 1:0{_LENGTH_BITS[choice]}b}{value:0{_VALUE_BITS}b}")
    return texts
