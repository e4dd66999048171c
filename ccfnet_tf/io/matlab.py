"""One matrix of whole numbers out of a MATLAB 5 file (what `save` writes up to -v7).

SciPy reads far more of the format, but a flipped byte in a file makes it end the whole process
with a segmentation fault; here every length is checked against what is there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.images import MAX_PIXELS

Take = Callable[[int], bytes]
"""Returns the next so many bytes; raises ValueError where there are fewer."""

_MATRIX, _COMPRESSED = 14, 15
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_NUMERIC = range(6, 16)  # array classes double, single, int8 .. uint64
_COMPLEX = 0x0800
_LONGEST = 4096  # bytes of flags, dimensions or a name


def read_matrix(path: str | Path, name: str) -> np.ndarray:
    """Reads a matrix.

    Args:
        path: MATLAB 5 file, either byte order, compressed or not.
        name: Name of the variable.

    Returns:
        [H, W], a type of integers.

    Raises:
        DataError: Missing, another format, damaged, no such variable, not a matrix of whole
            numbers, empty, or more than `MAX_PIXELS`.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", kind="missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:128])
    if order is None:
        raise DataError(f"{path}: not a MATLAB 5 file: save it with -v7 or -v6")
    try:
        matrix = _find(data[128:], order, name)
    except (ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: damaged MATLAB file ({error}); replace it") from error
    if matrix is None:
        raise DataError(f"{path}: no variable {name} in it")
    return matrix


def _find(data: bytes, order: str, name: str) -> np.ndarray | None:
    take = _plain(data)
    left = len(data)
    while left > 0:
        kind, size = struct.unpack(f"{order}II", take(8))
        body = take(size)
        left -= 8 + size
        if kind == _COMPRESSED:
            found = _unpacked(body, order, name)
        else:
            found = _matrix(_plain(body), order, name) if kind == _MATRIX else None
        if found is not None:
            return found
    return None


def _unpacked(body: bytes, order: str, name: str) -> np.ndarray | None:
    """Looks into a compressed element; unpacks no more than the matrix says it holds."""
    stream = zlib.decompressobj()
    packed = body

    def take(count: int) -> bytes:
        nonlocal packed
        out = b""
        while len(out) < count:
            piece = stream.decompress(packed, count - len(out))
            packed = stream.unconsumed_tail
            if not piece:
                raise ValueError("ends early")
            out += piece
        return out

    kind, _ = struct.unpack(f"{order}II", take(8))
    matrix = _matrix(take, order, name) if kind == _MATRIX else None
    if matrix is not None:
        stream.decompress(packed, 8)  # the padding; the checksum comes after it
        if not stream.eof:
            raise ValueError("the compressed data do not end with the matrix")
    return matrix


def _matrix(take: Take, order: str, name: str) -> np.ndarray | None:
    """Returns the matrix, or `None` where it is another variable."""
    flags, shape, title = (_element(take, order)[1] for _ in range(3))
    if title != name.encode():
        return None
    (word,) = struct.unpack_from(f"{order}I", flags)
    if word & 0xFF not in _NUMERIC or word & _COMPLEX or len(shape) != 8:
        raise ValueError(f"{name} is not a matrix of numbers")
    height, width = struct.unpack(f"{order}ii", shape)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"{name} has {width}x{height} values, 1 to {MAX_PIXELS} are read")
    kind, raw = _element(take, order, longest=8 * height * width, last=True)
    if kind not in _STORED:
        raise ValueError(f"unknown type {kind} of numbers")
    values = np.frombuffer(raw, np.dtype(order + _STORED[kind]))
    if len(values) != height * width:
        raise ValueError(f"{len(values)} values for {width}x{height}")
    if values.dtype.kind == "f":
        if not ((abs(values) < 2**31) & (values == np.round(values))).all():
            raise ValueError(f"{name} holds numbers that are not whole")
        values = values.astype(np.int32)
    return np.ascontiguousarray(values.reshape(width, height).T)  # stored column by column


def _element(
    take: Take, order: str, *, longest: int = _LONGEST, last: bool = False
) -> tuple[int, bytes]:
    """Returns type and bytes of the next element inside a matrix; they are padded to 8 bytes."""
    tag = take(8)
    kind, size = struct.unpack(f"{order}II", tag)
    if kind >> 16:  # up to 4 bytes lie in the tag itself
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError("a short element of more than 4 bytes")
        return kind, tag[4 : 4 + size]
    if size > longest:
        raise ValueError(f"an element of {size} bytes")
    body = take(size)
    if not last:
        take(-size % 8)
    return kind, body


def _plain(data: bytes) -> Take:
    start = 0

    def take(count: int) -> bytes:
        nonlocal start
        if start + count > len(data):
            raise ValueError("ends early")
        start += count
        return data[start - count : start]

    return take
