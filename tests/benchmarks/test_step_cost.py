"""Forms of the training step beside the step as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from benchmarks import step_cost
from benchmarks.gradient_soak import PRECISIONS
from benchmarks.step_cost import AS_IT_IS, changed, forms, markdown
from ccfnet_tf.errors import ConfigError

CLASSES = 3


def looks(model: Any) -> int:
    """Returns how many tensors a step reduces to whether all of their values are good."""
    model.compile(optimizer="adamw")
    step = tf.function(lambda images, labels: model.train_step((images, labels)))
    images = tf.TensorSpec((2, 33, 33, 3), tf.float32)
    labels = tf.TensorSpec((2, 33, 33), tf.int32)
    graph = step.get_concrete_function(images, labels).graph
    return [op.type for op in graph.get_operations()].count("All")


@pytest.mark.slow
def test_a_step_can_be_traced_without_its_look_at_gradients(toy: Callable[..., Any]) -> None:
    model = toy(CLASSES)
    assert looks(model) > len(model.trainable_variables)
    with changed(forms("float32")["gradients not looked at"]):
        assert looks(toy(CLASSES)) == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_form_changes_something_that_is_there_and_puts_it_back(precision: str) -> None:
    for name, changes in forms(precision).items():
        assert bool(changes) == (name != AS_IT_IS)
        before = [getattr(place, function) for place, function, _ in changes]
        with changed(changes):
            for (place, function, value), old in zip(changes, before, strict=True):
                assert getattr(place, function) is value is not old
        assert before == [getattr(place, function) for place, function, _ in changes]


def test_kernels_have_other_gradients_in_low_precision_alone() -> None:
    assert "kernel gradient: channels" in forms("bfloat16")
    assert not any("kernel" in name for name in forms("float32"))


def test_ratios_are_those_of_the_same_round() -> None:
    seconds = {AS_IT_IS: [1.0, 2.0, 4.0], "other": [1.1, 2.2, 3.0]}
    work = {AS_IT_IS: [1.0, 1.0, 2.0], "other": [1.0, 1.2, 2.6]}
    table = markdown(seconds, work)
    assert table[-2] == f"| {AS_IT_IS} | 1000 | 1.000 | 1.000 | 1.000 to 1.000 |"
    assert table[-1] == "| other | 1100 | 1.100 | 1.200 | 1.000 to 1.300 |"


def test_rounds_are_counted_from_one() -> None:
    with pytest.raises(ConfigError, match="--rounds is 0: it must be 1 or more"):
        step_cost.main(["--rounds", "0"])
    with pytest.raises(ConfigError, match=r"unknown key 'train\.bach'"):
        step_cost.main(["--train.bach", "2"])
