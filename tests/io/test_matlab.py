from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.matlab import read_matrix
from tests.datasets.layouts.small_copies import mat, values

LABEL = values(list(range(34)))


def matrix_of(tmp_path: Path, content: bytes) -> np.ndarray:
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    return read_matrix(path, "S")


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "i4", "f8"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compressed", [False, True])
def test_values_keep_their_position(
    tmp_path: Path, kind: str, order: str, compressed: bool
) -> None:
    content = mat(LABEL.astype(kind), order=order, compressed=compressed)
    result = matrix_of(tmp_path, content)
    np.testing.assert_array_equal(result, LABEL)
    assert result.dtype.kind in "iu"
    assert result.flags.c_contiguous


def test_few_values_are_stored_in_the_tag(tmp_path: Path) -> None:
    result = matrix_of(tmp_path, mat(np.array([[1, 2, 3]], np.uint8)))
    np.testing.assert_array_equal(result, [[1, 2, 3]])


def test_other_variables_are_skipped(tmp_path: Path) -> None:
    content = mat(LABEL)
    other = mat(np.full((30, 30), 9, np.uint8), name="other")
    np.testing.assert_array_equal(matrix_of(tmp_path, other + content[128:]), LABEL)


def no_s() -> bytes:
    return mat(LABEL, name="T")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(512), "not a MATLAB 5 file"),
        (no_s(), "no variable S"),
        (no_s()[:128], "no variable S"),
        (mat(LABEL)[:-9], "ends early"),
        (mat(LABEL, compressed=True)[:-3], "ends early"),
        (mat(np.zeros((0, 4), np.uint8)), "S has 4x0 values"),
        (mat(np.full((4, 4), 0.5)), "not integers"),
        (mat(np.full((4, 4), np.nan)), "not integers"),
        (mat(np.full((4, 4), np.inf)), "not integers"),
        (
            mat(LABEL).replace(b"\x09\0\0\0\0\0\0\0", b"\x01\0\0\0\0\0\0\0"),
            "not a matrix of numbers",
        ),
        (
            mat(LABEL).replace(b"\x09\0\0\0\0\0\0\0", b"\x09\x08\0\0\0\0\0\0"),
            "not a matrix of numb",
        ),
        (mat(LABEL).replace(b"\x02\0\0\0\xc0", b"\x10\0\0\0\xc0"), "unknown type 16"),
        (mat(LABEL).replace(b"\x02\0\0\0\xc0", b"\x04\0\0\0\xc0"), "96 values for 16x12"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        matrix_of(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'a.mat'}: ")
    assert "\n" not in str(caught.value)


def test_damage_in_compressed_data_is_detected(tmp_path: Path) -> None:
    content = bytearray(mat(LABEL, compressed=True))
    content[-1] ^= 1  # The checksum.
    with pytest.raises(DataError, match="incorrect data check"):
        matrix_of(tmp_path, bytes(content))


def test_truncated_compressed_data_are_detected(tmp_path: Path) -> None:
    content = mat(LABEL, compressed=True)
    start = content.rindex(b"\x0f\0\0\0")  # The tag of the last element.
    size = int.from_bytes(content[start + 4 : start + 8], "little") - 4  # Minus the checksum.
    cut = content[: start + 4] + size.to_bytes(4, "little") + content[start + 8 : -4]
    with pytest.raises(DataError, match="do not end with the matrix"):
        matrix_of(tmp_path, cut)


def test_a_small_file_that_declares_a_huge_matrix(tmp_path: Path) -> None:
    content = mat(LABEL).replace(b"\x0c\0\0\0\x10\0\0\0", b"\xff\xff\0\0\xff\xff\0\0")
    with pytest.raises(DataError, match="S has 65535x65535 values, 1 to 80000000"):
        matrix_of(tmp_path, content)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        read_matrix(tmp_path / "a.mat", "S")
    assert caught.value.kind == "missing"
    with pytest.raises(DataError, match="cannot be opened"):
        read_matrix(tmp_path, "S")
