"""Exports ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ccfnet_tf.datasets.open_data_set import Parts
from ccfnet_tf.exporters.base import Exporter
from ccfnet_tf.exporters.onnx.writer import INPUTS, OUTPUTS, write_onnx
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.manifest import MODEL, Format


@dataclass(frozen=True)
class OnnxExporter(Exporter):
    """Writes ONNX files that accept any batch and image size."""

    format: ClassVar[Format] = "onnx"
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "tf2onnx", "onnxruntime")
    inputs = INPUTS
    outputs = OUTPUTS

    def artifact_folder(self, out: Path) -> Path:
        """Returns the folder `onnx` in `out`."""
        return out / self.format

    def write(
        self, model: Any, parts: Parts, folder: Path, calibration: Calibration = UNCALIBRATED
    ) -> dict[str, str]:
        """Writes the file; see `Exporter.write`."""
        write_onnx(model, folder / MODEL["onnx"], calibration)
        return {}
