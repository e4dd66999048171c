"""The progress within an epoch: a bar on a terminal, some lines in a log."""

from __future__ import annotations

import time
from typing import Any

import keras
from rich.console import Console

from ccfnet_tf.io.console import new_progress

LINES = 10
"""Most lines about an epoch in a log."""

SECONDS = 60.0
"""Least time between two of them."""


class ProgressBar(keras.callbacks.Callback):
    """Shows the steps of an epoch with the running loss and accuracy, of refine with more.

    If the console is not a terminal (a log file, a pipe), lines are printed instead of a bar: up
    to ten per epoch, and at most one per minute.
    """

    def __init__(self, console: Console, epochs: int, head: str) -> None:
        """Creates the callback.

        Args:
            console: Where progress is shown.
            epochs: Epochs of the run.
            head: `train.best_by`, whose accuracy is shown.
        """
        super().__init__()
        self.epochs = epochs
        self.console = console
        self.head = head

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the bar of the epoch."""
        self.epoch = f"epoch {epoch + 1}/{self.epochs}"
        self.bar = new_progress(self.console, figures=True)
        self.bar.start()
        self.task = self.bar.add_task(self.epoch, total=self.params["steps"], figures="")
        self.printed = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advances the bar by one step, or prints a line if the last one is long ago."""
        figures = _figures(logs or {}, self.head)
        self.bar.update(self.task, advance=1, figures=figures)
        if batch == 0:  # which includes the time to trace the network
            self.first = time.monotonic()
        if not self.console.is_terminal:
            self._print_line(batch + 1, figures)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Removes the bar."""
        self.bar.stop()

    def close(self) -> None:
        """Releases the terminal, also if training stopped within an epoch."""
        if hasattr(self, "bar"):
            self.bar.stop()

    def _print_line(self, done: int, figures: str) -> None:
        """Prints a line, unless the last one is not long ago or the epoch ends with this step."""
        now, steps = time.monotonic(), self.params["steps"]
        share = max(1, -(-steps // LINES))  # steps between two lines
        if done % share or done == steps or now - self.printed < SECONDS:
            return
        self.printed = now
        left = ""
        if done > 1:
            minutes = (now - self.first) / (done - 1) * (steps - done) / 60
            left = f"  {minutes:.0f} min left"
        self.console.print(f"{self.epoch}  step {done}/{steps}{left}  {figures}")


def _figures(logs: dict[str, Any], head: str) -> str:
    """Returns the figures of the epoch so far. With refine alone, all heads are trained."""
    text = f"loss {logs['loss']:.3f} accuracy {100 * logs[f'{head}_accuracy']:.1f} %"
    if head != "refine":
        return text
    return (
        f"{text} mean IoU {100 * logs['refine_mean_iou']:.1f} % (losses: coarse "
        f"{logs['coarse_loss']:.3f} attention {logs['attention_loss']:.3f} refine "
        f"{logs['refine_loss']:.3f})"
    )
