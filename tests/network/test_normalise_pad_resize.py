from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.errors import DataError
from ccfnet_tf.inference.segmenter_protocol import at_least
from ccfnet_tf.network.normalise_pad_resize import (
    Enlarge,
    HalfSize,
    Normalise,
    PadToGrid,
    ResizeLike,
    ToImage,
    at_least_minimum,
)


@pytest.mark.parametrize(
    ("side", "padded"), [(32, 33), (33, 33), (34, 41), (40, 41), (41, 41), (241, 241), (240, 241)]
)
def test_pads_to_the_next_8n_plus_1_at_the_bottom_and_right(side: int, padded: int) -> None:
    images = np.ones((2, side, 47, 3), np.float32)
    result = PadToGrid()(images).numpy()
    assert result.shape == (2, padded, 49, 3)
    np.testing.assert_array_equal(result[:, :side, :47], images)
    assert result.sum() == images.sum()


def test_padding_works_where_sizes_are_known_at_run_time_only() -> None:
    layer = PadToGrid()
    pad = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 3])])
    assert pad(np.zeros((1, 50, 57, 3), np.float32)).shape == (1, 57, 57, 3)
    assert layer.compute_output_shape((None, None, 50, 3)) == (None, None, 57, 3)


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_refuses_small_images_in_one_line(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=f"{size[0]} x {size[1]} pixels.*at least 32") as caught:
        PadToGrid()(np.zeros((1, *size, 3), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 5), (31, 32), (50, 17), (32, 32), (40, 33)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_small_images_are_mirrored_in_the_graph_as_in_numpy(
    size: tuple[int, int], kind: type
) -> None:
    images = np.random.default_rng(2).integers(0, 256, (2, *size, 3)).astype(kind)
    mirrored = tf.function(at_least_minimum, autograph=False)(tf.constant(images)).numpy()
    np.testing.assert_array_equal(mirrored, [at_least(image) for image in images])
    assert mirrored.dtype == kind


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_normalisation_equals_that_of_the_keras_applications(kind: type) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(kind)
    plain = images.astype(np.float32)
    resnet = keras.applications.resnet50.preprocess_input(plain.copy())
    mobilenet = keras.applications.mobilenet_v2.preprocess_input(plain.copy())
    np.testing.assert_allclose(Normalise("caffe")(images), resnet, atol=1e-5)
    np.testing.assert_allclose(Normalise("symmetric")(images), mobilenet, atol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_normalisation_of_efficientnet_lite_is_exact(kind: type) -> None:
    images = np.arange(256 * 3).reshape(1, 16, 16, 3) % 256
    expected = (images.astype(np.float64) - 127.0) / 128.0  # MEAN_RGB and STDDEV_RGB of TensorFlow
    np.testing.assert_array_equal(Normalise("lite")(images.astype(kind)), expected)


@pytest.mark.parametrize(("stride", "size"), [(8, (41, 33)), (8, (36, 30)), (4, (21, 17))])
def test_feature_k_lands_on_pixel_stride_k(stride: int, size: tuple[int, int]) -> None:
    rows, columns = (-(-(side - 1) // stride) + 1 for side in size)
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * stride
    logits = np.stack([y, x], -1)[None]  # each feature says where it sits
    result = ToImage(stride)([logits, np.zeros((1, *size, 3), np.float32)]).numpy()[0]
    expected = np.stack(np.mgrid[: size[0], : size[1]], -1)
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("side", [32, 33, 34, 48, 49, 50])
def test_pads_to_the_next_16n_plus_1_where_the_image_is_read_at_half_size(side: int) -> None:
    padded = PadToGrid(16)(np.ones((1, side, 33, 3), np.float32))
    expected = next(n for n in range(side, side + 16) if n % 16 == 1)
    assert padded.shape == (1, expected, 33, 3)
    assert PadToGrid(16).compute_output_shape((1, side, 33, 3)) == padded.shape
    assert float(tf.reduce_sum(padded)) == side * 33 * 3


def test_pixel_k_of_half_the_size_is_centred_on_pixel_2k() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 9, 13, 3)).astype(np.float32)
    found = HalfSize()(images).numpy()
    assert found.shape == HalfSize().compute_output_shape(images.shape) == (2, 5, 7, 3)
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    for row, column in np.ndindex(5, 7):
        window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        weights = np.outer([1, 2, 1], [1, 2, 1])[None, ..., None] / 16
        np.testing.assert_allclose(found[:, row, column], (window * weights).sum((1, 2)), atol=1e-5)


def test_half_the_size_shows_no_pattern_of_single_pixels() -> None:
    """Stripes that half the pixels cannot show become grey instead of false, wide stripes."""
    stripes = np.where(np.arange(33) % 2, 1.0, -1.0).astype(np.float32)
    images = np.broadcast_to(stripes[None, :, None, None], (1, 33, 33, 3))
    np.testing.assert_allclose(HalfSize()(images)[:, 1:-1, 1:-1], 0.0, atol=1e-6)


def test_pixel_3k_of_the_enlarged_image_is_pixel_2k() -> None:
    y, x = np.mgrid[:9, :13].astype(np.float32)
    images = np.stack([y, x], -1)[None]
    found = Enlarge()(images).numpy()
    assert found.shape == Enlarge().compute_output_shape(images.shape) == (1, 13, 19, 2)
    np.testing.assert_allclose(found[0], np.stack(np.mgrid[:13, :19], -1) * 2 / 3, atol=1e-5)
    assert Enlarge().compute_output_shape((None, None, 9, 3)) == (None, None, 13, 3)


def test_stride_8_is_aligned_with_stride_4() -> None:
    y, x = np.mgrid[:5, :7].astype(np.float32) * 2
    like = np.zeros((1, 9, 13, 4), np.float32)
    result = ResizeLike()([np.stack([y, x], -1)[None], like]).numpy()[0]
    np.testing.assert_allclose(result, np.stack(np.mgrid[:9, :13], -1), atol=1e-5)


def test_resize_like_returns_its_compute_dtype() -> None:
    small, like = np.ones((1, 2, 2, 3), np.float32), np.ones((1, 4, 4, 1), np.float32)
    assert ResizeLike(dtype="mixed_bfloat16")([small, like]).dtype == tf.bfloat16
