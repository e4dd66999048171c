"""ONNX files: equal to Keras at any size, or refused."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

from ccfnet_tf.errors import ConfigError, VerificationError
from ccfnet_tf.exporters.onnx import writer as module
from ccfnet_tf.exporters.onnx.writer import OUTPUTS, write_onnx
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.runtimes.onnx import OnnxNetwork

Model = Callable[..., dict[str, tf.Tensor]]


def hold_against_keras(model: Any, path: Path, sizes: list[tuple[int, int]]) -> None:
    ours = KerasNetwork(model)
    theirs = OnnxNetwork(path, ours.taxonomy)
    rng = np.random.default_rng(0)
    for size in sizes:
        picture = rng.integers(0, 256, (*size, 3), np.uint8)
        expected, found = ours.predict(picture), theirs.predict(picture)
        for one, other in zip(found[1:], expected[1:], strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            np.testing.assert_allclose(one, other, atol=1e-4)
        assert (found.labels == expected.labels).mean() > 0.99


def test_it_takes_any_batch_and_size(toy: Callable[..., Any], tmp_path: Path) -> None:
    model, path = toy(3), tmp_path / "toy.onnx"
    write_onnx(model, path)
    hold_against_keras(model, path, [(1, 1), (20, 50), (64, 33)])
    graph = onnx.load(path).graph
    axes = {
        each.name: [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in [*graph.input, *graph.output]
    }
    assert axes == {
        "images": ["batch", "height", "width", 3],
        **{key: ["batch", "height", "width"] for key in ("labels", *MAPS)},
        "probabilities": ["batch", "height", "width", 3],
    }
    assert set(OUTPUTS) == {each.name for each in graph.output}


@pytest.mark.slow
def test_the_whole_network_is_equal_to_keras(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = build_ccfnet(
        3,
        backbone="mobilenet_v2",
        backbone_weights=None,
        head_channels=8,
        attention_input="features_and_coarse",
        fine_input="pyramid_and_detail",
    )
    path = tmp_path / "whole.onnx"
    write_onnx(model, path)
    hold_against_keras(model, path, [(1, 1), (32, 32), (41, 97)])
    names = {node.op_type for node in onnx.load(path).graph.node}
    # Dilation is the convolution's own, not images cut into small ones.
    assert not names & {"SpaceToDepth", "DepthToSpace"}


@pytest.mark.slow
def test_a_network_on_efficientnet_lite_is_equal_to_keras(
    lite_network: Any, tmp_path: Path
) -> None:
    write_onnx(lite_network, tmp_path / "lite.onnx")
    hold_against_keras(lite_network, tmp_path / "lite.onnx", [(1, 1), (32, 32), (41, 97)])


def answers(features: tf.Tensor) -> dict[str, tf.Tensor]:
    """Features [B, H, W, 2] -> what a network says."""
    logs = tf.math.log(tf.nn.softmax(features))
    return {"coarse": features, "refine": logs, "attention": features}


def pooling(end: Callable[[Any], Any]) -> Model:
    """A network that adds to every pixel the means of three bins of rows."""

    def model(images: tf.Tensor, *, training: bool) -> dict[str, tf.Tensor]:
        del training
        height, index = tf.shape(images)[1], tf.range(3)
        place, start = tf.range(height)[None], (index * height) // 3
        inside = (place >= start[:, None]) & (place < end((index + 1) * height)[:, None])
        rows = tf.cast(inside, tf.float32)
        rows /= tf.reduce_sum(rows, 1, keepdims=True)
        means = tf.einsum("rh,bhwc->brc", rows, images[..., :2] / 255.0)
        return answers(images[..., :2] / 255.0 + tf.reduce_sum(means, 1)[:, None, None])

    return model


def test_a_truncated_ceil_is_refused(tmp_path: Path) -> None:
    write_onnx(pooling(lambda a: (a + 2) // 3), tmp_path / "right.onnx")
    with pytest.raises(VerificationError, match=r"in onnxruntime differs from Keras by .*, above"):
        write_onnx(pooling(lambda a: -((-a) // 3)), tmp_path / "wrong.onnx")


def test_what_the_exporter_only_logs_is_refused(tmp_path: Path) -> None:
    def model(images: tf.Tensor, *, training: bool) -> dict[str, tf.Tensor]:
        del training
        return answers(tf.math.log1p(images[..., :2]))

    path = tmp_path / "log1p.onnx"
    with pytest.raises(VerificationError, match=r"could not convert everything: .*Log1p") as caught:
        write_onnx(model, path)
    assert len(str(caught.value).splitlines()) == 1
    assert not path.exists()


def test_an_error_in_the_exporter_s_log_is_enough(tmp_path: Path) -> None:
    def model(images: tf.Tensor, *, training: bool) -> dict[str, tf.Tensor]:
        del training
        logging.getLogger("tf2onnx.rewriter").error("rewriter x:\n  left it out")
        return answers(images[..., :2])

    with pytest.raises(VerificationError, match=r"everything: rewriter x: left it out$"):
        write_onnx(model, tmp_path / "x.onnx")


def test_operators_of_others_are_found_in_inner_graphs_too() -> None:
    helper = onnx.helper
    inner = helper.make_graph(
        [helper.make_node("Fused", ["a"], ["b"], domain="com.x")], "i", [], []
    )
    nodes = [
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Log1p", ["a"], ["b"]),
        helper.make_node("If", ["a"], ["b"], then_branch=inner),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    assert list(module._foreign(graph)) == [("ai.onnx", "Log1p"), ("com.x", "Fused")]


@pytest.mark.parametrize(("rate", "side"), [(2, 3), (3, 4)])
def test_dilated_convolutions_are_one_operator(rate: int, side: int, tmp_path: Path) -> None:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    wide = layers.Conv2D(2, side, padding="same", strides=2)
    depthwise = layers.DepthwiseConv2D(side, padding="same", dilation_rate=rate)
    for layer, channels in ((wide, 3), (depthwise, 2)):
        layer.build((None, None, None, channels))
    kernel = np.random.default_rng(0).normal(size=(side, side, 2, 2)).astype(np.float32)

    def model(images: tf.Tensor, *, training: bool) -> dict[str, tf.Tensor]:
        del training
        x = depthwise(wide(images / 255.0))
        x = tf.nn.conv2d(x, kernel, 1, "SAME", dilations=rate)
        x = tf.image.resize(x, tf.shape(images)[1:3])
        return answers(x)

    path = tmp_path / "dilated.onnx"
    write_onnx(model, path)
    nodes = onnx.load(path).graph.node
    assert sum(node.op_type == "Conv" for node in nodes) == 3
    assert not {node.op_type for node in nodes} & {"SpaceToDepth", "DepthToSpace"}


def test_a_missing_exporter_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx.convert", None)
    with pytest.raises(ConfigError, match=r"tf2onnx, .*pip install 'ccfnet-tf\[onnx\]'"):
        write_onnx(None, tmp_path / "x.onnx")
