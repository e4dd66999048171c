"""Which runs count as finished."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ccfnet_tf.reproduce.plan import Plan, config_of
from ccfnet_tf.reproduce.run import is_scored, is_trained
from tests.epoch_states import write_state
from tests.report.conftest import TAXONOMY
from tests.reproduce.conftest import EPOCHS, base_config, calibrate, plan_of, score, train


@pytest.fixture
def made(tmp_path: Path) -> tuple[Plan, Path]:
    plan, configs = plan_of(base_config(tmp_path), seeds=1)
    run = tmp_path / "run"
    train(run, config_of(plan.runs[0], configs["cascade"]))
    calibrate(run)
    score(run, "test", seed=0)
    return plan, run


def changed(run: Path, **keys: object) -> None:
    path = run / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_finished_run_is_kept(made: tuple[Plan, Path]) -> None:
    plan, run = made
    assert is_trained(run, EPOCHS)
    assert is_scored(run, plan, "cascade")


def calibrate_by_class(run: Path) -> None:
    """Does what `calibrate --method vector` and `evaluate` do."""
    classes = len(TAXONOMY.names)
    calibrate(run, scale=(2.0,) * classes, bias=(0.5,) * classes)
    score(run, "test", seed=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: write_state(run / "checkpoints/best.npz", 1, variable=1.0),
        lambda run: calibrate(run, scale=(3.0,)),
        calibrate_by_class,
        lambda run: (run / "calibration.json").unlink(),
        lambda run: (run / "images.npz").unlink(),
        lambda run: changed(run, split="val"),
        lambda run: changed(run, wrapping="--tta scales=1 flip"),
        lambda run: (run / "evaluation.json").write_text("{"),
    ],
    ids=[
        "checkpoint",
        "calibration",
        "vector",
        "uncalibrated",
        "images",
        "split",
        "views",
        "damaged",
    ],
)
def test_another_evaluation_is_repeated(
    made: tuple[Plan, Path], change: Callable[[Path], None]
) -> None:
    plan, run = made
    change(run)
    assert not is_scored(run, plan, "cascade")


def test_only_refine_is_calibrated(made: tuple[Plan, Path]) -> None:
    plan, run = made
    (run / "calibration.json").unlink()
    score(run, "test", seed=0)
    assert is_scored(run, plan, "fine_alone")
    assert not is_scored(run, plan, "cascade")


def test_times_of_files_do_not_matter(made: tuple[Plan, Path]) -> None:
    plan, run = made
    for path in (run / "checkpoints" / "best.npz", run / "calibration.json"):
        os.utime(path)  # as in a copy
    assert is_scored(run, plan, "cascade")


def test_the_checkpoint_says_whether_a_run_is_trained(made: tuple[Plan, Path]) -> None:
    _, run = made
    assert not is_trained(run, EPOCHS + 1)
    last = run / "checkpoints" / "last.npz"
    write_state(last, EPOCHS - 1)  # killed after its row in metrics.csv, before it was saved
    assert not is_trained(run, EPOCHS)
    write_state(last, EPOCHS)
    (run / "metrics.csv").unlink()
    assert is_trained(run, EPOCHS)
    last.unlink()
    assert not is_trained(run, EPOCHS)
