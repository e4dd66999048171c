"""Makes Keras's `fit` work under MultiWorkerMirroredStrategy, which Keras 3 does not support.

Two private methods of Keras fail there (keras-team/keras#20585, tensorflow/tensorflow#72388).
Before the first step, one runs the model on the batch of one worker outside of the strategy
("Attempt to convert a value (PerReplica...)"). After each step, the other averages the metrics
over replicas along an axis that a scalar does not have ("Invalid reduction dimension 0"). CCFNet
needs neither: it is built by its constructor, and its metrics are summed over all workers when
they are read.

`tests/network/test_multi_worker_fit.py` fails when Keras no longer needs this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class MultiWorkerFit(keras.Model):
    """A Keras model whose `fit` and `evaluate` work under every strategy."""

    @property
    def _over_workers(self) -> bool:
        return isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if not self._over_workers:
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _make_function(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if not self._over_workers:
            return super()._make_function(step)
        strategy = self.distribute_strategy

        @tf.function(reduce_retracing=True)
        def one_step(batches: Any) -> Any:
            metrics = strategy.run(step, args=(next(batches),))
            # The metrics of this worker's first replica suffice for the progress bar.
            return keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], metrics
            )

        return one_step
