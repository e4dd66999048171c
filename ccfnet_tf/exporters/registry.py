"""Maps each format to its exporter."""

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
    """Returns the exporter of a format, configured with the options of the command line.

    Args:
        format_: The format.
        given: Options that were given on the command line. SavedModel: `precision`. LiteRT:
            `quantize`, `size` (HxW), `outputs`, `batch` and `max_loss`.

    Raises:
        ConfigError: A value is not allowed.
    """
    return _EXPORTERS[format_](**given)
