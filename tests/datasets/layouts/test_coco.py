from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import coco
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.io import polygons
from ccfnet_tf.labels import VOID

Tree = dict[str, Any]

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "tall car", "supercategory": "x"}]
BOX = [1, 1, 4, 1, 4, 3, 1, 3]  # covers 6 of 6x4 pixels
SMALL = [2, 1, 3, 1, 3, 2, 2, 2]  # covers 1 pixel of BOX


def annotation(category: int, segmentation: Any, image: int = 7, **keys: Any) -> Tree:
    return {
        "id": 1,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
    } | keys


def tree_of(annotations: list[Tree] | None = None, **keys: Any) -> Tree:
    tree = {
        "info": {},
        "images": [{"id": 7, "file_name": "a.jpg", "height": 4, "width": 6}],
        "categories": CATEGORIES,
        "annotations": [annotation(3, [BOX])] if annotations is None else annotations,
    }
    return tree | keys


def put(root: Path, tree: Tree, name: str = "annotations.json", folder: str = "images") -> None:
    """Writes an annotation file and its images of 6x4 pixels."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    for entry in tree["images"]:
        picture = root / folder / entry["file_name"].replace("\\", "/")
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (9, 9, 9)).save(picture)


def read(root: Path) -> Listing:
    return coco.read(DataConfig(root=str(root)), root, 0)


def label_of(root: Path, annotations: list[Tree], **keys: Any) -> np.ndarray:
    put(root, tree_of(annotations, **keys))
    listing = read(root)
    return listing.load_label(listing.train[0])


def fails(root: Path, annotations: list[Tree], *words: str) -> DataError:
    put(root, tree_of(annotations))
    listing = read(root)
    with pytest.raises(DataError) as caught:
        listing.load_label(listing.train[0])
    for word in ("annotations.json: image 7 ('a.jpg'): 'annotations'[", *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def refused(root: Path, words: str, **keys: Any) -> None:
    (root / "annotations.json").write_text(json.dumps(tree_of(**keys)))
    with pytest.raises(DataError) as caught:
        read(root)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{root / 'annotations.json'}: ")
    assert "\n" not in str(caught.value)


def test_one_list(tmp_path: Path) -> None:
    put(tmp_path, tree_of())
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("tall car", "toothbrush")
    assert [s.name for s in listing.train] == ["a"]
    assert (listing.val, listing.test, listing.unpaired) == (None, (), ())
    image, label = listing.load(listing.train[0])
    assert image.shape == (4, 6, 3)
    assert label.dtype == np.int32
    expected = np.full((4, 6), VOID)
    expected[1:3, 1:4] = 0
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("folder", ["{}2017", "images/{}2017", "{}", "images/{}", "images", ""])
def test_lists_of_coco(tmp_path: Path, folder: str) -> None:
    for part, stem in (("train", "a"), ("val", "b")):
        tree = tree_of(images=[{"id": 7, "file_name": f"{stem}.jpg", "height": 4, "width": 6}])
        put(tmp_path, tree, f"annotations/instances_{part}2017.json", folder.format(part))
    (tmp_path / "annotations" / "captions_train2017.json").write_text("[]")
    listing = read(tmp_path)
    assert [s.name for s in listing.train] == ["train2017/a"]
    assert listing.val is None
    assert [s.name for s in listing.test] == ["val2017/b"]
    assert listing.unpaired == ()
    for sample in listing.train + listing.test:
        assert listing.load(sample)[1].max() == 0
    put(tmp_path, tree_of(), "annotations/instances_test.json", "test")
    listing = read(tmp_path)
    assert [s.name for s in listing.val or ()] == ["val2017/b"]
    assert [s.name for s in listing.test] == ["test/a"]


def test_other_names_and_folders_in_file_names(tmp_path: Path) -> None:
    names = ["my_train\\x\\a.jpg", "b.c.png"]
    images = [
        {"id": i, "file_name": name, "height": 4, "width": 6} for i, name in enumerate(names, 7)
    ]
    put(tmp_path, tree_of(images=images), "annotations/my_train.json", "")
    assert [s.name for s in read(tmp_path).train] == ["my_train/x/a", "my_train/b.c"]


def test_missing_and_duplicate_lists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no annotation file for training \(found: nothing\)"):
        read(tmp_path)
    put(tmp_path, tree_of(), "annotations/instances_val2017.json")
    with pytest.raises(DataError, match=r"found: annotations/instances_val2017\.json"):
        read(tmp_path)
    put(tmp_path, tree_of(), "annotations/instances_train2014.json")
    put(tmp_path, tree_of(), "annotations/instances_train2017.json")
    with pytest.raises(DataError, match=r"train2017\.json: .*instances_train2014\.json also"):
        read(tmp_path)


def test_lists_must_have_the_same_categories(tmp_path: Path) -> None:
    put(tmp_path, tree_of(), "annotations/instances_train.json")
    put(tmp_path, tree_of([], categories=CATEGORIES[:1]), "annotations/instances_val.json")
    with pytest.raises(
        DataError, match=r"instances_val\.json: its categories differ from those of"
    ):
        read(tmp_path)


def test_missing_image(tmp_path: Path) -> None:
    put(tmp_path, tree_of())
    (tmp_path / "images" / "a.jpg").unlink()
    listing = read(tmp_path)
    assert listing.train == ()
    (fault,) = listing.unpaired
    assert fault.kind == "missing"
    assert "annotations.json: image 7 ('a.jpg'): no such image" in str(fault)


def test_small_things_stay_visible(tmp_path: Path) -> None:
    for pair in ([[SMALL], [BOX]], [[BOX], [SMALL]]):
        annotations = [annotation(90 if s == [SMALL] else 3, s) for s in pair]
        label = label_of(tmp_path, annotations)
        assert (label == 0).sum() == 5
        assert label[1, 2] == 1


def test_several_polygons_are_one_thing(tmp_path: Path) -> None:
    far = [5, 0, 6, 0, 6, 4, 5, 4]
    label = label_of(tmp_path, [annotation(90, [far, SMALL]), annotation(3, [SMALL, SMALL])])
    assert (label == 1).sum() == 4
    assert (
        label[1, 2] == 0
    )  # the smaller annotation is drawn last; repeating its polygon is harmless


@pytest.mark.parametrize("counts", [[5, 2, 2, 2, 2, 2, 9], "5220007"])
def test_run_lengths(tmp_path: Path, counts: Any) -> None:
    # Column by column: 5 pixels outside, then 2 inside in each of 3 columns. Compressed RLE stores
    # differences from the fourth run on.
    crowd = annotation(90, {"size": [4, 6], "counts": counts}, iscrowd=1)
    label = label_of(tmp_path, [crowd])
    expected = np.full((4, 6), VOID)
    expected[1:3, 1:4] = 1
    np.testing.assert_array_equal(label, expected)
    label = label_of(tmp_path, [annotation(3, [SMALL]), crowd])
    assert label[1, 2] == 0


@pytest.mark.parametrize("name", ["Background", "_background_"])
def test_background(tmp_path: Path, name: str) -> None:
    categories = [{"id": 0, "name": name, "supercategory": None}, *CATEGORIES]
    label = label_of(tmp_path, [annotation(3, [BOX])], categories=categories)
    assert (label == 1).sum() == 6
    assert (label == 0).sum() == 18


@pytest.mark.parametrize("name", ["__ignore__", "ignored", "Void"])
def test_ignored_categories_are_void(tmp_path: Path, name: str) -> None:
    categories = [{"id": 0, "name": "background"}, {"id": 5, "name": name}, *CATEGORIES]
    label = label_of(
        tmp_path, [annotation(5, [BOX]), annotation(3, [SMALL])], categories=categories
    )
    assert read(tmp_path).taxonomy.names == ("background", "tall car", "toothbrush")
    assert label[1, 2] == 1
    assert (label == VOID).sum() == 5
    assert (label == 0).sum() == 18


def test_an_image_without_annotations_is_void(tmp_path: Path) -> None:
    assert (label_of(tmp_path, []) == VOID).all()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ("x", "'segmentation' is 'x'"),
        ([[*BOX[:7], float("nan")]], "coordinate nan"),
        ([[*BOX[:7], None]], "coordinate missing"),
        ([[*BOX[:7], 1e9]], "coordinate 1000000000.0"),
        ({"size": [6, 4], "counts": [24]}, "RLE of size [6, 4]"),
        ({"size": [4, 6]}, "'counts' is missing"),
        ({"size": [4, 6], "counts": [23]}, "23 pixels in total: the image has 6x4"),
        ({"size": [4, 6], "counts": "5~"}, "damaged at '~'"),
    ],
)
def test_outlines_that_do_not_fit(tmp_path: Path, segmentation: Any, words: str) -> None:
    fails(tmp_path, [annotation(3, [BOX]), annotation(3, segmentation)], words, "[1]")


IMAGE = {"id": 7, "file_name": "a.jpg", "height": 4, "width": 6}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"images": None}, "'images' is missing"),
        ({"images": [5]}, "'images'[0] is 5"),
        ({"annotations": {}}, "'annotations' is an object"),
        ({"categories": None}, "'categories' is missing"),
        ({"categories": []}, "1 annotation of category_id 3, where 'categories' has 0 (none)"),
        ({"categories": [], "annotations": []}, "0 class names"),
        (
            {
                "categories": [*CATEGORIES, {"id": 4, "name": "toothbrush"}],
                "annotations": [annotation(4, [BOX]), annotation(90, [BOX])],
            },
            "id 4, 'toothbrush': the name is not unique",
        ),
        ({"annotations": [annotation(3, []), annotation(90, None)]}, "none of the 2 annotations"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "x"}]}, "id 3, 'x'"),
        ({"categories": [*CATEGORIES, {"id": 4}]}, "'categories'[2]: 'name' is missing"),
        ({"images": [IMAGE, IMAGE]}, "'images'[1]: id 7, 'a'"),
        ({"images": [IMAGE, IMAGE | {"id": 8, "file_name": "a.png"}]}, "'images'[1]: id 8, 'a'"),
        ({"images": [IMAGE | {"id": "7"}]}, "'id' is '7'"),
        ({"images": [IMAGE | {"id": 7.0}]}, "'id' is 7.0"),
        ({"images": [IMAGE | {"width": -6}]}, "-6x4 pixels: expected at least 1x1"),
        ({"images": [IMAGE | {"width": 30_000_000}]}, "30000000x4 pixels: at most 80 million"),
        ({"images": [IMAGE | {"file_name": "."}]}, "expected the path of an image"),
        (
            {"annotations": [annotation(4, [BOX]), annotation(5, [BOX]), annotation(3, [])]},
            "2 annotations of category_id 4, 5, where 'categories' has 2 (3..90) ('annotations'[0]",
        ),
        ({"annotations": [annotation(3, [BOX]) | {"image_id": None}]}, "'image_id' is missing"),
    ],
)
def test_lists_that_are_damaged(tmp_path: Path, keys: Tree, words: str) -> None:
    refused(tmp_path, words, **keys)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":1}'])
def test_files_that_are_no_lists(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "annotations.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'annotations.json'}: ")


def test_signs(tmp_path: Path) -> None:
    assert coco.signs(tmp_path / "no") == ""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").write_text('{"shapes": []}')
    assert coco.signs(tmp_path) == ""
    put(tmp_path, tree_of())
    assert coco.signs(tmp_path) == "annotations.json"
    put(tmp_path, tree_of(), "annotations/instances_train2017.json")
    assert coco.signs(tmp_path) == "annotations/instances_train2017.json"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("latest", "train"),
        ("interval_3", "train"),
        ("contest-2024", "train"),
        ("val", "val"),
        ("my_val2017", "val"),
        ("Validation.v2", "val"),
        ("image-test-2015", "test"),
        ("test2017", "test"),
    ],
)
def test_the_split_is_a_whole_word_of_the_name(tmp_path: Path, name: str, part: str) -> None:
    put(tmp_path, tree_of(), f"annotations/{name}.json")
    if part == "train":
        assert len(read(tmp_path).train) == 1
        return
    with pytest.raises(DataError, match="no annotation file for training"):
        read(tmp_path)
    other = tree_of(images=[{"id": 7, "file_name": "b.jpg", "height": 4, "width": 6}])
    put(tmp_path, other, "annotations/train.json")
    assert len(read(tmp_path).test) == 1


def test_outlines_are_kept_in_little_memory(tmp_path: Path) -> None:
    corners = [round(float(value), 2) for value in np.random.default_rng(0).uniform(0, 6, 40_000)]
    put(tmp_path, tree_of([annotation(3, [corners]), annotation(90, [BOX, BOX[:4]])]))
    tracemalloc.start()
    listing = read(tmp_path)  # kept while memory is measured
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 * 8 * len(corners)
    assert len(listing.train) == 1


NO_AREA: list[Any] = [
    None,
    [],
    [[]],
    {},
    [BOX[:2]],
    [BOX[:4]],
    BOX[:4],
    [BOX[:4], []],
    [[1, 1, 2, 2, 3, 3]],
    [[900, 1, 950, 1, 950, 3]],
    [[1, -9, 3, -9, 3, 0]],
    {"size": [4, 6], "counts": []},
    {"size": [4, 6], "counts": ""},
]


@pytest.mark.parametrize("segmentation", NO_AREA)
def test_annotations_without_an_area_are_reported(tmp_path: Path, segmentation: Any) -> None:
    entries = [annotation(3, [BOX]), annotation(90, segmentation)]
    label = label_of(tmp_path, entries)
    assert (label == 0).sum() == 6
    assert (label == VOID).sum() == 18
    (note,) = read(tmp_path).notes
    assert note == (
        f"{tmp_path / 'annotations.json'}: 1 annotation without an area (no outline, fewer than "
        "3 points, or outside the image): not drawn ('annotations'[1])"
    )


def test_a_missing_outline_is_no_outline(tmp_path: Path) -> None:
    bare = annotation(90, None)
    del bare["segmentation"]
    label_of(tmp_path, [annotation(3, [BOX]), *[bare] * 5])
    (note,) = read(tmp_path).notes
    assert "5 annotations without" in note
    assert "('annotations'[1], 'annotations'[2], 'annotations'[3], ...)" in note


def test_what_has_an_area_in_an_annotation_is_drawn(tmp_path: Path) -> None:
    label = label_of(tmp_path, [annotation(3, [BOX[:4], BOX, []])])
    assert (label == 0).sum() == 6
    assert read(tmp_path).notes == ()
    np.testing.assert_array_equal(label_of(tmp_path, [annotation(3, BOX)]), label)  # flat


def test_an_outline_that_crosses_itself_is_drawn_though_its_area_adds_up_to_nothing(
    tmp_path: Path,
) -> None:
    label = label_of(tmp_path, [annotation(3, [[0, 0, 4, 4, 4, 0, 0, 4]])])
    assert (label == 0).sum() > 4
    assert read(tmp_path).notes == ()


def test_outlines_of_too_many_crossings_name_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygons, "MOST_CROSSINGS", 5)
    with pytest.raises(DataError, match="polygons cross pixel rows 6 times: at most 5") as caught:
        label_of(tmp_path, [annotation(3, [[0, 0, 4, 0, 4, 3, 0, 3]])])
    assert str(caught.value).startswith(f"{tmp_path / 'annotations.json'}: ")


def test_a_box_without_an_outline_is_not_background(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "background"}, *CATEGORIES]
    entries = [annotation(3, [SMALL]), annotation(90, [], bbox=[1, 1, 3, 2])]
    label = label_of(tmp_path, entries, categories=categories)
    assert label[1, 2] == 1
    assert (label == VOID).sum() == 5
    assert (label == 0).sum() == 18


def test_annotations_of_images_that_are_not_listed(tmp_path: Path) -> None:
    label = label_of(tmp_path, [annotation(3, [BOX], image=8), annotation(90, [BOX])])
    assert (label == 1).sum() == 6
    (note,) = read(tmp_path).notes
    assert "1 annotation of images that are not in the file: left out" in note


def test_one_category_is_learned_against_background(tmp_path: Path) -> None:
    label = label_of(tmp_path, [annotation(3, [BOX])], categories=CATEGORIES[1:])
    assert read(tmp_path).taxonomy.names == ("background", "tall car")
    assert (label == 1).sum() == 6
    assert (label == 0).sum() == 18


ROOT = {"id": 0, "name": "things", "supercategory": "none"}
BELOW = [category | {"supercategory": "things"} for category in CATEGORIES]


@pytest.mark.parametrize(
    "root", [ROOT, ROOT | {"name": "tall car"}, {"id": 0, "name": "things"}, ROOT | {"id": 99}]
)
def test_root_categories_are_left_out(tmp_path: Path, root: Tree) -> None:
    below = [category | {"supercategory": root["name"]} for category in CATEGORIES]
    entries = [annotation(3, [BOX]), annotation(90, [SMALL])]
    label = label_of(tmp_path, entries, categories=[root, *below])
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("tall car", "toothbrush")
    assert sorted(np.unique(label)) == [VOID, 0, 1]
    (note,) = listing.notes
    assert f"category '{root['name']}' (id {root['id']}) is only a group of others" in note


@pytest.mark.parametrize("key", [0, 50, 99])
def test_an_unused_category_with_the_name_of_a_class_is_left_out(tmp_path: Path, key: int) -> None:
    twin = {"id": key, "name": "tall car", "supercategory": "other"}
    label = label_of(tmp_path, [annotation(3, [BOX])], categories=[twin, *CATEGORIES])
    assert read(tmp_path).taxonomy.names == ("tall car", "toothbrush")
    assert (label == 0).sum() == 6


def test_a_root_that_has_annotations_stays(tmp_path: Path) -> None:
    label_of(tmp_path, [annotation(0, [BOX])], categories=[ROOT, *BELOW])
    assert read(tmp_path).taxonomy.names == ("things", "tall car", "toothbrush")


def test_a_root_with_annotations_in_another_split_stays(tmp_path: Path) -> None:
    for part, category in (("train", 3), ("val", 0)):
        tree = tree_of([annotation(category, [BOX])], categories=[ROOT, *BELOW])
        put(tmp_path, tree, f"annotations/instances_{part}.json", part)
    assert read(tmp_path).taxonomy.names == ("things", "tall car", "toothbrush")


def test_roboflow(tmp_path: Path) -> None:
    for folder in ("train", "valid", "test"):
        image = {"id": 7, "file_name": f"{folder}_jpg.rf.0.jpg", "height": 4, "width": 6}
        tree = tree_of(images=[image], categories=[ROOT, *BELOW])
        put(tmp_path, tree, f"{folder}/_annotations.coco.json", folder)
    assert coco.signs(tmp_path) == "train/_annotations.coco.json"
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("tall car", "toothbrush")
    assert [s.name for s in listing.train] == ["train/train_jpg.rf.0"]
    assert [s.name for s in listing.val or ()] == ["valid/valid_jpg.rf.0"]
    assert [s.name for s in listing.test] == ["test/test_jpg.rf.0"]
    assert (listing.load(listing.train[0])[1] == 0).sum() == 6
    for path in tmp_path.glob("test/*"):
        path.unlink()
    assert [s.name for s in read(tmp_path).val or ()] == ["valid/valid_jpg.rf.0"]
    assert len(read(tmp_path / "train").train) == 1  # a split folder as ROOT


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("annotations.json", "images"),
        ("annotations.json", ""),
        ("labels.json", "data"),
        ("coco.json", ""),
        ("instances.json", "images"),
        ("_annotations.coco.json", ""),
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_train.json", "images"),
    ],
)
@pytest.mark.parametrize("folders", [("train", "val", "test"), ("Training", "valid", "test2017")])
@pytest.mark.parametrize("same_names", [True, False])
def test_a_list_in_each_split_folder(
    tmp_path: Path, name: str, folder: str, folders: tuple[str, ...], same_names: bool
) -> None:
    for colour, part in enumerate(folders):
        named = "a.jpg" if same_names else f"{part}.jpg"
        tree = tree_of(images=[{"id": 7, "file_name": named, "height": 4, "width": 6}])
        put(tmp_path / part, tree, name, folder)
        Image.new("RGB", (6, 4), (colour * 90,) * 3).save(tmp_path / part / folder / named)
    assert detect(tmp_path) == "coco"
    listing = read(tmp_path)
    assert listing.unpaired == ()
    parts = (listing.train, listing.val or (), listing.test)
    for colour, (part, samples) in enumerate(zip(folders, parts, strict=True)):
        (sample,) = samples
        assert sample.name.startswith(f"{part}/")
        image, label = listing.load(sample)
        assert abs(int(image.mean()) - colour * 90) < 5  # the image of its own split
        assert (label == 0).sum() == 6
    (tmp_path / folders[1] / name).unlink()
    assert read(tmp_path).val is None


def test_a_list_in_each_split_folder_of_annotations(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        put(tmp_path, tree_of(), f"annotations/{part}/outlines.json", f"images/{part}")
    assert detect(tmp_path) == "coco"
    listing = read(tmp_path)
    assert [s.image for s in listing.train] == [str(tmp_path / "images" / "train" / "a.jpg")]
    assert [s.image for s in listing.val or ()] == [str(tmp_path / "images" / "valid" / "a.jpg")]


def test_two_lists_in_one_split_folder(tmp_path: Path) -> None:
    put(tmp_path / "train", tree_of(), "a.json")
    put(tmp_path / "train", tree_of(), "b.json")
    with pytest.raises(DataError, match=r"a\.json also annotates the train split: keep one"):
        read(tmp_path)


def test_annotations_of_categories_that_are_not_in_the_list(tmp_path: Path) -> None:
    annotations = [
        annotation(3, [BOX]),
        annotation(77, [SMALL]),
        annotation(0, [[4, 3, 6, 3, 6, 4, 4, 4]]),
    ]
    categories = [*CATEGORIES, {"id": 100, "name": "background"}]
    label = label_of(tmp_path, annotations, categories=categories)
    assert (label == VOID).sum() == 3  # void, not background
    assert (label == 0).sum() == 5
    (note,) = read(tmp_path).notes
    assert note == (
        f"{tmp_path / 'annotations.json'}: 2 annotations of category_id 0, 77, where 'categories' "
        "has 3 (3..100) ('annotations'[1], 'annotations'[2]): add the missing "
        "categories; their pixels are void"
    )


def test_categories_that_stand_for_no_class_are_reported(tmp_path: Path) -> None:
    put(tmp_path, tree_of(categories=[*CATEGORIES, {"id": 5, "name": "Unlabeled"}]))
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("tall car", "toothbrush")
    assert "'Unlabeled' means no class" in listing.notes[0]


@pytest.mark.parametrize("name", ["result.json", "labels.json", "my export.json"])
def test_a_list_next_to_the_images(tmp_path: Path, name: str) -> None:
    put(tmp_path, tree_of(), name)
    (tmp_path / "notes.json").write_text('{"info": 1}')
    assert coco.signs(tmp_path) == name
    assert len(read(tmp_path).train) == 1


@pytest.mark.parametrize(
    "named",
    [
        "../../media/upload/1/a.jpg",
        "..\\..\\label-studio\\data\\media\\upload\\1\\0a1b2c3d-a.jpg",
        "/home/x/set/a.jpg",
        "C:\\Users\\x\\a.jpg",
        "C:/Users/x/a.jpg",
        "file:///home/x/a.jpg",
        "https://host/data/upload/1/0a1b2c3d-a.jpg?token=1",
        "/data/local-files/?d=some%20where/a.jpg",
        "elsewhere/a.jpg",
    ],
)
@pytest.mark.parametrize("folder", ["images", "deep/er", ""])
def test_paths_of_other_computers(tmp_path: Path, named: str, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(tmp_path / folder / "a.jpg")
    tree = tree_of(images=[{"id": 7, "file_name": named, "height": 4, "width": 6}])
    (tmp_path / "result.json").write_text(json.dumps(tree))
    listing = read(tmp_path)
    assert listing.unpaired == ()
    assert (listing.load(listing.train[0])[1] == 0).sum() == 6


def test_paths_that_could_be_two_images(tmp_path: Path) -> None:
    for folder in ("1/x", "2/x"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(tmp_path / folder / "a.jpg")
    entry = {"id": 7, "file_name": "../../old/x/a.jpg", "height": 4, "width": 6}
    (tmp_path / "result.json").write_text(json.dumps(tree_of(images=[entry])))
    (fault,) = read(tmp_path).unpaired
    assert fault.kind == "missing"
    assert f"could be {tmp_path}/1/x/a.jpg and {tmp_path}/2/x/a.jpg" in str(fault)
    entry["file_name"] = "../../old/2/x/a.jpg"
    (tmp_path / "result.json").write_text(json.dumps(tree_of(images=[entry])))
    listing = read(tmp_path)
    assert listing.unpaired == ()
    assert listing.train[0].image == str(tmp_path / "2/x/a.jpg")


def test_an_image_of_another_split_is_not_taken(tmp_path: Path) -> None:
    for part in ("train", "val"):
        put(tmp_path, tree_of(), f"annotations/instances_{part}.json", part)
    (tmp_path / "train" / "a.jpg").unlink()
    (fault,) = read(tmp_path).unpaired
    assert "instances_train.json: image 7 ('a.jpg'): no such image" in str(fault)


def test_two_entries_of_one_image(tmp_path: Path) -> None:
    images = [
        {"id": i, "file_name": f"{folder}/a.jpg", "height": 4, "width": 6}
        for i, folder in ((7, "../x"), (8, "../y"))
    ]
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "result.json").write_text(json.dumps(tree_of(images=images)))
    (fault,) = read(tmp_path).unpaired
    assert "is also the image of image 7" in str(fault)


def test_sizes_that_are_not_stated_are_the_images(tmp_path: Path) -> None:
    image = {"id": 7, "file_name": "a.jpg", "height": None, "width": None}
    assert (label_of(tmp_path, [annotation(3, [BOX])], images=[image]) == 0).sum() == 6
