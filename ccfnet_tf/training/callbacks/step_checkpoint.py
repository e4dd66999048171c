"""Saves a run within an epoch: every so many steps or minutes, and when it receives SIGTERM."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import keras

from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.callbacks.epoch_end import EpochEnd
from ccfnet_tf.training.callbacks.preemption import terminated


class StepCheckpoint(keras.callbacks.Callback):
    """Writes `last.npz` between two steps; the last callback of a run.

    A run that receives SIGTERM (to any of its workers) ends after the step under way, or
    after the end of the epoch that is being written; both leave nothing to do again.
    """

    def __init__(self, epoch_end: EpochEnd, restored: checkpoint.Restored, *, steps: int) -> None:
        """Takes the steps of an epoch; `epoch_end` knows which epochs are done."""
        super().__init__()
        self.epoch_end = epoch_end
        self.workers = epoch_end.workers
        self.every = epoch_end.every
        self.metrics = restored.metrics
        self.step = restored.progress.step
        self.steps = steps
        self.saved_at = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Goes on with the sums of an epoch that was saved within."""
        if self.step % self.steps:
            checkpoint.restore_figures(self.model, self.metrics)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves where it is time to; not after the last step, which the epoch's end saves."""
        self.step += 1
        if self.step % self.steps == 0:
            return
        told = self.workers.any_of(self.epoch_end.told.now)
        if told or self._is_time():
            self.epoch_end.save_last(replace(self.epoch_end.progress, step=self.step))
            self.saved_at = time.monotonic()
        if told:
            self._end()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends a run that was told to while its epoch was written."""
        self.saved_at = time.monotonic()
        if self.workers.any_of(self.epoch_end.told.now):
            if self.epoch_end.saved_step != self.step:
                self.epoch_end.save_last(self.epoch_end.progress)
            self._end()

    def _end(self) -> None:
        # Together: a scheduler may end the chief, who still writes, once another worker has left.
        self.workers.any_of(True)
        raise terminated(self.step)

    def _is_time(self) -> bool:
        if self.every.unit == "step":
            return self.step % self.every.count == 0
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.every.unit == "minute" and minutes >= self.every.count
