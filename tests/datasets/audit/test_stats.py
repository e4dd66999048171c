from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit import stats as module
from ccfnet_tf.datasets.audit.stats import Stats, survey
from ccfnet_tf.datasets.layouts import stanford_background
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID, Sample, Taxonomy, distinct_colours

TAXONOMY = Taxonomy(("sky", "sea", "sand"), distinct_colours(3))


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 5, 2)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.integers(VOID, 3, (height, width)).astype(np.int32)


def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    return draw(int(sample.name))


def samples(*seeds: int) -> list[Sample]:
    return [Sample(str(seed), "", "") for seed in seeds]


def test_statistics_match_numpy() -> None:
    seeds = range(12)
    stats = survey(samples(*seeds), load, TAXONOMY)
    pixels = np.concatenate([draw(seed)[0].reshape(-1, 3) for seed in seeds]).astype(np.float64)
    labels = np.concatenate([draw(seed)[1].ravel() for seed in seeds])
    np.testing.assert_allclose(stats.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.deviation, pixels.std(axis=0), rtol=1e-12)
    assert stats.pixels == len(pixels)
    assert stats.void_share == pytest.approx((labels == VOID).mean())
    np.testing.assert_array_equal(stats.census.pixels, [(labels == i).sum() for i in range(3)])
    assert sum(stats.sizes.values()) == stats.census.samples == 12


def test_large_images_are_counted_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    label = np.zeros((7, 5), np.int32)
    whole = Stats.of(image, label, 1)
    monkeypatch.setattr(module, "_BAND_ROWS", 3)
    assert Stats.of(image, label, 1).squares == whole.squares
    assert Stats.of(image, label, 1).sums == whole.sums == tuple(image.sum(axis=(0, 1)).tolist())


def test_sums_are_exact_beyond_float_precision() -> None:
    # 2^40 white pixels and one other: subtracting squares in float64 would lose the variance.
    white = 2**40 - 1
    sums = (255 * white + 254,) * 3
    squares = (255**2 * white + 254**2,) * 3
    stats = Stats(Stats.empty(1).census, {(2**20, 2**20): 1}, sums, squares)
    assert stats.deviation[0] == pytest.approx(2.0**-20, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 99), max_size=8), st.integers(0, 8), st.integers(1, 4))
def test_statistics_are_additive(seeds: list[int], cut: int, workers: int) -> None:
    one, other, whole = (
        survey(samples(*some), load, TAXONOMY, workers=workers)
        for some in (seeds[:cut], seeds[cut:], seeds)
    )
    assert (one + other).to_json(TAXONOMY) == whole.to_json(TAXONOMY)
    assert (one + other).sums == whole.sums
    assert (one + other).squares == whole.squares
    assert (one + Stats.empty(3)).to_json(TAXONOMY) == one.to_json(TAXONOMY)


def test_json() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[0] = 10
    label = np.array([[0, 0, 0], [1, VOID, VOID]], np.int32)
    steps: list[int] = []
    stats = survey(
        samples(0, 1), lambda _: (image, label), TAXONOMY, advance=lambda: steps.append(1)
    )
    tree = json.loads(json.dumps(stats.to_json(TAXONOMY)))
    assert len(steps) == tree["samples"] == 2
    assert tree["void_share"] == pytest.approx(1 / 3)
    assert tree["sizes"] == [{"height": 2, "width": 3, "pictures": 2}]
    assert tree["mean"] == [5.0] * 3
    assert tree["deviation"] == [5.0] * 3
    sky, sea, sand = tree["classes"]
    assert sky == {
        "name": "sky",
        "pixels": 6,
        "share": 0.75,
        "pictures": 2,
        "median_frequency": pytest.approx(0.5 / 0.75),
        "inverse_log": pytest.approx(1 / np.log(1.77)),
    }
    assert sea["median_frequency"] == 2.0
    assert (sand["pixels"], sand["median_frequency"]) == (0, 0.0)


def test_empty_statistics() -> None:
    empty = survey([], load, TAXONOMY)
    assert empty.mean == empty.deviation == (0.0, 0.0, 0.0)
    assert empty.void_share == 0.0


def test_sizes_by_frequency() -> None:
    stats = Stats(Stats.empty(1).census, {(9, 9): 1, (1, 2): 5, (1, 1): 1}, (0,) * 3, (0,) * 3)
    assert stats.by_count() == [((1, 2), 5), ((1, 1), 1), ((9, 9), 1)]


def test_a_bad_file_stops_it() -> None:
    def broken(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        if int(sample.name) > 1:
            raise DataError(f"{sample.name}.png: damaged")
        return load(sample)

    with pytest.raises(DataError, match=r"^2\.png: damaged$"):
        survey(samples(0, 1, 2, 3), broken, TAXONOMY)


@pytest.mark.slow
def test_all_of_stanford(stanford_root: Path) -> None:
    data = DataConfig(format="stanford_background", root=str(stanford_root))
    listing = stanford_background.read(data, stanford_root, 0)
    train, test = (
        survey(part, listing.load, listing.taxonomy) for part in (listing.train, listing.test)
    )
    whole = train + test
    shares = [14.5539, 14.0959, 22.6397, 6.8826, 4.0207, 22.7260, 1.3466, 13.7347]
    np.testing.assert_allclose(100 * whole.census.shares(), shares, atol=0.01)
    assert 100 * whole.void_share == pytest.approx(0.51, abs=0.01)
    assert len(whole.sizes) == 51
    assert whole.by_count()[:2] == [((240, 320), 531), ((213, 320), 64)]
