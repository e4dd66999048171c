"""A progress bar for each epoch."""

from __future__ import annotations

from typing import Any

import keras
from rich.console import Console

from ccfnet_tf.io.console import new_progress


class ProgressBar(keras.callbacks.Callback):
    """Shows the steps of an epoch with the running loss, accuracy, mean IoU and losses of heads."""

    def __init__(self, console: Console, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs
        self.console = console

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the bar of the epoch."""
        self.bar = new_progress(self.console, figures=True)
        self.bar.start()
        self.task = self.bar.add_task(
            f"epoch {epoch + 1}/{self.epochs}", total=self.params["steps"], figures=""
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advances the bar by one step."""
        self.bar.update(self.task, advance=1, figures=_figures(logs or {}))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Removes the bar."""
        self.bar.stop()

    def close(self) -> None:
        """Releases the terminal, also if training stopped within an epoch."""
        if hasattr(self, "bar"):
            self.bar.stop()


def _figures(logs: dict[str, Any]) -> str:
    return (
        f"loss {logs['loss']:.3f} accuracy {100 * logs['refine_accuracy']:.1f} % "
        f"mean IoU {100 * logs['refine_mean_iou']:.1f} % (losses: coarse {logs['coarse_loss']:.3f} "
        f"attention {logs['attention_loss']:.3f} refine {logs['refine_loss']:.3f})"
    )
