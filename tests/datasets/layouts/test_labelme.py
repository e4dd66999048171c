from __future__ import annotations

import base64
import io
import json
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts import labelme
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import read_json
from ccfnet_tf.labels import VOID

Shape = dict[str, Any]


def shape(label: str, points: list[list[float]], kind: str | None = "polygon") -> Shape:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}}


SKY = shape("sky", [[0, 0], [6, 0], [6, 2], [0, 2]])
SEA = shape("sea", [[0, 2], [6, 2], [6, 3], [0, 3]])
EXPECTED = [[1] * 6] * 2 + [[0] * 6, [VOID] * 6]  # sea, sky in alphabetical order


def put(
    root: Path, stem: str, shapes: list[Shape] | None = None, *, image: str = "", **keys: Any
) -> Path:
    """Writes an image of 6x4 pixels and its JSON file."""
    path = root / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    named = image or f"{path.stem}.jpg"
    picture = path.parent / named.replace("\\", "/")
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (9, 9, 9)).save(picture)
    tree = {
        "version": "5.4.1",
        "flags": {},
        "shapes": [SKY, SEA] if shapes is None else shapes,
        "imagePath": named,
        "imageData": None,
        "imageHeight": 4,
        "imageWidth": 6,
    }
    path.write_text(json.dumps({k: v for k, v in (tree | keys).items() if v != "leave out"}))
    return path


def read(root: Path, **keys: Any) -> Listing:
    return labelme.read(DataConfig(root=str(root), **keys), root, 0)


def label_of(root: Path, shapes: list[Shape], **keys: Any) -> np.ndarray:
    (root / "classes.txt").write_text("sea\nsky\n")
    put(root, "a", shapes, **keys)
    listing = read(root)
    return listing.load_label(listing.train[0])


def fault_of(root: Path) -> DataError:
    """Returns the error of the only file of a data set."""
    (root / "classes.txt").write_text("sea\nsky\n")
    listing = read(root)
    if listing.unpaired:
        return listing.unpaired[0]
    with pytest.raises(DataError) as caught:
        listing.load_label(listing.train[0])
    return caught.value


def fails(root: Path, shapes: list[Shape], *words: str) -> DataError:
    put(root, "a", shapes)
    error = fault_of(root)
    for word in words:
        assert word in str(error)
    assert "\n" not in str(error)
    return error


def test_images_next_to_their_json_files(tmp_path: Path) -> None:
    put(tmp_path, "b")
    put(tmp_path, "json/deep/a", image="..\\..\\pictures\\a.png")
    put(tmp_path, ".hidden/x")
    (tmp_path / "settings.json").write_text('{"theme": "dark"}')
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("sea", "sky")
    assert [s.name for s in listing.train] == ["b", "json/deep/a"]
    assert (listing.val, listing.test, listing.unpaired) == (None, (), ())
    for sample in listing.train:
        image, label = listing.load(sample)
        assert image.shape == (4, 6, 3)
        assert label.dtype == np.int32
        np.testing.assert_array_equal(label, EXPECTED)


def test_splits_by_folder(tmp_path: Path) -> None:
    for stem in ("train/a", "val/a", "test/a", "more/a", "train"):
        put(tmp_path, stem)
    listing = read(tmp_path)
    assert [s.name for s in listing.train] == ["more/a", "train/a", "train"]
    assert [s.name for s in listing.val or ()] == ["val/a"]
    assert [s.name for s in listing.test] == ["test/a"]


def test_splits_by_folders_of_other_names(tmp_path: Path) -> None:
    for stem in ("train2017/a", "val_set/a", "test-dev/a"):
        put(tmp_path, stem)
    listing = read(tmp_path)
    assert [s.name for s in listing.train] == ["train2017/a"]
    assert [s.name for s in listing.val or ()] == ["val_set/a"]
    assert [s.name for s in listing.test] == ["test-dev/a"]


def test_splits_by_lists(tmp_path: Path) -> None:
    for stem in ("a", "b", "c", "d"):
        put(tmp_path, stem)
    put(tmp_path, "json/e", image="../pictures/e.png")
    (tmp_path / "train.txt").write_text("b.jpg\na\n\npictures/e.png\n")
    (tmp_path / "test.txt").write_text("c.json\n")
    (tmp_path / "d.json").write_text("{")
    Image.new("RGB", (6, 4)).save(tmp_path / "unlabelled.jpg")
    listing = read(tmp_path)
    assert [s.name for s in listing.train] == ["b", "a", "json/e"]
    assert (listing.val, [s.name for s in listing.test]) == (None, ["c"])
    assert listing.unpaired == ()
    (tmp_path / "val.txt").write_text("d\n")
    assert "d.json: damaged" in str(read(tmp_path).unpaired[0])
    (tmp_path / "val.txt").write_text("dd\n")
    with pytest.raises(DataError, match="line 1: 'dd' is not a labelled image"):
        read(tmp_path)
    assert len(read(tmp_path, lists="elsewhere").train) == 4


def test_class_list(tmp_path: Path) -> None:
    lake = shape("lake", SEA["points"])
    error = fails(tmp_path, [lake], "a.json: shape 1: label 'lake' is not in classes.txt")
    assert error.kind == "value"
    fails(tmp_path, [SKY, shape("see", SEA["points"])], "shape 2", "did you mean 'sea'")


@pytest.mark.parametrize("file", ["labels.txt", "class_names.txt"])
def test_class_lists_with_names_of_labelme(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("__ignore__\n_background_\nsky\nsea\n")
    put(tmp_path, "a", [SKY])
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("_background_", "sky", "sea")
    assert set(np.unique(listing.load_label(listing.train[0]))) == {0, 1}
    put(tmp_path, "a", [shape("lake", SEA["points"])])
    listing = read(tmp_path)
    with pytest.raises(DataError, match=f"'lake' is not in {file}"):
        listing.load_label(listing.train[0])


def test_class_lists_that_differ(tmp_path: Path) -> None:
    put(tmp_path, "a", [SKY])
    (tmp_path / "classes.txt").write_text("sea\nsky\n")
    (tmp_path / "labels.txt").write_text("__ignore__\nsea\nsky\n")
    assert read(tmp_path).taxonomy.names == ("sea", "sky")
    (tmp_path / "labels.txt").write_text("sky\nsea\n")
    with pytest.raises(DataError, match=r"labels.txt: lists other classes than classes.txt"):
        read(tmp_path)


def test_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "a", [shape("__ignore__", SEA["points"]), shape("x", [[1, 1]], "point")])
    with pytest.raises(DataError, match=r"0 class names: expected 2 to"):
        read(tmp_path)


@pytest.mark.parametrize("listed", [False, True])
def test_one_class_is_learned_against_background(tmp_path: Path, listed: bool) -> None:
    put(tmp_path, "a", [SKY, shape("__ignore__", [[0, 3], [6, 3], [6, 4], [0, 4]])])
    if listed:
        (tmp_path / "classes.txt").write_text("__ignore__\nsky\n")
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("_background_", "sky")
    label = listing.load_label(listing.train[0])
    assert (label[0, 0], label[2, 0], label[3, 0]) == (1, 0, VOID)


def test_a_background_that_is_outlined_is_the_background(tmp_path: Path) -> None:
    put(tmp_path, "a", [SKY, SEA, shape("_background_", [[2, 0], [3, 0], [3, 1], [2, 1]])])
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("_background_", "sea", "sky")
    label = listing.load_label(listing.train[0])
    assert label[0, 2] == 0
    assert VOID not in label


@pytest.mark.parametrize("place", ["__ignore__\nsea\nsky\n", "sea\nsky\n__ignore__\n"])
def test_ignore_in_a_class_list_is_void(tmp_path: Path, place: str) -> None:
    put(tmp_path, "a", [SKY, SEA, shape("__ignore__", [[0, 0], [2, 0], [2, 1], [0, 1]])])
    (tmp_path / "classes.txt").write_text(place)
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("sea", "sky")
    assert listing.load_label(listing.train[0])[0].tolist() == [VOID, VOID, 1, 1, 1, 1]


def test_splits_by_their_usual_names(tmp_path: Path) -> None:
    for folder in ("Train", "valid", "testing", "other"):
        put(tmp_path, f"{folder}/a", [SKY, SEA])
    listing = read(tmp_path)
    names = [[s.name for s in part or ()] for part in (listing.train, listing.val, listing.test)]
    assert names == [["Train/a", "other/a"], ["valid/a"], ["testing/a"]]


def test_background_and_ignored(tmp_path: Path) -> None:
    shapes = [SKY, SEA, shape("__ignore__", [[0, 0], [2, 0], [2, 1], [0, 1]])]
    shapes.append(shape("_background_", [[2, 0], [3, 0], [3, 1], [2, 1]]))
    assert label_of(tmp_path, shapes)[0].tolist() == [VOID, VOID, VOID, 1, 1, 1]
    (tmp_path / "classes.txt").write_text("_background_\nsea\nsky\n")
    listing = read(tmp_path)
    label = listing.load_label(listing.train[0])
    assert label[0].tolist() == [VOID, VOID, 0, 2, 2, 2]
    assert label[3].tolist() == [0] * 6


def test_later_shapes_are_drawn_over_earlier_ones(tmp_path: Path) -> None:
    everything = shape("sea", [[0, 0], [6, 4]], "rectangle")
    assert (label_of(tmp_path, [SKY, everything]) == 0).all()
    assert (label_of(tmp_path, [everything, SKY])[:2] == 1).all()


@pytest.mark.parametrize(
    ("kind", "points", "pixels"),
    [
        ("rectangle", [[4, 3], [1, 1]], 6),
        ("rectangle", [[1, 1], [4, 1], [4, 3], [1, 3]], 6),
        ("oriented_rectangle", [[1, 1], [4, 1], [4, 3], [1, 3]], 6),
        ("circle", [[2, 2], [2, 3]], 4),
        (None, [[0, 0], [3, 0], [3, 3]], 6),
        ("point", [[1, 1]], 0),
        ("points", [[1, 1], [2, 2]], 0),
        ("line", [[1, 1], [4, 4]], 0),
        ("linestrip", [[1, 1], [4, 4], [5, 0]], 0),
    ],
)
def test_shape_types(
    tmp_path: Path, kind: str | None, points: list[list[float]], pixels: int
) -> None:
    label = label_of(tmp_path, [shape("sky", points, kind)])
    assert (label == 1).sum() == pixels
    assert (label == VOID).sum() == 24 - pixels


def stored(mask: list[list[int]]) -> str:
    file = io.BytesIO()
    Image.fromarray(np.array(mask, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_masks(tmp_path: Path) -> None:
    mask = shape("sky", [[1, 2], [3, 3]], "mask") | {"mask": stored([[1, 0, 1], [1, 1, 0]])}
    label = label_of(tmp_path, [mask])
    assert np.argwhere(label == 1).tolist() == [[2, 1], [2, 3], [3, 1], [3, 2]]
    mask["points"] = [[-1, 3], [1, 4]]
    label = label_of(tmp_path, [mask])
    assert np.argwhere(label == 1).tolist() == [[3, 1]]
    mask["points"] = [[3, -1], [5, 0]]
    label = label_of(tmp_path, [mask])
    assert np.argwhere(label == 1).tolist() == [[0, 3], [0, 4]]
    mask["points"] = [[900, 900], [902, 901]]
    assert (label_of(tmp_path, [mask]) == VOID).all()
    for damaged in ("AAAA", "!", None, 5):
        fails(tmp_path, [mask | {"mask": damaged}], "shape 1", "mask")


def embedded(colour: int, size: tuple[int, int] = (6, 4)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, (colour,) * 3).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_file_comes_before_the_image_in_the_json_file(tmp_path: Path) -> None:
    label_of(tmp_path, [SKY], imageData=embedded(200))
    listing = read(tmp_path)
    assert listing.load(listing.train[0])[0].max() < 20
    Image.new("RGB", (50, 50)).save(tmp_path / "a.jpg")  # of another size: another image
    listing = read(tmp_path)
    assert listing.load(listing.train[0])[0].max() == 200


@pytest.mark.parametrize("named", ["..\\Pictures\\b.jpg", "/home/x/b.jpg", "b.jpg", "C:\\b.jpg"])
def test_the_image_in_the_json_file(tmp_path: Path, named: str) -> None:
    put(tmp_path, "a", imageData=embedded(7))
    (tmp_path / "a.jpg").unlink()
    tree = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(tree | {"imagePath": named}))
    listing = read(tmp_path)
    (sample,) = listing.train
    image, label = listing.load(sample)
    assert image.shape == (4, 6, 3)
    assert image.max() == 7
    np.testing.assert_array_equal(label, EXPECTED)
    assert listing.read_bytes(sample) == base64.b64decode(tree["imageData"])
    before = listing.fingerprint(sample)
    (tmp_path / "a.json").write_text(json.dumps(tree | {"imageData": embedded(8)}))
    assert listing.fingerprint(sample) != before
    (tmp_path / "a.json").write_text(json.dumps(tree | {"imageData": "!"}))
    with pytest.raises(DataError, match=r"a\.json: 'imageData' is damaged"):
        listing.load(sample)


@pytest.mark.parametrize(
    ("named", "picture"),
    [
        ("..\\Pictures\\b.jpg", "b.jpg"),
        ("/home/x/b.jpg", "b.jpg"),
        ("../Pictures/b.jpg", "a.JPG"),
        ("leave out", "a.png"),
        ("/home/x/b.jpg", "elsewhere/deep/b.jpg"),
    ],
)
def test_an_image_that_moved(tmp_path: Path, named: str, picture: str) -> None:
    put(tmp_path, "set/a")
    tree = json.loads((tmp_path / "set/a.json").read_text()) | {"imagePath": named}
    (tmp_path / "set/a.jpg").unlink()
    if named == "leave out":
        del tree["imagePath"]
    (tmp_path / "set/a.json").write_text(json.dumps(tree))
    (tmp_path / "set" / picture).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "set" / picture)
    (sample,) = read(tmp_path).train
    assert sample.image == str(tmp_path / "set" / picture)
    (tmp_path / "set" / picture).unlink()
    with pytest.raises(DataError, match=r"a\.json: .*imagePath"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", []),
        ("polygon", [[1, 1]]),
        ("polygon", [[1, 1], [4, 4]]),
        (None, [[1, 1], [4, 4]]),
        ("rectangle", [[1, 1]]),
        ("circle", [[1, 1]]),
        ("polygon", [[900, 1], [950, 1], [950, 3]]),
        ("rectangle", [[1, -9], [4, 0]]),
    ],
)
def test_shapes_without_an_area(
    tmp_path: Path, kind: str | None, points: list[list[float]]
) -> None:
    put(tmp_path, "a", [SKY, shape("x", points, kind), SEA])
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("sea", "sky")
    np.testing.assert_array_equal(listing.load_label(listing.train[0]), EXPECTED)
    (note,) = listing.notes
    assert "1 shape without an area (too few points, or outside the image) not drawn" in note
    assert "(a.json: shape 2)" in note
    put(tmp_path, "a", [shape("x", points, kind)])
    with pytest.raises(DataError, match="no other shape is left to learn from"):
        read(tmp_path)


def test_ignored_in_the_class_list(tmp_path: Path) -> None:
    put(tmp_path, "a", [SKY, SEA, shape("__ignore__", [[0, 0], [2, 0], [2, 1], [0, 1]])])
    (tmp_path / "classes.txt").write_text("__ignore__\n_background_\nsea\nsky\n")
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("_background_", "sea", "sky")
    label = listing.load_label(listing.train[0])
    assert label[0].tolist() == [VOID, VOID, 2, 2, 2, 2]
    assert label[3].tolist() == [0] * 6


def test_size_that_no_file_states(tmp_path: Path) -> None:
    absent = {"imageHeight": "leave out", "imageWidth": None}
    assert label_of(tmp_path, [SKY], **absent).shape == (4, 6)


def test_size_is_the_one_stated(tmp_path: Path) -> None:
    assert label_of(tmp_path, [SKY], imageHeight=7).shape == (7, 6)


def test_unlabelled_images(tmp_path: Path) -> None:
    put(tmp_path, "x/a")
    put(tmp_path, "b", image="pictures/b.jpg")
    for name in ("x/c.jpg", "pictures/d.jpg", "preview.jpg"):
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    faults = read(tmp_path).unpaired
    assert [fault.kind for fault in faults] == ["missing", "missing"]
    assert "pictures/d.jpg: has no labelme JSON" in str(faults[0])
    assert "x/c.jpg: has no labelme JSON" in str(faults[1])


def test_two_files_for_one_image(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "x/b", image="../a.jpg")
    (fault,) = read(tmp_path).unpaired
    assert "b.json" in str(fault)
    assert "a.json labels the same image" in str(fault)


def test_one_damaged_file_does_not_hide_the_others(tmp_path: Path) -> None:
    for stem in "abc":
        put(tmp_path, stem)
    (tmp_path / "b.json").write_text('{"shapes": [')
    listing = read(tmp_path)
    assert [s.name for s in listing.train] == ["a", "c"]
    assert ["b.json: damaged or not JSON" in str(fault) for fault in listing.unpaired] == [True]
    for stem in "ac":
        (tmp_path / f"{stem}.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json: damaged"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shapes": None}, "'shapes' is missing"),
        ({"shapes": [3]}, "'shapes'[0] is 3"),
        ({"imagePath": 5}, "'imagePath' is 5"),
        ({"imagePath": "\ud800"}, "'imagePath' is '\\ud800'"),
        ({"imageHeight": "4"}, "'imageHeight' is '4'"),
        ({"imageHeight": True}, "'imageHeight' is True"),
        ({"imageHeight": None}, "'imageHeight' is missing"),
        ({"imageHeight": -4}, "6x-4 pixels: expected at least 1x1"),
        ({"imageHeight": 50_000_000}, "6x50000000 pixels: at most 80 million"),
        ({"imageHeight": 10**400}, "a huge number"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = put(tmp_path, "a")
    tree = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in tree.items() if v != "leave out"}))
    assert str(fault_of(tmp_path)).startswith(f"{path}: ")
    assert words in str(fault_of(tmp_path))
    assert "\n" not in str(fault_of(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": None}, "'label' is missing"),
        ({"label": "  "}, "'label' is '  '"),
        ({"shape_type": "polygone"}, "shape_type 'polygone'"),
        ({"shape_type": ["polygon"]}, "shape_type"),
        ({"points": None}, "'points' is missing"),
        ({"points": [[1, 2], [3, 4], 5]}, "'points' is a list of 3"),
        ({"points": [[1, 2], [3, 4], [5, 6, 7]]}, "'points' is a list of 3"),
        ({"points": [[1, 2], [3, 4], [5, float("nan")]]}, "coordinate nan"),
        ({"shape_type": "circle"}, "4 points: a circle has 2"),
        ({"shape_type": "rectangle", "points": [[0, 0]] * 3}, "3 points: a rectangle has 2 or 4"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    fails(tmp_path, [SEA, SKY | change], "a.json: shape 2", words)


def test_no_labelme_files(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="contains no labelme JSON files"):
        read(tmp_path)
    assert labelme.signs(tmp_path) == ""


def test_signs(tmp_path: Path) -> None:
    assert labelme.signs(tmp_path / "no") == ""
    put(tmp_path, "x/y/a")
    assert labelme.signs(tmp_path) == "x/y/a.json"
    (tmp_path / "x" / "y" / "a.json").write_bytes(b"\xff\x00")
    assert labelme.signs(tmp_path) == ""


def test_files_are_read_once_and_kept_without_their_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def counted(path: Path) -> Shape:
        reads.append(path.name)
        return read_json(path)

    monkeypatch.setattr(labelme, "read_json", counted)
    for stem in "abc":
        put(tmp_path, stem, imageData="A" * 1_000_000)
    tracemalloc.start()
    listing = read(tmp_path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 500_000
    for sample in listing.train * 2:
        np.testing.assert_array_equal(listing.load_label(sample), EXPECTED)
    assert sorted(reads) == ["a.json", "b.json", "c.json"]


@pytest.mark.parametrize("background", ["background", "Background", "_background_"])
@pytest.mark.parametrize("void", ["void", "Ignore", "unlabeled", "__ignore__"])
@pytest.mark.parametrize("listed", [True, False])
def test_labels_for_background_and_for_no_class(
    tmp_path: Path, background: str, void: str, listed: bool
) -> None:
    shapes = [
        shape("sky", [[0, 0], [6, 0], [6, 1], [0, 1]]),
        shape(background, [[0, 0], [3, 0], [3, 1], [0, 1]]),
        shape(void, [[0, 3], [6, 3], [6, 4], [0, 4]]),
    ]
    put(tmp_path, "a", shapes)
    if listed:
        (tmp_path / "labels.txt").write_text(f"__ignore__\n{background}\nsky\n")
    listing = read(tmp_path)
    assert listing.taxonomy.names == (background, "sky")
    label = listing.load_label(listing.train[0])
    assert label[0].tolist() == [0] * 3 + [1] * 3
    assert label[1].tolist() == [0] * 6
    assert label[3].tolist() == [VOID] * 6
    named = not listed and void != "__ignore__"
    assert any("means no class" in note for note in listing.notes) == named


def test_letters_with_accents_give_one_name_however_the_disk_spells_them(tmp_path: Path) -> None:
    stems = {form: unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")}
    put(tmp_path, stems["NFD"])
    assert [sample.name for sample in read(tmp_path).train] == [stems["NFC"]]
    put(tmp_path, stems["NFC"])
    listing = read(tmp_path)
    assert len(listing.train) == 1
    assert "has the same name in other characters: keep one" in str(listing.unpaired[0])
