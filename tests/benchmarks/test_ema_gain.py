"""The weights of a run and their average, evaluated as in validation."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.ema_gain import compare, table
from ccfnet_tf.cli import main as cli
from ccfnet_tf.errors import RunError
from ccfnet_tf.io.console import new_console
from ccfnet_tf.training import build_network

KEYS = [
    *("--data.crop", "33", "--data.val_share", "0.25", "--model.backbone", "mobilenet_v2"),
    *("--model.backbone_weights", "none", "--train.batch", "2", "--train.epochs", "2"),
    *("--train.precision", "float32", "--train.strategy", "none", "--train.head_rate", "100"),
    *("--train.batch_norm", "trainable"),
]


@pytest.fixture
def train(
    tmp_path: Path, toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Trains the toy network on images whose brightness encodes the class."""
    monkeypatch.setattr(build_network, "build_ccfnet", lambda classes, **_: toy(classes))
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    for index in range(12):
        mask = rng.integers(0, 3, (4, 4), np.uint8).repeat(10, 0).repeat(10, 1)
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
        Image.fromarray(mask * 90 + 30).convert("RGB").save(root / "images" / f"{index}.png")

    def run(*keys: str) -> Path:
        out = tmp_path / "run"
        args = ["fit", "--data.root", str(root), "--out", str(out), *KEYS, *keys]
        assert cli.main(args) == 0
        return out

    return run


@pytest.mark.slow
def test_the_average_has_the_metrics_of_validation(train: Callable[..., Path]) -> None:
    run = train("--train.ema", "0.9")
    found = compare(run, "val", new_console())
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    average, weights = found["average"], found["weights"]
    assert average.refine.pixel_accuracy == pytest.approx(
        float(last["val_refine_pixel_accuracy"]), abs=1e-5
    )
    assert average.coarse.mean_iou_present == pytest.approx(
        float(last["val_coarse_mean_iou"]), abs=1e-5
    )
    assert (weights.refine.counts != average.refine.counts).any()
    rows = table(found, "val")
    assert rows[2].startswith("| weights | ")
    assert rows[3].endswith(f" | {average.refine.mean_iou_present * 100:.2f} |")


@pytest.mark.slow
def test_a_run_without_an_average_is_refused(train: Callable[..., Path]) -> None:
    with pytest.raises(RunError, match=r"trained without train\.ema"):
        compare(train("--train.ema", "0"), "val", new_console())
