"""Forms of the training step beside the step as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from ccfnet_tf.benchmark import step_cost
from ccfnet_tf.benchmark.step_cost import AS_IT_IS, changed, forms, markdown
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.network import layers

CLASSES = 3


def operations(model: Any) -> set[str]:
    model.compile(optimizer="adamw")
    step = tf.function(lambda images, labels: model.train_step((images, labels)))
    images = tf.TensorSpec((2, 33, 33, 3), tf.float32)
    labels = tf.TensorSpec((2, 33, 33), tf.int32)
    return {op.type for op in step.get_concrete_function(images, labels).graph.get_operations()}


def test_a_step_can_be_traced_without_its_look_at_gradients(toy: Callable[..., Any]) -> None:
    found = forms("float32")
    assert "IsFinite" in operations(toy(CLASSES))
    with changed(found["gradients not looked at"]):
        assert "IsFinite" not in operations(toy(CLASSES))
    assert "IsFinite" in operations(toy(CLASSES))


def test_every_form_changes_something_that_is_there_and_puts_it_back() -> None:
    for precision in ("float32", "bfloat16"):
        for name, change in forms(precision).items():
            assert (change is None) == (name == AS_IT_IS)
            if change is None:
                continue
            module, function, value = change
            before = getattr(module, function)
            with changed(change):
                assert getattr(module, function) is value is not before
            assert getattr(module, function) is before
    assert "kernel gradient: channels" in forms("bfloat16")
    assert not any(
        change and change[1] == layers.kernel_gradient.__name__
        for change in forms("float32").values()
    )


def test_ratios_are_those_of_the_same_round() -> None:
    seconds = {AS_IT_IS: [1.0, 2.0, 4.0], "other": [1.1, 2.2, 3.0]}
    table = markdown(seconds)
    assert table[-2] == f"| {AS_IT_IS} | 1000 | 1.000 | 1.000 |"
    assert table[-1] == "| other | 1100 | 1.100 | 1.100 |"


def test_rounds_are_counted_from_one() -> None:
    with pytest.raises(ConfigError, match="--rounds is 0: it must be 1 or more"):
        step_cost.main(["--rounds", "0"])
    with pytest.raises(ConfigError, match="unknown key 'train.bach'"):
        step_cost.main(["--train.bach", "2"])
