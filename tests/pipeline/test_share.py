"""What each of several workers reads."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import Sample
from ccfnet_tf.pipeline.batch import training_batches
from ccfnet_tf.pipeline.share import Share, by_example, by_file

SAMPLES = [Sample(str(i), str(i), str(i)) for i in range(11)]
FILES = [[0, 3, 6, 9, 10], [1, 4, 7], [2, 5, 8]]  # samples of three workers' files
PLAIN = DataConfig(format="scenes", crop=33, scale=(1.0, 1.0), flip=False, colour=0.0)


def numbered(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """A sample whose label is its own number."""
    number = int(sample.name)
    return np.full((33, 33, 3), number, np.uint8), np.full((33, 33), number, np.int32)


def numbers(share: Share | None, batches: int, *, first_step: int = 0, replicas: int = 1) -> list:
    """Returns which samples come, [batches, B]."""
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
def test_parts_by_example_are_the_batch_of_one(workers: int) -> None:
    whole = numbers(None, 5)
    parts = [numbers(by_example(SAMPLES, 6, worker, workers), 5) for worker in range(workers)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == whole


def test_a_workers_replicas_take_its_part_in_turn() -> None:
    share = by_example(SAMPLES, 6, 1, 3)
    halves = numbers(share, 10, replicas=2)
    joined = [halves[i] + halves[i + 1] for i in range(0, 10, 2)]
    assert joined == numbers(share, 5)


def test_files_are_read_by_one_worker_each() -> None:
    seen = []
    for worker in range(3):
        share = by_file(FILES.__getitem__, 6, worker, 3)
        assert share.steps == 1  # the fewest: three samples, two of each batch
        epochs = numbers(share, 12)
        assert all(len(set(epoch)) == 2 for epoch in epochs)  # none twice in a pass
        seen.append({number for epoch in epochs for number in epoch})
        assert numbers(share, 3, first_step=9) == epochs[9:]  # a run goes on anywhere
        assert len({tuple(epoch) for epoch in epochs}) > 1  # in another order each time
    assert seen == [set(members) for members in FILES]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch is 12: .*11 pictures"):
        by_example(SAMPLES, 12)
    with pytest.raises(ConfigError, match=r"4 for each of 3 workers: .* 3 samples; lower"):
        by_file(FILES.__getitem__, 12, 0, 3)
