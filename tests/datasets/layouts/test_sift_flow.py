from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.layouts.sift_flow import TWINS, UNLABELLED, load_label, read, signs
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID, Sample
from tests.datasets.layouts.small_copies import SIFT_SUB, SIZE, mat
from tests.datasets.layouts.small_copies import sift_flow as small


@pytest.fixture(scope="session")
def sift_flow_root() -> Path:
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "sift_flow"
    root = Path(os.environ.get("CCFNET_SIFT_FLOW_ROOT", beside))
    if not (root / "TestSet1.txt").is_file():
        pytest.skip(f"SIFT Flow is not at {root}: set CCFNET_SIFT_FLOW_ROOT")
    return root


def listed(root: Path) -> Listing:
    return read(DataConfig(format="sift_flow", root=str(root)), root, 0)


def label_of(tmp_path: Path, content: bytes) -> np.ndarray:
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    return load_label(Sample("a", "a.jpg", str(path)))


def test_splits(tmp_path: Path) -> None:
    found = listed(small(tmp_path))
    names = [sample.name.removeprefix(f"{SIFT_SUB}/") for sample in found.train]
    assert names == ["coast_0", "coast_2", "coast_3", "coast_5", "coast_6"]
    assert [s.name for s in found.test] == [f"{SIFT_SUB}/coast_1", f"{SIFT_SUB}/coast_4"]
    assert found.val is None
    assert not found.unpaired
    for sample in (*found.train, *found.test):
        image, label = found.load(sample)
        assert image.shape == (*SIZE, 3)
        assert (label.shape, label.dtype) == (SIZE, np.int32)
        assert set(np.unique(label)) == {VOID, *range(33)}


def test_slashes_and_plain_line_ends_in_the_list(tmp_path: Path) -> None:
    before = listed(small(tmp_path))
    path = tmp_path / "TestSet1.txt"
    path.write_text(path.read_text().replace("\\", "/").replace("\r", ""))
    assert listed(tmp_path).test == before.test


def test_twins_are_near_duplicates(tmp_path: Path) -> None:
    small(tmp_path)
    for side, suffix in (("Images", "jpg"), ("SemanticLabels", "mat")):
        for name, new in (("coast_0", TWINS[1][0]), ("coast_2", TWINS[1][1])):
            folder = tmp_path / side / SIFT_SUB
            (folder / f"{name}.{suffix}").rename(folder / f"{new}.{suffix}")
    near_duplicates = listed(tmp_path).near_duplicates
    assert set(near_duplicates) == {f"{SIFT_SUB}/{name}" for name in TWINS[1]}
    assert len(set(near_duplicates.values())) == 1


def test_wrong_root_names_the_right_one(tmp_path: Path) -> None:
    root = small(tmp_path / "data" / "SiftFlowDataset")
    assert signs(root)
    for wrong in (tmp_path, root.parent, root / "Images", root / "Images" / SIFT_SUB):
        assert not signs(wrong)
        with pytest.raises(DataError, match=rf"did you mean {root}\?"):
            listed(wrong)


def test_unpaired_files_are_reported(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "SemanticLabels" / SIFT_SUB / "coast_0.mat").unlink()
    for side, suffix in (("Images", "jpg"), ("SemanticLabels", "mat")):
        (tmp_path / side / SIFT_SUB / f"coast_4.{suffix}").unlink()
    (tmp_path / "Images" / SIFT_SUB / "coast_6.jpg").unlink()
    found = listed(tmp_path)
    errors = [str(error) for error in found.unpaired]
    assert [error.kind for error in found.unpaired] == ["missing"] * 3
    assert "coast_0.jpg: no label" in errors[0]
    assert "coast_6.mat: no image" in errors[1]
    assert "coast_4.jpg: no such file: TestSet1.txt lists it" in errors[2]
    assert len(found.train) == 3
    assert len(found.test) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\n \r\n", "empty"),
        (b"\xff\xfe\x00", "not a UTF-8 text file"),
        (b"a\\b.jpg\r\na\\b.jpg\r\n", "lines 1 and 2"),
    ],
)
def test_lists_that_are_invalid(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = small(tmp_path) / "TestSet1.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        listed(tmp_path)


def test_values_outside(tmp_path: Path) -> None:
    for value in (34, -1):
        label = np.ones((4, 5), np.int16)
        label[1, 2:4] = value
        with pytest.raises(
            DataError, match=rf"a\.mat: value {value} \(2 pixels.*1\.\.33"
        ) as caught:
            label_of(tmp_path, mat(label))
        assert caught.value.kind == "value"


def test_label_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        load_label(Sample("a", "a.jpg", str(tmp_path / "a.mat")))
    assert caught.value.kind == "missing"


# Shares of labelled pixels in per cent over all, training and test images, and how many test
# images show the class; counted from the arrays without this package.
SHARES = """
awning 0.0907 0.0888 0.1134 11
balcony 0.1050 0.1114 0.0269 2
bird 0.0014 0.0015 0.0004 2
boat 0.0382 0.0363 0.0611 8
bridge 0.2214 0.2100 0.3597 8
building 20.0830 20.0762 20.1661 90
bus 0.0223 0.0213 0.0343 4
car 1.2699 1.2394 1.6418 53
cow 0.0040 0.0043 0.0000 0
crosswalk 0.0876 0.0905 0.0520 3
desert 0.3919 0.4240 0.0000 0
door 0.3896 0.4005 0.2567 18
fence 0.1697 0.1639 0.2408 16
field 2.9615 2.9056 3.6433 22
grass 2.0092 2.0737 1.2225 15
moon 0.0006 0.0007 0.0000 0
mountain 12.8035 12.8336 12.4364 74
person 0.1815 0.1773 0.2327 27
plant 1.5702 1.5901 1.3270 19
pole 0.0265 0.0257 0.0363 7
river 1.5997 1.6187 1.3683 17
road 7.5353 7.5851 6.9271 63
rock 0.9929 1.0050 0.8457 17
sand 1.1564 1.1354 1.4126 12
sea 5.6562 5.6604 5.6046 29
sidewalk 0.9492 0.9543 0.8872 34
sign 0.0709 0.0678 0.1089 18
sky 26.6908 26.6600 27.0669 170
staircase 0.0942 0.0871 0.1809 6
streetlight 0.0487 0.0507 0.0243 16
sun 0.0091 0.0090 0.0103 2
tree 11.8953 11.8341 12.6429 106
window 0.8733 0.8572 1.0691 27
"""


def test_the_real_set(sift_flow_root: Path) -> None:
    found = listed(sift_flow_root)
    assert (len(found.train), len(found.test), found.unpaired) == (2486, 200, ())
    assert len({sample.name for sample in (*found.train, *found.test)}) == 2686
    assert set(found.near_duplicates) == {f"{SIFT_SUB}/{name}" for pair in TWINS for name in pair}
    counted = {"train": Census.empty(33), "test": Census.empty(33), "unlabelled": Census.empty(33)}
    unlabelled = [
        Sample(name, "", str(sift_flow_root / "SemanticLabels" / SIFT_SUB / f"{name}.mat"))
        for name in sorted(UNLABELLED)
    ]
    for part, samples in (("train", found.train), ("test", found.test), ("unlabelled", unlabelled)):
        for sample in samples:
            label = found.load_label(sample)
            assert label.shape == (256, 256)
            counted[part] += Census.of(label, 33)
    assert counted["unlabelled"].pixels.sum() == 0
    # The published shares of void pixels include the two images without a labelled pixel.
    counted["train"] += counted["unlabelled"]
    counted["all"] = counted["train"] + counted["test"]
    rows = [line.split() for line in SHARES.strip().splitlines()]
    assert tuple(row[0] for row in rows) == found.taxonomy.names
    for column, part in enumerate(("all", "train", "test"), start=1):
        shares = [float(row[column]) for row in rows]
        np.testing.assert_allclose(100 * counted[part].shares(), shares, atol=6e-5)
    void = {part: round(100 * c.void / (c.samples * 65536), 2) for part, c in counted.items()}
    assert (void["all"], void["train"], void["test"]) == (8.29, 8.42, 6.68)
    assert counted["test"].pictures.tolist() == [int(row[4]) for row in rows]
    absent = [row[0] for row, n in zip(rows, counted["test"].pictures, strict=True) if not n]
    assert absent == ["cow", "desert", "moon"]
    assert counted["test"].pixels[found.taxonomy.names.index("bird")] == 53
    for sample in found.test[::20]:
        image, label = found.load(sample)
        assert image.shape[:2] == label.shape
