"""The strategies, the film and the figures of the active learning benchmark, without trainings."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import active_learning
from benchmarks.active_learning import (
    FULL,
    POOLS,
    START,
    STRATEGIES,
    Result,
    Setting,
    Trainings,
    chosen,
    labels_needed,
    markdown,
    mean_iou,
    summarised,
)
from benchmarks.active_learning_features import FRAME, Pool, film, store, stored
from ccfnet_tf.evaluation.confusion import Confusion

CLASSES = 3


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Twenty images of 16x24 pixels, whose features are the sampled colours."""
    rng = np.random.default_rng(0)

    def pairs() -> Any:
        for index in range(20):
            image = rng.integers(0, 255, (16, 24, 3)).astype(np.uint8)
            yield index // 2, (image, rng.integers(-1, CLASSES, (16, 24)).astype(np.int32))

    seen = []
    store(tmp_path / "pool", pairs(), lambda image: image[::8, ::8] / 255, lambda: seen.append(1))
    assert len(seen) == 20
    return stored(tmp_path / "pool")


def made(pool: Pool, labelled: np.ndarray, seed: int = 0) -> Result:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (7, CLASSES, CLASSES))
    predicted = rng.dirichlet(np.ones(CLASSES), len(pool))
    return Result(labelled, counts, rng.gamma(1, 10, (len(pool), CLASSES)), predicted)


def test_a_pool_has_every_eighth_pixel(pool: Pool) -> None:
    assert len(pool) == 20
    assert pool.features.shape == (20 * 6, 3)
    assert pool.first[-1] == len(pool.labels) == 120
    labelled = pool.pixels([1, 3])
    assert (pool.labels[labelled] >= 0).all()
    assert set(labelled) <= {*range(6, 12), *range(18, 24)}
    np.testing.assert_allclose(pool.features[6:12].mean(0), pool.pooled[1], atol=1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_chooses_new_images(strategy: str, pool: Pool) -> None:
    labelled = np.array([3, 4, 5])
    new = chosen(strategy, made(pool, labelled), pool, 4, np.random.default_rng(0))
    assert len(new) == len(set(new.tolist())) == 4
    assert not set(new.tolist()) & {3, 4, 5}
    rest = chosen(strategy, made(pool, np.arange(18)), pool, 4, np.random.default_rng(0))
    assert sorted(rest.tolist()) == [18, 19]


def test_risk_takes_the_largest_sums(pool: Pool) -> None:
    before = made(pool, np.array([0]))
    new = chosen("risk", before, pool, 3, np.random.default_rng(0))
    sums = before.wrong.sum(axis=1)
    sums[0] = -1
    assert new.tolist() == np.argsort(-sums)[:3].tolist()


def test_stratified_takes_as_many_images_of_a_rare_class() -> None:
    # Class 0 is in every image, class 1 in every tenth.
    predicted = np.zeros((1000, 2))
    predicted[:, 0] = 1
    predicted[::10] = 0.5
    nothing = np.zeros((1000, 1), np.float32)
    pool = Pool(nothing, nothing, np.arange(1001), nothing, nothing, np.arange(1000))
    before = Result(np.array([], np.int64), np.zeros((1, 2, 2)), predicted, predicted)
    new = chosen("stratified", before, pool, 100, np.random.default_rng(0))
    assert 45 <= (new % 10 == 0).sum() <= 65  # random: about 10


def test_frames_of_a_film_move_little_and_keep_their_labels() -> None:
    rows, columns = np.mgrid[:240, :320]
    image = np.stack([rows // 2, columns // 2, np.full_like(rows, 100)], -1).astype(np.uint8)
    label = (columns // 80).astype(np.int32)
    frames = list(film((image, label), np.random.default_rng(4)))
    assert 4 <= len(frames) <= 16
    for shot, mask in frames:
        assert shot.shape == (*FRAME, 3)
        assert mask.shape == FRAME
        light = shot[..., 2].mean() / 100
        column = shot[..., 1] / light * 2
        inside = np.abs(column % 80 - 40) < 30  # away from the borders of classes
        assert (mask[inside] == column[inside] // 80).mean() > 0.99
    steps = [np.abs(a[0].astype(int) - b[0]).mean() for a, b in pairwise(frames)]
    assert max(steps) < 12


def test_mean_iou_is_that_of_evaluate() -> None:
    counts = np.random.default_rng(0).integers(0, 99, (5, 4, 4))
    counts[1, 2] = 0  # a class without labels
    expected = [Confusion(each).mean_iou_present for each in counts]
    np.testing.assert_allclose(mean_iou(counts), expected)


@pytest.mark.parametrize(("goal", "expected"), [(0.5, 0.1), (0.65, 0.15), (0.8, 0.3), (0.9, None)])
def test_labels_needed(goal: float, expected: float | None) -> None:
    assert labels_needed([0.1, 0.2, 0.3], [0.6, 0.7, 0.8], goal) == pytest.approx(expected)


def test_trainings_continue_where_they_were_killed(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    limit = 6

    def train(
        pool: Pool, test: Pool, labelled: np.ndarray, *_: Any, seed: int, steps: int
    ) -> Result:
        del test, steps
        if len(done) == limit:
            raise KeyboardInterrupt
        done.append(len(labelled))
        return made(pool, labelled, seed=seed)

    monkeypatch.setattr(active_learning, "train", train)
    setting = Setting(seeds=2, rounds=2, steps=1)
    trainings = Trainings(pool, pool, CLASSES, setting, tmp_path / "trainings")
    with pytest.raises(KeyboardInterrupt):
        trainings.all(lambda: None)
    limit = 100
    results = trainings.all(lambda: None)
    assert len(done) == len(results) == 2 * (2 + 2 * len(STRATEGIES))
    assert len(results[0, START, 0].labelled) == 2
    assert len(results[0, FULL, 0].labelled) == 20
    for strategy in STRATEGIES:
        assert len(set(results[1, strategy, 2].labelled.tolist())) == 6


def test_the_table(pool: Pool) -> None:
    setting = Setting(seeds=2, rounds=2, steps=1)
    results = {
        (seed, strategy, number): made(pool, np.arange(2 * (number + 1)), seed=seed)
        for seed in range(2)
        for strategy in (START, FULL, *STRATEGIES)
        for number in range(3)
    }
    summary = summarised(results, len(pool), setting)
    same = summary["strategies"]["rank"]  # all strategies have the same results here
    assert same["gain_over"]["stratified"] == {"area": 0.0, "interval": [0.0, 0.0]}
    assert same["area_interval"][0] <= same["area"] <= same["area_interval"][1]
    lines = markdown("pool", summary)
    assert "| 10% | 20% | 30% |" in lines[2]
    assert lines[-1].startswith("| rank |")
    assert all(line.count("|") == lines[2].count("|") for line in lines[2:])


def test_the_page_shows_the_committed_figures() -> None:
    docs = Path(__file__).parents[2] / "docs"
    tree = json.loads((docs / "results" / "active_learning.json").read_text(encoding="utf-8"))
    page = (docs / "ranking.md").read_text(encoding="utf-8")
    for name in POOLS:
        assert "\n".join(markdown("", tree[name])[2:]) in page
