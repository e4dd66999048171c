"""Collective operations between the workers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ccfnet_tf.training.distribution.cluster import Cluster


class Collectives:
    """Collective operations of the workers that share a strategy.

    Every worker must call the same methods in the same order.

    Attributes:
        count: Number of workers.
        index: Index of this worker.
        chief: Whether this worker is the chief, which writes all files.
    """

    def __init__(self, strategy: Any, cluster: Cluster | None) -> None:
        """Takes the common strategy; `cluster` is None for a single worker."""
        self.count = len(cluster.addresses) if cluster else 1
        self.index = cluster.index if cluster else 0
        self.chief = self.index == 0
        self._strategy = strategy
        self._sum = tf.function(self._add, autograph=False, reduce_retracing=True)

    def total(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the sums over all workers; shapes and types must be the same on each."""
        if self.count == 1:
            return list(arrays)
        inputs = [np.asarray(array) for array in arrays]
        sums: list[np.ndarray] = list(inputs)
        for sum_dtype in (np.float32, np.float64, np.int64):
            indices = [i for i, array in enumerate(inputs) if _sum_dtype(array.dtype) == sum_dtype]
            if indices:
                flat = np.concatenate([inputs[i].ravel().astype(sum_dtype) for i in indices])
                parts = np.split(
                    self._sum(tf.constant(flat)).numpy(),
                    np.cumsum([inputs[i].size for i in indices])[:-1],
                )
                for i, part in zip(indices, parts, strict=True):
                    sums[i] = part.reshape(inputs[i].shape).astype(inputs[i].dtype)
        return sums

    def from_chief(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the chief's arrays on every worker; shapes and types must be the same on each."""
        return self.total([array if self.chief else np.zeros_like(array) for array in arrays])

    def text_from_chief(self, text: str) -> str:
        """Returns the chief's text on every worker."""
        own = np.frombuffer(text.encode(), np.uint8)
        (size,) = self.from_chief([np.array(own.size, np.int64)])
        (data,) = self.from_chief([np.resize(own, int(size))])
        return data.tobytes().decode()

    def any_of(self, flag: bool) -> bool:
        """Returns whether the flag is set on any worker."""
        (count,) = self.total([np.array(flag, np.int64)])
        return bool(count)

    def _add(self, values: tf.Tensor) -> tf.Tensor:
        local = int(self._strategy.num_replicas_in_sync) // self.count

        def on_replica() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # Each worker is counted once, whatever its number of replicas.
            first = context.replica_id_in_sync_group % local == 0
            given = tf.where(first, values, tf.zeros_like(values))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, given)

        return self._strategy.experimental_local_results(self._strategy.run(on_replica))[0]


def _sum_dtype(dtype: np.dtype[Any]) -> Any:
    """Returns the type in which values of `dtype` are summed: one supported by collectives."""
    if dtype.kind != "f":
        return np.int64
    return np.float64 if dtype == np.float64 else np.float32
