"""Warm-up records: requests that TensorFlow Serving answers by itself before it takes others.

The first answer of a graph is slow, since its kernels are chosen and its memory is taken then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf

WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
"""Where TensorFlow Serving looks, below the folder of a version."""

_SIDE = 64  # pixels; kernels are chosen by type and channels, and a server should start soon


def write_warmup(folder: Path, name: str) -> bool:
    """Writes one record for each signature of `exporters.saved_model.writer`.

    Args:
        folder: A SavedModel's folder.
        name: What the model is called in TensorFlow Serving.

    Returns:
        Whether it could be done; not without tensorflow-serving-api.
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
    sent = [cv2.imencode(kind, image)[1].tobytes() for kind in (".png", ".jpg")]
    return {
        "serving_default": images,
        "encoded": ("image_bytes", tf.make_tensor_proto(sent)),
        "probabilities": images,
        "classes": ("ask", tf.make_tensor_proto([0], tf.int32)),
    }
