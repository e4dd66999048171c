"""Writes a network as an ONNX file of any batch and image size.

tf2onnx only logs what it cannot convert, and returns a graph without raising an error. Therefore
its logged errors count as failures, and the outputs of the file in onnxruntime are compared with
Keras at sizes that are not multiples of pooling bins or strides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import VerificationError, first_line
from ccfnet_tf.exporters.base import LABELS, PROBABILITIES, described_maps
from ccfnet_tf.exporters.verify.reference import clear_branch, settled
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.labels_and_maps import attention_logit, hard_threshold, maps
from ccfnet_tf.runtimes.onnx import import_extra, new_session

OPSET = 17
"""ONNX opset; supported since onnxruntime 1.12, TensorRT 8.6 and OpenVINO 2023."""

INPUTS = {
    "images": "uint8 [B, H, W, 3], RGB 0..255, sides of at least 32; mirror a smaller image at the "
    "bottom and right and crop the outputs",
    "orientation": "EXIF orientation is not applied: rotate images before the call",
    "alpha": "drop an alpha channel before the call; do not blend it",
}
OUTPUTS = {
    "labels": LABELS,
    **described_maps("float32 [B, H, W]"),
    "probabilities": PROBABILITIES,
}

_TEST_SHAPES = ((1, 32, 32), (2, 33, 47), (1, 90, 61))  # batch, height, width
_MAX_DIFFERENCE = 1e-3  # of a probability, on random images; real images have stricter limits
_ONNX_DOMAINS = ("", "ai.onnx")
_AXES = ("batch", "height", "width")


def write_onnx(model: Any, path: Path, calibration: Calibration = UNCALIBRATED) -> None:
    """Writes the file and compares it with Keras in onnxruntime.

    Args:
        model: A `CCFNet`.
        path: Path of the new file; its folder exists.
        calibration: Of probabilities and maps.

    Raises:
        ConfigError: tf2onnx, onnx or onnxruntime is not installed.
        VerificationError: tf2onnx could not convert an operator, or the outputs differ.
    """
    convert = import_extra("tf2onnx.convert")
    import_extra("onnxruntime")
    images = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    with _logged_errors() as errors, _dilated_in_one_op():
        predict = _new_predict(model, calibration)
        function = tf.function(predict, input_signature=[images], autograph=False)
        proto, _ = convert.from_function(function, input_signature=[images], opset=OPSET)
    foreign = sorted({f"{domain}:{name}" for domain, name in _foreign(proto.graph)})
    if errors or foreign:
        why = errors[0] if errors else f"operators that ONNX does not define: {', '.join(foreign)}"
        raise VerificationError(f"{path}: tf2onnx could not convert everything: {why}")
    for node in proto.graph.node:
        _pad_explicitly(node)
    _name_axes(proto)
    path.write_bytes(proto.SerializeToString())
    _compare(path, model, calibration)


def _new_predict(model: Any, calibration: Calibration) -> Any:
    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return maps(model(tf.cast(images, tf.float32), training=False), calibration)

    return predict


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Yields a list that collects tf2onnx's logged errors, one line each."""
    errors: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(" ".join(record.getMessage().split())[:200])

    logger, handler = logging.getLogger("tf2onnx"), Keep(logging.ERROR)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    logger.propagate = False  # keeps tf2onnx's log off the console
    try:
        yield errors
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def _dilated_in_one_op() -> Iterator[None]:
    """Traces each dilated depthwise convolution as one op.

    TensorFlow's CPU kernel does not support dilation, so TensorFlow traces `SpaceToBatchND` and
    `BatchToSpaceND` around it, which tf2onnx converts to some thirty operators. ONNX's convolution
    supports dilation. The traced graph is only converted, never run.
    """
    original = tf.nn.depthwise_conv2d

    def depthwise(
        input: Any,  # noqa: A002 - TensorFlow's argument names
        filter: Any,  # noqa: A002
        strides: Any,
        padding: str,
        **options: Any,
    ) -> Any:
        dilations = options.get("dilations") or (1, 1)
        if max(dilations) == 1:
            return original(input, filter, strides, padding, **options)
        return tf.raw_ops.DepthwiseConv2dNative(
            input=input,
            filter=filter,
            strides=strides,
            padding=padding,
            dilations=[1, *dilations, 1],
        )

    tf.nn.depthwise_conv2d = depthwise
    try:
        yield
    finally:
        tf.nn.depthwise_conv2d = original


def _foreign(graph: Any) -> Iterator[tuple[str, str]]:
    """Yields domain and name of operators that ONNX does not define, including subgraphs."""
    known = import_extra("onnx.defs").has
    for node in graph.node:
        if node.domain not in _ONNX_DOMAINS or not known(node.op_type):
            yield node.domain or "ai.onnx", node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _foreign(attribute.g)


def _pad_explicitly(node: Any) -> None:
    """Replaces `SAME` padding of a convolution without strides by explicit numbers of pixels.

    Both are equal at any size; onnxruntime rejects dilation with automatic padding.
    """
    if node.op_type != "Conv":
        return
    given = {attribute.name: attribute for attribute in node.attribute}
    strides = given["strides"].ints if "strides" in given else [1]
    if "auto_pad" not in given or given["auto_pad"].s != b"SAME_UPPER" or max(strides) > 1:
        return
    kernel = given["kernel_shape"].ints
    dilations = given["dilations"].ints if "dilations" in given else [1] * len(kernel)
    total = [rate * (side - 1) for rate, side in zip(dilations, kernel, strict=True)]
    before = [pad // 2 for pad in total]
    after = [pad - half for pad, half in zip(total, before, strict=True)]
    node.attribute.remove(given["auto_pad"])
    node.attribute.append(import_extra("onnx.helper").make_attribute("pads", before + after))


def _name_axes(proto: Any) -> None:
    for value in [*proto.graph.input, *proto.graph.output]:
        for axis, name in zip(value.type.tensor_type.shape.dim, _AXES, strict=False):
            axis.dim_param = name


def _compare(path: Path, model: Any, calibration: Calibration) -> None:
    session = new_session(path)
    heads_of = tf.function(
        lambda images: model(images, training=False), autograph=False, reduce_retracing=True
    )
    rng = np.random.default_rng(0)
    for batch, height, width in _TEST_SHAPES:
        images = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
        size = f"{batch} images of {width}x{height}"
        try:
            outputs = dict(
                zip(OUTPUTS, session.run(list(OUTPUTS), {"images": images}), strict=True)
            )
        except Exception as error:
            reason = first_line(error)
            raise VerificationError(f"{path}: onnxruntime, {size}: {reason}") from error
        heads = heads_of(tf.constant(images, tf.float32))
        clear = clear_branch(attention_logit(heads["attention"]).numpy(), hard_threshold(model))
        compared = {
            "labels": clear & settled(heads["refine"].numpy()),
            "difficulty": clear & settled(heads["coarse"].numpy()),
            "risk": clear,
            "probabilities": clear,
        }
        for name, expected in maps(heads, calibration).items():
            gap = np.abs(outputs[name] - expected.numpy())[compared.get(name, ...)]
            deviation = float(gap.max(initial=0.0))
            if not deviation <= _MAX_DIFFERENCE:  # also true for NaN
                raise VerificationError(
                    f"{path}: {name} of {size} in onnxruntime differs from Keras by "
                    f"{deviation:.2g}, above {_MAX_DIFFERENCE:g}"
                )
