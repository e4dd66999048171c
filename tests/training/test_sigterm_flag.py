"""A run that receives SIGTERM is saved, and the resumed run equals an uninterrupted one."""

from __future__ import annotations

import csv
import io
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from ccfnet_tf.errors import RunError, TerminatedError
from ccfnet_tf.evaluation.epoch_end_states import Evaluator
from ccfnet_tf.pipeline.worker_sharding import Share
from ccfnet_tf.runs.checkpoint_file import read_arrays
from ccfnet_tf.training import build_network, fit
from ccfnet_tf.training.callbacks.progress_bar import ProgressBar
from ccfnet_tf.training.claim_run_folder import locked

NEXT = "ccfnet-tf calibrate {0} && ccfnet-tf evaluate {0}"
CONFIG = RunConfig(
    data=DataConfig(format="scenes", scenes=10, scene_size=(32, 32), crop=33, val_share=0.2),
    model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none"),
    train=TrainConfig(
        epochs=3, batch=2, precision="float32", strategy="none", ema=0.5, batch_norm="trainable"
    ),
)


@pytest.fixture(autouse=True)
def toy_network(toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains a graph of five layers instead of the complete network."""
    monkeypatch.setattr(build_network, "build_ccfnet", lambda classes, **_: toy(classes))


def train(run: Path, config: RunConfig = CONFIG, *, resume: bool = False) -> str:
    console = Console(file=io.StringIO(), width=400)
    fit.fit(config, run, resume=resume, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def same_run(one: Path, other: Path) -> dict[str, np.ndarray]:
    """Asserts that two runs are equal bit by bit; returns the checkpoint of the other."""
    assert rows(one) == rows(other)
    mine, theirs = (read_arrays(run / "checkpoints" / "last.npz") for run in (one, other))
    assert mine.keys() == theirs.keys()
    for key in theirs:
        np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)
    return theirs


@pytest.fixture
def large_loss_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes loss scaling skip its first steps, as with large gradients."""
    scaled = keras.optimizers.LossScaleOptimizer
    monkeypatch.setattr(
        keras.optimizers, "LossScaleOptimizer", lambda inner: scaled(inner, initial_scale=2.0**127)
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_sigterm_in_a_validation_loses_nothing(
    precision: str, large_loss_scale: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, told = tmp_path / "never", tmp_path / "told"
    config = replace(CONFIG, train=replace(CONFIG.train, precision=precision))  # type: ignore[arg-type]
    train(never, config)
    count = Evaluator._no_counts
    begun: list[int] = []

    def told_in_the_second(self: Evaluator) -> Any:
        begun.append(1)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return count(self)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "_no_counts", told_in_the_second)
        with pytest.raises(TerminatedError, match=r"received SIGTERM at step 8: saved"):
            train(told, config)
    assert len(rows(told)) == 1
    assert "resuming after epoch 1 of 3 and 4 of 4 steps" in train(told, config, resume=True)
    assert [row["epoch"] for row in rows(told)] == ["1", "2", "3"]
    theirs = same_run(told, never)
    if precision == "float16":
        counts = [v for k, v in theirs.items() if k.startswith("optimizer/") and v.ndim == 0]
        assert 12 not in counts, "no step was skipped: this shows nothing"


def test_sigterm_within_an_epoch_is_acted_on_after_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, told = tmp_path / "never", tmp_path / "told"
    train(never)
    shown, steps = ProgressBar.on_train_batch_end, []

    def told_in_the_sixth(self: ProgressBar, batch: int, logs: Any = None) -> None:
        steps.append(1)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        shown(self, batch, logs)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "on_train_batch_end", told_in_the_sixth)
        with pytest.raises(TerminatedError, match=r"received SIGTERM at step 6: saved"):
            train(told)
    assert len(steps) == 6
    assert "resuming after epoch 1 of 3 and 2 of 4 steps" in train(told, resume=True)
    same_run(told, never)


def test_a_changed_number_of_steps_per_epoch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    short = replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    train(run, short)
    # As where shards are divided among another number of workers.
    monkeypatch.setattr(fit, "share_of", lambda *_: Share(3))
    with pytest.raises(RunError, match=r"started with 4 steps per epoch, but has 3 now"):
        train(run, short, resume=True)


def test_the_best_checkpoint_holds_the_average(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run)
    best, last = (read_arrays(run / "checkpoints" / f"{name}.npz") for name in ("best", "last"))
    kernels = [key for key in best if key.startswith("model/") and key.endswith("kernel")]
    assert any((best[key] != last[key]).any() for key in kernels)


def test_a_run_is_trained_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert train(run).endswith(f"{run}: trained; next: {NEXT.format(run)}\n")
    with locked(run), pytest.raises(RunError, match="another process is training it"):
        train(run, resume=True)
    said = train(run, resume=True)
    assert "nothing to resume" in said
    assert said.endswith(f"{run}: next: {NEXT.format(run)}\n")
    monkeypatch.setattr(fit, "IS_PART", True)  # crossval and reproduce evaluate their runs
    assert "next:" not in train(run, resume=True)


def test_a_run_without_a_test_split_names_the_split_to_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = fit.check_data

    def without(*args: Any) -> Any:
        data = checked(*args)
        return replace(data, parts=replace(data.parts, test=()))

    monkeypatch.setattr(fit, "check_data", without)
    run = tmp_path / "run"
    said = train(run, replace(CONFIG, train=replace(CONFIG.train, epochs=1)))
    assert said.endswith(f"next: ccfnet-tf evaluate {run} --split val\n")
