"""Reads an integer matrix from a MATLAB 5 file (the format of `save` up to -v7).

SciPy supports more of the format, but a flipped byte in a file can crash the process with a
segmentation fault. Here every length is checked against the available data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.read_images import MAX_PIXELS

Read = Callable[[int], bytes]
"""Reads the given number of bytes; raises ValueError if fewer remain."""

_MATRIX, _COMPRESSED = 14, 15
_DTYPES = {
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
_LONGEST = 4096  # Most bytes of flags, dimensions or a name.


def read_matrix(path: str | Path, name: str) -> np.ndarray:
    """Reads an integer matrix.

    Args:
        path: MATLAB 5 file in either byte order, compressed or not.
        name: Name of the variable.

    Returns:
        [H, W] of an integer dtype.

    Raises:
        DataError: The file is missing, damaged or in another format, or the variable is missing,
            not a matrix of integers, empty, or has more than `MAX_PIXELS` elements.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file: unpack the data set again", kind="missing"
        ) from error
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
    read = _reader(data)
    remaining = len(data)
    while remaining > 0:
        kind, size = struct.unpack(f"{order}II", read(8))
        body = read(size)
        remaining -= 8 + size
        if kind == _COMPRESSED:
            matrix = _find_compressed(body, order, name)
        else:
            matrix = _matrix(_reader(body), order, name) if kind == _MATRIX else None
        if matrix is not None:
            return matrix
    return None


def _find_compressed(body: bytes, order: str, name: str) -> np.ndarray | None:
    """Searches a compressed element; decompresses no more bytes than the matrix declares."""
    stream = zlib.decompressobj()
    packed = body

    def read(count: int) -> bytes:
        nonlocal packed
        out = b""
        while len(out) < count:
            piece = stream.decompress(packed, count - len(out))
            packed = stream.unconsumed_tail
            if not piece:
                raise ValueError("ends early")
            out += piece
        return out

    kind, _ = struct.unpack(f"{order}II", read(8))
    matrix = _matrix(read, order, name) if kind == _MATRIX else None
    if matrix is not None:
        stream.decompress(packed, 8)  # The padding; the checksum follows it.
        if not stream.eof:
            raise ValueError("the compressed data do not end with the matrix")
    return matrix


def _matrix(read: Read, order: str, name: str) -> np.ndarray | None:
    """Reads a matrix; returns `None` if it is another variable."""
    flags, shape, variable = (_element(read, order)[1] for _ in range(3))
    if variable != name.encode():
        return None
    (word,) = struct.unpack_from(f"{order}I", flags)
    if word & 0xFF not in _NUMERIC or word & _COMPLEX or len(shape) != 8:
        raise ValueError(f"{name} is not a matrix of numbers")
    height, width = struct.unpack(f"{order}ii", shape)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"{name} has {width}x{height} values, 1 to {MAX_PIXELS} are supported")
    kind, raw = _element(read, order, longest=8 * height * width, last=True)
    if kind not in _DTYPES:
        raise ValueError(f"unknown type {kind} of numbers")
    values = np.frombuffer(raw, np.dtype(order + _DTYPES[kind]))
    if len(values) != height * width:
        raise ValueError(f"{len(values)} values for {width}x{height}")
    if values.dtype.kind == "f":
        if not ((abs(values) < 2**31) & (values == np.round(values))).all():
            raise ValueError(f"{name} has values that are not integers")
        values = values.astype(np.int32)
    return np.ascontiguousarray(values.reshape(width, height).T)  # stored column by column


def _element(
    read: Read, order: str, *, longest: int = _LONGEST, last: bool = False
) -> tuple[int, bytes]:
    """Returns type and data of the next element of a matrix; elements are padded to 8 bytes."""
    tag = read(8)
    kind, size = struct.unpack(f"{order}II", tag)
    if kind >> 16:  # Small element: up to 4 bytes stored in the tag itself.
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError("a short element of more than 4 bytes")
        return kind, tag[4 : 4 + size]
    if size > longest:
        raise ValueError(f"an element of {size} bytes")
    body = read(size)
    if not last:
        read(-size % 8)
    return kind, body


def _reader(data: bytes) -> Read:
    start = 0

    def read(count: int) -> bytes:
        nonlocal start
        if start + count > len(data):
            raise ValueError("ends early")
        start += count
        return data[start - count : start]

    return read
