from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.datasets.class_and_split_lists import read_colour_table
from ccfnet_tf.datasets.published_classes import CODINGS, class_file, taxonomy
from ccfnet_tf.io.read_images import NO_CLASS
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import voc_palette

SETS = {"sift_flow": 33, "camvid": 11, "voc": 21, "cityscapes": 19, "ade20k": 150}


@pytest.mark.parametrize(("name", "classes"), SETS.items())
def test_names_and_colours(name: str, classes: int) -> None:
    found = taxonomy(name)
    assert len(found.names) == len(set(found.names)) == classes
    assert all(word == word.strip() and word.isascii() and word for word in found.names)
    assert all(0 <= channel <= 255 for colour in found.palette for channel in colour)
    twins = 1 if name == "ade20k" else 0  # road and skyscraper share a colour in the benchmark
    assert len(set(found.palette)) == classes - twins


@pytest.mark.parametrize(
    ("name", "class_id", "word", "colour"),
    [
        ("sift_flow", 0, "awning", None),
        ("sift_flow", 27, "sky", None),
        ("sift_flow", 32, "window", None),
        ("camvid", 0, "sky", (128, 128, 128)),
        ("camvid", 3, "road", (128, 64, 128)),
        ("camvid", 10, "bicyclist", (0, 128, 192)),
        ("voc", 0, "background", (0, 0, 0)),
        ("voc", 15, "person", (192, 128, 128)),
        ("voc", 20, "tvmonitor", (0, 64, 128)),
        ("cityscapes", 0, "road", (128, 64, 128)),
        ("cityscapes", 13, "car", (0, 0, 142)),
        ("cityscapes", 18, "bicycle", (119, 11, 32)),
        ("ade20k", 0, "wall", (120, 120, 120)),
        ("ade20k", 20, "car", (0, 102, 200)),
        ("ade20k", 89, "television", (0, 255, 194)),
        ("ade20k", 149, "flag", (92, 0, 255)),
    ],
)
def test_known_classes(
    name: str, class_id: int, word: str, colour: tuple[int, int, int] | None
) -> None:
    found = taxonomy(name)
    assert found.names[class_id] == word
    assert colour is None or found.palette[class_id] == colour


def test_voc_colours_match_the_development_kit() -> None:
    np.testing.assert_array_equal(taxonomy("voc").palette, voc_palette()[:21])
    table = read_colour_table(class_file("voc"))
    assert table.taxonomy == taxonomy("voc")
    assert table.names[tuple(int(c) for c in voc_palette()[255])] == "void"  # type: ignore[index]


@pytest.mark.parametrize("name", CODINGS)
def test_codings(name: str) -> None:
    coding = CODINGS[name]
    classes = SETS[name.removesuffix("_train_ids")]
    table = coding.table()
    assert (table.dtype, table.shape) == (np.int32, (256,))
    assert sorted(table[table >= 0]) == list(range(classes))
    assert not set(coding.values) & set(coding.void)
    assert sorted(np.flatnonzero(table == VOID)) == sorted(coding.void)
    assert (table == NO_CLASS).sum() == 256 - classes - len(coding.void)


def test_cityscapes_label_ids() -> None:
    table = CODINGS["cityscapes"].table()
    known = {7: "road", 8: "sidewalk", 11: "building", 17: "pole", 19: "traffic light", 23: "sky"}
    known |= {24: "person", 26: "car", 28: "bus", 31: "train", 33: "bicycle"}
    for label_id, word in known.items():
        assert taxonomy("cityscapes").names[table[label_id]] == word
    for label_id in (0, 3, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255):
        assert table[label_id] == VOID
    assert table[34] == NO_CLASS
