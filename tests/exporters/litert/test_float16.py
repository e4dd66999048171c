"""Weights in 16 bits: large ones alone, and never what 16 bits cannot hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from ccfnet_tf.exporters.litert.float16 import MIN_FLOAT16_SIZE, with_float16_weights

X = np.random.default_rng(0).uniform(0.0, 1.0, (1, 8, 8, 16)).astype(np.float32)


def converted(graph: Callable[[tf.Tensor], tf.Tensor], *, by_the_converter: bool = False) -> bytes:
    spec = tf.TensorSpec(X.shape, tf.float32, name="x")
    function = tf.function(graph, input_signature=[spec]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    if by_the_converter:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    return bytes(converter.convert())


def answer(content: bytes) -> np.ndarray:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], X)
    interpreter.invoke()
    found: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


def halves(content: bytes) -> list[int]:
    """Returns the sizes of the constants that are kept in float16."""
    details = Interpreter(model_content=content).get_tensor_details()
    return [int(np.prod(each["shape"])) for each in details if each["dtype"] == np.float16]


def test_large_constants_are_halved_and_small_ones_stay() -> None:
    rng = np.random.default_rng(1)
    kernel = rng.normal(0.0, 0.1, (3, 3, 16, 32)).astype(np.float32)
    small = rng.normal(0.0, 0.1, (1, 1, 32, 8)).astype(np.float32)
    assert small.size < MIN_FLOAT16_SIZE <= kernel.size

    def graph(first: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
        return lambda x: tf.nn.conv2d(
            tf.nn.relu(tf.nn.conv2d(x, first, 1, "SAME")), small, 1, "SAME"
        )

    whole = converted(graph(kernel))
    content = with_float16_weights(whole)
    assert halves(content) == [kernel.size]
    assert len(whole) - len(content) == pytest.approx(2 * kernel.size, abs=2000)
    rounded = converted(graph(kernel.astype(np.float16).astype(np.float32)))
    np.testing.assert_allclose(answer(content), answer(rounded), atol=1e-6)
    assert np.abs(answer(content) - answer(whole)).max() > 1e-6


def test_what_is_too_large_for_16_bits_stays() -> None:
    kernel = np.full((3, 3, 16, 32), 1e-3, np.float32)
    kernel[0, 0, 0, 0] = 1e6

    content = with_float16_weights(converted(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME")))
    assert halves(content) == []
    assert np.isfinite(answer(content)).all()


def test_one_constant_used_twice_is_kept_once() -> None:
    kernel = np.random.default_rng(1).normal(0.0, 0.1, (3, 3, 16, 16)).astype(np.float32)

    def graph(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), kernel, 1, "SAME")

    whole = converted(graph)
    content = with_float16_weights(whole)
    assert len(whole) - len(content) == pytest.approx(2 * kernel.size, abs=2000)
    np.testing.assert_allclose(answer(content), answer(whole), atol=1e-2)


def test_what_nearly_cancels_is_not_rounded() -> None:
    """A kernel whose sum is nearly nothing, enlarged: the converter's own way loses it."""
    kernel = np.zeros((3, 3, 16, 1), np.float32)
    kernel[1, 1], kernel[1, 2] = 0.7003, -0.7

    def graph(x: tf.Tensor) -> tf.Tensor:
        level = tf.ones_like(x)
        found = tf.nn.depthwise_conv2d(level + 0.0 * x, kernel, [1, 1, 1, 1], "VALID")
        return 1e3 * found

    whole = answer(converted(graph))
    assert np.abs(answer(with_float16_weights(converted(graph))) - whole).max() < 1e-3
    theirs = answer(converted(graph, by_the_converter=True))
    assert np.abs(theirs - whole).max() > 0.1
