"""Exports LiteRT (TFLite) files, for embedded GPUs and CPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ccfnet_tf.datasets.open_data_set import Parts
from ccfnet_tf.errors import ConfigError, VerificationError
from ccfnet_tf.exporters.base import MAX_DEFAULT_SIDE, Exporter
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.verify.accuracy import measure_accuracy
from ccfnet_tf.exporters.verify.reference import reference_images
from ccfnet_tf.exporters.verify.verify import verify_on_gpu
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import SMALLEST
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.letterbox import at_most, fit, parse_size
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import MODEL, Format

CALIBRATION_IMAGES = 64
"""Number of evenly spaced training images that calibrate the ranges of int8."""


@dataclass(frozen=True)
class LiteRTExporter(Exporter):
    """Writes LiteRT files of one image size.

    Args:
        file: Options of the file.
        max_loss: Largest allowed loss of pixel accuracy of an int8 file, in points.
        size_from_data: Take the size from the run's images and ignore the size of `file`.

    Raises:
        ConfigError: `max_loss` is not allowed.
    """

    format: ClassVar[Format] = "tflite"
    libraries: ClassVar[tuple[str, ...]] = ("ai-edge-litert",)
    last_step: ClassVar[str] = "accuracy and GPU"
    file: LiteRTOptions
    max_loss: float = 1.0
    size_from_data: bool = False

    def __post_init__(self) -> None:
        if not self.max_loss >= 0.0:
            raise ConfigError(f"--max-loss is {self.max_loss:g}: it must be 0 or more")

    @classmethod
    def from_options(
        cls, *, size: str | None = None, max_loss: float = 1.0, **options: Any
    ) -> Self:
        """Returns the exporter for options of the command line; see `LiteRTOptions`.

        Raises:
            ConfigError: A value is not allowed.
        """
        sides = (SMALLEST, SMALLEST) if size is None else parse_size(size)
        return cls(LiteRTOptions(size=sides, **options), max_loss, size_from_data=size is None)

    @property
    def measures_accuracy(self) -> bool:  # type: ignore[override]
        """Whether `measure` evaluates the file on labelled images: only int8."""
        return self.file.quantize == "int8"

    @property
    def options(self) -> dict[str, str]:
        """Export options, as recorded in `export.json`."""
        return {
            "quantize": self.file.quantize,
            "size": self.file.size_text,
            "outputs": self.file.outputs,
            "batch": str(self.file.batch),
        }

    @property
    def inputs(self) -> dict[str, str]:
        """Descriptions of the file's inputs, by name."""
        return self.file.inputs

    @property
    def outputs(self) -> dict[str, str]:
        """Descriptions of the file's outputs, by name."""
        return self.file.described_outputs

    def sized_for(self, parts: Parts) -> Self:
        """Returns an exporter with the size of the first image, at most `MAX_DEFAULT_SIDE`."""
        if not self.size_from_data:
            return self
        (image,) = reference_images(parts, 1)
        height, width = (max(SMALLEST, side) for side in at_most(image, MAX_DEFAULT_SIDE).shape[:2])
        return replace(self, file=replace(self.file, size=(height, width)), size_from_data=False)

    def artifact_folder(self, out: Path) -> Path:
        """Returns a folder in `out` whose name contains the options."""
        return out / self.file.folder

    def resized(self, image: np.ndarray) -> np.ndarray:
        """Returns an image [H, W, 3] resized to the file's input size."""
        return fit(image, self.file.size).image

    def write(
        self, model: Any, parts: Parts, folder: Path, calibration: Calibration = UNCALIBRATED
    ) -> dict[str, str]:
        """Writes the file; see `Exporter.write`."""
        samples: list[np.ndarray] = []
        if self.file.quantize == "int8":
            step = -(-len(parts.train) // CALIBRATION_IMAGES)
            samples = [self.resized(parts.load(sample)[0]) for sample in parts.train[::step]]
        path = folder / MODEL["tflite"]
        write_litert(model, parts.taxonomy, path, self.file, samples, calibration=calibration)
        return {}

    def measure(
        self, folder: Path, keras: KerasNetwork, parts: Parts, advance: Callable[[float], None]
    ) -> dict[str, str]:
        """Measures the accuracy of an int8 file, and runs any file on this machine's GPU.

        Raises:
            VerificationError: An int8 file loses too much accuracy, or the GPU computes wrong
                outputs for a file with float weights.
        """
        measured = {}
        if self.measures_accuracy:
            path = folder / MODEL["tflite"]
            network = LiteRTNetwork(path, keras.taxonomy, calibration=keras.calibration)
            accuracy = measure_accuracy(keras, network, parts, self.file.size, advance)
            measured["accuracy"] = str(accuracy)
            if not accuracy.loss <= self.max_loss:
                raise VerificationError(
                    f"--quantize int8 reaches {accuracy}; the largest allowed loss is "
                    f"{self.max_loss:g} points: use fp16, or raise --max-loss"
                )
        return measured | verify_on_gpu(folder, self.file.quantize)
