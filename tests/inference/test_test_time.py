from __future__ import annotations

import cv2
import numpy as np
import pytest

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs, Maps, Prediction
from ccfnet_tf.inference.test_time import (
    Augmentation,
    AugmentedCascade,
    AugmentedNetwork,
    parse_augmentation,
)
from tests.inference.by_brightness import ByBrightness
from tests.inference.local_network import LocalCascade, noise

IMAGE = noise(90, 123)


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [H, W] by the definition: half-pixel centres, edges repeated."""
    for axis, size in enumerate((height, width)):
        there = (np.arange(size) + 0.5) * values.shape[axis] / size - 0.5
        low = np.floor(there).astype(int)
        share = (there - low).reshape([-1, 1] if axis == 0 else [1, -1])
        lower, upper = (np.clip(low + step, 0, values.shape[axis] - 1) for step in (0, 1))
        values = values.take(lower, axis) * (1 - share) + values.take(upper, axis) * share
    return values


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit.astype(np.float64)))


def test_heads_are_the_means_of_the_definition() -> None:
    network, (height, width) = LocalCascade(radius=3), IMAGE.shape[:2]
    sums: dict[str, np.ndarray] = {}
    for scale in (0.75, 1.0, 1.5):
        size = (round(scale * height), round(scale * width))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        seen = cv2.resize(IMAGE, size[::-1], interpolation=how)
        for flip in (False, True):
            outputs = network.head_outputs(seen[:, ::-1].copy() if flip else seen)
            for name, values in outputs._asdict().items():
                chance = sigmoid(values) if name == "attention" else np.exp(values)
                chance = chance[:, ::-1] if flip else chance
                planes = np.atleast_3d(chance)
                resized = [bilinear(planes[..., k], height, width) for k in range(planes.shape[2])]
                sums[name] = sums.get(name, 0) + np.stack(resized, -1)

    augmented = AugmentedCascade(network, Augmentation((0.75, 1.0, 1.5), flip=True))
    found = augmented.head_outputs(IMAGE)
    for name, values in found._asdict().items():
        chance = sigmoid(values) if name == "attention" else np.exp(values)
        assert values.dtype == np.float32
        np.testing.assert_allclose(np.atleast_3d(chance), sums[name] / 6, atol=1e-5, err_msg=name)

    prediction = augmented.predict(IMAGE)
    np.testing.assert_array_equal(prediction.labels, found.refine.argmax(-1))
    np.testing.assert_allclose(prediction.attention, sums["attention"][..., 0] / 6, atol=1e-5)
    for part, expected in zip(prediction, network.prediction(found), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_the_average_is_of_probabilities_and_not_of_logits() -> None:
    class OneSide(LocalCascade):
        """Sure of class 0 at the left, and a little for class 1 at the right."""

        def head_outputs(self, image: np.ndarray, /) -> HeadOutputs:
            chance = np.full((*image.shape[:2], 2), (0.4, 0.6))
            chance[:, : image.shape[1] // 2] = (1 - 1e-30, 1e-30)
            logs = np.log(chance).astype(np.float32)
            return HeadOutputs(logs, logs, logs, np.full(image.shape[:2], -200, np.float32))

    network = AugmentedCascade(OneSide(2), Augmentation(flip=True))
    outputs = network.head_outputs(np.zeros((40, 60, 3), np.uint8))
    np.testing.assert_allclose(np.exp(outputs.refine), np.full((40, 60, 2), (0.7, 0.3)), rtol=1e-6)
    assert all(np.isfinite(each).all() for each in outputs)
    assert outputs.attention.max() < -80  # 1 - p is kept where float32 has no room for it


def test_a_mirrored_image_has_the_mirrored_prediction() -> None:
    network = AugmentedCascade(LocalCascade(radius=2), Augmentation((1.0, 1.25), flip=True))
    found, mirrored = (
        network.head_outputs(each) for each in (IMAGE, np.ascontiguousarray(IMAGE[:, ::-1]))
    )
    for one, other in zip(found, mirrored, strict=True):
        np.testing.assert_allclose(one, other[:, ::-1], atol=2e-4)


def test_one_view_is_the_network_itself() -> None:
    network = LocalCascade(radius=2)
    found = AugmentedCascade(network, Augmentation()).head_outputs(IMAGE)
    for one, other in zip(found, network.head_outputs(IMAGE), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_probabilities_and_maps_of_networks_without_heads_are_averaged() -> None:
    class Shaded(ByBrightness):
        """Has an output at the left alone."""

        def predict(self, image: np.ndarray, /) -> Prediction:
            found = super().predict(image)
            assert isinstance(found, Prediction)
            left = np.arange(image.shape[1]) < image.shape[1] // 2
            chance = np.where(left[:, None], found.probabilities, (0.2, 0.2, 0.6))
            return found._replace(probabilities=chance, difficulty=found.difficulty * left)

    grey = np.full((40, 60, 3), 100, np.uint8)
    found = AugmentedNetwork(Shaded(), Augmentation(flip=True)).predict(grey)
    assert isinstance(found, Prediction)
    np.testing.assert_allclose(found.probabilities, np.full((40, 60, 3), (0.1, 0.6, 0.3)))
    np.testing.assert_allclose(found.difficulty, np.full((40, 60), 50 / 255), rtol=1e-6)
    np.testing.assert_allclose(found.attention, np.full((40, 60), 155 / 255), rtol=1e-6)
    np.testing.assert_allclose(found.risk, np.full((40, 60), 0.4))  # of the averaged label
    assert (found.labels.dtype, set(found.labels.ravel().tolist())) == (np.int32, {1})


def test_views_have_the_scaled_sizes() -> None:
    network = LocalCascade()
    augmentation = Augmentation((0.25, 1.0, 4.0), flip=True)
    AugmentedCascade(network, augmentation).predict(np.zeros((1, 50, 3), np.uint8))
    assert network.seen == [(1, 12)] * 2 + [(1, 50)] * 2 + [(4, 200)] * 2
    assert augmentation.views == 6


def test_more_classes_than_opencv_resizes_at_a_time() -> None:
    network = AugmentedCascade(LocalCascade(classes=300), Augmentation((0.5, 1.0)))
    found = network.predict(IMAGE)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-4)


def test_probabilities_are_requested_of_a_network_that_has_them_on_request() -> None:
    class OnRequest(ByBrightness):
        """Returns probabilities only where they are asked for."""

        def predict(self, image: np.ndarray, /) -> Maps:
            return Maps(*super().predict(image)[:4])

        def predict_with_probabilities(self, image: np.ndarray, /) -> Prediction:
            found = super().predict(image)
            assert isinstance(found, Prediction)
            return found

    augmentation = Augmentation((0.5, 1.0), flip=True)
    found = AugmentedNetwork(OnRequest(), augmentation).predict(IMAGE)
    expected = AugmentedNetwork(ByBrightness(), augmentation).predict(IMAGE)
    assert isinstance(found, Prediction)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_labels_without_probabilities_are_refused() -> None:
    network = AugmentedNetwork(ByBrightness(maps=True), Augmentation(flip=True))
    with pytest.raises(ConfigError, match="export the run again with --outputs prob") as error:
        network.predict(IMAGE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "augmentation"),
    [
        (["flip"], Augmentation(flip=True)),
        (["scales=0.75,1,1.25"], Augmentation((0.75, 1.0, 1.25))),
        (["flip", "scales=1,1.5"], Augmentation((1.0, 1.5), flip=True)),
    ],
)
def test_augmentations(words: list[str], augmentation: Augmentation) -> None:
    assert parse_augmentation(words) == augmentation


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scales=0"], "--tta has scale '0': expected numbers from 0.25 to 4"),
        (["scales=abc"], "--tta has scale 'abc'"),
        (["scales="], "--tta has scale ''"),
        (["scales=1,,2"], "--tta has scale ''"),
        (["scales=nan"], "--tta has scale 'nan'"),
        (["scales=1,5"], "--tta has scale '5'"),
        (["scales=1,1.0"], "--tta has scale '1.0' twice"),
        (["flip", "flip"], "--tta has 'flip'"),
        (["scales=1", "scales=2"], "--tta has 'scales=2'"),
        (["flop"], "--tta has 'flop': expected scales=0.75,1,1.25, flip, or both"),
        (["flip", "a.jpg"], "--tta has 'a.jpg': .*after all inputs"),
    ],
)
def test_words_that_are_none_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_augmentation(words)
    assert "\n" not in str(error.value)
