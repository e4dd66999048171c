"""Complete runs of `fit` on synthetic scenes, with a small network.

Which faults which test sees:

    schedule one epoch too long, or by the epoch     test_a_run_equals_the_reference_run
    a key of `train` not passed on, gamma decayed    test_a_run_equals_the_reference_run
    validated on the training split                   test_a_run_equals_the_reference_run
    best chosen by coarse, best = latest             test_the_best_epoch_is_kept
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console
from sklearn.metrics import roc_auc_score

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.epoch_end_states import EpochCounts, Evaluator
from ccfnet_tf.evaluation.reliability import BINS, Reliability
from ccfnet_tf.evaluation.score_histogram import ScoreHistogram
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.pipeline.batch import training_batches
from ccfnet_tf.runs.checkpoint_file import read_arrays
from ccfnet_tf.training import build_network, fit
from ccfnet_tf.training.callbacks import epoch_end
from ccfnet_tf.training.check_data import RunData, check_data
from tests.network import by_hand
from tests.network.by_hand import Weights
from tests.training import run_by_hand
from tests.training.small_cascade import cascade, values

QUIET = Console(quiet=True)
STEPS = 3  # of an epoch: 12 images of 16 train
CONFIG = RunConfig(
    data=DataConfig(
        format="scenes", scenes=16, scene_size=(32, 32), crop=33, val_share=0.25, rare_crop=0.5
    ),
    model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none"),
    # Every key that steps depend on, but `accumulate`, is another than `TrainConfig`'s.
    train=TrainConfig(
        epochs=3,
        batch=4,
        optimizer="adamw",
        learning_rate=2e-3,
        head_rate=5.0,
        weight_decay=1.0,
        poly_power=1.5,
        warmup=0.4,
        clip_norm=0.2,
        batch_norm="trainable",
        coarse_loss_weight=0.7,
        attention_loss_weight=0.4,
        refine_loss_weight=2.0,
        fine_loss_weight=0.9,
        balanced_attention=True,
        class_weights="auto",
        checkpoint_every="2 steps",
        rate_for_batch=8,
        strategy="none",
        precision="float32",
    ),
    seed=7,
)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `fit` train the small network."""
    monkeypatch.setattr(build_network, "build_ccfnet", cascade)


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def saved(run: Path, name: str) -> Weights:
    arrays = read_arrays(run / "checkpoints" / f"{name}.npz", prefix="model/")
    return {key.removeprefix("model/"): value for key, value in arrays.items()}


def state(run: Path, name: str) -> dict[str, Any]:
    tree = json.loads(str(read_arrays(run / "checkpoints" / f"{name}.npz")["state"]))
    assert isinstance(tree, dict)
    return tree


def same_batches(config: RunConfig, data: RunData) -> Any:
    """Returns the batches of the whole run."""
    train = config.train
    batches = training_batches(
        data.parts.train,
        data.parts.load,
        config.data,
        batch=train.batch,
        seed=config.seed,
        rarity=data.train.census.median_frequency(),
    )
    return batches.take(STEPS * train.epochs).as_numpy_iterator()


def accuracies(weights: Weights, data: RunData, samples: list[Sample]) -> dict[str, float]:
    """Returns each head's pixel accuracy, over images evaluated one by one."""
    right, pixels = dict.fromkeys(("coarse", "fine", "refine"), 0), 0
    for sample in samples:
        image, label = data.parts.load(sample)
        logits, _ = by_hand.forward(weights, image[np.newaxis], training=False)
        pixels += int((label >= 0).sum())
        for head, answer in by_hand.answers(logits).items():
            right[head] += int((answer[0] == label).sum())
    return {head: hits / pixels for head, hits in right.items()}


def detections(weights: Weights, data: RunData, samples: list[Sample]) -> dict[str, float]:
    """Returns how well attention and difficulty rank the pixels that coarse gets wrong (AUROC)."""
    wrong, scores = [], {"attention": [], "difficulty": []}
    for sample in samples:
        image, label = data.parts.load(sample)
        logits, _ = by_hand.forward(weights, image[np.newaxis], training=False)
        coarse, known = by_hand.answers(logits)["coarse"], label >= 0
        refine = by_hand.blend(logits).numpy()
        of_coarse = np.take_along_axis(refine, coarse[..., np.newaxis], -1)[0, ..., 0]
        hard, easy = np.moveaxis(logits["attention"].numpy()[0], -1, 0)
        wrong.append((coarse[0] != label)[known])
        scores["attention"].append((hard - easy)[known])
        scores["difficulty"].append(1 - of_coarse[known])
    return {
        name: float(roc_auc_score(np.concatenate(wrong), np.concatenate(each)))
        for name, each in scores.items()
    }


def test_a_run_equals_the_reference_run(tmp_path: Path) -> None:
    """Compares weights, learning rates, losses and accuracies of training and validation."""
    run, train = tmp_path / "run", CONFIG.train
    fit.fit(CONFIG, run, resume=False, console=QUIET)
    data = check_data(CONFIG, QUIET)
    after = run_by_hand.run(
        values(cascade(len(data.parts.taxonomy.names))),
        same_batches(CONFIG, data),
        train,
        steps=STEPS * train.epochs,
        class_weights=data.train.census.median_frequency().tolist(),
    )
    wanted = after[-1][0]
    for name, value in saved(run, "last").items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=2e-5, err_msg=name)
    table = rows(run)
    assert [row["epoch"] for row in table] == [1, 2, 3]
    for epoch, row in enumerate(table, start=1):
        assert row["step"] == epoch * STEPS
        now = run_by_hand.rate(train, epoch * STEPS, STEPS * train.epochs)
        assert row["learning_rate"] == pytest.approx(now, rel=1e-5)
        found = [step for _, step in after[(epoch - 1) * STEPS : epoch * STEPS]]
        pixels = sum(step.pixels for step in found)
        for name in found[0].figures:
            mean = sum(step.figures[name] * step.pixels for step in found) / pixels
            assert row[name] == pytest.approx(mean, rel=1e-4), name
    for head, share in accuracies(wanted, data, list(data.parts.val)).items():
        assert table[-1][f"val_{head}_pixel_accuracy"] == pytest.approx(share, abs=1e-3), head
    for name, area in detections(wanted, data, list(data.parts.val)).items():
        assert table[-1][f"val_{name}_auroc"] == pytest.approx(area, abs=2e-3), name
    assert [state(run, name)["step"] for name in ("previous", "last")] == [8, 9]


@pytest.mark.parametrize("affine", [False, True])
def test_tensorboard_shows_every_figure_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affine: bool
) -> None:
    """Beside the columns of `metrics.csv`: the rate of the heads, hard pixels and the gate."""
    monkeypatch.setattr(build_network, "build_ccfnet", partial(cascade, affine_gate=affine))
    run = tmp_path / "run"
    train = replace(CONFIG.train, epochs=1)
    fit.fit(replace(CONFIG, train=train), run, resume=False, console=QUIET)
    (row,) = rows(run)
    shown = scalars(run / "tensorboard")
    derived = {"head_learning_rate", "hard_share"}
    derived |= {"gate_scale", "gate_bias"} if affine else set()
    assert set(shown) == (set(row) - {"epoch", "step"}) | derived
    assert {"mean_gate", "mean_attention", "gradient_norm", "skipped_steps", "val_risk_ece"} < set(
        row
    )
    for name in set(row) & set(shown):
        assert shown[name] == pytest.approx(row[name], rel=1e-5), name
    assert shown["head_learning_rate"] == pytest.approx(
        train.head_rate * row["learning_rate"], rel=1e-5
    )
    assert shown["hard_share"] == pytest.approx(1 - row["coarse_accuracy"], rel=1e-5)
    if not affine:
        assert row["mean_gate"] == row["mean_attention"]
        return
    weights = saved(run, "last")
    for name in ("scale", "bias"):
        assert shown[f"gate_{name}"] == pytest.approx(10 * weights[f"gate/{name}"], rel=1e-5)


def scalars(folder: Path) -> dict[str, float]:
    """Returns the last value of every scalar of a TensorBoard log."""
    found = {}
    for file in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(file)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                if value.tag != "preview":
                    found[value.tag] = float(tf.make_ndarray(value.tensor))
    return found


def even(classes: int, share: float) -> Confusion:
    """Returns a confusion matrix with this accuracy of each class; the rest is the next class."""
    hits = round(100 * share)
    one = np.eye(classes, dtype=np.int64)
    return Confusion(hits * one + (100 - hits) * np.roll(one, 1, axis=1))


def lopsided(classes: int) -> Confusion:
    """Returns one with high accuracy and low mean IoU: nearly all pixels are of the first class."""
    counts = np.zeros((classes, classes), np.int64)
    counts[:, 0] = 100
    counts[0, 0] = 100_000
    return Confusion(counts)


@pytest.mark.slow
def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best epoch is the one with the best mean IoU of refine on the validation split."""
    validated: list[Weights] = []

    class Told(Evaluator):
        """Finds what each epoch is told to have reached."""

        def __init__(self, model: Any, taxonomy: Taxonomy) -> None:
            super().__init__(model, taxonomy)
            self.model, self.taxonomy = model, taxonomy

        def run(self, *_: Any, **__: Any) -> EpochCounts:
            classes, epoch = len(self.taxonomy.names), len(validated)
            named = named_variables(self.model)
            validated.append({name: variable.numpy() for name, variable in named.items()})
            refine = [even(classes, 0.3), even(classes, 0.8), lopsided(classes), even(classes, 0.5)]
            return EpochCounts(
                coarse=even(classes, [0.2, 0.3, 0.5, 0.9][epoch]),
                fine=even(classes, [0.9, 0.1, 0.1, 0.1][epoch]),
                refine=refine[epoch],
                attention=ScoreHistogram.empty(),
                difficulty=ScoreHistogram.empty(),
                risk=Reliability(np.zeros((3, BINS), np.int64)),
                pictures=classes,
            )

    monkeypatch.setattr(epoch_end, "Evaluator", Told)
    run = tmp_path / "run"
    train = replace(CONFIG.train, epochs=4, checkpoint_every="1 epoch")
    fit.fit(replace(CONFIG, train=train), run, resume=False, console=QUIET)
    assert len(validated) == 4
    for name, epoch in (("best", 2), ("last", 4)):
        kept = saved(run, name)
        for key, value in validated[epoch - 1].items():
            np.testing.assert_array_equal(kept[key], value, err_msg=f"{name}: {key}")
        assert state(run, name)["best_epoch"] == 2
    assert (saved(run, "best")["body/kernel"] != saved(run, "last")["body/kernel"]).any()
