"""Label Studio's run lengths: the values of an RGBA image, packed bit by bit.

32 bits state how many values there are, 5 the bits of a value, and 4 times 4 the four widths that a
run's length may have. Then come runs: a bit, two that choose the width, the length less one, and
the value once (bit 1) or a value each (bit 0). Alpha, every fourth value, is the brush.
"""

from __future__ import annotations

import numpy as np

from ccfnet_tf.errors import DataError


class _Bits:
    """Bytes read bit by bit, highest first."""

    def __init__(self, packed: bytes, where: str) -> None:
        self._packed = packed
        self._where = where
        self._at = 0

    def read(self, count: int) -> int:
        """Returns the next bits, at most 32 of them, as a number."""
        first, end = self._at // 8, self._at + count
        if end > 8 * len(self._packed):
            raise DataError(f"{self._where}: the brush's 'rle' ends too early: export it anew")
        self._at = end
        last = (end + 7) // 8
        chunk = int.from_bytes(self._packed[first:last], "big")
        return chunk >> (8 * last - end) & (1 << count) - 1


def to_brush(packed: bytes, size: tuple[int, int], where: str) -> np.ndarray:
    """Returns bool [H, W], true where the brush was.

    Args:
        packed: The bytes that a JSON file lists as `rle`.
        size: (H, W).
        where: Place that messages begin with.

    Raises:
        DataError: Damaged, or of another size.
    """
    bits = _Bits(packed, where)
    count, width = bits.read(32), bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    if count != 4 * size[0] * size[1]:
        raise DataError(
            f"{where}: the brush's 'rle' has {count} values: expected 4 for each of "
            f"{size[1]}x{size[0]} pixels",
            kind="size",
        )
    brush = np.zeros(size[0] * size[1], bool)
    at = 0
    while at < count:
        same = bits.read(1)
        end = at + 1 + bits.read(lengths[bits.read(2)])
        if end > count:
            raise DataError(f"{where}: the brush's 'rle' has more values than it states")
        if same:
            brush[at // 4 : end // 4] = bits.read(width) > 0
        else:
            for index in range(at, end):
                value = bits.read(width)
                if index % 4 == 3:
                    brush[index // 4] = value > 0
        at = end
    return brush.reshape(size)
