"""Saves a run within an epoch: after a number of steps or minutes, and on SIGTERM."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import keras

from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.callbacks.epoch_end import EpochEnd
from ccfnet_tf.training.sigterm_flag import terminated


class StepCheckpoint(keras.callbacks.Callback):
    """Writes `last.npz` between two steps; must be the last callback of a run.

    If any worker receives SIGTERM, the run ends after the current step, or after the files of the
    current epoch are written. In both cases no work is lost.
    """

    def __init__(self, epoch_end: EpochEnd, restored: checkpoint.Restored, *, steps: int) -> None:
        """Initialises the callback; `steps` is the number of steps per epoch."""
        super().__init__()
        self.epoch_end = epoch_end
        self.workers = epoch_end.workers
        self.every = epoch_end.every
        self.metrics = restored.metrics
        self.step = restored.progress.step
        self.steps = steps
        self.saved_at = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores the metrics of an unfinished epoch."""
        if self.step % self.steps:
            checkpoint.restore_figures(self.model, self.metrics)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the run if it is due, but not after the last step, after which `EpochEnd` saves."""
        self.step += 1
        if self.step % self.steps == 0:
            return
        preempted = self.workers.any_of(self.epoch_end.preemption.now)
        if preempted or self._is_time():
            self.epoch_end.save_last(replace(self.epoch_end.progress, step=self.step))
            self.saved_at = time.monotonic()
        if preempted:
            self._stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the run if SIGTERM was received while the files of the epoch were written."""
        self.saved_at = time.monotonic()
        if self.workers.any_of(self.epoch_end.preemption.now):
            if self.epoch_end.saved_step != self.step:
                self.epoch_end.save_last(self.epoch_end.progress)
            self._stop()

    def _stop(self) -> None:
        # All workers end together: when one ends, a scheduler may kill the chief, which may still
        # be writing.
        self.workers.any_of(True)
        raise terminated(self.step)

    def _is_time(self) -> bool:
        if self.every.unit == "step":
            return self.step % self.every.count == 0
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.every.unit == "minute" and minutes >= self.every.count
