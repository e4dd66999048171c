from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ccfnet_tf.errors import ResourceError
from ccfnet_tf.inference import writers
from ccfnet_tf.inference.keras_network import Heads
from ccfnet_tf.inference.segmenter_protocol import MAPS, MapName, Prediction
from ccfnet_tf.inference.writers import (
    ENDINGS,
    KINDS,
    colour_image,
    label_image,
    map_image,
    output_paths,
    overlay_image,
    with_legend,
    with_scale,
    write_prediction,
)
from ccfnet_tf.labels import VOID, Taxonomy, distinct_colours
from ccfnet_tf.report.training_previews import preview_sheet
from tests.inference.conftest import TAXONOMY

LABELS = np.array([[0, 0, 1], [0, 2, 1]], np.int32)
IMAGE = np.full((2, 3, 3), 100, np.uint8)


def prediction_of(difficulty: np.ndarray) -> Prediction:
    other = difficulty.astype(np.float32) / 2
    probabilities = np.zeros((*difficulty.shape, 3), np.float32)
    return Prediction(LABELS, other, difficulty, 1 - other, probabilities)


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return picture[..., ::-1] if picture.ndim == 3 else picture


def test_writes_four_files_that_say_the_same(tmp_path: Path) -> None:
    difficulty = np.array([[0, 0.5, 1], [0, 0, 0]], np.float32)
    prediction = prediction_of(difficulty)
    write_prediction(prediction, IMAGE, tmp_path, "sub/a.b", TAXONOMY)

    paths = output_paths(tmp_path, "sub/a.b")
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == sorted(
        path.name for path in paths
    )
    label, color, overlay, hard = map(read, paths)
    assert paths[0].name == "a.b.label.png"
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, LABELS)
    np.testing.assert_array_equal(color, np.array(TAXONOMY.palette)[LABELS])
    np.testing.assert_array_equal(overlay[:2, :3], overlay_image(LABELS, IMAGE, TAXONOMY))
    np.testing.assert_array_equal(hard[:2, :3], map_image(difficulty))


def test_a_legend_names_the_classes_that_are_there_below_the_picture() -> None:
    image = np.full((50, 300, 3), 100, np.uint8)
    seen = np.zeros((50, 300), np.int32)
    seen[:, 100:] = 2
    bare = overlay_image(seen, image, TAXONOMY)
    named = with_legend(bare, [0, 2], TAXONOMY)
    np.testing.assert_array_equal(named[:50], bare)
    below = {tuple(row) for row in named[50:].reshape(-1, 3).tolist()}
    assert {TAXONOMY.palette[0], TAXONOMY.palette[2]} <= below
    assert TAXONOMY.palette[1] not in below

    scaled = with_scale(map_image(np.zeros((50, 300), np.float32)))
    below = {tuple(row) for row in scaled[50:].reshape(-1, 3).tolist()}
    assert {tuple(map_image(np.full((1, 1), p))[0, 0]) for p in (0.0, 1.0)} <= below


@pytest.mark.parametrize("legends", [True, False])
def test_without_legends_every_file_has_the_picture_s_size(tmp_path: Path, legends: bool) -> None:
    prediction = prediction_of(np.zeros((2, 3)))
    kinds = (*KINDS, "difficulty_grey", "risk", "attention")
    paths = write_prediction(
        prediction, IMAGE, tmp_path, "a", TAXONOMY, kinds=kinds, legends=legends
    )
    sizes = {read(path).shape[:2] for path in paths}
    assert (sizes == {(2, 3)}) is not legends


@pytest.mark.parametrize("name", MAPS)
def test_a_map_in_colour_as_grey_and_as_float(tmp_path: Path, name: MapName) -> None:
    prediction = prediction_of(np.array([[0, 0.5, 1], [0.123456, 0, 0.25]], np.float32))
    expected = getattr(prediction, name)
    kinds = [kind for kind in ENDINGS if kind.startswith(name)]
    assert kinds == [name, f"{name}_grey", f"{name}_npy", f"{name}_tiff"]
    colour, grey, array, tiff = paths = write_prediction(
        prediction, IMAGE, tmp_path, "a", TAXONOMY, kinds=kinds, legends=False
    )
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # and nothing else
    np.testing.assert_array_equal(read(colour), map_image(expected))
    assert read(grey).dtype == np.uint8
    np.testing.assert_array_equal(read(grey), np.rint(expected * 255))
    for values in (np.load(array), read(tiff)):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(("side", "wide"), [(300, 1), (1000, 2), (4000, 8)])
def test_lines_between_classes_grow_with_the_picture(side: int, wide: int) -> None:
    labels = np.zeros((4, side), np.int32)
    labels[:, side // 2 :] = 1
    image = np.zeros((4, side, 3), np.uint8)
    flat = overlay_image(np.zeros_like(labels), image, TAXONOMY)[0, 0]
    other = overlay_image(np.ones_like(labels), image, TAXONOMY)[0, 0]
    row = overlay_image(labels, image, TAXONOMY)[2]
    assert sum(tuple(p) not in (tuple(flat), tuple(other)) for p in row) == wide


def test_a_failure_leaves_none_of_the_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = writers._write

    def write(path: Path, *args: Any) -> None:
        if path.name.endswith(".overlay.png"):
            raise ResourceError("disk full")
        real(path, *args)

    monkeypatch.setattr(writers, "_write", write)
    prediction = prediction_of(np.zeros((2, 3)))
    (tmp_path / "b.label.png").touch()  # another image's
    with pytest.raises(ResourceError):
        write_prediction(prediction, IMAGE, tmp_path, "a", TAXONOMY)
    assert [path.name for path in tmp_path.iterdir()] == ["b.label.png"]


def test_labels_above_255_keep_their_value() -> None:
    labels = np.array([[0, 255, 256, 299]], np.int32)
    assert label_image(labels, classes=256).dtype == np.uint8
    picture = label_image(labels, classes=300)
    assert picture.dtype == np.uint16
    np.testing.assert_array_equal(picture, labels)


def test_void_is_black() -> None:
    np.testing.assert_array_equal(colour_image(np.array([[VOID]]), TAXONOMY)[0, 0], 0)


def test_overlay_is_60_to_40_with_lines_where_classes_meet() -> None:
    overlay = overlay_image(np.zeros((2, 3), np.int32), IMAGE, TAXONOMY)
    expected = 0.6 * 100 + 0.4 * np.array(TAXONOMY.palette[0])
    np.testing.assert_allclose(overlay[0, 0], expected, atol=1)
    edged = overlay_image(LABELS, IMAGE, TAXONOMY)
    assert edged[0, 1].min() > overlay[0, 1].min() + 20  # beside class 1: lighter
    np.testing.assert_array_equal(edged[0, 0], overlay[0, 0])  # amid class 0: as before


def test_difficulty_grows_brighter() -> None:
    ramp = np.linspace(0, 1, 50, dtype=np.float32)[None]
    grey = cv2.cvtColor(map_image(ramp), cv2.COLOR_RGB2GRAY)[0].astype(int)
    assert grey[0] < 10
    assert grey[-1] > 230
    assert (np.diff(grey) >= 0).all()
    np.testing.assert_array_equal(
        map_image(np.array([[-1.0, 2.0]])), map_image(np.array([[0.0, 1.0]]))
    )


def heads(labels: np.ndarray) -> Heads:
    zero = np.zeros(labels.shape, np.float32)
    return Heads(labels, labels, labels, zero, zero + 1, zero)


def test_preview_shows_the_six_columns() -> None:
    label = np.full((60, 80), 1, np.int32)
    image = np.full((60, 80, 3), 77, np.uint8)
    strip = preview_sheet([(image, label, heads(label * 2))], TAXONOMY)
    assert strip.dtype == np.uint8
    middle = strip[38 + 90]
    centres = [14 + 120 + column * 248 for column in range(6)]
    assert [tuple(middle[x]) for x in centres] == [
        (77, 77, 77),
        TAXONOMY.palette[1],
        TAXONOMY.palette[2],
        tuple(map_image(np.zeros((1, 1)))[0, 0]),
        tuple(map_image(np.ones((1, 1)))[0, 0]),
        TAXONOMY.palette[2],
    ]


def test_preview_of_many_sizes_and_classes() -> None:
    names = tuple(f"a class with a long name {index}" for index in range(150))
    taxonomy = Taxonomy(names, distinct_colours(150))
    rng = np.random.default_rng(0)
    rows = []
    for size in ((50, 70), (300, 200), (1, 1)):
        label = rng.integers(VOID, 150, size=size).astype(np.int32)
        rows.append((np.zeros((*size, 3), np.uint8), label, heads(np.maximum(label, 0))))
    sheet = preview_sheet(rows, taxonomy)
    assert sheet.shape[1] == preview_sheet(rows[:1], taxonomy).shape[1]
    assert (sheet[:, -14:] == 255).all()  # no legend entry runs over the margin
    assert (sheet[-10:] == 255).all()
