"""Ends a run if too many steps were skipped, or if a loss is not finite.

The training step itself skips losses and gradients that are not finite (`network.model`). This
callback reports skipped steps and limits their number.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from rich.console import Console

from ccfnet_tf.errors import NotFiniteError
from ccfnet_tf.runs.checkpoint_file import NOT_FINITE_ADVICE

IN_A_ROW = 5
"""Number of consecutive skipped steps that ends a run."""

SHARE = 0.01
"""A larger fraction of skipped steps in an epoch ends a run too. Fewer than `IN_A_ROW` skipped
steps never do, because in a short epoch a single step exceeds the fraction."""

ADVICE = f"checkpoints of earlier steps are kept; {NOT_FINITE_ADVICE}"


class StopWhenNotFinite(keras.callbacks.Callback):
    """Reports skipped steps, and raises an error for too many of them or a non-finite loss.

    Args:
        first_step: Number of steps before this training.
        steps: Steps per epoch.
        console: Where each loss or variable that is not finite is reported once.

    Raises:
        NotFiniteError: From `on_train_batch_end`.
    """

    def __init__(self, first_step: int, *, steps: int, console: Console) -> None:
        super().__init__()
        self.step = first_step
        self.allowed = max(IN_A_ROW - 1, math.floor(SHARE * steps))
        self.console = console
        self.named: set[str] = set()
        self.in_a_row = 0
        self.before: int | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Resets the number of skipped steps."""
        self.before = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads, once per epoch, the number of steps skipped before the epoch was resumed."""
        if self.before is None:
            self.before = int(self.model.skipped_steps.result())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the losses and the number of skipped steps."""
        self.step += 1
        values = {key: float(value) for key, value in (logs or {}).items()}
        self._refuse_bad_loss(values)
        skipped, before = int(values["skipped_steps"]), self.before or 0
        self.in_a_row = self.in_a_row + 1 if skipped > before else 0
        if skipped > before:
            self._report_skipped(skipped)
        self.before = skipped

    def _report_skipped(self, skipped: int) -> None:
        """Reports what was not finite in the skipped step; raises if too many were skipped."""
        name = self.model.skipped_steps.latest_name()
        what = name if name.endswith("_loss") else f"the gradient of {name}"
        if name not in self.named:
            self.named.add(name)
            self.console.print(
                f"step {self.step}: {what} is not finite: the step was skipped", highlight=False
            )
        if self.in_a_row >= IN_A_ROW:
            raise NotFiniteError(
                f"{what} is not finite at step {self.step}, the {IN_A_ROW}th step in a row that "
                f"was skipped: {ADVICE}"
            )
        if skipped > self.allowed:
            raise NotFiniteError(
                f"{what} is not finite at step {self.step}: {skipped} steps of this epoch were "
                f"skipped, more than {self.allowed}: {ADVICE}"
            )

    def _refuse_bad_loss(self, values: dict[str, float]) -> None:
        # A running mean stays non-finite after one such step, so none is missed.
        bad = [key for key, value in values.items() if "loss" in key and not math.isfinite(value)]
        # The loss of a head is more informative than the total loss.
        heads = [key for key in bad if key != "loss"] or bad
        if heads:
            raise NotFiniteError(
                f"{', '.join(heads)} became {values[heads[0]]} at step {self.step}: {ADVICE}"
            )
