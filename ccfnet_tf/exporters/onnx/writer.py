"""A network as an ONNX file of any batch and size, for onnxruntime, TensorRT and OpenVINO.

The exporter, tf2onnx, logs what it cannot convert, writes the file all the same and returns as if
nothing was amiss. So its log counts as much as its result, and the file has to answer as Keras
does in onnxruntime, at sizes that no bin or stride divides, before it is there.
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
from ccfnet_tf.network.outputs import difficulty, probabilities
from ccfnet_tf.runtimes.onnx import import_extra, new_session

OPSET = 17
"""Read by onnxruntime from 1.12, TensorRT from 8.6 and OpenVINO from 2023 on."""

INPUTS = {
    "images": "uint8 [B, H, W, 3], RGB 0..255, sides from 32 up; mirror a smaller image at the "
    "bottom and right and crop the answer",
    "orientation": "EXIF orientation is not applied: the client does it",
    "alpha": "dropped by the client, not blended",
}
OUTPUTS = {
    "probabilities": "float32 [B, H, W, C], they add up to 1; the label is the largest's place",
    "difficulty": "P(the coarse answer is wrong), float32 [B, H, W]",
}

_SIZES = ((1, 32, 32), (2, 33, 47), (1, 90, 61))  # batch, height, width
_GROSS = 1e-3  # of a probability; real images are held against the format's own tolerance
_ONNX_DOMAINS = ("", "ai.onnx")
_AXES = ("batch", "height", "width")


def write_onnx(model: Any, path: Path) -> None:
    """Writes the file and holds it against Keras in onnxruntime.

    Args:
        model: A `CCFNet`.
        path: Where to; its folder is there.

    Raises:
        ConfigError: tf2onnx, onnx or onnxruntime is not installed.
        VerificationError: The exporter left something out, or the file answers otherwise.
    """
    convert = import_extra("tf2onnx.convert")
    import_extra("onnxruntime")
    images = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    with _complaints() as said, _dilated_in_one_op():
        function = tf.function(_answer(model), input_signature=[images], autograph=False)
        proto, _ = convert.from_function(function, input_signature=[images], opset=OPSET)
    foreign = sorted({f"{domain}:{name}" for domain, name in _foreign(proto.graph)})
    if said or foreign:
        why = said[0] if said else f"operators that are not ONNX's own: {', '.join(foreign)}"
        raise VerificationError(f"{path}: the exporter could not convert everything: {why}")
    for node in proto.graph.node:
        _pad_explicitly(node)
    _name_axes(proto)
    path.write_bytes(proto.SerializeToString())
    _compare(path, model)


def _answer(model: Any) -> Any:
    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = model(tf.cast(images, tf.float32), training=False)
        return {
            "probabilities": probabilities(outputs["refine"]),
            "difficulty": difficulty(outputs["attention"]),
        }

    return answer


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Yields a list that takes, in one line each, what the exporter logs as an error."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(" ".join(record.getMessage().split())[:200])

    logger, handler = logging.getLogger("tf2onnx"), Keep(logging.ERROR)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    logger.propagate = False  # its notes are no user's concern
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def _dilated_in_one_op() -> Iterator[None]:
    """Makes dilated depthwise convolutions one op in what is traced.

    TensorFlow cuts the image into small ones instead, since its CPU kernel knows no dilation,
    and the exporter makes some thirty operators of each. ONNX's convolution is dilated itself. The
    graph is only converted, never run.
    """
    usual = tf.nn.depthwise_conv2d

    def depthwise(
        input: Any,  # noqa: A002 - TensorFlow's own names
        filter: Any,  # noqa: A002
        strides: Any,
        padding: str,
        **options: Any,
    ) -> Any:
        dilations = options.get("dilations") or (1, 1)
        if max(dilations) == 1:
            return usual(input, filter, strides, padding, **options)
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
        tf.nn.depthwise_conv2d = usual


def _foreign(graph: Any) -> Iterator[tuple[str, str]]:
    """Yields domain and name of operators that ONNX does not define, of inner graphs too."""
    known = import_extra("onnx.defs").has
    for node in graph.node:
        if node.domain not in _ONNX_DOMAINS or not known(node.op_type):
            yield node.domain or "ai.onnx", node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _foreign(attribute.g)


def _pad_explicitly(node: Any) -> None:
    """Writes `SAME` of a convolution without stride as numbers of pixels.

    The two are equal at any size; onnxruntime refuses dilation where padding is automatic.
    """
    if node.op_type != "Conv":
        return
    found = {attribute.name: attribute for attribute in node.attribute}
    strides = found["strides"].ints if "strides" in found else [1]
    if "auto_pad" not in found or found["auto_pad"].s != b"SAME_UPPER" or max(strides) > 1:
        return
    kernel = found["kernel_shape"].ints
    dilations = found["dilations"].ints if "dilations" in found else [1] * len(kernel)
    whole = [rate * (side - 1) for rate, side in zip(dilations, kernel, strict=True)]
    before = [pad // 2 for pad in whole]
    after = [pad - half for pad, half in zip(whole, before, strict=True)]
    node.attribute.remove(found["auto_pad"])
    node.attribute.append(import_extra("onnx.helper").make_attribute("pads", before + after))


def _name_axes(proto: Any) -> None:
    for value in [*proto.graph.input, *proto.graph.output]:
        for axis, name in zip(value.type.tensor_type.shape.dim, _AXES, strict=False):
            axis.dim_param = name


def _compare(path: Path, model: Any) -> None:
    session = new_session(path)
    answer = tf.function(_answer(model), autograph=False, reduce_retracing=True)
    rng = np.random.default_rng(0)
    for batch, height, width in _SIZES:
        images = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
        size = f"{batch} images of {width}x{height}"
        try:
            given = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"images": images}), strict=True))
        except Exception as error:
            reason = first_line(error)
            raise VerificationError(f"{path}: onnxruntime, {size}: {reason}") from error
        for name, expected in answer(tf.constant(images)).items():
            gap = float(np.abs(given[name] - expected.numpy()).max())
            if not gap <= _GROSS:  # NaN is above
                raise VerificationError(
                    f"{path}: {name} of {size} in onnxruntime is {gap:.2g} from Keras's, "
                    f"above {_GROSS:g}"
                )
