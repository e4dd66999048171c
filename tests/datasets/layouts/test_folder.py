from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts import folder
from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID

SAMPLE = Path(__file__).parents[3] / "data" / "sample"


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
    image, label = found.load(found.train[3])
    assert image.shape == (4, 6, 3)
    np.testing.assert_array_equal(label[0], [0, 1, VOID, 1, 0, 0])


def test_three_splits_have_unique_names(tmp_path: Path) -> None:
    classes(tmp_path)
    for part in ("train", "val", "test"):
        put(tmp_path / part, "a")
    found = parts(tmp_path, val_share=0.5)
    names = [s.name for part in (found.train, found.val, found.test) for s in part]
    assert names == ["train/a", "val/a", "test/a"]


def test_test_split_may_be_missing(tmp_path: Path) -> None:
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


def test_no_images(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.heic").write_text("")
    fails(tmp_path, "no images", "a.heic")


def test_image_without_mask(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "a")
    put(tmp_path, "x/b", mask=False)
    fails(tmp_path, "x/b.jpg", "no mask", "masks/x/b.png")
    put(tmp_path, "c", mask=False)
    fails(tmp_path, "c.jpg", "(and 1 more")


def test_a_mask_of_another_format_is_named(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "x/b")
    (tmp_path / "masks" / "x" / "b.png").rename(tmp_path / "masks" / "x" / "b.jpg")
    fails(tmp_path, "no mask", f"found {tmp_path}/masks/x/b.jpg, but masks must be PNG")


def test_a_folder_that_is_no_split_is_refused(tmp_path: Path) -> None:
    classes(tmp_path)
    for part in ("train", "extra"):
        put(tmp_path / part, "a")
    fails(tmp_path, f"{tmp_path / 'extra'}: ", "splits are train, val and test; rename it or move")
    (tmp_path / "extra").rename(tmp_path / ".away")
    (tmp_path / "notes").mkdir()
    assert len(parts(tmp_path).train) == 1


ALIASES = [
    ("train", "valid", "test"),
    ("Training", "validation", "testing"),
    ("train", "dev", "x"),
    ("train2017", "val2017", "test-dev"),
    ("01_train", "02_val", "03_test"),
    ("Train-Set", "val_set", "testset"),
    ("train_data", "valid_split", "x"),
]


@pytest.mark.parametrize("sides", folder.SIDES)
@pytest.mark.parametrize("names", ALIASES)
@pytest.mark.parametrize("inside", [False, True])
def test_splits_by_their_usual_names(
    tmp_path: Path, sides: tuple[str, str], names: tuple[str, str, str], inside: bool
) -> None:
    classes(tmp_path)
    for name in names[: 2 if "x" in names else 3]:
        for side, own in zip(("images", "masks"), sides, strict=True):
            at = tmp_path / own / name if inside else tmp_path / name / own
            at.parent.mkdir(parents=True, exist_ok=True)
            put(tmp_path / "made", "a")
            (tmp_path / "made" / side).rename(at)
        shutil.rmtree(tmp_path / "made")
    assert folder.signs(tmp_path)
    data = DataConfig(root=str(tmp_path), val_share=0.5)
    found = read_parts(data, seed=0)
    assert found.format == "folder"
    assert found.own_val
    assert found.notes == ()
    listed = [[s.name for s in part] for part in (found.train, found.val, found.test)]
    test = [] if "x" in names else [f"{names[2]}/a"]
    assert listed == [[f"{names[0]}/a"], [f"{names[1]}/a"], test]


def test_images_next_to_split_folders(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in ("a", "more/b", "val/c"):
        put(tmp_path, stem)
    found = parts(tmp_path)  # without train/ they are the training split
    assert [s.name for s in found.train] == ["a", "more/b"]
    assert [s.name for s in found.val] == ["val/c"]
    put(tmp_path, "train/d")
    fails(tmp_path, "images/a.jpg: one of 2 images next to train/ that are in no split")


def test_invalid_splits_inside_images(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "val/a")
    fails(tmp_path, "images for val only: add train/")
    put(tmp_path, "train/a")
    put(tmp_path, "valid/a")
    fails(tmp_path, "val/ and valid/ are both the val split")


def test_lists_win_over_folders_inside_images(tmp_path: Path) -> None:
    listed(tmp_path, {"train.txt": "val/v\na\n"})
    put(tmp_path, "val/v")
    assert [s.name for s in parts(tmp_path).train] == ["val/v", "a"]


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    classes(tmp_path)
    for part in ("train", "val", "valid"):
        put(tmp_path / part, "a")
    fails(tmp_path, "val/ and valid/ are both the val split: merge them")


def test_a_split_deep_inside_is_named(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in ("rome/train/a", "rome/val/b"):
        put(tmp_path, stem)
    found = parts(tmp_path)
    assert len(found.train) == 2
    assert "images/rome/val (and 1 more): looks like the val split, but its images are used" in str(
        found.notes
    )


def test_a_folder_called_labels_needs_a_class_list(tmp_path: Path) -> None:
    put(tmp_path, "a")
    (tmp_path / "masks").rename(tmp_path / "labels")
    assert folder.signs(tmp_path) == ""
    classes(tmp_path)
    assert folder.signs(tmp_path) == "images/ and labels/"


def test_labels_that_are_no_images_are_another_layout(tmp_path: Path) -> None:
    for side in ("images", "labels"):
        (tmp_path / side).mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.1 0.1 0.2 0.2 0.3 0.1")
    assert folder.signs(tmp_path) == ""


def read_row(root: Path, names: str, values: list[int], **keys: Any) -> tuple[Listing, list[int]]:
    """Returns the listing of one image with a mask of these values, and its label."""
    put(root, "a")
    classes(root, names)
    kind = np.uint8 if max(values) < 256 else np.uint16
    Image.fromarray(np.array([values] * 4, kind)).save(root / "masks" / "a.png")
    listing = folder.read(DataConfig(root=str(root), **keys), root, 0)
    return listing, listing.load_label(listing.train[0])[0].tolist()


def test_one_name_is_a_class_against_background(tmp_path: Path) -> None:
    listing, label = read_row(tmp_path, "crack\n", [0, 1, 255])
    assert listing.taxonomy.names == ("background", "crack")
    assert label == [0, 1, VOID]
    assert read_row(tmp_path, "crack\n", [0, 255], mask_values={255: "crack"})[1] == [0, 1]


@pytest.mark.parametrize(
    ("names", "values", "label"),
    [
        ("__ignore__\n_background_\ncat\n", [255, 0, 1], [VOID, 0, 1]),
        ("_background_\n__ignore__\ncat\n", [0, 1, 2, 255], [0, VOID, 1, VOID]),
        ("_background_\ncat\n__ignore__\n", [0, 1, 2], [0, 1, VOID]),
        ("__ignore__\ncat\n", [0, 1, 255], [0, 1, VOID]),
    ],
)
def test_labelmes_ignore_is_no_class(
    tmp_path: Path, names: str, values: list[int], label: list[int]
) -> None:
    listing, found = read_row(tmp_path, names, values)
    assert listing.taxonomy.names[1:] == ("cat",)
    assert found == label


def test_more_classes_than_eight_bits_hold(tmp_path: Path) -> None:
    names = "".join(f"c{i}\n" for i in range(300))
    assert read_row(tmp_path, names, [0, 255, 299, 65535])[1] == [0, 255, 299, VOID]
    assert read_row(tmp_path, names, [0, 255, 299], void_value=0)[1] == [VOID, 255, 299]
    with pytest.raises(DataError, match=r"value 300 on 4 pixels: a mask holds 0..299"):
        read_row(tmp_path, names, [0, 300])


def test_a_full_palette_has_no_room_for_void(tmp_path: Path) -> None:
    names = "".join(f"c{i}\n" for i in range(256))
    assert read_row(tmp_path, names, [0, 255])[1] == [0, 255]


def test_mask_without_image(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in "ab":
        put(tmp_path, stem)
    (tmp_path / "images" / "b.jpg").unlink()
    fails(tmp_path, "masks/b.png", "no image")


def test_two_images_of_one_name(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "a", suffix="jpg")
    put(tmp_path, "a", suffix="png")
    fails(tmp_path, "a.png", "a.jpg", "rename or remove")


@pytest.mark.parametrize("name", ["labels.txt", "class_names.txt", "labelmap.txt"])
def test_a_class_list_of_another_name_is_hinted_at(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a")
    fails(tmp_path, "classes.txt: no such file", "for colour-coded labels add colours.txt")
    (tmp_path / name).write_text("cat\ndog\n")
    fails(tmp_path, "classes.txt: no such file", f"{name} is there: save it as classes.txt")
    classes(tmp_path)
    assert parts(tmp_path).taxonomy.names == ("cat", "dog")


@pytest.mark.parametrize(
    "name", ["Classes.txt", "class_dict.csv", "codes.txt", "data.yaml", "classes.json", "obj.names"]
)
def test_any_file_that_may_be_the_class_list_is_hinted_at(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a")
    (tmp_path / "train.txt").write_text("a\n")
    fails(tmp_path, "classes.txt: no such file", "found: images/, masks/, train.txt")
    (tmp_path / name).write_text("x")
    fails(tmp_path, f"{name} is there: save it as classes.txt", "or as colours.txt (one `R G B")


def test_names_that_stand_for_no_class_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "a")
    classes(tmp_path, "cat\nUnlabeled\ndog\n")
    found = parts(tmp_path)
    assert found.taxonomy.names == ("cat", "dog")
    assert found.load(found.train[0])[1][0].tolist() == [0, VOID, VOID, VOID, 0, 0]
    (note,) = found.notes
    assert note.startswith(f"{tmp_path / 'classes.txt'}: 'Unlabeled' means no class (void)")


def test_lists_in_a_folder_of_their_own_are_named(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "a")
    put(tmp_path, "b")
    lists = tmp_path / "my splits"
    lists.mkdir()
    (lists / "train.txt").write_text("a\n")
    (lists / "valid.txt").write_text("b\n")
    (note,) = parts(tmp_path).notes
    assert note.endswith(f"not used; to use them, add --data.lists '{lists}'")
    data = DataConfig(root=str(tmp_path), lists=str(lists))
    found = read_parts(data, seed=0)
    assert found.notes == ()
    assert ([s.name for s in found.train], [s.name for s in found.val]) == (["a"], ["b"])


def test_values_that_the_class_list_states(tmp_path: Path) -> None:
    text = "0: background\n255: crack\n1: ignore\n"
    listing, row = read_row(tmp_path, text, [0, 255, 1])
    assert listing.taxonomy.names == ("background", "crack")
    assert row == [0, 1, VOID]
    _, row = read_row(tmp_path, "7: a\n21: b\n", [7, 21, 255])
    assert row == [0, 1, VOID]


def test_numbers_of_objects_are_no_smoothing(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "a")
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    found = parts(tmp_path)
    with pytest.raises(DataError, match="0 to 23 look like instance ids"):
        found.load(found.train[0])
    Image.fromarray(mask * 9).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match="typical of JPEG"):
        found.load(found.train[0])


def test_class_list(tmp_path: Path) -> None:
    put(tmp_path, "a")
    fails(tmp_path, "classes.txt", "no such file")
    classes(tmp_path, "\ufeffcat\r\n dog \r\n\r\n\n")
    assert parts(tmp_path).taxonomy.names == ("cat", "dog")


LISTS = {"train.txt": "a\nc/d.jpg\n", "test.txt": "b.png\n"}


def listed(root: Path, texts: dict[str, str]) -> None:
    classes(root)
    for stem in ("a", "c/d", "rest"):
        put(root, stem)
    put(root, "b", suffix="png")
    for name, text in texts.items():
        (root / name).write_text(text)


def test_list_files(tmp_path: Path) -> None:
    listed(tmp_path, {"train.txt": "\ufeffc/d.jpg\r\n\r\n# rest\r\n./a\r\n", "val.txt": " b.png "})
    put(tmp_path, "unlisted", mask=False)
    found = parts(tmp_path)
    assert [s.name for s in found.train] == ["c/d", "a"]
    assert [s.name for s in found.val] == ["b"]
    assert found.test == ()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"train.txt": "a\n\nbb.png\n"}, ("train.txt: line 3", "'bb.png'", "did you mean 'b.png'")),
        ({"train.txt": "a\nb\na.jpg\n"}, ("train.txt: line 3", "'a.jpg'", "line 1 of train.txt")),
        ({**LISTS, "val.txt": "rest\nb\n"}, ("test.txt: line 1", "'b.png'", "line 2 of val.txt")),
        ({"val.txt": "a\n"}, ("val.txt", "no train.txt")),
    ],
)
def test_list_files_that_do_not_fit(
    tmp_path: Path, texts: dict[str, str], words: tuple[str, ...]
) -> None:
    listed(tmp_path, texts)
    fails(tmp_path, *words)


@pytest.mark.parametrize(
    "line", ["a/b", "./a/b", "a/b.jpg", "a\\b.jpg", "images/a/b.jpg", "images\\a\\b", "images/a/b"]
)
def test_spellings_of_an_image_in_a_list(tmp_path: Path, line: str) -> None:
    listed(tmp_path, {"train.txt": f"{line}\r\n"})
    put(tmp_path, "a/b")
    assert [sample.name for sample in parts(tmp_path).train] == ["a/b"]


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_letters_with_accents_are_spelled_in_two_ways(
    tmp_path: Path, forms: tuple[str, str]
) -> None:
    picture, other = (unicodedata.normalize(form, "caf\u00e9/\u00fc") for form in forms)
    put(tmp_path, picture, mask=False)
    put(tmp_path, other)
    if other != picture:
        (tmp_path / "images" / f"{other}.jpg").unlink()
    listed(tmp_path, {"train.txt": f"{other}.jpg\n"})
    (sample,) = parts(tmp_path).train
    assert sample.name == "caf\u00e9/\u00fc"
    assert Path(sample.image).is_file()
    assert Path(sample.label).is_file()


def test_listed_image_without_a_mask(tmp_path: Path) -> None:
    listed(tmp_path, LISTS)
    (tmp_path / "masks" / "a.png").unlink()
    fails(tmp_path, "a.jpg", "no mask")


def test_a_split_by_list_and_by_folder(tmp_path: Path) -> None:
    listed(tmp_path, LISTS)
    put(tmp_path / "val", "v")
    assert [s.name for s in parts(tmp_path).val] == ["val/v"]
    put(tmp_path / "test", "t")
    fails(tmp_path, "test.txt and test/", "keep one")


def test_given_lists_take_the_place_of_its_own(tmp_path: Path) -> None:
    listed(tmp_path, LISTS)
    listing = folder.read(DataConfig(root=str(tmp_path), lists="elsewhere"), tmp_path, 0)
    assert [s.name for s in listing.train] == ["a", "b", "c/d", "rest"]


def test_unpaired_files_are_reported_and_not_raised(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in "ab":
        put(tmp_path, stem)
    put(tmp_path, "c", mask=False)
    (tmp_path / "images" / "b.jpg").unlink()
    listing = folder.read(DataConfig(root=str(tmp_path)), tmp_path, 0)
    assert [s.name for s in listing.train] == ["a"]
    assert [fault.kind for fault in listing.unpaired] == ["missing", "missing"]
    assert "images/c.jpg: no mask" in str(listing.unpaired[0])
    assert "masks/b.png: no image" in str(listing.unpaired[1])


COLOURS = "255 0 0 cat\n0,0,0,Void\n0\t200\t0\t\ttall dog\n9 9 9 void\n8 8 8 void\n"


def coloured(root: Path) -> Listing:
    put(root, "a")
    (root / "colours.txt").write_text(COLOURS)
    rows = [[[255, 0, 0], [0, 200, 0], [0, 0, 0], [9, 9, 9], [255, 0, 0], [255, 0, 0]]] * 4
    Image.fromarray(np.array(rows, np.uint8)).save(root / "masks" / "a.png")
    return folder.read(DataConfig(root=str(root)), root, 0)


def test_masks_of_colours(tmp_path: Path) -> None:
    listing = coloured(tmp_path)
    assert listing.taxonomy.names == ("cat", "tall dog")
    assert listing.taxonomy.palette == ((255, 0, 0), (0, 200, 0))
    label = listing.load_label(listing.train[0])
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, [[0, 1, VOID, VOID, 0, 0]] * 4)


def test_a_mask_of_ids_among_masks_of_colours(tmp_path: Path) -> None:
    listing = coloured(tmp_path)
    put(tmp_path, "a")
    np.testing.assert_array_equal(listing.load_label(listing.train[0]), [[0, 1, VOID, 1, 0, 0]] * 4)


def test_a_colour_that_is_not_in_the_table(tmp_path: Path) -> None:
    listing = coloured(tmp_path)
    rows = [[[255, 0, 0], [1, 199, 0], [1, 199, 0], [7, 7, 7]]]
    Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError) as caught:
        listing.load_label(listing.train[0])
    assert caught.value.kind == "value"
    for word in ("a.png: colour 1 199 0 on 2 pixels and 1 other", "'0 200 0 tall dog'"):
        assert word in str(caught.value)


def test_classes_and_colours_must_agree(tmp_path: Path) -> None:
    coloured(tmp_path)
    classes(tmp_path, "cat\ntall dog\n")
    assert parts(tmp_path).taxonomy.names == ("cat", "tall dog")
    classes(tmp_path, "cat\ndog\n")
    fails(tmp_path, "classes.txt: 'dog'", "'tall dog'", "same order")
    classes(tmp_path, "cat\ntall dog\nbird\n")
    fails(tmp_path, "classes.txt: 'bird'", "'nothing'")


def test_colors_txt_is_read_too_and_two_tables_are_refused(tmp_path: Path) -> None:
    coloured(tmp_path)
    (tmp_path / "colours.txt").rename(tmp_path / "colors.txt")
    assert parts(tmp_path).taxonomy.names == ("cat", "tall dog")
    (tmp_path / "colours.txt").write_text(COLOURS)
    fails(tmp_path, "colors.txt: colours.txt is also there", "keep one")


def test_a_table_gives_the_classes_of_index_masks_their_colours(tmp_path: Path) -> None:
    put(tmp_path, "a")
    classes(tmp_path)
    (tmp_path / "colors.txt").write_text("1 2 3 cat\n4 5 6 dog\n")
    found = parts(tmp_path)
    assert found.taxonomy.palette == ((1, 2, 3), (4, 5, 6))
    np.testing.assert_array_equal(found.load(found.train[0])[1][0], [0, 1, VOID, 1, 0, 0])


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        ([(0, 0, 0), (255, 0, 0)], [1, 0, VOID]),  # the colours of the table, in another order
        ([(255, 0, 0), (0, 0, 0)], [0, 1, VOID]),
        ([(7, 7, 7), (8, 8, 8)], [0, 1, VOID]),  # other colours: read by index
        ([(255, 0, 0), (8, 8, 8)], [0, 1, VOID]),
        ([(0, 0, 0), (8, 8, 8)], "value 0 the colour of 'sea' in"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_palettes_with_a_colour_table(
    tmp_path: Path, palette: list[tuple[int, ...]], expected: list[int] | str, listed: bool
) -> None:
    put(tmp_path, "a")
    (tmp_path / "colours.txt").write_text("255 0 0 sky\n0 0 0 sea\n")
    if listed:
        classes(tmp_path, "sky\nsea\n")
    mask = Image.fromarray(np.array([[0, 1, 255]] * 4, np.uint8).repeat(2, axis=1))
    mask.putpalette([channel for colour in palette for channel in colour] + [0] * 762)
    mask.save(tmp_path / "masks" / "a.png")
    found = parts(tmp_path)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            found.load(found.train[0])
    else:
        assert found.load(found.train[0])[1][0, ::2].tolist() == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_coloured_masks_without_a_table_hint_at_it(tmp_path: Path, mode: str) -> None:
    classes(tmp_path)
    put(tmp_path, "a")
    Image.new("RGB", (6, 4), (1, 2, 3)).convert(mode).save(tmp_path / "masks" / "a.png")
    found = parts(tmp_path)
    with pytest.raises(DataError, match=r"colours.txt.*`R G B NAME` per line"):
        found.load(found.train[0])


@pytest.mark.parametrize(
    "name",
    ["a_mask", "a-mask", "a.mask", "a_label", "a_gt", "mask_a", "A_seg", "a_L", "a.jpg", "a.TIF"],
)
def test_a_mask_with_another_name_is_hinted_at(tmp_path: Path, name: str) -> None:
    classes(tmp_path)
    put(tmp_path, "x/b")
    stem = name[0] if name[0] == "A" else "a"
    put(tmp_path, f"x/{stem}", mask=False)
    Image.new("L", (6, 4)).save(tmp_path / "masks" / "x" / f"{name}.png")
    (error,) = folder.read(DataConfig(root=str(tmp_path)), tmp_path, 0).unpaired  # reported once
    assert f"{name}.png: a mask must have the name of its image: rename it" in str(error)


def test_images_and_masks_with_different_prefixes(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in ("image_1", "image_2", "Img3"):
        put(tmp_path, f"a/{stem}", mask=False)
    for stem in ("label_1", "2_gt", "img3"):
        Image.new("L", (6, 4)).save(tmp_path / "masks" / "a" / f"{stem}.png")
    found = folder.read(DataConfig(root=str(tmp_path)), tmp_path, 0)
    errors = [str(error) for error in found.unpaired]
    for error, stem in zip(errors, ("img3", "label_1", "2_gt"), strict=True):
        assert f"a/{stem}.png: a mask must have the name of its image: rename it" in error


def test_a_mask_in_another_folder_is_hinted_at(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in ("x/a", "x/b", "y/b"):
        put(tmp_path, stem, mask=False)
    for stem in ("a", "b"):
        Image.new("L", (6, 4)).save(tmp_path / "masks" / f"{stem}.png")
    found = folder.read(DataConfig(root=str(tmp_path)), tmp_path, 0)
    one, *others = [str(error) for error in found.unpaired]
    assert f"{tmp_path / 'masks' / 'a.png'}: a mask must have the folder of its image" in one
    assert len(others) == 2  # masks/b.png fits both images named b
    assert all("masks/b.png: a mask must" in error for error in others)


def test_masks_in_a_split_folder_of_another_name_are_hinted_at(tmp_path: Path) -> None:
    classes(tmp_path)
    for part, other in (("train", "Training"), ("val", "validation")):
        put(tmp_path, f"{part}/a", mask=False)
        put(tmp_path, f"{other}/a")
        (tmp_path / "images" / other / "a.jpg").unlink()
    errors = folder.read(DataConfig(root=str(tmp_path)), tmp_path, 0).unpaired
    for error, other in zip(errors, ("Training", "validation"), strict=True):
        assert f"masks/{other}/a.png: a mask must have the folder of its image" in str(error)


def test_an_image_of_an_unsupported_format_is_hinted_at(tmp_path: Path) -> None:
    classes(tmp_path)
    for stem in ("a", "b"):
        put(tmp_path, stem)
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / "a.heic")
    (error,) = folder.read(DataConfig(root=str(tmp_path)), tmp_path, 0).unpaired
    assert "a.heic, an unsupported format: save it as JPEG or PNG" in str(error)


def test_a_mask_of_another_format_and_name_is_hinted_at(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "a", mask=False)
    (tmp_path / "masks" / "a_mask.npy").write_bytes(b"")
    (error,) = folder.read(DataConfig(root=str(tmp_path)), tmp_path, 0).unpaired
    assert "a_mask.npy, but masks must be PNG: export it again as PNG with the" in str(error)


def test_another_image_s_mask_is_no_hint(tmp_path: Path) -> None:
    classes(tmp_path)
    put(tmp_path, "ab")
    put(tmp_path, "a", mask=False)
    (error,) = folder.read(DataConfig(root=str(tmp_path)), tmp_path, 0).unpaired
    assert "; found" not in str(error)


def test_signs(tmp_path: Path) -> None:
    assert folder.signs(tmp_path) == folder.signs(tmp_path / "no") == ""
    put(tmp_path / "train", "a")
    assert folder.signs(tmp_path) == "train/images/ and train/masks/"
    put(tmp_path, "a")
    assert folder.signs(tmp_path) == "images/ and masks/"


def test_the_shipped_sample() -> None:
    data = DataConfig(format="folder", root=str(SAMPLE))
    found = read_parts(data, seed=0)
    assert (len(found.train), len(found.val), len(found.test)) == (8, 2, 2)
    samples = found.train + found.val + found.test
    labels = [found.load(sample)[1] for sample in samples]
    assert len(np.unique(np.concatenate([label.ravel() for label in labels]))) == 9
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*.*")) < 300_000
