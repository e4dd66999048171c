"""Label Studio's run-length encoding (RLE) of brush masks: RGBA values packed bit by bit.

The header has 32 bits for the number of values, 5 bits for the width of a value minus 1, and four
times 4 bits for the possible widths of a run length, minus 1. Each run has one flag bit, two bits
that select the width of its length, the length minus 1, and either one repeated value (flag 1) or
one value per element (flag 0). The alpha channel, every fourth value, is the mask.
"""

from __future__ import annotations

import numpy as np

from ccfnet_tf.errors import DataError


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
