from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.coco_rle import read_runs, to_mask, unpack


def packed(runs: list[int]) -> str:
    """Encodes runs with divisions instead of bit operations."""
    out = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            value, piece = divmod(value, 32)
            last = (value == 0 and piece < 16) or (value == -1 and piece >= 16)
            out += chr(48 + piece + (0 if last else 32))
            if last:
                break
    return out


def test_an_example_computed_by_hand() -> None:
    # 3 rows, 4 columns: outside 2, inside 4, outside 3, inside 2 (2 - 4 = -2), outside 1 (1 - 3).
    # -2 in 5 bits is 30, with the sign in bit 16: chr(48 + 30) is N.
    assert unpack("243NN", "a") == [2, 4, 3, 2, 1]
    runs = read_runs("243NN", (3, 4), "a")
    expected = np.array([[0, 1, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(to_mask(runs, (3, 4)), expected)
    np.testing.assert_array_equal(to_mask([2, 4, 3, 2, 1], (3, 4)), expected)


def test_numbers_of_several_groups() -> None:
    # 100 = 3 * 32 + 4: 4 with more to follow is chr(48 + 4 + 32) = T, then 3.
    assert unpack("T3", "a") == [100]
    # 16 needs a second group; otherwise its highest bit would be the sign.
    assert unpack("`0", "a") == [16]
    assert unpack("@", "a") == [-16]


def test_round_trip() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        runs = [int(run) for run in rng.integers(0, 2 ** rng.integers(1, 27), rng.integers(1, 30))]
        assert unpack(packed(runs), "a") == runs


def test_empty_and_full() -> None:
    assert not to_mask(read_runs([6], (2, 3), "a"), (2, 3)).any()
    assert to_mask(read_runs([0, 6], (2, 3), "a"), (2, 3)).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("24/", "damaged at '/'"),
        ("24p", "damaged at 'p'"),
        ("24T", "ends within a number"),
        ("2" + "o" * 4000, "damaged"),
        ("@", "a run of -16"),
        ([2, 4], "6 pixels in total: the image has 4x3"),
        ([2, -4, 14], "a run of -4"),
        ([2, 10**400], "a huge number"),
        ([2, 10.0], "a run of 10.0"),
        ([2, True, 9], "a run of True"),
        (None, "'counts' is missing"),
        (12, "'counts' is 12"),
    ],
)
def test_damaged_runs_are_refused(value: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_runs(value, (3, 4), "a.json: annotation 1")
    assert str(caught.value).startswith("a.json: annotation 1: ")
    assert len(str(caught.value)) < 200
