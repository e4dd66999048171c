from __future__ import annotations

import math

import pytest

from ccfnet_tf.errors import NotFiniteError
from ccfnet_tf.training.guard import StopWhenNotFinite


def test_the_head_and_the_step_are_named() -> None:
    guard = StopWhenNotFinite(first_step=10)
    guard.on_train_batch_end(0, {"loss": 1.0, "coarse_loss": 1.0})
    with pytest.raises(NotFiniteError, match=r"attention_loss became nan at step 12"):
        guard.on_train_batch_end(1, {"loss": math.nan, "attention_loss": math.nan})


def test_infinity_is_not_finite_either() -> None:
    with pytest.raises(NotFiniteError, match="loss became inf"):
        StopWhenNotFinite(0).on_train_batch_end(0, {"loss": math.inf})


def test_an_accuracy_may_be_anything() -> None:
    StopWhenNotFinite(0).on_train_batch_end(0, {"loss": 1.0, "refine_accuracy": math.nan})
