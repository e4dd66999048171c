"""A small real network, and run folders made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, to_yaml
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.runs.checkpoint_file import write_arrays

TAXONOMY = Taxonomy(("sky", "sea", "sand"), ((90, 160, 250), (20, 60, 160), (230, 200, 120)))
CONFIG = RunConfig(
    data=DataConfig(format="scenes"), model=ModelConfig(backbone="mobilenet_v2", head_channels=8)
)


def build(classes: int = 3) -> Any:
    return build_ccfnet(classes, backbone="mobilenet_v2", backbone_weights=None, head_channels=8)


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    return {f"model/{key}": variable.numpy() for key, variable in named_variables(model).items()}


@pytest.fixture(scope="session")
def model() -> Any:
    """Random weights, with gains at which answers differ from pixel to pixel."""
    keras.utils.set_random_seed(3)
    network = build()
    for key, variable in named_variables(network).items():
        if key.endswith("gamma"):
            variable.assign(np.full(variable.shape, 3, np.float32))
    return network


@pytest.fixture(scope="session")
def other_model() -> Any:
    """The same network for five classes."""
    return build(classes=5)


@pytest.fixture(scope="session")
def predictor(model: Any) -> KerasNetwork:
    return KerasNetwork(model, taxonomy=TAXONOMY)


@pytest.fixture
def make_run(tmp_path: Path, model: Any) -> Callable[..., Path]:
    """Returns a function that writes a run folder with the checkpoints named."""

    def make(*checkpoints: str) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        (run / "config.yaml").write_text(to_yaml(CONFIG), encoding="utf-8")
        classes = {"names": TAXONOMY.names, "palette": TAXONOMY.palette}
        (run / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
        for name in checkpoints:
            write_arrays(run / "checkpoints" / f"{name}.npz", arrays_of(model))
        return run

    return make


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 [48, 64, 3]: noise over a gradient."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 64)[None, :, None]
    return (ramp + rng.integers(0, 55, size=(48, 64, 3))).astype(np.uint8)


def write_picture(path: Path, image: np.ndarray) -> Path:
    """Writes RGB or grey by the suffix's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image):
        raise OSError(f"{path} was not written")
    return path
