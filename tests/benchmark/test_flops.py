from __future__ import annotations

from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers

from ccfnet_tf.benchmark.flops import cost, count
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.efficientnet_lite import VARIANTS


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (layers.Conv2D(5, 3, padding="same"), 12 * 10 * 9 * 4 * 5),
        (layers.Conv2D(5, 3, padding="same", dilation_rate=2), 12 * 10 * 9 * 4 * 5),
        (layers.Conv2D(5, 3, padding="valid", dilation_rate=2), 8 * 6 * 9 * 4 * 5),
        (layers.Conv2D(5, (3, 1), strides=2), 5 * 5 * 3 * 4 * 5),
        (layers.Conv2D(6, 3, padding="same", groups=2), 12 * 10 * 9 * 2 * 6),
        (layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 12 * 10 * 9 * 4 * 2),
        (layers.SeparableConv2D(5, 3, padding="same"), 12 * 10 * (9 * 4 + 4 * 5)),
        (layers.Conv2DTranspose(5, 2, strides=2), 12 * 10 * 4 * 4 * 5),
        (layers.Dense(7), 12 * 10 * 4 * 7),
        (layers.BatchNormalization(), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else None,
)
def test_a_layer_costs_what_is_counted_by_hand(layer: layers.Layer, macs: int) -> None:
    images = keras.Input((None, None, 4))
    found = count(keras.Model(images, layer(images)), (1, 12, 10, 4))
    assert found == ({layer.name: macs} if macs else {})


def test_a_kernel_without_a_rule_is_not_left_out_in_silence() -> None:
    images = keras.Input((None, None, 4))
    model = keras.Model(images, layers.EinsumDense("bhwc,cd->bhwd", (None, None, 3))(images))
    with pytest.raises(TypeError, match="no rule for the multiply-adds of a EinsumDense"):
        count(model, (1, 12, 10, 4))


def test_resnet_50_costs_what_is_known_of_it() -> None:
    model = keras.applications.ResNet50(weights=None)
    assert sum(count(model, (1, 224, 224, 3)).values()) / 1e9 == pytest.approx(3.858, abs=5e-4)


@pytest.mark.slow
def test_a_backbone_at_two_scales_counts_twice() -> None:
    def build(**options: float) -> Any:
        return build_ccfnet(
            5, backbone="mobilenet_v2", backbone_weights=None, head_channels=8, **options
        )

    one_scale = build()
    full = cost(one_scale, 97, 97)
    for scale, size in ((0.5, 49), (1.5, 145)):
        other, both = cost(one_scale, size, size), cost(build(coarse_scale=scale), 97, 97)
        assert both.backbone == pytest.approx(full.backbone + other.backbone)
        assert both.coarse == pytest.approx(other.coarse)
        assert (both.attention, both.fine) == (full.attention, full.fine)


def test_efficientnet_lite_costs_what_others_count() -> None:
    build, size = VARIANTS["efficientnet_lite0"], 224
    body = build(include_top=False, input_shape=(size, size, 3), weights=None)
    x = layers.Conv2D(1280, 1)(body.output)
    x = layers.Dense(1000)(layers.GlobalAveragePooling2D()(x))
    found = count(keras.Model(body.input, x), (1, size, size, 3))
    # TensorFlow's own figure, 407 million, includes batch norm.
    assert sum(found.values()) / 1e9 == pytest.approx(0.385, abs=5e-4)


@pytest.mark.slow
def test_the_network_costs_what_tensorflow_s_profiler_counts() -> None:
    model = build_ccfnet(
        5,
        backbone="mobilenet_v2",
        backbone_weights=None,
        head_channels=8,
        attention_input="features_and_coarse",
        fine_input="pyramid_and_detail",
    )
    # Padded to 249: 32 features a side, which dilations of 2 and 4 divide. Where they do not,
    # TensorFlow's way of dilating computes more than is asked for.
    measured = cost(model, 245, 249)
    profiled = _convolutions(model, (1, 245, 249, 3)) / 2e9
    assert measured.total == pytest.approx(profiled, rel=1e-6)
    assert measured.coarse == pytest.approx(32 * 32 * (9 * 320 * 8 + 8 * 5) / 1e9)
    assert measured.attention == pytest.approx(32 * 32 * (9 * (320 + 6) * 8 + 8 * 2) / 1e9)
    assert measured.backbone > measured.fine > measured.coarse


def _convolutions(model: keras.Model, images: tuple[int, ...]) -> int:
    """Returns the float operations of convolutions that TensorFlow counts in the traced graph."""
    profiler = tf.compat.v1.profiler
    answer = tf.function(lambda x: model(x, training=False))
    graph = answer.get_concrete_function(tf.TensorSpec(images)).graph
    options = profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    node = profiler.profile(graph, cmd="op", options=options)
    total = 0
    while node.children:
        node = node.children[0]
        if "Conv" in node.name:
            total += node.float_ops
    return total
