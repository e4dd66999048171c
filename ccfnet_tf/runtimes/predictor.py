"""`Predictor`: from Python, whatever answers images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.result import Result
from ccfnet_tf.inference.segmenter import Network, refuse_no_picture
from ccfnet_tf.io.images import from_pillow, read_image
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.sources import find_source

if TYPE_CHECKING:
    from ccfnet_tf.config import ComputeType
    from ccfnet_tf.inference.keras_network import Heads
    from ccfnet_tf.network.model import CCFNet
    from ccfnet_tf.runs.run_folder import Checkpoint

Picture = str | Path | np.ndarray | Image.Image
"""A path, a uint8 array [H, W, 3] in RGB, or an image of Pillow."""


class Predictor:
    """Labels images with a run, an exported file or a server.

    Args:
        source: A run folder; a folder, .tflite or .onnx file that `ccfnet-tf export` wrote; a
            server's address (`http://HOST:8501/v1/models/ccfnet`, `grpc://HOST:8500/ccfnet`); or
            a `CCFNet`.
        taxonomy: Names and colours of the classes of a `CCFNet`, which gets `class 0`,
            `class 1`, ... where None. The others bring their own.
        checkpoint: Which weights of a run folder; `best`, else `last`, if None.
        precision: What a run's network, or a `CCFNet`'s, computes in.

    Attributes:
        taxonomy: The classes.

    Raises:
        RunError: The source cannot be used.
        ConfigError: An argument that this kind of source does not take.
        ResourceError: No server answers.
    """

    def __init__(
        self,
        source: str | Path | CCFNet,
        *,
        taxonomy: Taxonomy | None = None,
        checkpoint: Checkpoint | None = None,
        precision: ComputeType = "float32",
    ) -> None:
        self._network = _open(source, taxonomy, checkpoint, precision)
        self.taxonomy = taxonomy or self._network.taxonomy

    def predict(self, image: Picture) -> Result:
        """Labels every pixel of an image.

        Args:
            image: A path, a uint8 array [H, W, 3] in RGB, or an image of Pillow, which is taken
                as its file would be: turned upright by its EXIF orientation.

        Returns:
            `labels, difficulty, probabilities = result`, and more as its attributes and methods.

        Raises:
            DataError: It is not an image.
            PictureTooLargeError: Memory runs out; a smaller image may still fit.
            ResourceError: A server is gone, or too slow.
        """
        array = _array(image)
        name = Path(image).stem if isinstance(image, str | Path) else "picture"
        return Result(self._network.predict(array), array, self.taxonomy, name)

    def predict_all_heads(self, image: Picture) -> Heads:
        """Labels every pixel by each branch; arguments and errors as in `predict`.

        Raises:
            ConfigError: The source is not a run and no `CCFNet`: the others answer refine alone.
        """
        from ccfnet_tf.inference.keras_network import KerasNetwork

        if not isinstance(self._network, KerasNetwork):
            raise ConfigError("an exported file or a server answers refine alone: give the run")
        return self._network.predict_all_heads(_array(image))


def _open(
    source: str | Path | CCFNet,
    taxonomy: Taxonomy | None,
    checkpoint: Checkpoint | None,
    precision: ComputeType,
) -> Network:
    if isinstance(source, str | Path):
        found = find_source(str(source))
        if found.kind != "run":
            if taxonomy or checkpoint or precision != "float32":
                raise ConfigError(
                    f"{source}: taxonomy, checkpoint and precision are of runs; what is exported "
                    "or served has its own: leave them out"
                )
            return found.open()
        source = found.place
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.network.model import CCFNet

    if not isinstance(source, str | Path | CCFNet):
        raise ConfigError(
            f"an object of type {type(source).__name__} is not a network: expected a run folder, "
            "an exported file or folder, a server's address, or a CCFNet"
        )
    return KerasNetwork(source, taxonomy=taxonomy, checkpoint=checkpoint, precision=precision)


def _array(image: Picture) -> np.ndarray:
    """Returns uint8 [H, W, 3]; raises DataError."""
    if isinstance(image, Image.Image):
        return from_pillow(image)
    if isinstance(image, str | Path):
        return read_image(image)
    refuse_no_picture(image)
    return image
