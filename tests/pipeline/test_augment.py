from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ccfnet_tf.config import DataConfig
from ccfnet_tf.labels import VOID
from ccfnet_tf.pipeline.augment import PADDING, augment


def config(crop: int, low: float = 1.0, high: float | None = None, **more: Any) -> DataConfig:
    return DataConfig(
        crop=crop, scale=(low, high or low), **({"flip": False, "colour": 0.0} | more)
    )


def run(image: Any, label: Any, seed: int, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    picture, mask = augment(
        tf.constant(image), tf.constant(label), tf.constant([3, seed], tf.int32), data=data
    )
    return picture.numpy(), mask.numpy()


def coordinates(height: int, width: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture that says where each pixel was, and a label that says the same exactly."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * step, y * step, 0 * x], -1).astype(np.uint8)
    return image, (y * 1000 + x).astype(np.int32)


@pytest.mark.parametrize("crop", [33, 60, 97])
@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.75, 1.5), (1.0, 1.0), (1.37, 1.37), (2.0, 4.0)])
def test_image_and_label_agree_to_the_pixel(crop: int, scale: tuple[float, float]) -> None:
    step = 5
    image, label = coordinates(44, 50, step)
    data = config(crop, *scale, flip=True)
    gaps = []
    for seed in range(8):
        picture, mask = run(image, label, seed, data)
        inside = mask != VOID
        gaps.append(picture[..., 0][inside] / step - mask[inside] % 1000)
        gaps.append(picture[..., 1][inside] / step - mask[inside] // 1000)
    everything = np.concatenate(gaps)
    assert np.abs(everything).max() <= 0.5 + 0.5 / step + 1e-3
    if scale[1] not in (0.5, 1.0):  # there every sample of a crop lies off by the same fraction
        assert abs(everything.mean()) < 0.03


@pytest.mark.parametrize("zoom", [0.5, 2.0, 3.0])
def test_zoom_is_opencv_resize(zoom: float) -> None:
    image = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
    label = np.arange(6400, dtype=np.int32).reshape(80, 80)
    crop = int(80 * zoom)
    picture, mask = run(image, label, 0, config(crop, zoom))
    resized = cv2.resize(image, (crop, crop), interpolation=cv2.INTER_LINEAR)
    assert np.abs(picture.astype(int) - resized).max() <= 1
    assert (mask != VOID).all()
    if zoom == 3.0:
        np.testing.assert_array_equal(mask, label.repeat(3, 0).repeat(3, 1))


def test_no_zoom_is_a_plain_cut() -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    label = np.arange(3500, dtype=np.int32).reshape(50, 70)
    corners = set()
    for seed in range(20):
        data = config(32)
        picture, mask = run(image, label, seed, data)
        top, left = divmod(int(mask[0, 0]), 70)
        corners.add((top, left))
        np.testing.assert_array_equal(mask, label[top : top + 32, left : left + 32])
        shift = np.abs(picture.astype(int) - image[top : top + 32, left : left + 32]).mean()
        assert shift < 60  # the cut starts between pixels, so neighbours mix
    assert len(corners) > 15


def test_flip_mirrors_about_half() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    label = np.arange(1600, dtype=np.int32).reshape(40, 40)
    mirrored = 0
    for seed in range(40):
        picture, mask = run(image, label, seed, config(40, flip=True))
        turn = np.s_[:, ::-1] if mask[0, 0] == 39 else np.s_[:, :]
        np.testing.assert_array_equal(mask, label[turn])
        np.testing.assert_array_equal(picture, image[turn])
        mirrored += mask[0, 0] == 39
    assert 10 < mirrored < 30


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    crop=st.integers(32, 80),
    zoom=st.floats(0.1, 10.0),
    flip=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_labels_gain_nothing_and_padding_is_void_only_where_needed(
    size: tuple[int, int], crop: int, zoom: float, flip: bool, seed: int
) -> None:
    image = np.full((*size, 3), 7, np.uint8)
    label = np.random.default_rng(seed).choice([2, 5, 11], size).astype(np.int32)
    picture, mask = run(image, label, seed, config(crop, zoom, flip=flip))
    assert picture.shape == (crop, crop, 3)
    assert picture.dtype == np.uint8
    assert mask.dtype == np.int32
    assert set(np.unique(mask)) <= {VOID, *np.unique(label)}
    void = mask == VOID
    assert (picture[void] == PADDING).all()
    assert (picture[~void] == 7).all()
    if void.all():  # less than a pixel is left of the picture
        assert min(size) * zoom <= 1
        return
    for axis, side in ((1, size[0]), (0, size[1])):
        filled = int((~void).any(axis=axis).sum())
        assert abs(filled - min(crop, side * zoom)) <= 1
        if side * zoom >= crop + 1e-2:
            assert filled == crop


def test_void_of_the_label_stays_void_and_keeps_its_picture() -> None:
    image, label = np.full((40, 40, 3), 7, np.uint8), np.full((40, 40), VOID, np.int32)
    picture, mask = run(image, label, 0, config(40, 1.5))
    assert (mask == VOID).all()
    assert (picture == 7).all()


def test_padded_picture_lies_anywhere_in_the_crop() -> None:
    image, label = np.full((20, 20, 3), 7, np.uint8), np.zeros((20, 20), np.int32)
    tops = {int((run(image, label, s, config(64))[1] == 0).any(axis=1).argmax()) for s in range(30)}
    assert min(tops) < 10
    assert max(tops) > 34


def test_seed_decides_everything() -> None:
    image, label = coordinates(44, 50, 5)
    data = config(33, 0.75, 1.5, flip=True, colour=0.4)
    first, again, other = (run(image, label, seed, data) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_inside_tf_data_as_outside() -> None:
    image, label = coordinates(44, 50, 5)
    data = config(33, 0.75, 1.5, flip=True, colour=0.4)
    seeds = tf.data.Dataset.from_tensor_slices([[3, seed] for seed in range(8)])
    mapped = seeds.map(
        lambda seed: augment(tf.constant(image), tf.constant(label), seed, data=data)
    )
    for seed, (picture, mask) in enumerate(mapped):
        outside = run(image, label, seed, data)
        np.testing.assert_array_equal(picture, outside[0])
        np.testing.assert_array_equal(mask, outside[1])


def test_colour_changes_the_picture_alone() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 180, (40, 40, 3), np.uint8)
    label = rng.integers(0, 5, (40, 40)).astype(np.int32)
    plain = run(image, label, 0, config(64))
    means, spreads, chroma = [], [], []
    for seed in range(40):
        picture, mask = run(image, label, seed, config(64, colour=0.4))
        inside = mask != VOID
        assert (picture[~inside] == PADDING).all()
        np.testing.assert_array_equal(mask, run(image, label, seed, config(64))[1])
        grey = picture[inside].mean(axis=-1)
        means.append(grey.mean())
        spreads.append(grey.std())
        chroma.append(picture[inside].astype(float).std(axis=-1).mean())
    assert np.ptp(means) > 40  # brightness
    assert max(spreads) / min(spreads) > 1.5  # contrast
    assert max(chroma) / min(chroma) > 1.5  # saturation
    assert abs(np.mean(means) - plain[0][plain[1] != VOID].mean()) < 20  # no drift
