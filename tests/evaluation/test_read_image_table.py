"""`images.csv` and `images.npz` read back, sound and damaged."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.errors import DataError
from ccfnet_tf.evaluation.bootstrap import image_counts
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.evaluation.image_table import CELLS
from ccfnet_tf.evaluation.read_image_table import read_cells, read_rows
from ccfnet_tf.labels import Taxonomy, distinct_colours
from tests.evaluation.conftest import drawn

TAXONOMY = Taxonomy(("a", "b", "c"), distinct_colours(3))


def evaluation() -> Evaluation:
    parts = [
        Evaluation.of(*drawn(n, void=1.0 if n == 2 else 0.1), TAXONOMY, index=n, name=f'"{n}", x')
        for n in range(4)
    ]
    return Evaluation.total(parts, TAXONOMY)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = evaluation()
    (tmp_path / "images.csv").write_text(found.images.to_csv())
    (tmp_path / "images.npz").write_bytes(found.images.to_npz())
    rows = read_rows(tmp_path / "images.csv")
    assert [row.name for row in rows] == list(found.images.names)
    assert (rows[2].pixels, rows[2].accuracy, rows[2].risk) == (0, None, None)
    assert sum(row.corrected for row in rows) == found.changed()[0]
    cells = read_cells(tmp_path / "images.npz", 3)
    assert cells.names == found.images.names
    for prediction in ("coarse", "fine", "refine", "average"):
        summed = image_counts(cells.cells[prediction], 4, 3).sum(axis=0)
        np.testing.assert_array_equal(summed, found.classes(prediction).counts)
        near = image_counts(cells.cells[f"near_{prediction}"], 4, 3).sum(axis=0)
        np.testing.assert_array_equal(near, found.classes(prediction, within=4).counts)
        assert 0 < near.sum() < summed.sum()


@pytest.mark.parametrize("change", ["", "nan", "1.5", "much", "cut", "bytes"])
def test_a_damaged_table_is_refused(change: str, tmp_path: Path) -> None:
    text = evaluation().images.to_csv()
    path = tmp_path / "images.csv"
    if change == "cut":
        path.write_text(text[: text.index('"') + 3])
    elif change == "bytes":
        path.write_bytes(text.encode("utf-16"))
    else:
        with io.StringIO(text) as file:
            rows = list(csv.DictReader(file))
        rows[1]["refine_pixel_accuracy" if change else "corrected"] = change
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    with pytest.raises(DataError, match=r"images\.csv: damaged.*run `ccfnet-tf evaluate` again"):
        read_rows(path)


ROWS = np.array([[0, 1, 2, 5]], np.int64)


def saved(**changed: np.ndarray | None) -> bytes:
    """Returns the content of `images.npz` with some arrays changed, or left out if None."""
    arrays = {"names": np.array(["a"]), **dict.fromkeys(CELLS, ROWS), **changed}
    file = io.BytesIO()
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez_compressed(file, **kept)  # type: ignore[arg-type]
    return file.getvalue()


def test_sound_arrays_are_read(tmp_path: Path) -> None:
    (tmp_path / "images.npz").write_bytes(saved())
    assert read_cells(tmp_path / "images.npz", 3).names == ("a",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4",
        saved(average=None),
        saved(near_refine=None),  # written before there were such counts
        saved(names=np.array([1])),
        saved(refine=ROWS + 1),
        saved(near_fine=-ROWS),
        saved(refine=ROWS.astype(float)),
        saved(refine=ROWS[:, :3]),
    ],
)
def test_damaged_arrays_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.npz: damaged.*: run `ccfnet-tf evaluate` again"):
        read_cells(path, 3)


def test_missing_files_say_what_writes_them(tmp_path: Path) -> None:
    for read in (read_rows, lambda path: read_cells(path, 3)):
        with pytest.raises(DataError, match="no such file: run `ccfnet-tf evaluate` again"):
            read(tmp_path / "none")
