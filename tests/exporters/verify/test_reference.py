"""`reference.npz` of anyone's: read as arrays, or refused in a line."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.exporters.verify import reference
from ccfnet_tf.exporters.verify.reference import read_references
from ccfnet_tf.inference.segmenter_protocol import Prediction
from ccfnet_tf.runtimes.manifest import REFERENCE
from tests.datasets.layouts.test_fuzz import mutants
from tests.memory import grows_at_most


def write(folder: Path, height: int = 8, classes: int = 3) -> Path:
    size = (height, 10)
    prediction = Prediction(
        np.zeros(size, np.int32),
        *[np.zeros(size, np.float32)] * 3,
        np.zeros((*size, classes), np.float32),
    )
    arrays = {"image/0": np.zeros((*size, 3), np.uint8), "settled/0": np.ones(size, bool)}
    arrays["clear_branch/0"] = np.ones(size, bool)
    arrays |= {f"{name}/0": values for name, values in prediction._asdict().items()}
    np.savez_compressed(folder / REFERENCE, allow_pickle=False, **arrays)
    return folder / REFERENCE


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    file = write(tmp_path)
    assert len(list(read_references(tmp_path))) == 1
    whole = file.read_bytes()
    refused = 0
    for content in mutants(whole, 300, "reference"):
        file.write_bytes(content)
        said = ""
        try:
            list(read_references(tmp_path))
        except ValueError as error:
            said = str(error)
            refused += 1
        assert len(said.splitlines()) <= 1
    assert refused > 100


def test_what_unpacks_to_too_much_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, height=300_000)
    monkeypatch.setattr(reference, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="unpacks to more than"):
        next(read_references(tmp_path))


@pytest.mark.slow
def test_a_directory_that_promises_less_than_there_is(tmp_path: Path) -> None:
    """Python's `zipfile` would unpack all of it to give the first bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for kind in ("image", "settled", "clear_branch", *Prediction._fields):
            archive.writestr(f"{kind}/0.npy", bytes(1 << 28))
    content = file.getvalue()
    small, large = (n.to_bytes(4, "little") for n in (1000, 1 << 28))
    (tmp_path / REFERENCE).write_bytes(content.replace(large, small))
    with grows_at_most(100 << 20), pytest.raises(ValueError, match="damaged"):
        next(read_references(tmp_path))


def test_a_label_is_settled_where_it_leads_clearly() -> None:
    lead = reference.MIN_LEAD
    logs = np.array([[-1.0, -9.0, -1.0], [-1 - 2 * lead, -9.0, -1.0], [-1.0, -0.5, -0.5]])
    assert reference.settled(logs.astype(np.float32)).tolist() == [False, True, False]


@pytest.mark.parametrize("change", ["object", "shape", "missing"])
def test_other_arrays_are_refused(change: str, tmp_path: Path) -> None:
    file = write(tmp_path)
    with np.load(file) as stored:
        arrays = dict(stored)
    if change == "object":
        arrays["probabilities/0"] = np.array([{"x": 1}], object)
    elif change == "shape":
        arrays["probabilities/0"] = arrays["probabilities/0"][0]
    else:
        del arrays["difficulty/0"]
    np.savez_compressed(file, **arrays)
    with pytest.raises(ValueError, match="damaged"):
        list(read_references(tmp_path))
