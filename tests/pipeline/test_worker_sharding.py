"""Assignment of samples to workers."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import Sample
from ccfnet_tf.pipeline.batch import training_batches
from ccfnet_tf.pipeline.worker_sharding import Share, by_example, by_file, epoch_order

SAMPLES = [Sample(str(i), str(i), str(i)) for i in range(11)]
FILES = [[0, 3, 6, 9, 10], [1, 4, 7], [2, 5, 8]]  # samples in the files of three workers
PLAIN = DataConfig(format="scenes", crop=33, scale=(1.0, 1.0), flip=False, colour=0.0)


def numbered(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Returns a sample whose label is its own number."""
    number = int(sample.name)
    return np.full((33, 33, 3), number, np.uint8), np.full((33, 33), number, np.int32)


def numbers(share: Share | None, batches: int, *, first_step: int = 0, replicas: int = 1) -> list:
    """Returns the numbers of the samples, [batches, B]."""
    stream = training_batches(
        SAMPLES,
        numbered,
        PLAIN,
        batch=6,
        seed=5,
        first_step=first_step,
        share=share,
        replicas=replicas,
    )
    return [label[:, 0, 0].tolist() for _, label in stream.take(batches).as_numpy_iterator()]


@pytest.mark.parametrize("workers", [2, 3])
def test_shares_by_example_add_up_to_the_global_batch(workers: int) -> None:
    whole = numbers(None, 5)
    parts = [numbers(by_example(SAMPLES, 6, worker, workers), 5) for worker in range(workers)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == whole


def test_replicas_of_a_worker_split_its_share() -> None:
    share = by_example(SAMPLES, 6, 1, 3)
    halves = numbers(share, 10, replicas=2)
    joined = [halves[i] + halves[i + 1] for i in range(0, 10, 2)]
    assert joined == numbers(share, 5)


def test_each_file_is_read_by_one_worker() -> None:
    seen = []
    for worker in range(3):
        share = by_file(FILES.__getitem__, 6, worker, 3)
        assert share.steps == 1  # the smallest worker has three samples, two per batch
        epochs = numbers(share, 12)
        assert all(len(set(epoch)) == 2 for epoch in epochs)  # no sample twice in an epoch
        seen.append({number for epoch in epochs for number in epoch})
        assert numbers(share, 3, first_step=9) == epochs[9:]  # a run resumes at any step
        assert len({tuple(epoch) for epoch in epochs}) > 1  # a different order in every epoch
    assert seen == [set(members) for members in FILES]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch is 12: .*11 images"):
        by_example(SAMPLES, 12)
    with pytest.raises(ConfigError, match=r"4 for each of 3 workers: .* 3 samples; lower"):
        by_file(FILES.__getitem__, 12, 0, 3)


@pytest.mark.parametrize("share", [by_example(SAMPLES, 6, 1, 3), Share(1, 2, 3, (2, 5, 8))])
@pytest.mark.parametrize("first_step", [0, 4])
def test_batches_come_in_the_order_of_the_epoch(share: Share, first_step: int) -> None:
    orders = [epoch_order(share, 11, batch=6, seed=5, epoch=epoch) for epoch in range(7)]
    assert numbers(share, 7 - first_step, first_step=first_step) == [
        order.tolist() for order in orders[first_step:]
    ]


def chi_squared(drawn: np.ndarray, cells: int) -> float:
    """Returns the deviation of counts from a uniform distribution, in sigmas of chi squared.

    Args:
        drawn: int [epochs, k], k different cells of each epoch.
        cells: How many cells there are.
    """
    expected = drawn.size / cells
    # Cells drawn without replacement vary less than independent ones.
    variance = expected * (1 - drawn.shape[1] / cells) * cells / (cells - 1)
    counts = np.bincount(drawn.ravel(), minlength=cells)
    freedom = cells - 1
    return float((((counts - expected) ** 2).sum() / variance - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("members", [None, tuple(range(31))])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_orders_are_uniform(members: tuple[int, ...] | None, seed: int) -> None:
    epochs, samples, batch = 6000, 31, 8
    share = Share(3, members=members)
    orders = np.stack(
        [epoch_order(share, samples, batch=batch, seed=seed, epoch=k) for k in range(epochs)]
    )
    assert orders.shape == (epochs, 24)
    rows = np.arange(epochs)[:, None]
    missing = np.ones((epochs, samples), bool)
    missing[rows, orders] = False
    left_out = np.nonzero(missing)[1].reshape(epochs, 7)
    # The distance of neighbours, 1..30, is uniform as well over all pairs of distinct samples.
    steps = (orders[:, 1:2] - orders[:, :1]) % samples - 1
    between_batches = (orders[:, 8:9] - orders[:, 7:8]) % samples - 1
    between_epochs = (orders[1:, :1] - orders[:-1, :1]) % samples
    found = {
        "left out": chi_squared(left_out, samples),
        "first": chi_squared(orders[:, :1], samples),
        "last": chi_squared(orders[:, -1:], samples),
        "first batch": chi_squared(orders[:, :batch], samples),
        "pairs": chi_squared(_pairs(orders, samples), samples * (samples - 1)),
        "neighbours": chi_squared(steps, samples - 1),
        "between batches": chi_squared(between_batches, samples - 1),
        "between epochs": chi_squared(between_epochs, samples),
    }
    # The seeds are fixed, so the test is deterministic; a value above five has a chance of 1e-5.
    assert {name: value for name, value in found.items() if abs(value) > 5} == {}


def _pairs(orders: np.ndarray, samples: int) -> np.ndarray:
    """Numbers the ordered pairs of distinct samples: 0 .. samples * (samples - 1) - 1."""
    first, second = orders[:, 0], orders[:, 1]
    return (first * (samples - 1) + second - (second > first))[:, None]


def test_workers_with_their_own_files_draw_independently() -> None:
    places = []
    for worker in range(2):
        share = Share(1, worker, 2, tuple(range(12)))
        orders = [epoch_order(share, 24, batch=2, seed=3, epoch=epoch) for epoch in range(2000)]
        places.append(np.concatenate(orders))
    met = places[0] * 12 + places[1]  # every pair of samples meets equally often
    assert abs(chi_squared(met[:, None], 144)) < 5
