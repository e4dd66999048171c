"""The exporter of each format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ccfnet_tf.exporters.base import Exporter
from ccfnet_tf.exporters.litert.exporter import LiteRTExporter
from ccfnet_tf.exporters.onnx.exporter import OnnxExporter
from ccfnet_tf.exporters.saved_model.exporter import SavedModelExporter
from ccfnet_tf.runtimes.manifest import Format

_EXPORTERS: dict[Format, Callable[..., Exporter]] = {
    "saved_model": SavedModelExporter,
    "tflite": LiteRTExporter.from_options,
    "onnx": OnnxExporter,
}


def new_exporter(format_: Format, given: Mapping[str, Any]) -> Exporter:
    """Returns the exporter that the options of the command line ask for.

    Args:
        format_: The format.
        given: Those of its options that were given: `precision` of a SavedModel; `quantize`,
            `size` (HxW), `outputs`, `batch` and `max_loss` of a LiteRT file.

    Raises:
        ConfigError: A value is not allowed.
    """
    return _EXPORTERS[format_](**given)
