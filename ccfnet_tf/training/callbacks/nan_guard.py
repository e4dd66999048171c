"""Ends a run that no longer learns: too many steps skipped, or a loss that is not a number.

The training step itself skips what is not finite (`network.model`); this says so, and when it is
too much.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from rich.console import Console

from ccfnet_tf.errors import NotFiniteError
from ccfnet_tf.runs.checkpoint_file import NOT_FINITE_ADVICE

IN_A_ROW = 5
"""So many skipped steps one after another end a run."""

SHARE = 0.01
"""A larger share of an epoch's steps ends a run too; fewer than `IN_A_ROW` never do, since a short
epoch reaches the share with a single step."""

ADVICE = f"checkpoints of earlier steps are kept; {NOT_FINITE_ADVICE}"


class StopWhenNotFinite(keras.callbacks.Callback):
    """Names steps that were skipped, and raises where there are too many or a loss is not finite.

    Args:
        first_step: Steps done before.
        steps: Steps of an epoch.
        console: Where it is said what was not finite, once for each loss or variable.

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
        """Forgets how many steps of the last epoch were skipped."""
        self.before = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks once an epoch at how many were skipped before it was resumed."""
        if self.before is None:
            self.before = int(self.model.skipped_steps.result())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at what the step says of itself."""
        self.step += 1
        values = {key: float(value) for key, value in (logs or {}).items()}
        self._refuse_bad_loss(values)
        skipped, before = int(values["skipped_steps"]), self.before or 0
        self.in_a_row = self.in_a_row + 1 if skipped > before else 0
        if skipped > before:
            self._look(skipped)
        self.before = skipped

    def _look(self, skipped: int) -> None:
        """Names what was not finite in the step just skipped; raises if it is one too many."""
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
        # A running mean stays bad once one step was, so nothing is missed.
        bad = [key for key, value in values.items() if "loss" in key and not math.isfinite(value)]
        # The head's own loss says more than their sum.
        heads = [key for key in bad if key != "loss"] or bad
        if heads:
            raise NotFiniteError(
                f"{', '.join(heads)} became {values[heads[0]]} at step {self.step}: {ADVICE}"
            )
