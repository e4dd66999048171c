"""`Predictor`: the Python interface to runs, exported files and servers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.result import Result
from ccfnet_tf.inference.segmenter_protocol import Segmenter, refuse_no_image
from ccfnet_tf.io.read_images import from_pillow, read_image
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.open_segmenter import find_source

if TYPE_CHECKING:
    from ccfnet_tf.config import ComputeType
    from ccfnet_tf.inference.keras_network import Heads
    from ccfnet_tf.network.model import CCFNet
    from ccfnet_tf.runs.run_folder import Checkpoint

Picture = str | Path | np.ndarray | Image.Image
"""A path, a uint8 array [H, W, 3] in RGB, or a Pillow image."""


class Predictor:
    """Labels images with a run, an exported file or a server.

    Args:
        source: A run folder; a folder, .tflite or .onnx file that `ccfnet-tf export` wrote; a
            server's address (`http://HOST:8501/v1/models/ccfnet`, `grpc://HOST:8500/ccfnet`); or
            a `CCFNet`.
        taxonomy: Names and colours of the classes of a `CCFNet`; `class 0`, `class 1`, ... if
            None. Other sources contain their own.
        checkpoint: Checkpoint of a run folder; `best`, or `last` if there is no best, if None.
        precision: Data type that the network of a run, or a `CCFNet`, computes in.

    Attributes:
        taxonomy: The classes.

    Raises:
        RunError: The source cannot be used.
        ConfigError: An argument does not apply to this kind of source.
        ResourceError: The server does not respond.
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
            image: A path, a uint8 array [H, W, 3] in RGB, or a Pillow image. Files and Pillow
                images are rotated by their EXIF orientation.

        Returns:
            The result, with attention and risk as attributes; unpack it as
            `labels, difficulty, probabilities = result`.

        Raises:
            DataError: The argument is not an image.
            ImageTooLargeError: Memory runs out; a smaller image may still fit.
            ResourceError: A server is unavailable or too slow.
        """
        array = _array(image)
        name = Path(image).stem if isinstance(image, str | Path) else "picture"
        return Result(self._network.predict(array), array, self.taxonomy, name)

    def predict_all_heads(self, image: Picture) -> Heads:
        """Labels every pixel with each head; arguments and errors as in `predict`.

        Raises:
            ConfigError: The source is neither a run nor a `CCFNet`; others only output refine.
        """
        from ccfnet_tf.inference.keras_network import KerasNetwork

        if not isinstance(self._network, KerasNetwork):
            raise ConfigError(
                "an exported file or a server only outputs the refine head: give the run"
            )
        return self._network.predict_all_heads(_array(image))


def _open(
    source: str | Path | CCFNet,
    taxonomy: Taxonomy | None,
    checkpoint: Checkpoint | None,
    precision: ComputeType,
) -> Segmenter:
    if isinstance(source, str | Path):
        resolved = find_source(str(source))
        if resolved.kind != "run":
            if taxonomy or checkpoint or precision != "float32":
                raise ConfigError(
                    f"{source}: taxonomy, checkpoint and precision apply only to runs; exported "
                    "and served networks have their own: remove these arguments"
                )
            return resolved.open()
        source = resolved.place
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
    refuse_no_image(image)
    return image
