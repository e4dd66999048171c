from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.datasets.name_lists import (
    read_class_list,
    read_classes,
    read_colour_table,
    read_names,
)
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID


def written(root: Path, text: str, name: str = "list.txt") -> Path:
    (root / name).write_bytes(text.encode())
    return root / name


def test_names_with_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffa b\r\n\r\n # not this\r\n\tc#1  \r\n\r\n")
    assert read_names(path) == [(1, "a b"), (4, "c#1")]
    assert read_names(written(tmp_path, "")) == []


def test_names_that_are_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_names(tmp_path / "none.txt")
    with pytest.raises(DataError, match="not a UTF-8"):
        read_names(tmp_path)
    (tmp_path / "list.txt").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match="not a UTF-8"):
        read_names(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 class names"),
        ("__ignore__\n", "0 class names"),
        ("_background_\n", "'_background_' alone: name what is to be told"),
        ("\n".join(map(str, range(65_001))), "65001 class names"),
        ("a\nb\na\n", "'a' is on line 1 and 3"),
        ("a\n\nb\n", "line 2 is blank"),
    ],
)
def test_class_list_that_does_not_fit(tmp_path: Path, text: str, words: str) -> None:
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
def test_labelmes_ignore_is_never_a_class(
    tmp_path: Path, text: str, values: tuple[int, ...], void: tuple[int, ...]
) -> None:
    found = read_class_list(written(tmp_path, text))
    assert found.taxonomy.names == ("_background_", "cat")
    assert (found.values, found.void) == (values, void)


def test_class_list_that_is_not_text(tmp_path: Path) -> None:
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


def test_one_colour_is_told_from_background(tmp_path: Path) -> None:
    table = read_colour_table(written(tmp_path, "255 0 0 crack\n9 9 9 void\n"))
    assert table.taxonomy.names == ("background", "crack")
    assert table.taxonomy.palette == ((0, 0, 0), (255, 0, 0))
    colours = np.array([[[255, 0, 0], [0, 0, 0], [9, 9, 9]]], np.uint8)
    np.testing.assert_array_equal(table.classes_of(colours, "a.png"), [[1, 0, VOID]])


@pytest.mark.parametrize("text", ["0 0 0 crack", "255 0 0 crack\n0 0 0 void", "9 9 9 void"])
def test_one_colour_where_black_is_taken(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"[01] class names: expected 2"):
        read_colour_table(written(tmp_path, text))


def test_every_colour_is_told_apart(tmp_path: Path) -> None:
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
        ("1 2 3 a\n1 2 4 b\n1 2 3 c\n", "'1 2 3' is on line 1 and 3"),
        ("1 2 3 a\n1 2 4 b\n1 2 5 a\n", "'a' is on line 1 and 3"),
        ("1 2 3 a\n1 2 3 void\n", "'1 2 3' is on line 1 and 2"),
        ("1 2 256 a\n", "line 1: '1 2 256 a': expected `R G B name`"),
        ("1 2 -3 a\n", "line 1"),
        ("1 2 3\n", "line 1"),
        ("\n1 2 3,\n", "line 2"),
        ("cat 1 2 3\n", "line 1"),
        ("1 2 3 a\n0 0 0 void\n", "1 class names"),
    ],
)
def test_colour_table_that_does_not_fit(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_colour_table(written(tmp_path, text))
    assert "\n" not in str(caught.value)
