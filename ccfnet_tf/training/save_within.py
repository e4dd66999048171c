"""Saves a run within an epoch: every so many steps or minutes, and when it is told to end."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.config import Every
from ccfnet_tf.errors import TerminatedError
from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.epoch_end import EpochEnd


class SaveWithin(keras.callbacks.Callback):
    """Writes `last.npz` between two steps; the last callback of a run.

    SIGTERM, with which schedulers take a machine back, ends the run after the step under way, or
    after the end of the epoch that is being written; both leave nothing to do again.
    """

    def __init__(
        self,
        path: Path,
        every: Every,
        epoch_end: EpochEnd,
        restored: checkpoint.Restored,
        *,
        steps: int,
    ) -> None:
        """Takes the steps of an epoch; `epoch_end` knows which epochs are done."""
        super().__init__()
        self.path = path
        self.every = every
        self.epoch_end = epoch_end
        self.metrics = restored.metrics
        self.step = restored.progress.step
        self.steps = steps
        self.saved_at = time.monotonic()
        self.told_to_end = False
        self.former: Any = signal.SIG_DFL

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listens to SIGTERM."""
        self.former = signal.signal(signal.SIGTERM, self._note)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves SIGTERM to whoever had it."""
        signal.signal(signal.SIGTERM, self.former)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Goes on with the sums of an epoch that was saved within."""
        within = self.step % self.steps != 0
        # Sums of several replicas are not one number; then the figures are of the rest alone.
        if within and self.metrics and tf.distribute.get_strategy().num_replicas_in_sync == 1:
            variables = checkpoint.metric_variables(self.model)
            for variable, value in zip(variables, self.metrics, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves where it is time to; not after the last step, which the epoch's end saves."""
        self.step += 1
        if self.step % self.steps == 0 or not (self.told_to_end or self._is_time()):
            return
        progress = replace(self.epoch_end.progress, step=self.step)
        checkpoint.save_last(self.path, self.model, progress)
        self.saved_at = time.monotonic()
        self._end_if_told()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends a run that was told to while its epoch was written."""
        self.saved_at = time.monotonic()
        if self.told_to_end and self.every.unit == "epoch" and self.every.count > 1:
            checkpoint.save_last(self.path, self.model, self.epoch_end.progress)
        self._end_if_told()

    def _is_time(self) -> bool:
        if self.every.unit == "step":
            return self.step % self.every.count == 0
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.every.unit == "minute" and minutes >= self.every.count

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told_to_end = True

    def _end_if_told(self) -> None:
        if self.told_to_end:
            signal.signal(signal.SIGTERM, self.former)
            raise TerminatedError(
                f"told to end (SIGTERM) at step {self.step}: saved; the run goes on with --resume"
            )
