"""What every exporter offers: `export_run` knows no format, and a format knows no other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ccfnet_tf.config import ComputeType
from ccfnet_tf.datasets.splits import Parts
from ccfnet_tf.errors import ConfigError, nearest
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.runtimes.letterbox import at_most
from ccfnet_tf.runtimes.manifest import Difference, Format, kind_of, tolerance

LARGEST_USUAL = 512
"""Longest side of a LiteRT file whose size was not asked for, and of images that are compared."""


class Exporter(ABC):
    """Writes networks in one format.

    Attributes:
        format: Its name.
        libraries: Packages that the format is made and verified by, beside TensorFlow.
        last_step: What is done after the file was compared with Keras, for the progress bar.
        measures_accuracy: Whether that takes a pass over labelled images.
        usual_size: Whether the size is still to be taken from the run's images; see `sized_for`.
        precision: What the exported network computes in.
    """

    format: ClassVar[Format]
    libraries: ClassVar[tuple[str, ...]] = ()
    last_step: ClassVar[str] = "checksums"
    measures_accuracy: bool = False
    usual_size: bool = False
    precision: ComputeType = "float32"

    @property
    def options(self) -> dict[str, str]:
        """What `export.json` says of how the file was made."""
        return {}

    @property
    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """What the file takes, in words."""

    @property
    @abstractmethod
    def outputs(self) -> dict[str, str]:
        """What the file returns, in words."""

    @property
    def kind(self) -> str:
        """Which tolerance holds: the format, with a quantization or precision of its own."""
        return kind_of(self.format, self.options)

    @property
    def tolerance(self) -> Difference:
        """How far the file may be from Keras in float32."""
        return tolerance(self.kind)

    def sized_for(self, parts: Parts) -> Self:
        """Returns the exporter with a size that suits the run's images, where it needs one."""
        return self

    @abstractmethod
    def place(self, out: Path) -> Path:
        """Returns the folder of the artifact in `out`, the folder of artifacts."""

    def fitted(self, image: np.ndarray) -> np.ndarray:
        """Returns an image [H, W, 3] as the file takes it, and not too large to be kept."""
        return at_most(image, LARGEST_USUAL)

    @abstractmethod
    def write(self, model: Any, parts: Parts, folder: Path) -> dict[str, str]:
        """Writes the network into a folder.

        Args:
            model: A `CCFNet` that computes in `precision`.
            parts: The run's data.
            folder: The folder, which is there.

        Returns:
            What had to be left out, in words.
        """

    def measure(
        self, folder: Path, keras: KerasNetwork, parts: Parts, advance: Callable[[float], None]
    ) -> dict[str, str]:
        """Measures what the comparison with Keras does not tell; returns it in words.

        Args:
            folder: The artifact's.
            keras: The network that it was made from.
            parts: The run's data.
            advance: Called with the share of the work that was done, for a progress bar.

        Raises:
            VerificationError: The file is not fit for use.
        """
        return {}


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ConfigError where the value of an option is none of those it may have."""
    if value not in known:
        raise ConfigError(f"{key} is '{value}': expected {', '.join(known)}{nearest(value, known)}")
