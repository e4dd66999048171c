"""Fixtures for hostile files: a data set and a run trained on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.cli import main as cli
from ccfnet_tf.network import ccfnet
from ccfnet_tf.training import build_network

KEYS = [
    *("--data.crop", "33", "--data.val_share", "0.25", "--model.backbone", "mobilenet_v2"),
    *("--model.backbone_weights", "none", "--train.batch", "2", "--train.epochs", "2"),
    *("--train.precision", "float32", "--train.strategy", "none"),
]


class Trained(NamedTuple):
    data: Path
    run: Path


def write_set(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for i in range(6):
        image, mask = rng.integers(0, 255, (36, 40, 3), np.uint8), rng.integers(0, 3, (36, 40))
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    return root


@pytest.fixture(scope="module", autouse=True)
def toy_network(toy: Callable[..., Any]) -> Iterator[None]:
    """A graph of five layers that replaces the network."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (build_network, ccfnet):
            patched.setattr(module, "build_ccfnet", lambda classes, **_: toy(classes))
        yield


@pytest.fixture(scope="module")
def trained(toy_network: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("hostile")
    root, run = write_set(path / "set"), path / "run"
    assert cli.main(["fit", *KEYS, "--data.root", str(root), "--out", str(run)]) == 0
    return Trained(root, run)


@pytest.fixture(params=[4, pytest.param(300, marks=pytest.mark.slow)])
def count(request: pytest.FixtureRequest) -> int:
    """Number of damaged versions of each file."""
    return int(request.param)


@pytest.fixture
def begun(trained: Trained, tmp_path: Path) -> Trained:
    """Copies of the data set and of the run after its first epoch."""
    data, run = (Path(shutil.copytree(each, tmp_path / each.name)) for each in trained)
    (run / "checkpoints" / "previous.npz").replace(run / "checkpoints" / "last.npz")
    return Trained(data, run)
