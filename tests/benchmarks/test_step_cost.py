"""Variants of the training step compared with the unchanged step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from benchmarks import step_cost
from benchmarks.gradient_soak import PRECISIONS
from benchmarks.step_cost import UNCHANGED, changed, markdown, variants
from ccfnet_tf.errors import ConfigError

CLASSES = 3


def checks(model: Any) -> int:
    """Returns the number of tensors that a step reduces with `All`."""
    model.compile(optimizer="adamw")
    step = tf.function(lambda images, labels: model.train_step((images, labels)))
    images = tf.TensorSpec((2, 33, 33, 3), tf.float32)
    labels = tf.TensorSpec((2, 33, 33), tf.int32)
    graph = step.get_concrete_function(images, labels).graph
    return [op.type for op in graph.get_operations()].count("All")


@pytest.mark.slow
def test_a_step_can_be_traced_without_the_check_of_gradients(toy: Callable[..., Any]) -> None:
    model = toy(CLASSES)
    assert checks(model) > len(model.trainable_variables)
    with changed(variants("float32")["gradients not checked"]):
        assert checks(toy(CLASSES)) == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_variant_replaces_existing_functions_and_restores_them(precision: str) -> None:
    for name, changes in variants(precision).items():
        assert bool(changes) == (name != UNCHANGED)
        before = [getattr(owner, function) for owner, function, _ in changes]
        with changed(changes):
            for (owner, function, value), old in zip(changes, before, strict=True):
                assert getattr(owner, function) is value is not old
        assert before == [getattr(owner, function) for owner, function, _ in changes]


def test_kernel_gradients_have_variants_only_in_low_precision() -> None:
    assert "kernel gradient: channels" in variants("bfloat16")
    assert not any("kernel" in name for name in variants("float32"))


def test_ratios_are_those_of_the_same_round() -> None:
    seconds = {UNCHANGED: [1.0, 2.0, 4.0], "other": [1.1, 2.2, 3.0]}
    work = {UNCHANGED: [1.0, 1.0, 2.0], "other": [1.0, 1.2, 2.6]}
    table = markdown(seconds, work)
    assert table[-2] == f"| {UNCHANGED} | 1000 | 1.000 | 1.000 | 1.000 to 1.000 |"
    assert table[-1] == "| other | 1100 | 1.100 | 1.200 | 1.000 to 1.300 |"


def test_rounds_must_be_1_or_more() -> None:
    with pytest.raises(ConfigError, match="--rounds is 0: it must be 1 or more"):
        step_cost.main(["--rounds", "0"])
    with pytest.raises(ConfigError, match=r"unknown key 'train\.bach'"):
        step_cost.main(["--train.bach", "2"])
