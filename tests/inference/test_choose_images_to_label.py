"""Which images are chosen, against the formula written out slowly, and in degenerate cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccfnet_tf.inference.choose_images_to_label import Candidate, candidate, choose


def made(count: int, *, classes: int = 4, features: int = 6, seed: int = 0) -> list[Candidate]:
    """Returns images that have nothing in common."""
    rng = np.random.default_rng(seed)
    return [
        Candidate(
            rng.gamma(0.5, 100, classes),
            float(rng.random()),
            rng.normal(size=features).astype(np.float32),
            rng.uniform(0, 255, 768).astype(np.float32),
        )
        for _ in range(count)
    ]


def slowly(candidates: Sequence[Candidate], count: int) -> list[tuple[int, float]]:
    """Returns indices and gains by the formula of the module's docstring."""
    mean = np.mean([each.features for each in candidates], axis=0, dtype=np.float64)
    chosen: list[tuple[int, float]] = []
    while len(chosen) < count:
        gains = {}
        for i, each in enumerate(candidates):
            if i in (j for j, _ in chosen):
                continue
            by_class = 0.0
            for c in range(len(each.wrong)):
                before = sum(candidates[j].wrong[c] for j, _ in chosen)
                by_class += (before + each.wrong[c]) ** 0.5 - before**0.5
            distance = 1.0
            for j, _ in chosen:
                one, other = each.features - mean, candidates[j].features - mean
                cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
                distance = min(distance, 1 - max(0.0, cosine))
            gains[i] = by_class * distance
        best = max(gains, key=lambda i: gains[i])
        chosen.append((best, gains[best]))
    return chosen


def test_choices_follow_the_formula() -> None:
    candidates = made(30)
    expected = slowly(candidates, 12)
    chosen = choose(candidates, 12)
    assert [each.index for each in chosen] == [index for index, _ in expected]
    scores = [gain / expected[0][1] for _, gain in expected]
    np.testing.assert_allclose([each.score for each in chosen], scores, rtol=1e-9)


def test_scores_fall_from_one_with_the_rank() -> None:
    scores = [each.score for each in choose(made(40), 40)]
    assert len(scores) == 40
    assert scores[0] == 1.0
    assert scores == sorted(scores, reverse=True)


def test_a_frequent_class_does_not_take_all_places() -> None:
    rng = np.random.default_rng(1)
    candidates = made(12)
    wrong = [np.array([1000.0 + i, 0, 0, 0]) for i in range(10)] + [
        np.array([0, 500.0, 0, 0]),
        np.array([0, 0, 500.0, 0]),
    ]
    features = np.eye(12, dtype=np.float32)
    order = rng.permutation(12)
    candidates = [
        Candidate(wrong[i], 0.0, features[i], candidates[i].thumbnail) for i in order.tolist()
    ]
    first = {int(order[each.index]) for each in choose(candidates, 3)}
    assert first == {9, 10, 11}  # by the sum of risk alone: 9, 8, 7


def test_images_alike_by_their_features_are_spread() -> None:
    base = made(3)
    wrong = np.array([100.0, 0, 0, 0])
    features = [np.array(f, np.float32) for f in ([1, 0], [0.99, 0.02], [-1, 0.1])]
    scales = (3, 2, 1)
    candidates = [
        Candidate(wrong * scale, 0.0, feature, each.thumbnail)
        for scale, feature, each in zip(scales, features, base, strict=True)
    ]
    assert [each.index for each in choose(candidates, 3)] == [0, 2, 1]


def test_near_duplicates_of_a_chosen_image_are_dropped_and_named() -> None:
    candidates = made(4)
    copy = Candidate(candidates[2].wrong / 2, 0.1, candidates[1].features, candidates[2].thumbnail)
    chosen = choose([*candidates, copy], 10)
    assert sorted(each.index for each in chosen) == [0, 1, 2, 3]
    assert {each.index: each.near_duplicates for each in chosen if each.near_duplicates} == {
        2: (4,)
    }


def test_copies_of_one_image() -> None:
    chosen = choose(made(1) * 5, 3)
    assert [(each.index, each.score) for each in chosen] == [(0, 1.0)]
    assert chosen[0].near_duplicates == (1, 2, 3, 4)


def test_no_risk_anywhere() -> None:
    candidates = [Candidate(np.zeros(4), 0.0, each.features, each.thumbnail) for each in made(5)]
    chosen = choose(candidates, 3)
    assert len({each.index for each in chosen}) == 3
    assert all(each.score == 0.0 for each in chosen)


def test_equal_features_leave_the_order_to_risk() -> None:
    wrong = [np.array([w, 0.0, 0.0, 0.0]) for w in (1, 16, 4)]
    candidates = [
        Candidate(w, 0.0, np.ones(6, np.float32), each.thumbnail)
        for w, each in zip(wrong, made(3), strict=True)
    ]
    assert [each.index for each in choose(candidates, 3)] == [1, 2, 0]


def test_no_candidate() -> None:
    assert choose([], 5) == []


def test_figures_of_an_image() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    labels = np.array([[0, 0, 2], [2, 2, 2]], np.int32)
    risk = np.array([[0.5, 0.25, 0.75], [0.0, 1.0, 0.5]], np.float32)
    found = candidate(image, labels, risk, np.ones(5, np.float32), classes=4)
    np.testing.assert_allclose(found.wrong, [0.75, 0, 2.25, 0])
    assert found.share_at_risk == 2 / 6  # .5 itself is not above
