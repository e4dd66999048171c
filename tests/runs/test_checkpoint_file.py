from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.errors import NotFiniteError, RunError
from ccfnet_tf.runs.checkpoint_file import assign_model, load_matching, read_arrays, write_arrays
from tests.inference.conftest import arrays_of

ARRAYS = {
    "model/a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "model/a/seed": np.array([1, 2**32 - 1], np.uint32),
    "optimizer/0000": np.array(7, np.int64),
    "state": np.array('{"epoch": 3, "name": "é"}'),
}


def test_round_trip_keeps_values_types_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "last.npz"
    write_arrays(path, ARRAYS)
    back = read_arrays(path)
    assert list(back) == list(ARRAYS)
    for key, value in ARRAYS.items():
        assert back[key].dtype == value.dtype
        np.testing.assert_array_equal(back[key], value)
    assert list(read_arrays(path, prefix="model/")) == ["model/a/kernel", "model/a/seed"]


def test_numpy_reads_it_without_pickle(tmp_path: Path) -> None:
    write_arrays(tmp_path / "last.npz", ARRAYS)
    with np.load(tmp_path / "last.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["model/a/kernel"], ARRAYS["model/a/kernel"])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such checkpoint"):
        read_arrays(tmp_path / "last.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.npz"
    path.write_bytes(content)
    with pytest.raises(RunError, match="damaged checkpoint"):
        read_arrays(path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.npz"
    np.savez(path, **{"model/a": np.array([object()], dtype=object)})
    with pytest.raises(RunError, match="damaged checkpoint"):
        read_arrays(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_neither_written_nor_read(
    tmp_path: Path, value: float
) -> None:
    path = tmp_path / "last.npz"
    write_arrays(path, ARRAYS)
    before = path.read_bytes()
    bad = ARRAYS | {"model/b/kernel": np.array([[1.0, value]], np.float32)}
    called: list[int] = []
    with pytest.raises(NotFiniteError, match=f"'model/b/kernel' has {value} in 1 of its 2"):
        write_arrays(path, bad, before=lambda: called.append(1))
    assert path.read_bytes() == before
    assert called == []
    np.savez(path, **bad)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"last\.npz: 'model/b/kernel' has"):
        read_arrays(path)
    assert "state" in read_arrays(path, prefix="state")  # what is not asked for does no harm


def test_values_of_another_type_are_refused(model: Any) -> None:
    saved = arrays_of(model)
    key = next(iter(saved))
    for changed in (saved[key].astype("U9"), saved[key].astype(np.float64)):
        with pytest.raises(RunError, match=f"has type {changed.dtype.name}, expected float32"):
            assign_model(model, saved | {key: changed}, source=Path("best.npz"))
        with pytest.raises(RunError, match="expected float32"):
            load_matching(model, saved | {key: changed}, source=Path("best.npz"))


def outcome(path: Path) -> tuple[dict[str, np.ndarray] | None, str]:
    try:
        return read_arrays(path), ""
    except RunError as error:
        return None, str(error)


def test_damage_is_detected(tmp_path: Path) -> None:
    """Truncation and flipped bytes at random positions give a one-line error or correct values."""
    path = tmp_path / "last.npz"
    write_arrays(path, ARRAYS)
    good = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        bad = bytearray(good)
        if chance.random() < 0.3:
            del bad[chance.randrange(len(bad)) :]
        else:
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(bad))
        back, text = outcome(path)
        if back is None:
            refused += 1
            assert "\n" not in text
            assert str(path) in text
            continue
        # A byte without effect, such as a date, or one of a key, which is then missing.
        for key in set(back) & set(ARRAYS):
            np.testing.assert_array_equal(back[key], ARRAYS[key])
    assert refused > 200


def test_another_number_of_classes_names_variable_and_shapes(model: Any, other_model: Any) -> None:
    before = arrays_of(other_model)
    with pytest.raises(RunError) as caught:
        assign_model(other_model, arrays_of(model), source=Path("run/best.npz"))
    text = str(caught.value)
    assert text.startswith("run/best.npz: 'coarse")
    assert "[1, 1, 8, 3]" in text
    assert "[1, 1, 8, 5]" in text
    for key, value in arrays_of(other_model).items():
        np.testing.assert_array_equal(value, before[key])  # all or nothing


def test_a_missing_variable_is_named(model: Any) -> None:
    saved = arrays_of(model)
    key = next(iter(saved))
    del saved[key]
    with pytest.raises(RunError) as caught:
        assign_model(model, saved, source=Path("best.npz"))
    assert f"'{key.removeprefix('model/')}' is missing" in str(caught.value)


def test_load_matching_skips_heads_with_other_classes(model: Any, other_model: Any) -> None:
    before, saved = arrays_of(other_model), arrays_of(model)
    left_out = load_matching(other_model, saved, source=Path("best.npz"))
    assert left_out == [
        f"{head}_classifier/{kind}" for head in ("coarse", "fine") for kind in ("kernel", "bias")
    ]
    for key, value in arrays_of(other_model).items():
        kept = before if key.removeprefix("model/") in left_out else saved
        np.testing.assert_array_equal(value, kept[key])


def test_load_matching_refuses_an_unrelated_checkpoint(model: Any) -> None:
    with pytest.raises(RunError, match="no array matches"):
        load_matching(model, {"model/other": np.zeros(3)}, source=Path("best.npz"))
