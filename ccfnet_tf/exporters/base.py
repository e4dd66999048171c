"""`Exporter`: the interface between `export_run` and the exporter of each format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ccfnet_tf.config import ComputeType
from ccfnet_tf.datasets.open_data_set import Parts
from ccfnet_tf.errors import ConfigError, nearest
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MapName
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.letterbox import at_most
from ccfnet_tf.runtimes.manifest import Difference, Format, kind_of, tolerance

LABELS = "class ids [B, H, W]"
PROBABILITIES = "float32 [B, H, W, C], calibrated, sums to 1 over the classes"

MAX_DEFAULT_SIDE = 512
"""Longest side in pixels of reference images, and of a LiteRT file when `--size` is not given."""


class Exporter(ABC):
    """Base class of exporters; each subclass writes networks in one format.

    Attributes:
        format: Name of the format.
        libraries: Packages, in addition to TensorFlow, that write and verify the format.
        last_step: Description of the step after the comparison with Keras, for the progress bar.
        measures_accuracy: Whether `measure` evaluates the file on labelled images.
        size_from_data: Whether the input size is not set yet and comes from the run's images;
            see `sized_for`.
        precision: Data type that the exported network computes in.
    """

    format: ClassVar[Format]
    libraries: ClassVar[tuple[str, ...]] = ()
    last_step: ClassVar[str] = "checksums"
    measures_accuracy: bool = False
    size_from_data: bool = False
    precision: ComputeType = "float32"

    @property
    def options(self) -> dict[str, str]:
        """Export options, as recorded in `export.json`."""
        return {}

    @property
    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Descriptions of the file's inputs, by name."""

    @property
    @abstractmethod
    def outputs(self) -> dict[str, str]:
        """Descriptions of the file's outputs, by name."""

    @property
    def kind(self) -> str:
        """Key of the tolerance: the format, with its quantization or precision if it has one."""
        return kind_of(self.format, self.options)

    @property
    def tolerance(self) -> Difference:
        """Largest allowed differences from Keras in float32."""
        return tolerance(self.kind)

    def sized_for(self, parts: Parts) -> Self:
        """Returns an exporter whose input size is set, taken from the run's images if necessary."""
        return self

    @abstractmethod
    def artifact_folder(self, out: Path) -> Path:
        """Returns the folder of the new artifact below `out`, the folder of all artifacts."""

    def resized(self, image: np.ndarray) -> np.ndarray:
        """Returns an image [H, W, 3] at a size that the file accepts, small enough to store."""
        return at_most(image, MAX_DEFAULT_SIDE)

    @abstractmethod
    def write(
        self, model: Any, parts: Parts, folder: Path, calibration: Calibration = UNCALIBRATED
    ) -> dict[str, str]:
        """Writes the network to a folder.

        Args:
            model: A `CCFNet` that computes in `precision`.
            parts: The run's data.
            folder: An existing folder.
            calibration: Of probabilities and maps.

        Returns:
            Descriptions of optional files that were not written, by name.
        """

    def measure(
        self, folder: Path, keras: KerasNetwork, parts: Parts, advance: Callable[[float], None]
    ) -> dict[str, str]:
        """Runs the checks of a format that go beyond the comparison with Keras.

        Args:
            folder: The artifact's folder.
            keras: The network that was exported.
            parts: The run's data.
            advance: Called with the completed fraction of the work, for a progress bar.

        Returns:
            Descriptions of the results, by name.

        Raises:
            VerificationError: The file failed a check.
        """
        return {}


def described_maps(form: str) -> dict[str, str]:
    """Returns descriptions of the three maps, whose values are stored in the given form."""
    meanings: dict[MapName, str] = {
        "attention": "P(the coarse label is wrong) as the attention head sees it",
        "difficulty": "P(the coarse label is wrong): 1 - its probability",
        "risk": "P(the label is wrong): 1 - its probability",
    }
    return {name: f"{meaning}; {form}" for name, meaning in meanings.items()}


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ConfigError if the value of an option is not one of the allowed values."""
    if value not in known:
        raise ConfigError(f"{key} is '{value}': expected {', '.join(known)}{nearest(value, known)}")
