from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import cvat_images
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID

BOX = '<polygon label="leaf" points="1.0,1.0;4.0,1.0;4.0,3.0;1.0,3.0" z_order="0"/>'
LABELS = ("stem", "leaf")


def document(
    shapes: str = BOX, labels: tuple[str, ...] = LABELS, attributes: str = "", head: str = ""
) -> str:
    listed = "".join(f"<label><name>{name}</name><attributes/></label>" for name in labels)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>{head}\n<annotations><version>1.1</version>'
        f"<meta><task><name>plants</name><labels>{listed}</labels></task></meta>"
        f'<image id="0" name="a.png" {attributes} width="6" height="4">{shapes}</image>'
        "</annotations>"
    )


def put(root: Path, text: str, picture: str = "images/a.png") -> None:
    (root / picture).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(root / picture)
    (root / "annotations.xml").write_text(text)


def read(root: Path) -> Listing:
    return cvat_images.read(DataConfig(root=str(root)), root, 0)


def label_of(root: Path, shapes: str, labels: tuple[str, ...] = LABELS) -> np.ndarray:
    put(root, document(shapes, labels))
    listing = read(root)
    return listing.load(listing.train[0])[1]


@pytest.mark.parametrize("picture", ["images/a.png", "a.png", "elsewhere/a.png"])
def test_outlines(tmp_path: Path, picture: str) -> None:
    put(tmp_path, document(), picture)
    assert detect(tmp_path) == "cvat_images"
    listing = read(tmp_path)
    assert listing.taxonomy.names == LABELS
    assert (listing.val, listing.test, listing.unpaired, listing.notes) == (None, (), (), ())
    expected = np.full((4, 6), VOID)
    expected[1:3, 1:4] = 1
    np.testing.assert_array_equal(listing.load(listing.train[0])[1], expected)


def test_splits(tmp_path: Path) -> None:
    images = "".join(
        f'<image id="{i}" name="a.png" subset="{subset}" width="6" height="4">{BOX}</image>'
        for i, subset in enumerate(("Train", "Validation", "Test"))
    )
    for subset in ("Train", "Validation", "Test"):
        put(tmp_path, f"<annotations>{images}</annotations>", f"images/{subset}/a.png")
    listing = read(tmp_path)
    assert [s.name for s in listing.train] == ["Train/a"]
    assert [s.name for s in listing.val or ()] == ["Validation/a"]
    assert [s.name for s in listing.test] == ["Test/a"]
    assert Path(listing.test[0].image) == tmp_path / "images/Test/a.png"
    assert listing.taxonomy.names == ("background", "leaf")  # one label that shapes have


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ('<box label="leaf" xtl="1" ytl="1" xbr="4" ybr="3"/>', [(1, 1), (2, 3)]),
        ('<box label="leaf" xtl="1" ytl="1" xbr="4" ybr="3" rotation="180"/>', [(1, 1), (2, 3)]),
        ('<box label="leaf" xtl="2" ytl="0" xbr="3" ybr="4" rotation="90"/>', None),
        ('<ellipse label="leaf" cx="3" cy="2" rx="3" ry="1"/>', [(1, 2), (2, 3)]),
        # Row by row in a box of 3x2 at (1, 1): one pixel outside, four inside, one outside.
        ('<mask label="leaf" rle="1, 4, 1" left="1" top="1" width="3" height="2"/>', None),
    ],
)
def test_shapes(tmp_path: Path, shape: str, pixels: list[tuple[int, int]] | None) -> None:
    label = label_of(tmp_path, shape)
    assert set(np.unique(label)) == {VOID, 1}
    for row, column in pixels or ():
        assert label[row, column] == 1
    if "mask" in shape:
        assert np.argwhere(label == 1).tolist() == [[1, 2], [1, 3], [2, 1], [2, 2]]
    if 'rotation="90"' in shape:
        assert (label == 1).sum() == 4  # 1x4 rotated by 90 degrees is 4x1


def test_many_large_ellipses_take_memory_one_by_one(tmp_path: Path) -> None:
    """A file of 18 kB whose outlines would take 100 MB if they were all kept."""
    put(tmp_path, document('<ellipse label="leaf" cx="1" cy="1" rx="1e6" ry="1e6"/>' * 300))
    tracemalloc.start()
    listing = read(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert (listing.load_label(listing.train[0]) == 1).all()


def test_higher_z_order_is_drawn_on_top(tmp_path: Path) -> None:
    above = '<box label="stem" xtl="0" ytl="0" xbr="6" ybr="4" z_order="2"/>'
    below = BOX.replace('z_order="0"', 'z_order="-1"')
    assert (label_of(tmp_path, above + below) == 0).all()
    assert (label_of(tmp_path, above.replace("2", "-2") + below)[1:3, 1:4] == 1).all()


def test_background(tmp_path: Path) -> None:
    label = label_of(tmp_path, BOX, ("Background", "leaf"))
    assert (label == 0).sum() == 18


def test_ignored_labels_are_void(tmp_path: Path) -> None:
    ignored = BOX.replace("leaf", "__ignore__")
    label = label_of(tmp_path, ignored, ("__ignore__", "_background_", "leaf"))
    assert read(tmp_path).taxonomy.names == ("_background_", "leaf")
    assert (label == VOID).sum() == 6
    assert (label == 0).sum() == 18


def test_shapes_without_an_area_are_reported(tmp_path: Path) -> None:
    others = (
        '<polyline label="leaf" points="1,1;2,2"/><points label="leaf" points="1,1"/>'
        '<polygon label="leaf" points="1,1;2,2"/><tag label="leaf"/><polyline label="leaf"/>'
    )
    label = label_of(tmp_path, others + BOX)
    assert (label == 1).sum() == 6
    (note,) = read(tmp_path).notes
    assert "not drawn: 1 points, 1 polygon of fewer than 3 points, 2 polyline, 1 tag" in note


def test_a_missing_image(tmp_path: Path) -> None:
    put(tmp_path, document())
    (tmp_path / "images/a.png").unlink()
    (fault,) = read(tmp_path).unpaired
    assert fault.kind == "missing"
    assert "annotations.xml: image 0 ('a.png'): no such image" in str(fault)


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged or not XML"),
        ("<annotations>", "damaged or not XML"),
        ("<annotation/>", "<annotation>: export it from CVAT"),
        ("<annotations><track/></annotations>", "tracks: export it from CVAT"),
        (document(head=LAUGHS), "has a document type"),
        (document(head='<!DOCTYPE x SYSTEM "file:///etc/passwd">'), "has a document type"),
        (document("&a;"), "damaged or not XML"),
        ("<a>" * 200, "elements nested over 100 deep"),
        (document().replace('encoding="utf-8"', 'encoding="nonsense"'), "damaged or not XML"),
        (document().replace('width="6"', ""), "width"),
        (document().replace('width="6"', 'width="99999999999"'), "at most 80 million"),
        (document(BOX.replace("leaf", "lef")), "label 'lef' is not among the labels of"),
        (document(BOX.replace("1.0,1.0", "x,1.0")), "shape 0 (polygon): 'x': expected a number"),
        (document(BOX.replace("1.0,1.0", "nan,1.0")), "coordinate nan"),
        (document().replace('name="a.png"', 'name=".."'), "expected the path of an image"),
        (document().replace('name="a.png"', ""), "expected the path of an image"),
        *(
            (
                document(f'<box label="leaf" xtl="1" ytl="1" xbr="2" ybr="2" rotation="{turn}"/>'),
                f"rotation: coordinate {turn}",
            )
            for turn in ("nan", "inf")
        ),
        (document("<blob/>"), "shape 0 (blob): expected one of polygon"),
        (document('<box label="leaf" xtl="1"/>'), "ytl: '': expected a number"),
        (
            document('<mask label="leaf" rle="1,4" left="1" top="1" width="3" height="2"/>'),
            "the runs of 'rle' sum to 5 pixels in a box of 3x2",
        ),
        (
            document('<mask label="leaf" rle="x" left="1" top="1" width="3" height="2"/>'),
            "rle 'x': expected an integer",
        ),
    ],
)
def test_files_that_are_damaged(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "annotations.xml"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_outside_the_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"box 3x2 at 4, 1 exceeds the image of 6x4") as caught:
        label_of(tmp_path, '<mask label="leaf" rle="6" left="4" top="1" width="3" height="2"/>')
    assert caught.value.kind == "size"
