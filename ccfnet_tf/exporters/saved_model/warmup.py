"""Writes warm-up records: requests that TensorFlow Serving runs before it accepts others.

The first run of a graph is slow, because kernels are selected and memory is allocated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf

WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
"""Path that TensorFlow Serving reads, relative to the folder of a version."""

_SIDE = 64  # pixels; kernels depend on type and channels only, and servers should start fast


def write_warmup(folder: Path, name: str) -> bool:
    """Writes one record per signature of `exporters.saved_model.writer`.

    Args:
        folder: The SavedModel's folder.
        name: Name of the model in TensorFlow Serving.

    Returns:
        Whether the records were written; False if tensorflow-serving-api is not installed.
    """
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        return False
    path = folder / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, (argument, value) in _requests().items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            request.inputs[argument].CopyFrom(value)
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())
    return True


def _requests() -> dict[str, tuple[str, Any]]:
    image = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3)).astype(np.uint8)
    images = ("images", tf.make_tensor_proto(image[np.newaxis]))
    encoded = [cv2.imencode(kind, image)[1].tobytes() for kind in (".png", ".jpg")]
    return {
        "serving_default": images,
        "encoded": ("image_bytes", tf.make_tensor_proto(encoded)),
        "probabilities": images,
        "classes": ("ask", tf.make_tensor_proto([0], tf.int32)),
    }
