"""The progress within an epoch: a bar on a terminal, some lines in a log."""

from __future__ import annotations

import time
from typing import Any

import keras
from rich.console import Console

from ccfnet_tf.io.console import new_progress

PARTS = 10
"""Parts of an epoch, after each of which a log may have a line."""

SECONDS = 60.0
"""Least time between two of these lines."""


class ProgressBar(keras.callbacks.Callback):
    """Shows the steps of an epoch with the running loss and accuracy, of refine with more.

    Where no bar can be drawn (a log file, a pipe), lines are printed instead: after each tenth of
    an epoch but the last, if a minute has passed since the line before.
    """

    def __init__(self, console: Console, epochs: int, steps: int, head: str) -> None:
        """Creates the callback.

        Args:
            console: Where progress is shown.
            epochs: Epochs of the run.
            steps: Steps of an epoch.
            head: `train.best_by`, whose accuracy is shown.
        """
        super().__init__()
        self.epochs = epochs
        self.steps = steps
        self.console = console
        self.head = head

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the bar of the epoch, of which a resumed run has done some steps."""
        self.epoch = f"epoch {epoch + 1}/{self.epochs}"
        self.done = self.steps - self.params["steps"]
        self.bar = new_progress(self.console, figures=True)
        self.bar.start()
        self.task = self.bar.add_task(self.epoch, total=self.steps, completed=self.done, figures="")
        self.printed = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advances the bar by one step, or prints a line if it is time for one."""
        figures = _figures(logs or {}, self.head)
        self.bar.update(self.task, advance=1, figures=figures)
        if batch == 0:  # which includes the time to trace the network
            self.first = time.monotonic()
        if self.bar.disable:
            self._print_line(batch, figures)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Removes the bar."""
        self.bar.stop()

    def close(self) -> None:
        """Releases the terminal, also if training stopped within an epoch."""
        if hasattr(self, "bar"):
            self.bar.stop()

    def _print_line(self, batch: int, figures: str) -> None:
        """Prints a line, unless the one before is recent, or the epoch ends with this step."""
        now, step = time.monotonic(), self.done + batch + 1
        part = max(1, -(-self.steps // PARTS))
        if step % part or step == self.steps or now - self.printed < SECONDS:
            return
        self.printed = now
        left = ""
        if batch:
            minutes = (now - self.first) / batch * (self.steps - step) / 60
            left = f"  {'<1' if minutes < 1 else f'{minutes:.0f}'} min left of the epoch"
        self.console.print(f"{self.epoch}  step {step}/{self.steps}{left}  {figures}")


def _figures(logs: dict[str, Any], head: str) -> str:
    """Returns the figures of the epoch so far. With another head, refine may not be trained."""
    text = f"loss {logs['loss']:.3f} accuracy {100 * logs[f'{head}_accuracy']:.1f} %"
    if head != "refine":
        return text
    return (
        f"{text} mean IoU {100 * logs['refine_mean_iou']:.1f} % (losses: coarse "
        f"{logs['coarse_loss']:.3f} attention {logs['attention_loss']:.3f} refine "
        f"{logs['refine_loss']:.3f})"
    )
