from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.datasets.class_and_split_lists import (
    read_class_list,
    read_classes,
    read_colour_table,
    read_names,
    read_part_lists,
    with_background,
)
from ccfnet_tf.datasets.class_files import find_own_classes
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.read_images import NO_CLASS
from ccfnet_tf.labels import VOID


def written(root: Path, text: str, name: str = "list.txt") -> Path:
    (root / name).write_bytes(text.encode())
    return root / name


def test_names_with_line_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffa b\r\n\r\n # not this\r\n\tc#1  \r\n\r\n")
    assert read_names(path) == [(1, "a b"), (4, "c#1")]
    assert read_names(written(tmp_path, "")) == []


def test_names_that_are_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_names(tmp_path / "none.txt")
    with pytest.raises(DataError, match="is a folder: give a file"):
        read_names(tmp_path)
    (tmp_path / "list.txt").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match="not a UTF-8"):
        read_names(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 class names"),
        ("__ignore__\n", "0 class names"),
        ("_background_\n", "'_background_' is the only class: add the other classes"),
        ("\n".join(map(str, range(65_001))), "65001 class names"),
        ("a\nb\na\n", "'a' is on lines 1 and 3"),
        ("a\n\nb\n", "line 2 is blank"),
    ],
)
def test_invalid_class_lists(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_classes(written(tmp_path, text))


def test_one_class_against_background(tmp_path: Path) -> None:
    found = read_class_list(written(tmp_path, "crack\n"))
    assert found.taxonomy.names == ("background", "crack")
    assert (found.values, found.void) == ((0, 1), ())
    names = read_classes(written(tmp_path, "crack\n"), background="_background_").names
    assert names == ("_background_", "crack")


@pytest.mark.parametrize(
    ("text", "values", "void"),
    [
        ("__ignore__\n_background_\ncat\n", (0, 1), ()),
        ("_background_\n__ignore__\ncat\n", (0, 2), (1,)),
    ],
)
def test_labelme_ignore_is_never_a_class(
    tmp_path: Path, text: str, values: tuple[int, ...], void: tuple[int, ...]
) -> None:
    found = read_class_list(written(tmp_path, text))
    assert found.taxonomy.names == ("_background_", "cat")
    assert (found.values, found.void) == (values, void)


@pytest.mark.parametrize(
    "text",
    [
        "sky\r\ntree\r\n",
        "sky\rtree",
        "\ufeffsky\ntree  \n\n\n",
        "# classes\nsky\n\t tree\n",
        "0: sky\n1: tree\n",
        "1: tree\n0: sky\n",
        "0 sky\n1 tree\n",
        "0,sky\n1,tree\n",
        "id,name\n0,sky\n1,tree\n",
        "1;tree\n0;sky\n",
        "0\tsky\n1\ttree\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_encodings_and_formats_of_a_class_list(tmp_path: Path, text: str, encoding: str) -> None:
    if encoding == "utf-16":
        text = text.removeprefix("\ufeff")  # the encoder writes a byte order mark
    (tmp_path / "classes.txt").write_bytes(text.encode(encoding))
    found = read_class_list(tmp_path / "classes.txt")
    assert (found.taxonomy.names, found.values, found.void) == (("sky", "tree"), (0, 1), ())
    own = find_own_classes(tmp_path)
    assert own is not None
    assert own.taxonomy.names == ("sky", "tree")
    assert own.values[:3].tolist() == [0, 1, NO_CLASS]


def test_values_before_the_names(tmp_path: Path) -> None:
    found = read_class_list(written(tmp_path, "7: sky\n21: tree\n0: void\n"))
    assert (found.taxonomy.names, found.values, found.void) == (("sky", "tree"), (7, 21), (0,))
    found = read_class_list(written(tmp_path, "1 sky\n2 tree\n"))
    assert found.values == (1, 2)
    # Numbers that are not consecutive, and names of digits only, are part of the names.
    for text in ("2 wheeler\n4 wheels\n", "10\n20\n"):
        assert read_class_list(written(tmp_path, text)).values == (0, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sky,tree\n", "'sky,tree': expected one name per line"),
        ("['sky', 'tree']\n", "expected one name per line"),
        ("names:\n  0: sky\n", "'names:': expected one name per line"),
        ('{"0": "sky"}\n', "expected one name per line"),
        ("- sky\n- tree\n", "expected one name per line"),
        ("0 0 0 sky\n255 0 0 tree\n", "colour table: rename the file to colours.txt"),
        ("0: sky\n0: tree\n", "'0' is on lines 1 and 2"),
        ("0: sky\n1: sky\n", "'sky' is on lines 1 and 2"),
        ("3: sky\n", "'sky' is the only class: name the other values"),
        ("unlabeled\ncrack\n", "'crack' is the only class, because 'unlabeled' means no class"),
    ],
)
def test_other_files_are_rejected_as_class_lists(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        read_class_list(written(tmp_path, text))
    assert "\n" not in str(caught.value)


VOID_NAMES = ("void", "Ignore", "ignored", "Unlabeled", "unlabelled", "__IGNORE__")


@pytest.mark.parametrize("name", VOID_NAMES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_void_names(tmp_path: Path, name: str, place: int) -> None:
    names = ["sky", "tree"]
    names.insert(place, name)
    path = written(tmp_path, "\n".join(names), "classes.txt")
    found, own = read_class_list(path), find_own_classes(tmp_path)
    assert own is not None
    assert found.taxonomy.names == own.taxonomy.names == ("sky", "tree")
    labelmes = name == "__IGNORE__"
    if labelmes and place == 0:  # its value is -1
        assert (found.values, found.void) == ((0, 1), ())
    else:
        assert found.void == (place,)
    meant = dict.fromkeys(found.void, VOID) | {value: i for i, value in enumerate(found.values)}
    assert own.values[: len(meant)].tolist() == [meant[value] for value in range(len(meant))]
    for notes in (found.notes, own.notes):
        assert bool(notes) != labelmes
        assert all(note.startswith(f"{path}: '{name}' means no class") for note in notes)


@pytest.mark.parametrize("name", VOID_NAMES)
def test_void_colours(tmp_path: Path, name: str) -> None:
    table = read_colour_table(written(tmp_path, f"0 0 0 {name}\n1 1 1 sky\n2 2 2 tree\n"))
    assert table.taxonomy.names == ("sky", "tree")
    colours = np.array([[[0, 0, 0], [2, 2, 2]]], np.uint8)
    np.testing.assert_array_equal(table.classes_of(colours, "a.png"), [[VOID, 1]])
    assert bool(table.notes) == (name != "__IGNORE__")


@pytest.mark.parametrize("name", VOID_NAMES)
def test_void_polygons(name: str) -> None:
    taxonomy, ids, background = with_background(["sky", name, "Background"], "list")
    assert taxonomy.names == ("sky", "Background")
    assert ids == {"sky": 0, name: VOID, "Background": 1}
    assert background == 1


def lists_of(root: Path, texts: dict[str, str]) -> dict[str, list[str]]:
    for name, text in texts.items():
        written(root, text, name)
    return read_part_lists(root, {"a": "a", "b": "b", "c": "c"}, "picture")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "Valid", "TEST"), ("training", "dev", "test-dev")],
)
def test_split_lists(tmp_path: Path, train: str, val: str, test: str) -> None:
    texts = {f"{train}.txt": "a\n", f"{val}.txt": "b\n", f"{test}.txt": "c\n", "notes.txt": "x"}
    assert lists_of(tmp_path, texts) == {"train": ["a"], "val": ["b"], "test": ["c"]}


def test_invalid_split_lists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"valid\.txt: there is no train\.txt"):
        lists_of(tmp_path, {"valid.txt": "a\n"})
    with pytest.raises(DataError, match=r"valid\.txt: val\.txt is also a list of the val split"):
        lists_of(tmp_path, {"train.txt": "b\n", "val.txt": "a\n"})


def test_class_list_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match="not a UTF-8"):
        read_classes(tmp_path / "classes.txt")


def test_colour_table_of_camvid(tmp_path: Path) -> None:
    text = "64 128 64\tAnimal\r\n# comment\r\n\r\n0 0 0\t\tVoid\r\n192 0 128\t\tArchway\r\n"
    table = read_colour_table(written(tmp_path, text))
    assert table.taxonomy.names == ("Animal", "Archway")
    assert table.taxonomy.palette == ((64, 128, 64), (192, 0, 128))
    colours = np.array([[[192, 0, 128], [0, 0, 0], [64, 128, 64]]], np.uint8)
    np.testing.assert_array_equal(table.classes_of(colours, "a.png"), [[1, VOID, 0]])


def test_one_colour_implies_background(tmp_path: Path) -> None:
    table = read_colour_table(written(tmp_path, "255 0 0 crack\n9 9 9 void\n"))
    assert table.taxonomy.names == ("background", "crack")
    assert table.taxonomy.palette == ((0, 0, 0), (255, 0, 0))
    colours = np.array([[[255, 0, 0], [0, 0, 0], [9, 9, 9]]], np.uint8)
    np.testing.assert_array_equal(table.classes_of(colours, "a.png"), [[1, 0, VOID]])


@pytest.mark.parametrize("text", ["0 0 0 crack", "255 0 0 crack\n0 0 0 void", "9 9 9 void"])
def test_one_colour_if_black_is_used(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"[01] class names: expected 2"):
        read_colour_table(written(tmp_path, text))


def test_every_colour_is_distinguished(tmp_path: Path) -> None:
    names = [f"{i} {255 - i} {i * 7 % 256} c{i}" for i in range(256)]
    table = read_colour_table(written(tmp_path, "\n".join(names)))
    ids = np.random.default_rng(0).integers(0, 256, (30, 40))
    colours = np.array(table.taxonomy.palette, np.uint8)[ids]
    np.testing.assert_array_equal(table.classes_of(colours, "a.png"), ids)
    assert table.classes_of(colours[:0], "a.png").shape == (0, 40)
    for channel in range(3):
        near = colours[:1, :1].copy()
        near[..., channel] ^= 1
        with pytest.raises(DataError, match="on 1 pixels: not in"):
            table.classes_of(near, "a.png")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3 a\n1 2 4 b\n1 2 3 c\n", "'1 2 3' is on lines 1 and 3"),
        ("1 2 3 a\n1 2 4 b\n1 2 5 a\n", "'a' is on lines 1 and 3"),
        ("1 2 3 a\n1 2 3 void\n", "'1 2 3' is on lines 1 and 2"),
        ("1 2 256 a\n", "line 1: '1 2 256 a': expected `R G B name`"),
        ("1 2 -3 a\n", "line 1"),
        ("1 2 3\n", "line 1"),
        ("\n1 2 3,\n", "line 2"),
        ("cat 1 2 3\n", "line 1"),
        ("1 2 3 a\n0 0 0 void\n", "1 class names"),
    ],
)
def test_invalid_colour_tables(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_colour_table(written(tmp_path, text))
    assert "\n" not in str(caught.value)
