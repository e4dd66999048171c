"""Exports LiteRT (TFLite) files, for embedded GPUs and CPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ccfnet_tf.datasets.splits import Parts
from ccfnet_tf.errors import ConfigError, VerificationError
from ccfnet_tf.exporters.base import LARGEST_USUAL, Exporter
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.verify.accuracy import measure_accuracy
from ccfnet_tf.exporters.verify.reference import reference_pictures
from ccfnet_tf.exporters.verify.verify import verify_on_gpu
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter import SMALLEST
from ccfnet_tf.runtimes.letterbox import at_most, fit, parse_size
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import MODEL, Format

CALIBRATION = 64
"""Training images that int8's ranges are taken from, evenly spread."""


@dataclass(frozen=True)
class LiteRTExporter(Exporter):
    """Writes LiteRT files of one image size.

    Args:
        file: What the file is to be.
        max_loss: Points of pixel accuracy that an int8 file may lose.
        usual_size: Take the size from the run's images, whatever `file` says.

    Raises:
        ConfigError: `max_loss` is not allowed.
    """

    format: ClassVar[Format] = "tflite"
    libraries: ClassVar[tuple[str, ...]] = ("ai-edge-litert",)
    last_step: ClassVar[str] = "accuracy and GPU"
    file: LiteRTOptions
    max_loss: float = 1.0
    usual_size: bool = False

    def __post_init__(self) -> None:
        if not self.max_loss >= 0.0:
            raise ConfigError(f"--max-loss is {self.max_loss:g}: it must be 0 or more")

    @classmethod
    def from_options(
        cls, *, size: str | None = None, max_loss: float = 1.0, **options: Any
    ) -> Self:
        """Returns the exporter of the command line's options; see `LiteRTOptions`.

        Raises:
            ConfigError: A value is not allowed.
        """
        sides = (SMALLEST, SMALLEST) if size is None else parse_size(size)
        return cls(LiteRTOptions(size=sides, **options), max_loss, usual_size=size is None)

    @property
    def measures_accuracy(self) -> bool:  # type: ignore[override]
        """Whether accuracy is measured: of int8 files alone."""
        return self.file.quantize == "int8"

    @property
    def options(self) -> dict[str, str]:
        """What `export.json` says of how the file was made."""
        return {
            "quantize": self.file.quantize,
            "size": self.file.size_text,
            "outputs": self.file.outputs,
            "batch": str(self.file.batch),
        }

    @property
    def inputs(self) -> dict[str, str]:
        """What the file takes, in words."""
        return self.file.inputs

    @property
    def outputs(self) -> dict[str, str]:
        """What the file returns, in words."""
        return self.file.described_outputs

    def sized_for(self, parts: Parts) -> Self:
        """Returns the exporter of files as large as the first image, up to `LARGEST_USUAL`."""
        if not self.usual_size:
            return self
        (image,) = reference_pictures(parts, 1)
        height, width = (max(SMALLEST, side) for side in at_most(image, LARGEST_USUAL).shape[:2])
        return replace(self, file=replace(self.file, size=(height, width)), usual_size=False)

    def place(self, out: Path) -> Path:
        """Returns a folder in `out` whose name says what is in it."""
        return out / self.file.folder

    def fitted(self, image: np.ndarray) -> np.ndarray:
        """Returns an image [H, W, 3] at the file's size."""
        return fit(image, self.file.size).image

    def write(self, model: Any, parts: Parts, folder: Path) -> dict[str, str]:
        """Writes the file; see `Exporter.write`."""
        calibration: list[np.ndarray] = []
        if self.file.quantize == "int8":
            step = -(-len(parts.train) // CALIBRATION)
            calibration = [self.fitted(parts.load(sample)[0]) for sample in parts.train[::step]]
        path = folder / MODEL["tflite"]
        write_litert(model, parts.taxonomy, path, self.file, calibration)
        return {}

    def measure(
        self, folder: Path, keras: KerasNetwork, parts: Parts, advance: Callable[[float], None]
    ) -> dict[str, str]:
        """Measures the accuracy of an int8 file, and how this machine's GPU runs any file.

        Raises:
            VerificationError: An int8 file loses too much, or the GPU is wrong on a file whose
                weights are floats.
        """
        measured = {}
        if self.measures_accuracy:
            network = LiteRTNetwork(folder / MODEL["tflite"], keras.taxonomy)
            accuracy = measure_accuracy(keras, network, parts, self.file.size, advance)
            measured["accuracy"] = str(accuracy)
            if not accuracy.loss <= self.max_loss:
                raise VerificationError(
                    f"--quantize int8 leaves {accuracy}, and at most {self.max_loss:g} may be "
                    "lost: take fp16, or accept it with --max-loss"
                )
        return measured | verify_on_gpu(folder, self.file.quantize)
