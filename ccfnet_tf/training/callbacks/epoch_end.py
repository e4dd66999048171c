"""After each epoch: validates, writes metrics and previews, and saves checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from ccfnet_tf.config import DataConfig, TrainConfig, parse_every
from ccfnet_tf.datasets.open_data_set import Parts
from ccfnet_tf.errors import TerminatedError
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.evaluation.epoch_end_states import EpochCounts, Evaluator
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.writers import write_png
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.labels import Sample
from ccfnet_tf.network.heads import AffineGate
from ccfnet_tf.pipeline.batch import evaluation_batches
from ccfnet_tf.report.training_previews import preview_sheet
from ccfnet_tf.runs.checkpoint_file import FREE_SPACE
from ccfnet_tf.runs.progress import Progress
from ccfnet_tf.runs.run_folder import CHECKPOINTS, METRICS
from ccfnet_tf.runs.write_run_files import MetricsTable
from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.callbacks.tensorboard import TensorBoardLog
from ccfnet_tf.training.distribution.collectives import Collectives
from ccfnet_tf.training.ema import averaged
from ccfnet_tf.training.sigterm_flag import Preemption, terminated

PREVIEWS = 4
EVALUATION_BATCH = 1
"""Batch size of the validation. Images keep their resolution, so memory is bounded by the largest
image, and larger batches of images of many sizes would consist mostly of padding."""


class Validation:
    """Evaluates a model on the validation split after each epoch."""

    def __init__(
        self,
        parts: Parts,
        sizes: Sequence[tuple[int, int]],
        data: DataConfig,
        workers: Collectives,
        console: Console,
    ) -> None:
        """Prepares the batches; `sizes` are (H, W) of the validation images and may be empty."""
        self.samples = parts.val
        self.taxonomy = parts.taxonomy
        self.load = parts.load
        self.workers = workers
        self.console = console
        own = slice(workers.index, None, workers.count)
        self.batches, self.count = evaluation_batches(
            parts.val[own], sizes[own], parts.load, data, batch=EVALUATION_BATCH
        )
        self.evaluator: Evaluator | None = None

    def run(self, model: Any, advance: Callable[[], None]) -> EpochCounts | None:
        """Evaluates the model on the complete split, divided among the workers.

        Args:
            model: A `CCFNet`.
            advance: Called after each batch. An exception that it raises ends the validation.

        Returns:
            The evaluation, identical on every worker; None if there is no validation split.
        """
        if not self.samples:
            return None
        self.evaluator = self.evaluator or Evaluator(model, self.taxonomy)  # traced once per run
        with new_progress(self.console) as bar:
            task = bar.add_task("validation", total=self.count)

            def step() -> None:
                bar.advance(task)
                advance()

            return self.evaluator.run(
                self.batches,
                pictures=len(self.samples),
                advance=step,
                total=self.workers.total,
            )


class EpochEnd(keras.callbacks.Callback):
    """Validates, then writes metrics, previews and checkpoints, `last.npz` at the end.

    The order matters: if the process is killed before `last.npz` is written, the resumed run
    repeats the epoch and replaces all files written before with identical ones.
    """

    def __init__(
        self,
        run: Path,
        validation: Validation,
        preview_samples: Sequence[Sample],
        progress: Progress,
        train: TrainConfig,
        *,
        preemption: Preemption,
        console: Console,
    ) -> None:
        super().__init__()
        self.epochs = train.epochs
        self.head_rate = train.head_rate
        self.best_by = train.best_by
        self.every = parse_every(train.checkpoint_every)
        self.run = run
        self.validation = validation
        self.workers = validation.workers
        self.preview_samples = preview_samples[:PREVIEWS]
        self.progress = progress
        self.preemption = preemption
        self.console = console
        self.saved_step = progress.step
        self.predictor: KerasNetwork | None = None
        self.started = time.monotonic()
        if self.workers.chief:
            self.table = MetricsTable(run / METRICS, epochs_done=progress.epoch)
            self.board = TensorBoardLog(run / "tensorboard")

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts measuring the duration of the epoch."""
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Validates, then writes metrics, previews and checkpoints."""
        number = epoch + 1
        step = number * self.progress.steps
        trained = time.monotonic() - self.started
        try:
            with averaged(self.model):
                progress, row = self._validate(number, step, logs or {})
        except TerminatedError:
            self.save_last(replace(self.progress, step=step))
            raise
        self.progress = progress
        if self.every.unit != "epoch" or number % self.every.count == 0 or number == self.epochs:
            self.save_last(progress)
        self.console.print(epoch_line(number, self.epochs, row, trained, self.best_by))

    def save_last(self, progress: Progress) -> None:
        """Saves the complete state of the run, on the chief only."""
        self.saved_step = progress.step
        if self.workers.chief:
            checkpoint.save_last(self.run / CHECKPOINTS / "last.npz", self.model, progress)

    def _validate(
        self, number: int, step: int, logs: dict[str, Any]
    ) -> tuple[Progress, dict[str, Any]]:
        """Validates, and writes everything except `last.npz`; returns progress and metrics."""

        def stop_if_preempted() -> None:
            # Several workers must stop together, so they do so after the validation.
            if self.preemption.now and self.workers.count == 1:
                raise terminated(step)

        evaluation = self.validation.run(self.model, stop_if_preempted)
        progress = self._progress(number, step, evaluation)
        row = self._row(number, step, logs, evaluation)
        if self.workers.chief:
            self.table.append(row)
            self._draw(number, row)
            if progress.best_epoch == number:
                checkpoint.save_best(self.run / CHECKPOINTS / "best.npz", self.model, progress)
        return progress, row

    def _row(
        self, number: int, step: int, logs: dict[str, Any], evaluation: EpochCounts | None
    ) -> dict[str, Any]:
        rate = float(self.model.optimizer.learning_rate.numpy())
        seconds = round(time.monotonic() - self.started, 2)
        row = {"epoch": number, "step": step, "seconds": seconds, "learning_rate": rate}
        row |= {key: round(float(value), 6) for key, value in logs.items()}
        return row | _validation_figures(evaluation)

    def _progress(self, number: int, step: int, evaluation: EpochCounts | None) -> Progress:
        score = _score(evaluation, self.best_by)
        progress = replace(self.progress, epoch=number, step=step)
        if score is None:
            return replace(progress, best_score=-1.0, best_epoch=number)
        if score > progress.best_score:
            return replace(progress, best_score=score, best_epoch=number)
        return progress

    def _draw(self, number: int, row: dict[str, Any]) -> None:
        sheet = self._sheet()
        path = self.run / "previews" / f"epoch_{number:02d}.png"
        write_png(path, sheet, fix=FREE_SPACE)
        self.board.write(number, row | _derived(row, self.head_rate) | _gate(self.model), sheet)

    def _sheet(self) -> np.ndarray:
        """Returns an image of the preview samples and their predictions, one row per sample."""
        taxonomy = self.validation.taxonomy
        self.predictor = self.predictor or KerasNetwork(self.model, taxonomy=taxonomy)
        rows = []
        for sample in self.preview_samples:
            image, label = self.validation.load(sample)
            rows.append((image, label, self.predictor.predict_all_heads(image)))
        return preview_sheet(rows, taxonomy)


def _derived(row: dict[str, Any], head_rate: float) -> dict[str, float]:
    """Returns figures that TensorBoard shows in addition to the columns of `metrics.csv`."""
    figures = {"head_learning_rate": row["learning_rate"] * head_rate}
    if "coarse_accuracy" in row:  # by definition, the hard pixels are those coarse gets wrong
        figures["hard_share"] = 1.0 - row["coarse_accuracy"]
    return figures


def _gate(model: Any) -> dict[str, float]:
    """Returns k and b of an affine gate, sigmoid(k a + b) of attention's logit a; else nothing."""
    gates = [layer for layer in model.layers if isinstance(layer, AffineGate)]
    return {f"gate_{name}": value for gate in gates for name, value in gate.coefficients().items()}


def _score(evaluation: EpochCounts | None, head: str) -> float | None:
    """Returns the score that selects the best checkpoint: mean IoU of a head.

    The mean is over the classes that occur in the labels. If it included classes that occur only
    in the predictions, a single pixel of such a class would add a class with IoU 0. Without
    labelled pixels the score is None, and the latest epoch counts as the best.
    """
    if evaluation is None:
        return None
    score: float | None = getattr(evaluation, head).mean_iou_present
    return score


def _validation_figures(evaluation: EpochCounts | None) -> dict[str, float]:
    if evaluation is None:
        return {}
    figures = {}
    for head in HEADS:
        confusion = getattr(evaluation, head)
        figures[f"val_{head}_pixel_accuracy"] = confusion.pixel_accuracy
        figures[f"val_{head}_mean_iou"] = confusion.mean_iou_present
    figures["val_attention_auroc"] = evaluation.attention.auroc
    figures["val_difficulty_auroc"] = evaluation.difficulty.auroc
    figures["val_risk_ece"] = evaluation.risk.ece
    return {key: round(value, 6) for key, value in figures.items() if value is not None}


def epoch_line(number: int, epochs: int, row: dict[str, Any], seconds: float, head: str) -> str:
    """Returns a line about an epoch, with the accuracy of the head that selects the checkpoint.

    Args:
        number: Number of the epoch, from 1.
        epochs: Epochs of the run.
        row: Its row of `metrics.csv`.
        seconds: Duration of its steps.
        head: `train.best_by`. Only with refine are the other heads trained for certain.
    """
    text = f"epoch {number}/{epochs}  {seconds:.0f} s"
    if "loss" in row:  # missing if a run on several replicas was interrupted before its validation
        text += f"  loss {row['loss']:.3f}  accuracy {100 * row[f'{head}_accuracy']:.1f} %"
    if row.get("skipped_steps"):
        text += f"  skipped steps {row['skipped_steps']:.0f}"
    if f"val_{head}_pixel_accuracy" not in row:
        return text
    shown = ("coarse", "refine") if head == "refine" else (head,)
    figures = [f"{each} {100 * row[f'val_{each}_pixel_accuracy']:.1f} %" for each in shown]
    return f"{text}  validation: {', '.join(figures)}"
