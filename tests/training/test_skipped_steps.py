"""A step that is not finite changes nothing, on one replica or two, and is reported."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from ccfnet_tf.errors import NotFiniteError
from ccfnet_tf.runs.checkpoint_file import read_arrays
from ccfnet_tf.training import build_network, fit
from ccfnet_tf.training.optimizer import make_optimizer

SIZE, CLASSES, BATCH, STEPS, SPOILED = 24, 3, 4, 5, 2
Toy = Callable[..., Any]
Spoiler = Callable[..., Any]


def batches(without: int | None = None) -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (STEPS, BATCH, SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(-1, CLASSES, (STEPS, BATCH, SIZE, SIZE)).astype(np.int32)
    kept = [step for step in range(STEPS) if step != without]
    return tf.data.Dataset.from_tensor_slices((images[kept], labels[kept]))


def train(
    model_of: Callable[[], Any], strategy: Any, data: tf.data.Dataset, **compiled: Any
) -> tuple[Any, dict[str, list[float]]]:
    keras.utils.set_random_seed(1)
    config = TrainConfig(optimizer="adamw", learning_rate=1e-2, ema=0.9)
    with strategy.scope():
        model = model_of()
        optimizer = make_optimizer(config, steps=STEPS, model=model)
        model.compile(optimizer=optimizer, **compiled)
    return model, model.fit(data, verbose=0, shuffle=False).history


def state_of(model: Any) -> dict[str, np.ndarray]:
    """Returns everything that a step may change, except the count of the spoiler."""
    variables = {v.path: v for v in model.variables if v.path != "spoiler/steps"}
    variables |= {f"optimizer {i}": v for i, v in enumerate(model.optimizer.variables)}
    return {path: v.numpy() for path, v in variables.items()}


@pytest.mark.parametrize(
    "case",
    [
        # A strategy of one replica.
        pytest.param((math.nan, 0, {}), marks=pytest.mark.slow),
        (math.nan, 1, {}),
        pytest.param((-math.inf, 2, {"clip_norm": 0.1}), marks=pytest.mark.slow),
        pytest.param((math.nan, 2, {"accumulate": 2}), marks=pytest.mark.slow),
        # Finite on each replica, but not their sum.
        pytest.param((3e38, 2, {}), marks=pytest.mark.slow),
        pytest.param((math.inf, 1, {"accumulate": 2}), marks=pytest.mark.slow),
    ],
)
def test_a_step_with_a_bad_gradient_is_skipped(
    case: tuple[float, int, dict[str, Any]], toy: Toy, spoiler: Spoiler, two_replicas: Any
) -> None:
    value, replicas, compiled = case
    strategies = [tf.distribute.MirroredStrategy(["CPU:0"]), tf.distribute.get_strategy()]
    strategy = [*strategies, two_replicas][replicas]
    parts = compiled.get("accumulate", 1)

    def model_of(bad: dict[int, float]) -> Any:
        layer = spoiler(bad, replica=max(replicas - 1, 0))
        return toy(CLASSES, synchronized=replicas > 1, behind_body=layer)

    spoiled, figures = train(
        lambda: model_of({parts * SPOILED: value}), strategy, batches(), **compiled
    )
    without, expected = train(lambda: model_of({}), strategy, batches(SPOILED), **compiled)
    found, wanted = state_of(spoiled), state_of(without)
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():  # the order of sums over threads is not fixed
        np.testing.assert_allclose(found[path], array, rtol=1e-5, atol=1e-6, err_msg=path)
    assert figures.pop("skipped_steps") == [1]
    assert expected.pop("skipped_steps") == [0]
    assert figures.keys() == expected.keys()
    for name, values in expected.items():
        assert figures[name] == pytest.approx(values, rel=1e-5), name
    assert spoiled.skipped_steps.latest_name() == "spoiler/scale"


def test_a_loss_that_is_not_finite_is_named(toy: Toy) -> None:
    keras.utils.set_random_seed(1)
    model = toy(CLASSES)
    model.compile(optimizer="sgd")
    model.get_layer("coarse_logits").bias.assign([math.nan] * CLASSES)
    before = state_of(model)
    images, labels = np.full((2, SIZE, SIZE, 3), 9, np.float32), np.ones((2, SIZE, SIZE), int)
    figures = model.train_on_batch(images, labels, return_dict=True)
    after = state_of(model)
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array, err_msg=path)
    assert figures["skipped_steps"] == 1
    assert np.isfinite(figures["loss"])
    assert model.skipped_steps.latest_name() == "coarse_loss"
    assert "skipped_steps" not in model.test_on_batch(images * 0, labels, return_dict=True)


@pytest.mark.parametrize("bad_pictures", [False, True])
def test_steps_skipped_by_loss_scaling_count_only_below_scale_1(
    bad_pictures: bool, toy: Toy, spoiler: Spoiler
) -> None:
    keras.utils.set_random_seed(1)
    model = toy(CLASSES, behind_body=spoiler(dict.fromkeys(range(2, 99), math.nan)))
    optimizer = make_optimizer(TrainConfig(precision="float16"), steps=99, model=model)
    model.compile(optimizer=optimizer)
    optimizer.dynamic_scale.assign(4.0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (2, SIZE, SIZE))
    counts, states = [], []
    for step in range(6):
        if bad_pictures and step == 2:
            images = images * np.nan
        counts.append(model.train_on_batch(images, labels, return_dict=True)["skipped_steps"])
        states.append([v.numpy() for v in model.variables if v.path != "spoiler/steps"])
    # No scale makes a loss finite; for gradients it is 4, 4, 4, 2, 1, 0.5.
    assert counts == ([0, 0, 1, 1, 1, 1] if bad_pictures else [0, 0, 0, 0, 1, 1])
    for one, other in zip(states[1], states[5], strict=True):
        np.testing.assert_array_equal(one, other)


CONFIG = RunConfig(
    data=DataConfig(format="scenes", scenes=20, scene_size=(32, 32), crop=33, val_share=0.2),
    model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none"),
    train=TrainConfig(epochs=2, batch=2, precision="float32", ema=0.5, strategy="mirrored"),
)


@pytest.fixture
def run_with(
    toy: Toy, spoiler: Spoiler, monkeypatch: pytest.MonkeyPatch, two_replicas: Any
) -> Callable[..., str]:
    """Trains a run on two replicas, the second of which gets bad gradients at some steps."""

    def train(run: Path, bad: dict[int, float], *, epochs: int = 2, resume: bool = False) -> str:
        def small(classes: int, *, synchronized: bool, **_: Any) -> Any:
            layer = spoiler(bad, replica=1)
            return toy(classes, synchronized=synchronized, behind_body=layer)

        monkeypatch.setattr(build_network, "build_ccfnet", small)
        config = replace(CONFIG, train=replace(CONFIG.train, epochs=epochs))
        console = Console(file=io.StringIO(), width=400)
        fit.fit(config, run, resume=resume, console=console)
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    return train


def checkpoints(run: Path) -> dict[str, dict[str, np.ndarray]]:
    return {path.name: read_arrays(path) for path in sorted((run / "checkpoints").glob("*.npz"))}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def test_a_run_counts_skipped_steps_and_its_checkpoints_are_valid(
    run_with: Callable[..., str], tmp_path: Path
) -> None:
    said = run_with(tmp_path / "run", {3: math.nan, 5: math.inf, 12: math.nan})
    assert said.count("the gradient of spoiler/scale is not finite: the step was skipped") == 1
    assert "step 4: the gradient" in said
    lines = [line for line in said.splitlines() if line.startswith("epoch ")]
    assert "skipped steps 2" in lines[0]
    assert "skipped steps 1" in lines[1]
    assert [float(row["skipped_steps"]) for row in rows(tmp_path / "run")] == [2, 1]
    events = "".join(
        path.read_bytes().decode(errors="ignore")
        for path in (tmp_path / "run" / "tensorboard").iterdir()
    )
    assert "skipped_steps" in events
    found = checkpoints(tmp_path / "run")
    assert set(found) == {"best.npz", "last.npz", "previous.npz"}
    for name, arrays in found.items():
        for key, array in arrays.items():
            assert array.dtype.kind != "f" or np.isfinite(array).all(), (name, key)


@pytest.mark.slow
def test_a_run_killed_between_skipped_steps_is_resumed_identically(
    run_with: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {1: math.nan, 10: math.inf}
    run_with(tmp_path / "whole", bad)
    saved = fit.EpochEnd.save_last

    def killed(self: Any, progress: Any) -> None:
        saved(self, progress)
        if progress.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit.EpochEnd, "save_last", killed)
        with pytest.raises(KeyboardInterrupt):
            run_with(tmp_path / "killed", bad)
    run_with(tmp_path / "killed", bad, resume=True)
    for one, other in zip(rows(tmp_path / "killed"), rows(tmp_path / "whole"), strict=True):
        numbers = {key: float(value) for key, value in other.items() if key != "seconds"}
        assert {key: float(one[key]) for key in numbers} == pytest.approx(numbers, abs=2e-6)
    mine, theirs = checkpoints(tmp_path / "killed"), checkpoints(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    for name, arrays in theirs.items():
        for key, array in arrays.items():
            if array.dtype.kind != "f":
                continue
            np.testing.assert_allclose(
                mine[name][key], array, rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}"
            )


def test_five_skipped_steps_in_a_row_end_the_run(
    run_with: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(NotFiniteError) as caught:
        run_with(tmp_path / "run", dict.fromkeys(range(10, 16), math.nan))
    assert "the gradient of spoiler/scale is not finite at step 15, the 5th step in a row" in str(
        caught.value
    )
    last = checkpoints(tmp_path / "run")["last.npz"]
    assert all(np.isfinite(a).all() for a in last.values() if a.dtype.kind == "f")
