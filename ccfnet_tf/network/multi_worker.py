"""Keras's `fit` under MultiWorkerMirroredStrategy, which Keras 3 alone cannot do.

Two of its private methods fail there (keras-team/keras#20585, tensorflow/tensorflow#72388):
before the first step it runs the model on one worker's batch outside of the strategy ("Attempt to
convert a value (PerReplica...)"), and after each step it averages figures over replicas along an
axis that a scalar does not have ("Invalid reduction dimension 0"). CCFNet needs neither: it is
built when it is made, and its figures are sums that are added up over all workers where they are
read.

`tests/network/test_multi_worker.py` fails when Keras no longer needs this file.
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
            figures = strategy.run(step, args=(next(batches),))
            # Those of this worker's first replica: a bar on the screen needs no more.
            return keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], figures
            )

        return one_step
