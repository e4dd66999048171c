from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts.stanford_background import TWINS, fold_of, read_regions
from ccfnet_tf.datasets.open_data_set import Parts, list_set, read_parts
from ccfnet_tf.errors import DataError


def parts(root: Path, fold: int = 0, seed: int = 0) -> Parts:
    return read_parts(
        DataConfig(format="stanford_background", root=str(root), fold=fold), seed=seed
    )


@pytest.fixture
def imitation(tmp_path: Path) -> Path:
    """The layout of the data set with empty files."""
    root = tmp_path / "iccv09Data"
    for side, suffix in (("images", "jpg"), ("labels", "regions.txt")):
        (root / side).mkdir(parents=True)
        for name in fold_of():
            (root / side / f"{name}.{suffix}").touch()
    return root


def test_folds_are_five_of_143_and_keep_twins() -> None:
    folds = fold_of()
    assert len(folds) == 715
    assert np.bincount(list(folds.values())).tolist() == [143] * 5
    for one, other in TWINS:
        assert folds[one] == folds[other]


@pytest.mark.parametrize("fold", range(5))
def test_splits_of_a_fold(imitation: Path, fold: int) -> None:
    found = parts(imitation, fold)
    train, val, test = ({s.name for s in p} for p in (found.train, found.val, found.test))
    assert (len(train), len(val), len(test)) == (515, 57, 143)
    assert len(train | val | test) == 715
    assert test == {name for name, where in fold_of().items() if where == fold}


def test_validation_share_keeps_twins_and_follows_the_seed(imitation: Path) -> None:
    vals = []
    for seed in range(12):
        val = {s.name for s in parts(imitation, 0, seed).val}
        vals.append(val)
        for one, other in TWINS:
            assert (one in val) == (other in val)
    assert any(one in val for val in vals for one, _ in TWINS)
    assert vals[0] != vals[1]
    assert vals[0] == {s.name for s in parts(imitation, 0, 0).val}


def test_wrong_root_names_the_right_one(imitation: Path) -> None:
    with pytest.raises(DataError, match=r"did you mean .*iccv09Data\?"):
        parts(imitation.parent)
    with pytest.raises(DataError, match="expected the folder iccv09Data"):
        parts(imitation / "images")


def test_missing_files_are_named(imitation: Path) -> None:
    (imitation / "labels" / "0000051.regions.txt").unlink()
    with pytest.raises(DataError, match=r"labels/0000051\.regions\.txt: no such file:"):
        parts(imitation)
    for name in ("0000047", "0000059"):
        (imitation / "images" / f"{name}.jpg").unlink()
    with pytest.raises(DataError, match=r"images/0000047\.jpg: no such file: .*\(and 2 more"):
        parts(imitation)


@pytest.mark.parametrize(
    "text",
    [
        "0 1 -1\n7 6 5\n",
        "0 1 -1\n7 6 5",
        "0 1 -1 \r\n7 6 5 \r\n\r\n",
        " 0  1\t-1\n7 6 5\n\n",
    ],
)
def test_regions(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.regions.txt"
    path.write_bytes(text.encode())
    label = read_regions(path)
    np.testing.assert_array_equal(label, [[0, 1, -1], [7, 6, 5]])
    assert label.dtype == np.int32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 1\n0 8\n", "value '8' in line 2"),
        ("0 1\n0 -2\n", "value '-2' in line 2"),
        ("0 x\n", "value 'x' in line 1"),
        ("0 12\n", "value '12'"),
        ("0 1-1\n", "value '1-1'"),
        ("0 -11\n", "value '-11'"),
        ("0 - 1\n", "value '-'"),
        ("0 1.0\n", "value '1.0'"),
        ("0,1\n", "value '0,1'"),
        ("0 \u0661\n", "value '\u0661'"),
        ("0 1\n0\n", "1 values in line 2, 2 in line 1"),
        ("0 1\n\n0 1\n", "0 values in line 2"),
        ("", "empty"),
        ("\n \n", "empty"),
    ],
)
def test_regions_that_are_invalid(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.regions.txt"
    path.write_bytes(text.encode())
    with pytest.raises(DataError) as caught:
        read_regions(path)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_regions_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_regions(tmp_path / "no.txt")


def test_label_of_another_size(imitation: Path) -> None:
    found = parts(imitation)
    sample = found.train[0]
    Image.new("RGB", (3, 2)).save(sample.image)
    Path(sample.label).write_text("0 0\n0 0\n0 0\n")
    with pytest.raises(DataError) as caught:
        found.load(sample)
    assert caught.value.kind == "size"
    for word in (sample.image, sample.label, "3x2", "2x3", "EXIF"):
        assert word in str(caught.value)


def test_the_real_set(stanford_root: Path) -> None:
    data = DataConfig(format="stanford_background", root=str(stanford_root))
    found = read_parts(data, seed=0)
    load_label = list_set(data, seed=0).load_label
    counts = {
        part: sum(np.bincount(load_label(s).ravel() + 1, minlength=9) for s in getattr(found, part))
        for part in ("train", "val", "test")
    }
    total = sum(counts.values())
    assert total[0] / total.sum() == pytest.approx(0.0051, abs=5e-5)
    shares = [14.5539, 14.0959, 22.6397, 6.8826, 4.0207, 22.7260, 1.3466, 13.7347]
    np.testing.assert_allclose(100 * total[1:] / total[1:].sum(), shares, atol=5e-5)
    test = 100 * counts["test"][1:] / counts["test"][1:].sum()
    np.testing.assert_allclose(test, shares, atol=0.2)
    for sample in found.test[::30]:
        image, label = found.load(sample)
        assert image.shape[:2] == label.shape
