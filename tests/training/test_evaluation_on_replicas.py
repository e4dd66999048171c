"""An evaluation on two replicas counts the same as on one, also with an incomplete last batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.evaluation.epoch_end_states import Evaluator
from ccfnet_tf.labels import VOID, Taxonomy

TAXONOMY = Taxonomy(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def draw_images(count: int) -> tf.data.Dataset:
    """Single images of different sizes."""
    rng = np.random.default_rng(0)
    sizes = [(33 + index, 40 - index) for index in range(count)]
    images = [rng.integers(0, 256, (1, *size, 3)).astype(np.uint8) for size in sizes]
    labels = [rng.integers(-1, 3, (1, *size)).astype(np.int32) for size in sizes]
    return tf.data.Dataset.from_generator(
        lambda: zip(images, labels, strict=True),
        output_signature=(
            tf.TensorSpec([1, None, None, 3], tf.uint8),
            tf.TensorSpec([1, None, None], tf.int32),
        ),
    )


@pytest.mark.parametrize("count", [pytest.param(4, marks=pytest.mark.slow), 5])
def test_two_replicas_count_what_one_counts(
    count: int, toy: Callable[..., Any], two_replicas: Any
) -> None:
    found = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = toy(3)
        done: list[int] = []
        found.append(
            Evaluator(model, TAXONOMY).run(
                draw_images(count), advance=lambda done=done: done.append(1)
            )
        )
        assert len(done) == count
    one, two = found
    assert one.pictures == two.pictures == count
    labelled = sum(
        int((label != VOID).sum()) for _, label in draw_images(count).as_numpy_iterator()
    )
    assert one.refine.pixels == labelled
    for head in ("coarse", "fine", "refine", "attention", "risk"):
        mine, theirs = getattr(one, head).counts, getattr(two, head).counts
        np.testing.assert_array_equal(mine, theirs, err_msg=head)
