from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, to_yaml
from ccfnet_tf.network import ccfnet
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.runs.checkpoint_file import write_arrays

COUNT = 5


@pytest.fixture
def run(toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder of a toy with random weights, whose test split has five images."""
    monkeypatch.setattr(ccfnet, "build_ccfnet", lambda classes, **_: toy(classes))
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for folder in ("images", "masks"):
            (tmp_path / "data" / part / folder).mkdir(parents=True)
        for index in range(COUNT):
            mask = rng.integers(0, 3, (4, 4 + index)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
            place = tmp_path / "data" / part
            Image.fromarray(mask).save(place / "masks" / f"{index}.png")
            image = Image.fromarray(mask * 90 + 30).convert("RGB")
            image.save(place / "images" / f"{index}.png")
    (tmp_path / "data" / "classes.txt").write_text("sky\ntree\nroad\n")
    folder = tmp_path / "run"
    folder.mkdir()
    data = DataConfig(format="folder", root=str(tmp_path / "data"), val_share=0.2)
    config = RunConfig(data=data, model=ModelConfig(backbone="mobilenet_v2"))
    (folder / "config.yaml").write_text(to_yaml(config))
    classes = {"names": ["sky", "tree", "road"], "palette": [[0, 0, 9], [0, 9, 0], [9, 0, 0]]}
    (folder / "classes.json").write_text(json.dumps(classes))
    write_weights(folder, toy(3), seed=1)
    return folder


def write_weights(run: Path, model: Any, seed: int, scale: float = 1.0) -> None:
    rng = np.random.default_rng(seed)
    arrays = {
        f"model/{key}": (scale * rng.normal(size=variable.shape) ** 2).astype(np.float32)
        for key, variable in named_variables(model).items()
    }
    write_arrays(run / "checkpoints" / "best.npz", arrays)
