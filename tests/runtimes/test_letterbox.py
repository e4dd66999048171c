"""Images of any size in a network of one size, and back."""

from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.runtimes.letterbox import fit, unfit, unfit_labels

SIZE = (40, 60)


def ramp(height: int, width: int) -> np.ndarray:
    """An image whose channels are its own row, column and 7."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)], -1).astype(np.uint8)


def test_the_networks_own_size_is_left_alone() -> None:
    picture = ramp(*SIZE)
    fitted = fit(picture, SIZE)
    np.testing.assert_array_equal(fitted.image, picture)
    np.testing.assert_array_equal(unfit(picture[..., 0], fitted), picture[..., 0])


@pytest.mark.parametrize("size", [(1, 1), (39, 12), (40, 61), (200, 90), (80, 120), (1000, 3)])
def test_answers_come_back_on_their_pixels(size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 9, np.uint8)
    fitted = fit(picture, SIZE)
    assert fitted.image.shape == (*SIZE, 3)
    assert (fitted.image == 9).all()
    assert unfit(np.zeros((*SIZE, 5), np.float32), fitted).shape == (*size, 5)
    assert unfit(np.zeros((*SIZE, 1), np.float32), fitted).shape == (*size, 1)
    assert unfit_labels(np.zeros(SIZE, np.uint8), fitted).shape == size


def test_a_small_picture_is_mirrored_and_cropped() -> None:
    picture = ramp(30, 60)
    fitted = fit(picture, SIZE)
    np.testing.assert_array_equal(fitted.image[30:40], picture[:19:-1])
    np.testing.assert_array_equal(unfit(fitted.image[..., 0], fitted), picture[..., 0])


def test_a_large_picture_keeps_its_place() -> None:
    fitted = fit(ramp(80, 120), SIZE)
    back = unfit(fitted.image[..., :2].astype(np.float32), fitted)
    np.testing.assert_allclose(back, ramp(80, 120)[..., :2], atol=1.5)


@pytest.mark.parametrize("classes", [64, 65, 150, 600])
def test_many_classes_are_enlarged_one_as_the_other(classes: int) -> None:
    fitted = fit(np.zeros((90, 130, 3), np.uint8), SIZE)
    values = np.random.default_rng(0).random((*SIZE, classes)).astype(np.float32)
    whole = unfit(values, fitted)
    assert (whole.shape, whole.dtype) == ((90, 130, classes), np.float32)
    for index in (0, 63, classes - 1):
        np.testing.assert_allclose(whole[..., index], unfit(values[..., index], fitted), atol=1e-5)
