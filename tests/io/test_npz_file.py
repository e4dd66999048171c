"""Files that are damaged, or made to exhaust memory, are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.io.npz_file import DAMAGE, read_stored


def test_only_keys_with_the_prefix_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"a/x": np.arange(3), "b/x": np.float32([[1, 2]])}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    for prefix, keys in (("", ["a/x", "b/x"]), ("b/", ["b/x"])):
        found = read_stored(path, prefix=prefix)
        assert list(found) == keys
        for key in keys:
            np.testing.assert_array_equal(found[key], arrays[key], strict=True)


def header(shape: str, dtype: str = "'<f4'") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header("(10000000000000,)") + bytes(8),
        header("(1000000, 1000000, 1000000)") + bytes(8),
        header("(-1, -2)") + bytes(8),
        header("(3,)") + bytes(8),
        header("(99999999999,)", "'<U0'"),
        header("(2,)", "'|O'") + bytes(16),
        header("(2,)", "[]") + bytes(8),
        header("x") + bytes(8),
        header("(3,") + bytes(8),
        header("[" * 3000) + bytes(8),
        header("'''") + bytes(8),
        header("-" * 9000 + "1") + bytes(8),
        header("(" * 300 + ")" * 300),
        header("{[]: 1}"),
        b"\x93NUMPY\x09\x00" + bytes(80),
        b"\x93NUMPY\x01\x00",
        b"",
    ],
)
def test_a_header_that_does_not_match_the_data_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:  # its checksum is right
        archive.writestr("model/a.npy", content)
    with pytest.raises(DAMAGE):
        read_stored(path)


def test_a_compressed_member_cannot_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{"model/a": np.zeros(10**7)})
    with pytest.raises(ValueError, match="it is compressed; expected an uncompressed file"):
        read_stored(path)
