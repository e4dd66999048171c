from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.scenes import scene as scenes
from ccfnet_tf.io.read_images import read_image
from ccfnet_tf.labels import VOID


def test_same_seed_same_scene() -> None:
    first, again, other = (scenes.draw(seed, (60, 80)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).mean() > 0.5


@pytest.mark.parametrize("size", [(32, 32), (33, 97), (120, 160), (97, 33)])
def test_shapes_and_values(size: tuple[int, int]) -> None:
    for seed in range(8):
        image, label = scenes.draw(seed, size)
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        assert label.shape == size
        assert label.dtype == np.int32
        assert set(np.unique(label)) <= {VOID, *range(len(scenes.TAXONOMY.names))}


def test_every_class_is_common_and_only_sky_and_grass_are_in_every_scene() -> None:
    labels = [scenes.draw(10_000 + seed, (60, 80))[1] for seed in range(60)]
    counts = np.stack([np.bincount(label.ravel() + 1, minlength=9) for label in labels])
    shares = counts.sum(axis=0) / counts.sum()
    assert shares[0] < 0.015  # void
    assert shares[1:].min() > 0.02
    assert shares[1:].max() < 0.4
    shown = (counts[:, 1:] > 0).mean(axis=0)
    assert (shown < 0.99).sum() >= 5
    assert counts[:, 0].any()


def test_classes_differ_in_colour_and_pixels_are_noisy() -> None:
    images, labels = zip(*(scenes.draw(s, (60, 80)) for s in range(30)), strict=True)
    pixels, ids = np.stack(images).astype(float), np.stack(labels)
    means = np.stack([pixels[ids == k].mean(axis=0) for k in range(8)])
    gaps = np.linalg.norm(means[:, None] - means[None], axis=-1)[~np.eye(8, dtype=bool)]
    assert gaps.min() > 5
    assert min(pixels[ids == k].std() for k in range(8)) > 10  # no class is uniform in colour


def test_scenes_of_splits_and_seeds_do_not_overlap() -> None:
    data = DataConfig(format="scenes", scenes=100_000)
    runs = [scenes.read(data, Path(), seed) for seed in (0, 1)]
    tests = {s.image for run in runs for s in run.test}
    assert len(tests) == scenes.TEST_SCENES  # the same for every seed
    trains = [s.image for run in runs for s in run.train]
    assert len(set(trains)) == len(trains) == 200_000
    assert not tests & set(trains)
    far = scenes.read(data, Path(), 2**31 - 1)  # large seeds work too
    image, label = far.load(far.train[-1])
    assert image.shape[:2] == label.shape == data.scene_size
    np.testing.assert_array_equal(label, far.load_label(far.train[-1]))
    stored = read_image("scene", far.read_bytes(far.train[-1]))
    np.testing.assert_array_equal(stored, image)
