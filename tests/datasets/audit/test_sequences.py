from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.datasets.audit.sequences import (
    BY_FOLDER,
    BY_PREFIX,
    Frame,
    frame_of,
    groups_of,
    hint,
    near_copies,
    sequences,
    thumbnail,
)
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import Sample

ROOT = Path("/set")


def named(*names: str) -> list[Sample]:
    return [Sample(name, f"/set/images/{name}.png", "") for name in names]


CAMVID = named(
    *(f"train/0001TP_{i:06d}" for i in (0, 30, 60)),
    *(f"test/0001TP_{i:06d}" for i in (90, 120)),
    *(f"val/Seq05VD_f{i:05d}" for i in (30, 60, 90)),
)


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("train/0001TP_006690", Frame("0001TP_*", 6690)),
        ("a/film/0007", Frame("a/film/*", 7)),
        ("seq3_frame12_left", Frame("seq3_frame*_left", 12)),
        ("portrait", None),
    ],
)
def test_frame_of(name: str, frame: Frame | None) -> None:
    assert frame_of(name) == frame


def test_sequences_span_splits_and_are_sorted_by_number() -> None:
    assert sequences(CAMVID) == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert sequences(named("f10", "f9", "f2", "g1", "g2")) == [[2, 1, 0]]


def film(seed: int, frames: int) -> list[np.ndarray]:
    """Returns images of a scene, shifted by one pixel of 160 per frame."""
    rng = np.random.default_rng(seed)
    scene = rng.integers(0, 256, (12, 24 + frames, 3)).astype(np.uint8)
    large = np.kron(scene, np.ones((10, 10, 1), np.uint8))
    return [large[:, i : i + 160] for i in range(frames)]


def test_similar_frames_are_joined() -> None:
    samples = named(*(f"a_{i}" for i in range(6)), *(f"b_{i}" for i in range(6)))
    pictures = film(0, 6) + film(1, 6)
    keys = near_copies(samples, np.array([thumbnail(p) for p in pictures]))
    assert keys == [0] * 6 + [6] * 6


def test_different_images_with_numbers_are_not_joined() -> None:
    samples = named(*(f"a_{i}" for i in range(8)))
    pictures = [film(seed, 1)[0] for seed in range(8)]
    keys = near_copies(samples, np.array([thumbnail(p) for p in pictures]))
    assert keys == list(range(8))


def test_images_of_other_names_are_not_compared() -> None:
    same = film(0, 1) * 3
    keys = near_copies(named("x", "y", "z"), np.array([thumbnail(p) for p in same]))
    assert keys == [0, 1, 2]


def test_hint() -> None:
    assert "2 sequences, such as the 5 images like 'train/0001TP_000000'" in hint(CAMVID)
    assert f"--group-by '{BY_PREFIX}'" in hint(CAMVID)
    assert groups_of(BY_PREFIX, CAMVID, ROOT) == ["0001TP_"] * 5 + ["Seq05VD_f"] * 3
    folders = named(*(f"film{f}/{i:04d}" for f in "ab" for i in range(4)))
    assert f"--group-by '{BY_FOLDER}'" in hint(folders)
    assert len(set(groups_of(BY_FOLDER, folders, ROOT))) == 2
    assert hint(named(*(f"img{i}" for i in range(50)))) == ""  # a single sequence is no evidence
    assert hint(named("cat", "dog", "cow")) == ""


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        (r"/(\w\w)_", ["aa", "ab", "ba"]),
        (r"/(\w)(\w)_", ["a\ta", "a\tb", "b\ta"]),
        (r"/[ab]", ["/a", "/a", "/b"]),
        (r"\.png$", [".png"] * 3),
        (r"^images/(.)", ["a", "a", "b"]),
    ],
)
def test_groups_by_an_expression(by: str, groups: list[str]) -> None:
    assert groups_of(by, named("aa_1", "ab_1", "ba_1"), ROOT) == groups


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("(", "not a valid regular expression"),
        ("(a+)_", r"does not match 'images/b_1.png' and 1 more of 3 paths"),
        ("none.csv", "none.csv: no such file"),
    ],
)
def test_invalid_expressions(by: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        groups_of(by, named("a_1", "b_1", "c_1"), ROOT)


@pytest.mark.parametrize(
    "text",
    [
        "a/x,1\na/y,1\nb/x,2\n",
        "\ufeffname,film\r\na/x,1\r\nimages/a/y.png,1\r\nb/x,2\r\n",
        "File;Film\na/x.png;1\ny;1\nb/x;2\n",
        '"a/x"\t1\na/y\t1\nb/x\t2\n\n',
    ],
)
def test_groups_by_a_table(tmp_path: Path, text: str) -> None:
    table = tmp_path / "films.csv"
    table.write_text(text)
    assert groups_of(str(table), named("a/x", "a/y", "b/x"), ROOT) == ["1", "1", "2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/x,1\na/y,1\n", "'b/x' is not listed"),
        ("a/x,1\na/z,1\nb/x,2\n", "line 2: 'a/z' is not an image of the set; did you mean"),
        ("a/x,1\nx,2\n", "line 2: 'x' is not an image"),  # ambiguous
        ("a/x\n", "line 1: expected an image and its group"),
        ("a/x,1\na/x,2\n", "line 2: 'a/x' is already in group '1'"),
    ],
)
def test_invalid_tables(tmp_path: Path, text: str, words: str) -> None:
    table = tmp_path / "films.csv"
    table.write_text(text)
    with pytest.raises(ConfigError, match=words):
        groups_of(str(table), named("a/x", "a/y", "b/x"), ROOT)
