from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import class_files
from ccfnet_tf.datasets.class_files import find_own_classes, voc_colours
from ccfnet_tf.datasets.layout_registry import READERS, detect
from ccfnet_tf.datasets.layouts import ade20k, camvid, cityscapes, voc
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts import small_copies
from tests.datasets.layouts.small_copies import SIZE, mask, photo, voc_palette

Colours = dict[str, tuple[int, int, int]]

PLANTS = ("background", "leaf", "stem")
VOC_COLOURS: Colours = {"background": (0, 0, 0), "leaf": (128, 0, 0), "stem": (0, 128, 0)}
CVAT_COLOURS: Colours = {"background": (0, 0, 0), "leaf": (250, 50, 83), "stem": (50, 183, 250)}


def labelmap(colours: Colours) -> str:
    rows = "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in colours.items())
    return f"# label:color_rgb:parts:actions\n{rows}"


def label_colors(colours: Colours) -> str:
    return "".join(f"{r} {g} {b} {name}\n" for name, (r, g, b) in colours.items())


def meta(colours: Colours) -> str:
    tree = {
        "labels": list(colours),
        "label_map": {str(index): name for index, name in enumerate(colours)},
        "segmentation_colors": [list(colour) for colour in colours.values()],
        "background_label": "0",
    }
    return json.dumps(tree)


FILES: dict[str, Callable[[Colours], str]] = {
    "class_names.txt": "\n".join,
    "labels.txt": lambda colours: "\n".join(("__ignore__", *colours)),
    "labelmap.txt": labelmap,
    "label_colors.txt": label_colors,
    "dataset_meta.json": meta,
}
STATING = ("labelmap.txt", "label_colors.txt", "dataset_meta.json")

IDS = np.resize([0, 1, 2, 2, VOID, 0, 1], SIZE)


def colour_mask(path: Path, colours: Colours, ids: np.ndarray = IDS) -> None:
    """Writes an RGB mask; void has the border colour of VOC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.array([*colours.values(), (224, 224, 192)], np.uint8)
    Image.fromarray(table[ids]).save(path)


def index_mask(path: Path, ids: np.ndarray = IDS, palette: bytes | None = None) -> None:
    mask(path, np.where(ids == VOID, 255, ids).astype(np.uint8), palette)


def plants_voc(root: Path, *, lists: tuple[str, ...] = ("train", "val")) -> list[Path]:
    """Writes images in the VOC layout, one per list; returns the paths of their masks."""
    masks = []
    for index, part in enumerate(lists):
        photo(root / "JPEGImages" / f"{index}.jpg", index)
        path = root / "ImageSets" / "Segmentation" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{index}\n")
        masks.append(root / "SegmentationClass" / f"{index}.png")
    return masks


def plants_camvid(root: Path, folders: tuple[str, ...] = ("train", "val")) -> list[Path]:
    masks = []
    for index, folder in enumerate(folders):
        photo(root / folder / f"{index}.png", index)
        masks.append(root / f"{folder}annot" / f"{index}.png")
        (root / f"{folder}.txt").write_text(f"/{folder}/{index}.png /{folder}annot/{index}.png\n")
    return masks


LAYOUTS: dict[str, tuple[Any, Callable[[Path], list[Path]]]] = {
    "voc": (voc, plants_voc),
    "camvid": (camvid, plants_camvid),
}


def read(reader: Any, root: Path) -> Listing:
    return reader.read(DataConfig(root=str(root)), root, 0)


def labels(listing: Listing) -> list[np.ndarray]:
    samples = (*listing.train, *(listing.val or ()), *listing.test)
    return [listing.load(sample)[1] for sample in samples]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["grey", "palette", "rgb"])
def test_classes_come_from_the_list(tmp_path: Path, layout: str, file: str, kind: str) -> None:
    reader, write = LAYOUTS[layout]
    for path in write(tmp_path):
        if kind == "rgb":
            colour_mask(path, VOC_COLOURS)
        else:
            index_mask(path, palette=voc_palette().tobytes() if kind == "palette" else None)
    (tmp_path / file).write_text(FILES[file](VOC_COLOURS))
    listing = read(reader, tmp_path)
    assert listing.taxonomy.names == PLANTS
    assert not listing.notes
    assert len(labels(listing)) == 2
    for label in labels(listing):
        np.testing.assert_array_equal(label, IDS)
        assert label.dtype == np.int32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("file", STATING)
def test_colours_come_from_the_list(tmp_path: Path, layout: str, file: str) -> None:
    reader, write = LAYOUTS[layout]
    rgb, palette = write(tmp_path)
    colour_mask(rgb, CVAT_COLOURS)
    # The palette has another order than the rows: masks are read by colour.
    order = [CVAT_COLOURS[name] for name in ("stem", "background", "leaf")]
    index_mask(
        palette, np.array([1, 2, 0, VOID])[IDS], bytes(np.array(order, np.uint8)).ljust(768, b"\7")
    )
    (tmp_path / file).write_text(FILES[file](CVAT_COLOURS))
    listing = read(reader, tmp_path)
    assert listing.taxonomy.palette == tuple(CVAT_COLOURS.values())
    for label in labels(listing):
        np.testing.assert_array_equal(label, IDS)


@pytest.mark.parametrize("file", STATING[:2])
def test_black_is_value_0_in_any_row(tmp_path: Path, file: str) -> None:
    (path,) = plants_voc(tmp_path, lists=("default",))
    index_mask(path)
    turned = {name: CVAT_COLOURS[name] for name in ("leaf", "background", "stem")}
    (tmp_path / file).write_text(FILES[file](turned))
    listing = read(voc, tmp_path)
    assert listing.taxonomy.names == PLANTS
    np.testing.assert_array_equal(labels(listing)[0], IDS)


@pytest.mark.parametrize("file", STATING)
def test_black_void_keeps_its_row(tmp_path: Path, file: str) -> None:
    (path,) = plants_voc(tmp_path, lists=("default",))
    index_mask(path, np.resize([0, 1, 2], SIZE))
    colours = {"leaf": (250, 50, 83), "stem": (50, 183, 250), "Void": (0, 0, 0)}
    (tmp_path / file).write_text(FILES[file](colours))
    listing = read(voc, tmp_path)
    assert listing.taxonomy.names == ("leaf", "stem")
    np.testing.assert_array_equal(labels(listing)[0], np.resize([0, 1, VOID], SIZE))


def test_a_meta_file_defines_the_values(tmp_path: Path) -> None:
    turned = {name: CVAT_COLOURS[name] for name in ("leaf", "background", "stem")}
    (tmp_path / "dataset_meta.json").write_text(meta(turned))
    found = find_own_classes(tmp_path)
    assert found is not None
    assert found.taxonomy.names == ("leaf", "background", "stem")
    assert found.values[:3].tolist() == [0, 1, 2]
    tree = json.loads(meta(turned)) | {"labels": list(CVAT_COLOURS)}
    (tmp_path / "dataset_meta.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="label_map has 'leaf' as '0', which is not its index"):
        find_own_classes(tmp_path)
    del tree["labels"]
    (tmp_path / "dataset_meta.json").write_text(json.dumps(tree))
    found = find_own_classes(tmp_path)
    assert found is not None
    assert found.taxonomy.names == ("leaf", "background", "stem")


def test_a_labelmap_without_colours(tmp_path: Path) -> None:
    (path,) = plants_voc(tmp_path, lists=("default",))
    for text in ("background:::\nleaf:::\nstem:::\n", "leaf:::\nstem:::\n"):
        (tmp_path / "labelmap.txt").write_text(text)
        for write in (index_mask, lambda path: colour_mask(path, VOC_COLOURS)):
            write(path)
            listing = read(voc, tmp_path)
            assert listing.taxonomy.names == PLANTS
            np.testing.assert_array_equal(labels(listing)[0], IDS)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "crack\n"),
        ("class_names.txt", "__ignore__\ncrack\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\ncrack:250,0,0::\n"),
        ("labelmap.txt", "crack:::\n"),
        ("label_colors.txt", "250 0 0 crack\n"),
        ("colours.txt", "250 0 0 crack\n"),
    ],
)
def test_one_class_implies_background(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    found = find_own_classes(tmp_path)
    assert found is not None
    assert found.taxonomy.names == ("background", "crack")
    assert found.values[:2].tolist() == [0, 1]
    if found.stated:
        Image.fromarray(np.array([[[0, 0, 0], [250, 0, 0]]], np.uint8)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(found.read_label(tmp_path / "a.png"), [[0, 1]])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "background\n"),
        ("label_colors.txt", "0 0 0 crack\n"),
        ("label_colors.txt", "0 0 0 void\n250 0 0 crack\n"),
        ("id2label.json", '{"1": "crack"}'),
    ],
)
def test_one_class_without_background_raises(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=r"1 class names: expected 2|'crack' is the only class"):
        find_own_classes(tmp_path)


@pytest.mark.parametrize("name", ["void", "Void", "ignored", "UNLABELED", "__ignore__"])
def test_void_rows(tmp_path: Path, name: str) -> None:
    (path,) = plants_voc(tmp_path, lists=("default",))
    colours = CVAT_COLOURS | {name: (9, 9, 9)}
    (tmp_path / "labelmap.txt").write_text(labelmap(colours))
    ids = np.resize([0, 1, 2, 3], SIZE)
    expected = np.where(ids == 3, VOID, ids)
    colour_mask(path, colours, ids)
    listing = read(voc, tmp_path)
    assert listing.taxonomy.names == PLANTS
    np.testing.assert_array_equal(labels(listing)[0], expected)
    index_mask(path, ids)
    np.testing.assert_array_equal(labels(listing)[0], expected)


def test_an_ignored_name_inside_a_list_keeps_its_value(tmp_path: Path) -> None:
    (tmp_path / "class_names.txt").write_text("_background_\n__ignore__\nleaf\n")
    found = find_own_classes(tmp_path)
    assert found is not None
    assert found.taxonomy.names == ("_background_", "leaf")
    assert found.values[:3].tolist() == [0, VOID, 1]


def test_labelme_writes_no_lists(tmp_path: Path) -> None:
    for path in plants_voc(tmp_path):
        index_mask(path, palette=voc_palette().tobytes())
    for path in (tmp_path / "ImageSets" / "Segmentation").iterdir():
        path.unlink()
    (tmp_path / "class_names.txt").write_text("_background_\nleaf\nstem")
    listing = read(voc, tmp_path)
    assert [sample.name for sample in listing.train] == ["0", "1"]
    assert listing.taxonomy.names == ("_background_", "leaf", "stem")
    (tmp_path / "SegmentationClass").rename(tmp_path / "SegmentationClassPNG")
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "SegmentationClass" / "0.npy").touch()  # written by older versions of labelme
    np.testing.assert_array_equal(labels(read(voc, tmp_path))[0], IDS)
    (tmp_path / "JPEGImages" / "0.jpg").unlink()
    (fault,) = read(voc, tmp_path).unpaired
    assert "0.png: no image of that name" in str(fault)


@pytest.mark.parametrize(
    ("lists", "parts"),
    [
        (("default",), (1, None, 0)),
        (("trainval",), (1, None, 0)),
        (("Train", "Validation"), (1, None, 1)),
        (("train", "val", "test"), (1, 1, 1)),
        (("train",), (1, None, 0)),
    ],
)
def test_lists_of_voc(tmp_path: Path, lists: tuple[str, ...], parts: tuple[Any, ...]) -> None:
    for path in plants_voc(tmp_path, lists=lists):
        index_mask(path)
    (tmp_path / "labelmap.txt").write_text(labelmap(VOC_COLOURS))
    listing = read(voc, tmp_path)
    val = None if listing.val is None else len(listing.val)
    assert (len(listing.train), val, len(listing.test)) == parts


def test_images_in_folders(tmp_path: Path) -> None:
    photo(tmp_path / "JPEGImages" / "day 1" / "a.png")
    index_mask(tmp_path / "SegmentationClass" / "day 1" / "a.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("day 1/a\n")
    (tmp_path / "labelmap.txt").write_text(labelmap(CVAT_COLOURS))
    assert [sample.name for sample in read(voc, tmp_path).train] == ["day 1/a"]


def test_invalid_lists_of_voc(tmp_path: Path) -> None:
    for path in plants_voc(tmp_path, lists=("val",)):
        index_mask(path)
    (tmp_path / "labelmap.txt").write_text(labelmap(CVAT_COLOURS))
    with pytest.raises(DataError, match=r"no train\.txt or default\.txt \(found: val\.txt\)"):
        read(voc, tmp_path)
    plants_voc(tmp_path, lists=("train", "default"))
    with pytest.raises(DataError, match=r"train\.txt: default\.txt is also the list of the train"):
        read(voc, tmp_path)


@pytest.mark.parametrize("folder", ["default", "Train", "train"])
def test_folders_of_camvid(tmp_path: Path, folder: str) -> None:
    for path in plants_camvid(tmp_path, (folder, "Validation", "test")):
        colour_mask(path, CVAT_COLOURS)
    (tmp_path / "label_colors.txt").write_text(label_colors(CVAT_COLOURS))
    assert detect(tmp_path) == "camvid"
    listing = read(camvid, tmp_path)
    assert [s.name for s in listing.train] == [f"{folder}/0"]
    assert [s.name for s in listing.val or ()] == ["Validation/1"]
    assert [s.name for s in listing.test] == ["test/2"]


def test_lists_of_camvid_with_blanks_and_other_suffixes(tmp_path: Path) -> None:
    photo(tmp_path / "default" / "my a.jpg")
    index_mask(tmp_path / "defaultannot" / "my a.png")
    (tmp_path / "default.txt").write_text('"default/my a.jpg" "defaultannot/my a.png"\n')
    (tmp_path / "label_colors.txt").write_text("background\nleaf\nstem\n")
    listing = read(camvid, tmp_path)
    assert [s.name for s in listing.train] == ["default/my a"]
    np.testing.assert_array_equal(labels(listing)[0], IDS)


def test_invalid_folders_of_camvid(tmp_path: Path) -> None:
    for path in plants_camvid(tmp_path, ("val",)):
        index_mask(path)
    with pytest.raises(DataError, match=r"no train/ and trainannot/"):
        read(camvid, tmp_path)
    for path in plants_camvid(tmp_path, ("val", "valid")):
        index_mask(path)
    with pytest.raises(DataError, match="is also the val split"):
        read(camvid, tmp_path)


CONTRADICTIONS = [
    ("class_names.txt", "background\nstem\nleaf\n", "'leaf' where"),
    ("class_names.txt", "background\nleaf\n", "nothing"),
    ("label_colors.txt", label_colors(VOC_COLOURS), "'leaf' is 128 0 0, but 250 50 83"),
    ("dataset_meta.json", meta(CVAT_COLOURS | {"root": (1, 2, 3)}), "'root' where"),
    ("labels.txt", "leaf\nbackground\nstem\n", "'background' where"),
]


@pytest.mark.parametrize(("file", "content", "words"), CONTRADICTIONS)
def test_contradicting_lists(tmp_path: Path, file: str, content: str, words: str) -> None:
    (tmp_path / "labelmap.txt").write_text(labelmap(CVAT_COLOURS))
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError) as caught:
        find_own_classes(tmp_path)
    assert words in str(caught.value)
    assert "remove the wrong list" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_consistent_lists(tmp_path: Path) -> None:
    for file, content in FILES.items():
        (tmp_path / file).write_text(content(CVAT_COLOURS))
    (tmp_path / "class_names.txt").write_text("_background_\nleaf\nstem\n")
    found = find_own_classes(tmp_path)
    assert found is not None
    assert found.stated
    assert found.taxonomy.names == PLANTS


def test_masks_with_unknown_palette_colours(tmp_path: Path) -> None:
    (path,) = plants_voc(tmp_path, lists=("default",))
    (tmp_path / "labelmap.txt").write_text(labelmap(CVAT_COLOURS))
    index_mask(path, np.full(SIZE, 3))
    listing = read(voc, tmp_path)
    with pytest.raises(
        DataError, match=r"value 3 on 192 .* names 3 classes, values 0\.\.2"
    ) as caught:
        listing.load_label(listing.train[0])
    assert caught.value.kind == "value"
    colour_mask(path, VOC_COLOURS)
    with pytest.raises(DataError, match=r"colour 0 128 0 on .* and 1 other .*labelmap\.txt"):
        listing.load_label(listing.train[0])
    index_mask(path, palette=voc_palette().tobytes())
    with pytest.raises(DataError, match=r"value 1 the colour 128 0 0, which is not in .*labelmap"):
        listing.load_label(listing.train[0])
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes()
    index_mask(path, palette=ramp)  # a grey ramp carries no colours: masks are read by value
    np.testing.assert_array_equal(listing.load_label(listing.train[0]), IDS)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("labelmap.txt", "leaf\n", "line 1: 'leaf': expected `name:R,G,B:parts:actions`"),
        ("labelmap.txt", "a:1,2::\nb:1,2,3::\n", "line 1: a list of 2: expected three numbers"),
        ("labelmap.txt", "a:1,2,300::\n", "line 1: colour 1 2 300: expected numbers 0..255"),
        ("labelmap.txt", "a:1,2,3::\na:1,2,4::\n", "'a' occurs twice"),
        ("labelmap.txt", "a:1,2,3::\nb:1,2,3::\n", "'a' and 'b' have the colour 1 2 3"),
        ("labelmap.txt", "# nothing\n", "contains no class"),
        ("label_colors.txt", "1 2 3 a\nb\n", "'b' has no colour"),
        ("label_colors.txt", "\ufeff", "no class"),
        ("class_names.txt", "background\n", "1 class names"),
        ("class_names.txt", "\n".join(f"c{i}" for i in range(300)), "300 rows: at most 256"),
        ("dataset_meta.json", "{", "damaged or not JSON"),
        ("dataset_meta.json", '{"labels": [1, 2]}', "'labels' is a list of 2"),
        ("dataset_meta.json", '{"label_map": [1]}', "label_map is not an object"),
        (
            "dataset_meta.json",
            '{"label_map": {"0": "a", "1": "b"}, "segmentation_colors": [[1, 2, 3]]}',
            "1 segmentation_colors for 2 classes",
        ),
        (
            "dataset_meta.json",
            '{"label_map": {"0": "a", "1": "b"}, "segmentation_colors": [[1, 2, 3], "x"]}',
            "segmentation_colors: 'x'",
        ),
    ],
)
def test_damaged_lists(tmp_path: Path, file: str, content: str, words: str) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    if words == "no class":
        (tmp_path / file).write_bytes(b"\xff\xff")
        words = "not a UTF-8 text file"
    with pytest.raises(DataError) as caught:
        find_own_classes(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / file))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_meta_file_without_names_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "dataset_meta.json").write_text('{"version": 1, "labels": []}')
    assert find_own_classes(tmp_path) is None


def test_colours_of_voc() -> None:
    np.testing.assert_array_equal(voc_colours(256), voc_palette())


def test_cityscapes_with_its_own_classes(tmp_path: Path) -> None:
    small_copies.cityscapes(tmp_path)
    for path in tmp_path.rglob("*_labelIds.png"):
        index_mask(path)
    (tmp_path / "label_colors.txt").write_text(label_colors(CVAT_COLOURS))
    for folder in ("leftImg8bit", "imgsFine/leftImg8bit"):
        if folder != "leftImg8bit":
            (tmp_path / "imgsFine").mkdir()
            (tmp_path / "leftImg8bit").rename(tmp_path / folder)
        assert detect(tmp_path) == "cityscapes"
        listing = read(cityscapes, tmp_path)
        assert listing.taxonomy.names == PLANTS
        assert (len(listing.train), len(listing.test)) == (4, 2)
        np.testing.assert_array_equal(labels(listing)[0], IDS)


def test_ade20k_rejects_other_classes(tmp_path: Path) -> None:
    small_copies.ade20k(tmp_path)
    (tmp_path / "classes.txt").write_text("leaf\nstem\n")
    with pytest.raises(DataError, match=r"classes\.txt: lists classes other .* train/masks"):
        read(ade20k, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unusual_names_without_a_list_are_noted(tmp_path: Path, layout: str) -> None:
    reader, write = LAYOUTS[layout]
    for path in write(tmp_path):
        index_mask(path)
    (note,) = read(reader, tmp_path).notes
    assert note.startswith(f"{tmp_path}: no class list found")
    original = getattr(small_copies, layout)(tmp_path / "original")
    assert read(reader, original).notes == ()


def test_no_message_names_a_file_of_the_package(tmp_path: Path) -> None:
    package = str(Path(class_files.__file__).parents[1])
    for layout, (reader, write) in LAYOUTS.items():
        for path in write(tmp_path / layout):
            colour_mask(path, CVAT_COLOURS)
        listing = read(reader, tmp_path / layout)
        with pytest.raises(DataError) as caught:
            listing.load_label(listing.train[0])
        assert package not in str(caught.value)
        assert "label" in str(caught.value)
    for name in READERS:
        if name != "scenes":
            with pytest.raises(DataError) as caught:
                READERS[name].read(DataConfig(root=str(tmp_path)), tmp_path, 0)
            assert package not in str(caught.value)
