from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.folder import read_classes
from ccfnet_tf.datasets.parts import Parts, load, read_parts
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


def put(root: Path, stem: str, *, mask: bool = True, suffix: str = "jpg") -> None:
    for side, name in (("images", f"{stem}.{suffix}"), ("masks", f"{stem}.png")):
        path = root / side / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if side == "images":
            Image.new("RGB", (6, 4), (9, 9, 9)).save(path)
        elif mask:
            Image.fromarray(np.array([[0, 1, 255, 1, 0, 0]] * 4, np.uint8)).save(path)


def classes(root: Path, text: str = "cat\ndog\n") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_bytes(text.encode())


def parts(root: Path, val_share: float = 0.0) -> Parts:
    return read_parts(DataConfig(format="folder", root=str(root), val_share=val_share), seed=0)


def fails(root: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        parts(root)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_set_with_nested_folders(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in ("b", "a", "deep/er/c", "a.b"):
        put(tmp_path, stem)
    put(tmp_path, ".thumbs/x", mask=False)
    (tmp_path / "images" / "notes.txt").write_text("left out")
    found = parts(tmp_path)
    assert [s.name for s in found.train] == ["a", "a.b", "b", "deep/er/c"]
    assert found.val == found.test == ()
    assert found.taxonomy.names == ("cat", "dog")
    image, label = load(found.train[3], DataConfig(root=str(tmp_path)), 2)
    assert image.shape == (4, 6, 3)
    np.testing.assert_array_equal(label[0], [0, 1, VOID, 1, 0, 0])


def test_three_parts_have_unique_names(tmp_path: Path) -> None:
    classes(tmp_path)
    for part in ("train", "val", "test"):
        put(tmp_path / part, "a")
    found = parts(tmp_path, val_share=0.5)
    names = [s.name for part in (found.train, found.val, found.test) for s in part]
    assert names == ["train/a", "val/a", "test/a"]


def test_test_part_may_be_missing(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in "abcd":
        put(tmp_path / "train", stem)
    found = parts(tmp_path, val_share=0.25)
    assert (len(found.train), len(found.val), len(found.test)) == (3, 1, 0)


def test_root_missing_or_a_file_or_empty(tmp_path: Path) -> None:
    fails(tmp_path / "no", str(tmp_path / "no"), "no such folder", "data.root")
    (tmp_path / "file").write_text("")
    fails(tmp_path / "file", "is a file")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "found: nothing", "images/", "train/")


def test_unknown_layout_lists_what_is_there(tmp_path: Path) -> None:
    for name in ("img", "gt", "val"):
        (tmp_path / name).mkdir()
    fails(tmp_path, "found: gt/, img/, val/")


def test_missing_masks_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    fails(tmp_path, "no masks/")


def test_no_pictures(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.heic").write_text("")
    fails(tmp_path, "no pictures", "a.heic")


def test_picture_without_mask(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "a")
    put(tmp_path, "x/b", mask=False)
    fails(tmp_path, "x/b.jpg", "no mask", "masks/x/b.png")
    put(tmp_path, "c", mask=False)
    fails(tmp_path, "c.jpg", "(and 1 more")


def test_mask_without_picture(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in "ab":
        put(tmp_path, stem)
    (tmp_path / "images" / "b.jpg").unlink()
    fails(tmp_path, "masks/b.png", "no picture")


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "a", suffix="jpg")
    put(tmp_path, "a", suffix="png")
    fails(tmp_path, "a.png", "a.jpg", "rename or remove")


def test_class_list(tmp_path: Path) -> None:
    put(tmp_path, "a")
    fails(tmp_path, "classes.txt", "no such file")
    classes(tmp_path, "\ufeffcat\r\n dog \r\n\r\n\n")
    assert parts(tmp_path).taxonomy.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 class names"),
        ("one\n", "1 class names"),
        ("\n".join(map(str, range(257))), "257 class names"),
        ("a\nb\na\n", "'a' is on line 1 and 3"),
        ("a\n\nb\n", "line 2 is blank"),
    ],
)
def test_class_list_that_does_not_fit(tmp_path: Path, text: str, words: str) -> None:
    classes(tmp_path, text)
    with pytest.raises(DataError, match=words):
        read_classes(tmp_path / "classes.txt")


def test_class_list_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match="not a UTF-8"):
        read_classes(tmp_path / "classes.txt")


def test_the_shipped_sample() -> None:
    data = DataConfig(format="folder", root=str(SAMPLE))
    found = read_parts(data, seed=0)
    assert (len(found.train), len(found.val), len(found.test)) == (8, 2, 2)
    samples = found.train + found.val + found.test
    labels = [load(sample, data, 8)[1] for sample in samples]
    assert len(np.unique(np.concatenate([label.ravel() for label in labels]))) == 9
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*.*")) < 300_000
