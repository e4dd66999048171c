"""Stops a run whose loss is no longer a number, and says which loss and when."""

from __future__ import annotations

import math
from typing import Any

import keras

from ccfnet_tf.errors import NotFiniteError


class StopWhenNotFinite(keras.callbacks.Callback):
    """Raises as soon as a running mean of a loss is NaN or infinite.

    A mean stays so once one step was, hence nothing is missed by looking at means.
    """

    def __init__(self, first_step: int) -> None:
        super().__init__()
        self.step = first_step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the losses of a step."""
        self.step += 1
        values = {key: float(value) for key, value in (logs or {}).items() if "loss" in key}
        bad = [key for key, value in values.items() if not math.isfinite(value)]
        # The head's own loss says more than their sum.
        heads = [key for key in bad if key != "loss"] or bad
        if heads:
            raise NotFiniteError(
                f"{', '.join(heads)} became {values[heads[0]]} at step {self.step}: checkpoints "
                "of earlier epochs are kept; go on with --resume, or begin anew in another --out "
                "with a lower train.learning_rate, train.clip_norm 1 or train.precision float32"
            )
