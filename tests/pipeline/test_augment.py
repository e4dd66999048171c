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
from ccfnet_tf.pipeline.augment import PADDING, augment, rare_pixel, resample, turn_by

EVERYTHING = {"flip": True, "colour": 0.4, "rotate": 30.0, "blur": 1.5, "cutout": 0.3}


def config(crop: int, low: float = 1.0, high: float | None = None, **more: Any) -> DataConfig:
    return DataConfig(
        crop=crop, scale=(low, high or low), **({"flip": False, "colour": 0.0} | more)
    )


def run(
    image: Any, label: Any, seed: int, data: DataConfig, rarity: Any | None = None
) -> tuple[np.ndarray, np.ndarray]:
    key = tf.constant([3, seed], tf.int32)
    picture, mask = augment(tf.constant(image), tf.constant(label), key, data=data, rarity=rarity)
    return picture.numpy(), mask.numpy()


def runs(
    image: Any, label: Any, seeds: int, data: DataConfig, rarity: Any | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Stacks the results of `run` for seeds 0 to `seeds` - 1; tf.data makes this faster."""
    keys = tf.data.Dataset.from_tensor_slices([[3, seed] for seed in range(seeds)])
    image, label = tf.constant(image), tf.constant(label)
    results = keys.map(lambda key: augment(image, label, key, data=data, rarity=rarity))
    pictures, masks = zip(*results.as_numpy_iterator(), strict=True)
    return np.stack(pictures), np.stack(masks)


def coordinates(height: int, width: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image and a label that both encode the position of each pixel."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * step, y * step, 0 * x], -1).astype(np.uint8)
    return image, (y * 1000 + x).astype(np.int32)


@pytest.mark.parametrize("crop", [33, 60, 97])
@pytest.mark.parametrize("rotate", [0.0, 40.0])
@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.75, 1.5), (1.0, 1.0), (1.37, 1.37), (2.0, 4.0)])
def test_image_and_label_agree_to_the_pixel(
    crop: int, scale: tuple[float, float], rotate: float
) -> None:
    step = 5
    image, label = coordinates(44, 50, step)
    data = config(crop, *scale, flip=True, rotate=rotate)
    gaps = []
    for seed in range(5):
        picture, mask = run(image, label, seed, data)
        inside = mask != VOID
        gaps.append(picture[..., 0][inside] / step - mask[inside] % 1000)
        gaps.append(picture[..., 1][inside] / step - mask[inside] // 1000)
    everything = np.concatenate(gaps)
    assert np.abs(everything).max() <= 0.5 + 0.5 / step + 1e-3
    if scale[1] not in (0.5, 1.0):  # at these, all samples of a crop have the same sub-pixel offset
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


def test_without_zoom_the_crop_is_a_slice() -> None:
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
        assert shift < 60  # the crop starts between pixels, so neighbours are interpolated
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
    rare=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_labels_gain_no_values_and_padding_is_void(
    *, size: tuple[int, int], crop: int, zoom: float, flip: bool, rare: bool, seed: int
) -> None:
    image = np.full((*size, 3), 7, np.uint8)
    label = np.random.default_rng(seed).choice([2, 5, 11], size).astype(np.int32)
    data = config(crop, zoom, flip=flip, rare_crop=float(rare))
    picture, mask = run(image, label, seed, data, np.eye(12)[5])
    assert picture.shape == (crop, crop, 3)
    assert picture.dtype == np.uint8
    assert mask.dtype == np.int32
    assert set(np.unique(mask)) <= {VOID, *np.unique(label)}
    void = mask == VOID
    assert (picture[void] == PADDING).all()
    assert (picture[~void] == 7).all()
    if void.all():  # less than one pixel of the image is visible
        assert min(size) * zoom <= 1
        return
    for axis, side in ((1, size[0]), (0, size[1])):
        filled = int((~void).any(axis=axis).sum())
        assert abs(filled - min(crop, side * zoom)) <= 1 + 1e-9
        if side * zoom >= crop + 1e-2:
            assert filled == crop


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    crop=st.integers(32, 80),
    zoom=st.floats(0.1, 10.0),
    rotate=st.floats(0.0, 180.0),
    flip=st.booleans(),
    blur=st.floats(0.0, 5.0),
    cutout=st.floats(0.0, 0.5),
    rare_crop=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_all_augmentations_together(
    size: tuple[int, int], crop: int, zoom: float, seed: int, **keys: Any
) -> None:
    image = np.full((*size, 3), 7, np.uint8)
    label = np.random.default_rng(seed).choice([VOID, 2, 5, 11], size).astype(np.int32)
    label[0, 0] = 2
    rarity = np.array([0, 9, 1, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0], np.float32)
    data = config(crop, zoom, **keys)
    picture, mask = run(image, label, seed, data, rarity)
    assert picture.shape == (crop, crop, 3)
    assert picture.dtype == np.uint8
    assert mask.shape == (crop, crop)
    assert mask.dtype == np.int32
    assert set(np.unique(mask)) <= {VOID, *np.unique(label)}
    padded = (picture == PADDING).all(axis=-1)
    assert (picture[~padded] == 7).all()  # neither blur nor interpolation mixes padding in
    assert (padded & (mask != VOID)).mean() <= data.cutout


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    crop=st.integers(32, 64),
    zoom=st.floats(0.2, 5.0),
    degrees=st.floats(-180.0, 180.0),
    place=st.tuples(st.floats(-0.3, 1.3), st.floats(-0.3, 1.3)),
)
def test_resample_matches_the_formula_in_float64(
    size: tuple[int, int], crop: int, zoom: float, degrees: float, place: tuple[float, float]
) -> None:
    image, label = coordinates(*size, 2)
    start = np.array(place) * (np.array(size) * zoom - crop)
    picture, mask, inside = (
        np.asarray(layer)
        for layer in resample(
            tf.constant(image),
            tf.constant(label),
            crop=crop,
            zoom=tf.constant(zoom, tf.float32),
            start=tf.constant(start, tf.float32),
            turn=turn_by(tf.constant(1.0), degrees),
        )
    )
    down, right = np.mgrid[:crop, :crop] + 0.5 - crop / 2
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    y = (start[0] + crop / 2 + cosine * down - sine * right) / zoom
    x = (start[1] + crop / 2 + sine * down + cosine * right) / zoom
    height, width = size
    depth = np.minimum(np.minimum(y, height - y), np.minimum(x, width - x))
    clear = np.abs(depth) > 2e-3  # float32 rounding may differ at the edge itself
    np.testing.assert_array_equal(inside[clear], depth[clear] > 0)
    clear &= inside & (np.abs(y - np.round(y)) > 2e-3) & (np.abs(x - np.round(x)) > 2e-3)
    expected = np.floor(y).astype(int) * 1000 + np.floor(x).astype(int)
    np.testing.assert_array_equal(mask[clear], expected[clear])
    shown = np.stack([np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)], -1) * 2
    np.testing.assert_allclose(picture[inside][:, :2], shown[inside], atol=0.01)


@pytest.mark.parametrize(("draw", "turns"), [(1.0, -1), (0.0, 1)])
def test_a_quarter_turn_is_rot90(draw: float, turns: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    label = np.arange(1600, dtype=np.int32).reshape(40, 40)
    picture, mask, inside = resample(
        tf.constant(image),
        tf.constant(label),
        crop=40,
        zoom=tf.constant(1.0),
        start=tf.zeros(2),
        turn=turn_by(tf.constant(draw), 90.0),
    )
    assert np.all(inside)
    np.testing.assert_array_equal(mask, np.rot90(label, turns))
    np.testing.assert_array_equal(np.round(picture), np.rot90(image, turns))


def test_rotations_are_uniform_and_independent_of_zoom() -> None:
    _, label = coordinates(80, 100, 1)
    image = np.zeros((80, 100, 3), np.uint8)
    angles, zooms = [], []
    for mask in runs(image, label, 60, config(33, 1.2, 1.8, rotate=25.0))[1]:
        place = np.argwhere(mask != VOID)
        way = np.c_[place - 16, np.ones(len(place))]
        there = np.stack(np.divmod(mask[mask != VOID], 1000), -1) + 0.5
        fit = np.linalg.lstsq(way, there, rcond=None)[0]
        zoom = 1 / np.sqrt(np.linalg.det(fit[:2]))
        np.testing.assert_allclose(fit[:2] @ fit[:2].T * zoom**2, np.eye(2), atol=0.03)
        angles.append(np.degrees(np.arctan2(fit[0, 1], fit[0, 0])))
        zooms.append(zoom)
        assert (fit[2] * zoom > 16).all()
        assert (fit[2] * zoom < np.array([80, 100]) * zoom - 16).all()
    assert 20 < max(angles) < 26
    assert -26 < min(angles) < -20
    assert abs(np.mean(angles)) < 6
    assert abs(np.corrcoef(angles, zooms)[0, 1]) < 0.5  # drawn independently


def test_void_pixels_stay_void_and_keep_their_colour() -> None:
    image, label = np.full((40, 40, 3), 7, np.uint8), np.full((40, 40), VOID, np.int32)
    picture, mask = run(image, label, 0, config(40, 1.5))
    assert (mask == VOID).all()
    assert (picture == 7).all()


def test_padded_image_is_at_any_position_in_the_crop() -> None:
    image, label = np.full((20, 20, 3), 7, np.uint8), np.zeros((20, 20), np.int32)
    tops = {int((run(image, label, s, config(64))[1] == 0).any(axis=1).argmax()) for s in range(30)}
    assert min(tops) < 10
    assert max(tops) > 34


def test_same_seed_gives_the_same_result() -> None:
    image, label = coordinates(44, 50, 5)
    data = config(33, 0.75, 1.5, flip=True, colour=0.4)
    first, again, other = (run(image, label, seed, data) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("more", [{"flip": True, "colour": 0.4}, EVERYTHING | {"rare_crop": 0.5}])
def test_results_are_the_same_inside_tf_data(more: dict[str, Any]) -> None:
    image, label = coordinates(44, 50, 5)
    image[..., 2] = np.random.default_rng(0).integers(0, 256, (44, 50))
    label = label % 7
    rarity = np.arange(7, dtype=np.float32)
    data = config(33, 0.75, 1.5, **more)
    for seed, (picture, mask) in enumerate(zip(*runs(image, label, 10, data, rarity), strict=True)):
        outside = run(image, label, seed, data, rarity)
        np.testing.assert_array_equal(picture, outside[0])
        np.testing.assert_array_equal(mask, outside[1])


def test_colour_changes_only_the_image() -> None:
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


def test_appearance_options_leave_the_label_and_are_independent() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(1, 100, (60, 60, 3), np.uint8)  # never the padding colour
    label = rng.integers(-1, 5, (60, 60)).astype(np.int32)
    base = {"rotate": 20.0, "flip": True}
    plain = runs(image, label, 40, config(40, 0.5, 2.0, **base))
    cut = runs(image, label, 40, config(40, 0.5, 2.0, **base, cutout=0.3))
    every = runs(image, label, 40, config(40, 0.5, 2.0, **base, cutout=0.3, blur=2.0))
    np.testing.assert_array_equal(cut[1], plain[1])
    np.testing.assert_array_equal(every[1], plain[1])
    changed = (cut[0] != plain[0]).any(axis=-1)
    assert (cut[0][changed] == PADDING).all()
    assert (every[0][changed] == PADDING).all()
    shares = changed.mean(axis=(1, 2))
    assert shares.max() <= 0.3
    assert 0.05 < np.mean(shares) < 0.17


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    spot=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    zoom=st.floats(0.1, 4.0),
    rotate=st.sampled_from([0.0, 20.0, 180.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_rare_pixel_is_always_in_the_crop(
    size: tuple[int, int], spot: tuple[float, float], zoom: float, rotate: float, seed: int
) -> None:
    label = np.zeros(size, np.int32)
    label[int(spot[0] * size[0]), int(spot[1] * size[1])] = 3
    data = config(33, zoom, rotate=rotate, flip=True, rare_crop=1.0)
    rarity = np.array([0, 5, 0, 1], np.float32)  # class 1 does not occur
    mask = run(np.zeros((*size, 3), np.uint8), label, seed, data, rarity)[1]
    assert (mask == 3).any()


@pytest.mark.parametrize("rotate", [0.0, 45.0])
def test_a_rare_pixel_is_at_any_position_in_the_crop(rotate: float) -> None:
    label = np.zeros((100, 120), np.int32)
    label[50, 60] = 1
    data = config(33, 1.0, rotate=rotate, rare_crop=1.0)
    image = np.zeros((100, 120, 3), np.uint8)
    masks = runs(image, label, 80, data, np.array([0.0, 1.0]))[1]
    places = np.array([np.argwhere(mask == 1)[0] for mask in masks])
    assert (places.min(axis=0) < 6).all()
    assert (places.max(axis=0) > 26).all()
    assert (np.abs(places.mean(axis=0) - 16) < 4).all()
    if not rotate:  # uniform: the standard deviation over 33 positions is 9.5
        assert (np.abs(places.std(axis=0) - 9.5) < 1.5).all()


def test_classes_are_drawn_by_rarity_and_pixels_uniformly() -> None:
    label = np.full((6, 10), VOID, np.int32)
    label[:4, :5] = 0  # weight 0
    label[:4, 5:] = 1
    label[5, :4] = 3
    rarity = np.array([0, 3, 100, 1, 7], np.float32)  # 2 and 4 do not occur
    draws = (np.arange(8) + 0.5) / 8
    found = [
        tuple(np.asarray(rare_pixel(tf.constant(label), rarity, tf.constant([u, v], tf.float32))))
        for u in draws
        for v in (np.arange(20) + 0.5) / 20
    ]
    classes = np.array([label[int(y), int(x)] for y, x in found])
    assert np.bincount(classes).tolist() == [0, 6 * 20, 0, 2 * 20]
    counts = [found.count((float(y), float(x))) for y, x in np.argwhere(label == 1)]
    assert counts == [6] * 20
    counts = [found.count((5.0, float(x))) for x in range(4)]
    assert counts == [10] * 4


@pytest.mark.parametrize(
    ("value", "rarity"),
    [(VOID, np.ones(3)), (1, np.array([1.0, 0.0, 1.0])), (1, np.zeros(3)), (1, None)],
)
def test_without_a_rare_class_crops_are_ordinary(value: int, rarity: Any) -> None:
    image, label = coordinates(44, 50, 5)
    label[:] = value
    for seed in range(3):
        plain = run(image, label, seed, config(33, 0.75, 1.5, rotate=9.0))
        data = config(33, 0.75, 1.5, rotate=9.0, rare_crop=1.0)
        sought = run(image, label, seed, data, rarity)
        np.testing.assert_array_equal(sought[0], plain[0])
        np.testing.assert_array_equal(sought[1], plain[1])


def test_rare_crops_show_more_of_the_rare_class() -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((120, 160), np.int32)
    for top, left in rng.integers(0, 110, (3, 2)):
        label[top : top + 6, left : left + 6] = 1
    image = np.zeros((120, 160, 3), np.uint8)
    rarity = 1.0 / np.bincount(label.ravel())
    shares = []
    for share in (0.0, 0.5, 1.0):
        data = config(33, 0.8, 1.25, rare_crop=share)
        shares.append(np.mean(runs(image, label, 80, data, rarity)[1] == 1))
    assert shares[1] > 2 * shares[0]
    assert shares[2] > 1.3 * shares[1]
