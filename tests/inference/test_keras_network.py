from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ccfnet_tf.errors import DataError, ResourceError
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.network.calibration_parameters import Calibration
from tests.inference.conftest import write_picture


def test_equals_the_model_itself(model: Any, predictor: KerasNetwork, picture: np.ndarray) -> None:
    forward = tf.function(lambda images: model(images, training=False), autograph=False)
    outputs = {name: part[0].numpy() for name, part in forward(picture[None] * 1.0).items()}
    refine = np.exp(outputs["refine"])
    attention = np.exp(outputs["attention"].astype(np.float64))
    assert len(np.unique(refine)) > 100  # one answer everywhere would prove nothing

    ours = predictor.predict(picture)
    np.testing.assert_array_equal(ours.labels, refine.argmax(-1))
    np.testing.assert_allclose(ours.probabilities, refine, atol=1e-5)
    hard = attention[..., 0] / attention.sum(-1)
    coarse = outputs["coarse"].argmax(-1)
    assert (coarse != ours.labels).any()  # or difficulty and risk are the same
    maps = {
        "attention": hard,
        "difficulty": 1 - np.take_along_axis(refine, coarse[..., None], -1)[..., 0],
        "risk": 1 - refine.max(-1),
    }
    for name, expected in maps.items():
        np.testing.assert_allclose(getattr(ours, name), expected, atol=1e-5)

    heads = predictor.predict_all_heads(picture)
    np.testing.assert_array_equal(heads.coarse, coarse)
    np.testing.assert_array_equal(heads.refine, ours.labels)
    for name in maps:
        np.testing.assert_allclose(getattr(heads, name), getattr(ours, name), atol=1e-6)
    assert heads.fine.shape == picture.shape[:2]


def test_shapes_types_and_ranges(predictor: KerasNetwork, picture: np.ndarray) -> None:
    for image in (picture, picture[:33, :47]):
        labels, *maps, probabilities = predictor.predict(image)
        assert (labels.shape, labels.dtype) == (image.shape[:2], np.int32)
        for each in maps:
            assert (each.shape, each.dtype) == (image.shape[:2], np.float32)
            assert 0 <= each.min() <= each.max() <= 1
        assert (probabilities.shape, probabilities.dtype) == ((*image.shape[:2], 3), np.float32)
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(labels, probabilities.argmax(-1))


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (31, 32), (200, 3)])
def test_tiny_pictures_keep_their_size(predictor: KerasNetwork, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, size=(*size, 3)).astype(np.uint8)
    answer = predictor.predict(image)
    assert answer.labels.shape == size
    assert answer.probabilities.shape == (*size, 3)
    assert np.isfinite(answer.probabilities).all()


def test_tiny_pictures_are_mirrored(predictor: KerasNetwork, picture: np.ndarray) -> None:
    small = picture[:20, :40]
    mirrored = np.concatenate([small, small[:-13:-1]])
    expected = predictor.predict(mirrored).probabilities[:20]
    np.testing.assert_array_equal(predictor.predict(small).probabilities, expected)


def test_a_path_equals_its_array(
    predictor: KerasNetwork, picture: np.ndarray, tmp_path: Path
) -> None:
    path = write_picture(tmp_path / "a.png", picture)
    for form in (path, str(path)):
        answer = predictor.predict(form)
        np.testing.assert_array_equal(answer.labels, predictor.predict(picture).labels)


def test_a_view_equals_its_copy(predictor: KerasNetwork, picture: np.ndarray) -> None:
    view = picture[:, ::-1]
    np.testing.assert_array_equal(
        predictor.predict(view).labels, predictor.predict(view.copy()).labels
    )


def test_grey_and_alpha_files(predictor: KerasNetwork, picture: np.ndarray, tmp_path: Path) -> None:
    grey = picture[..., 0]
    as_rgb = predictor.predict(np.repeat(grey[..., None], 3, axis=2)).labels
    np.testing.assert_array_equal(
        predictor.predict(write_picture(tmp_path / "grey.png", grey)).labels, as_rgb
    )
    opaque = np.dstack([picture, np.full(grey.shape, 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(
        predictor.predict(tmp_path / "alpha.png").labels, predictor.predict(picture).labels
    )
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(predictor.predict(tmp_path / "deep.png").labels, as_rgb)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_picture(predictor: KerasNetwork, array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \[H, W, 3\]"):
        predictor.predict(array)


def test_a_file_that_is_no_picture(predictor: KerasNetwork, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("hello")
    with pytest.raises(DataError, match=r"a\.png"):
        predictor.predict(path)


@pytest.mark.parametrize(
    "error", [tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), MemoryError()]
)
def test_memory_that_runs_out_names_the_picture(
    predictor: KerasNetwork, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(_: object) -> None:
        raise error

    monkeypatch.setattr(predictor, "_predict", full)
    with pytest.raises(ResourceError, match="image of 64x48 pixels: make it smaller"):
        predictor.predict(picture)


def test_a_bare_network_has_numbered_classes(model: Any) -> None:
    assert KerasNetwork(model).taxonomy.names == ("class 0", "class 1", "class 2")


def test_a_prediction_follows_from_the_outputs_of_the_heads(
    predictor: KerasNetwork, picture: np.ndarray
) -> None:
    outputs = predictor.head_outputs(picture)
    for each in (outputs.coarse, outputs.fine, outputs.refine):
        assert each.shape == (*picture.shape[:2], 3)
        np.testing.assert_allclose(np.exp(each).sum(-1), 1, atol=1e-5)
    heads, ours = predictor.predict_all_heads(picture), predictor.predict(picture)
    np.testing.assert_array_equal(outputs.coarse.argmax(-1), heads.coarse)
    np.testing.assert_array_equal(outputs.fine.argmax(-1), heads.fine)
    again = predictor.prediction(outputs)
    np.testing.assert_array_equal(again.labels, ours.labels)
    for one, other in zip(again[1:], ours[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_calibration_changes_probabilities_and_maps_and_no_label(
    model: Any, predictor: KerasNetwork, picture: np.ndarray
) -> None:
    calibration = Calibration((0.3, 2.0, 1.0), (3.0, 0.0, -3.0), 0.5, 1.0)
    heads, plain = predictor.head_outputs(picture), predictor.predict(picture)
    found = KerasNetwork(model, calibration=calibration).prediction(heads)
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert (found.probabilities.argmax(-1) != plain.labels).any()
    for name in ("attention", "difficulty", "risk"):
        assert np.abs(getattr(found, name) - getattr(plain, name)).max() > 0.1
