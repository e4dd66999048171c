"""Intervals over images, against a slow version written from the definition."""

from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.evaluation.bootstrap import bootstrap, draw, image_counts, resampled_figures
from ccfnet_tf.evaluation.confusion import Confusion

CLASSES = 4


def matrices(seed: int, images: int = 9) -> np.ndarray:
    """Returns confusion matrices [N, C, C]; class 3 is true in two images alone."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 50, (images, CLASSES, CLASSES))
    found += np.eye(CLASSES, dtype=np.int64) * rng.integers(0, 300, (images, 1, 1))
    found[2:, 3] = 0
    found[-1, 1] = 0
    return found


def counts_of(found: np.ndarray) -> np.ndarray:
    rows = [
        (image, truth, predicted, found[image, truth, predicted])
        for image, truth, predicted in np.argwhere(found)
    ]
    cells = np.array(rows, np.int64).reshape(-1, 4)
    return image_counts(cells, len(found), CLASSES)


def slow(found: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Returns pixel accuracy and mean IoU of each resample, image by image."""
    times = draw(np.random.default_rng(seed), resamples, len(found)).astype(int)
    rows = []
    for each in times:
        chosen = [image for image, often in enumerate(each) for _ in range(often)]
        total = Confusion.empty(CLASSES)
        for image in chosen:
            total = total.merge(Confusion(found[image]))
        rows.append((total.pixel_accuracy, total.mean_iou_present))
    return np.array(rows, float)


def test_resamples_are_those_of_the_definition() -> None:
    networks = [matrices(seed) for seed in (0, 1)]
    ours = resampled_figures([counts_of(each) for each in networks], resamples=60, seed=5)
    for place, each in enumerate(networks):
        np.testing.assert_allclose(ours[place], slow(each, 60, 5), rtol=1e-12)


def test_intervals_are_quantiles_and_differences_are_paired() -> None:
    networks = [counts_of(matrices(seed)) for seed in (0, 1)]
    first, second = bootstrap(networks, resamples=300, seed=2)
    drawn = resampled_figures(networks, resamples=300, seed=2)
    whole = Confusion(matrices(1).sum(axis=0))
    interval = second.figures["mean_iou"]
    assert interval is not None
    assert interval.value == pytest.approx(whole.mean_iou_present, rel=1e-12)
    low, high = np.quantile(drawn[1, :, 1], [0.025, 0.975])
    assert (interval.low, interval.high) == pytest.approx((low, high))
    gain = second.gains["pixel_accuracy"]
    assert gain is not None
    low, high = np.quantile(drawn[1, :, 0] - drawn[0, :, 0], [0.025, 0.975])
    assert (gain.low, gain.high) == pytest.approx((low, high))
    assert bootstrap(networks, resamples=300, seed=2)[1] == second
    zero = first.gains["mean_iou"]
    assert zero is not None
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)


def test_the_same_gain_in_every_image_leaves_no_doubt() -> None:
    one = np.tile(np.array([[[80, 20], [20, 80]]]), (6, 1, 1))
    other = np.tile(np.array([[[90, 10], [10, 90]]]), (6, 1, 1))
    padded = [np.pad(each, ((0, 0), (0, 2), (0, 2))) for each in (one, other)]
    gain = bootstrap([counts_of(each) for each in padded], resamples=50)[1].gains["pixel_accuracy"]
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))


def test_each_resample_has_as_many_images_as_the_split() -> None:
    times = draw(np.random.default_rng(0), 500, 40)
    assert (times.sum(axis=1) == 40).all()
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=0.2)


@pytest.mark.parametrize("images", [0, 3])
def test_without_a_labelled_pixel_there_is_no_figure(images: int) -> None:
    nothing = np.zeros((images, 3, CLASSES), np.int64)
    found = bootstrap([nothing, nothing], resamples=20)[1]
    assert set(found.figures.values()) == set(found.gains.values()) == {None}


def test_resamples_of_void_images_alone_count_nowhere() -> None:
    networks = matrices(0, images=3)
    networks[1:] = 0
    interval = bootstrap([counts_of(networks)], resamples=200)[0].figures["pixel_accuracy"]
    assert interval is not None
    assert interval.low == interval.high == interval.value
