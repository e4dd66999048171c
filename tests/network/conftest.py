"""Networks shared by the tests of this folder; building one costs seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ccfnet_tf import network
from ccfnet_tf.network.ccfnet import CCFNet, build_ccfnet

CLASSES = 5
CHANNELS = 16
MOBILENET_FILE = "mobilenet_v2_1.0_no_top.weights.h5"

Build = Callable[..., CCFNet]


@pytest.fixture(scope="session")
def small_network() -> Build:
    """Builds narrow, randomly initialised networks of 5 classes, cached by their arguments.

    Tests must not change the weights, or use `fresh_weights`.
    """
    made: dict[tuple[Any, ...], CCFNet] = {}

    def build(backbone: str = "mobilenet_v2", **options: Any) -> CCFNet:
        key = (backbone, *sorted(options.items()))
        if key not in made:
            keras.utils.set_random_seed(1)
            model = build_ccfnet(
                CLASSES,
                backbone=backbone,
                backbone_weights=None,
                head_channels=CHANNELS,
                batch_norm_momentum=0.0,
                **options,
            )
            # With momentum 0 one batch sets the statistics. With the initial statistics the
            # signal would vanish, and no test could see a difference.
            images = np.random.default_rng(0).integers(0, 256, (4, 65, 65, 3), np.uint8)
            model(images, training=True)
            made[key] = model
        return made[key]

    return build


@pytest.fixture
def borrowed(small_network: Build) -> Iterator[Build]:
    """Like `small_network`, but restores the weights after the test."""
    before: list[tuple[CCFNet, list[np.ndarray]]] = []

    def build(backbone: str = "mobilenet_v2", **options: Any) -> CCFNet:
        model = small_network(backbone, **options)
        before.append((model, model.get_weights()))
        return model

    yield build
    for model, weights in reversed(before):
        model.set_weights(weights)


@pytest.fixture(scope="session")
def mobilenet_file() -> Path:
    """The ImageNet weights of MobileNetV2, which are not part of the repository."""
    beside = Path(network.__file__).parents[2].parent / "shared" / "weights"
    path = Path(os.environ.get("CCFNET_WEIGHTS_DIR", beside)) / MOBILENET_FILE
    if not path.is_file():
        pytest.skip(f"no {path}; set CCFNET_WEIGHTS_DIR to the folder of {MOBILENET_FILE}")
    return path
