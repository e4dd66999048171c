"""What the tests of this folder share: classes, images, and what is served."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS, Maps
from ccfnet_tf.labels import Taxonomy

NAMES = ("sky", "sea", "grüße")
TAXONOMY = Taxonomy(NAMES, ((0, 0, 255), (0, 255, 0), (255, 0, 10)))


class Exported(NamedTuple):
    folder: Path  # of versions
    local: KerasNetwork


class Process(NamedTuple):
    process: subprocess.Popen[str]
    rest: str
    grpc: str


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image[..., ::-1])[1])


def same(found: Maps, exported: Exported, image: np.ndarray) -> bool:
    """Returns whether an answer is the local one of just this image."""
    local = exported.local.predict(image)
    levels = [np.rint(255 * getattr(each, name)) for name in MAPS for each in (found, local)]
    return np.array_equal(found.labels, local.labels) and np.array_equal(levels[::2], levels[1::2])
