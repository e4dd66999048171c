"""What the workers of a run tell each other; alone, a worker tells itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ccfnet_tf.training.distribution.cluster import Cluster


class Collectives:
    """The workers that share a strategy. Every one must call the same methods in the same order.

    Attributes:
        count: How many there are.
        index: Which one this is.
        chief: Whether it is the one that writes.
    """

    def __init__(self, strategy: Any, cluster: Cluster | None) -> None:
        """Takes the strategy over all of them; `cluster` is None for one that is alone."""
        self.count = len(cluster.addresses) if cluster else 1
        self.index = cluster.index if cluster else 0
        self.chief = self.index == 0
        self._strategy = strategy
        self._sum = tf.function(self._add, autograph=False, reduce_retracing=True)

    def total(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the sums over all workers; arrays have the same shapes and types on each."""
        if self.count == 1:
            return list(arrays)
        given = [np.asarray(array) for array in arrays]
        sums: list[np.ndarray] = list(given)
        for wide in (np.float32, np.float64, np.int64):
            places = [i for i, array in enumerate(given) if _wide(array.dtype) == wide]
            if places:
                flat = np.concatenate([given[i].ravel().astype(wide) for i in places])
                parts = np.split(
                    self._sum(tf.constant(flat)).numpy(),
                    np.cumsum([given[i].size for i in places])[:-1],
                )
                for i, part in zip(places, parts, strict=True):
                    sums[i] = part.reshape(given[i].shape).astype(given[i].dtype)
        return sums

    def from_chief(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the chief's arrays on every worker; shapes and types must agree already."""
        return self.total([array if self.chief else np.zeros_like(array) for array in arrays])

    def text_from_chief(self, text: str) -> str:
        """Returns the chief's text on every worker."""
        mine = np.frombuffer(text.encode(), np.uint8)
        (size,) = self.from_chief([np.array(mine.size, np.int64)])
        (letters,) = self.from_chief([np.resize(mine, int(size))])
        return letters.tobytes().decode()

    def any_of(self, flag: bool) -> bool:
        """Returns whether the flag is set on any worker."""
        (raised,) = self.total([np.array(flag, np.int64)])
        return bool(raised)

    def _add(self, values: tf.Tensor) -> tf.Tensor:
        local = int(self._strategy.num_replicas_in_sync) // self.count

        def on_replica() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # A worker counts once, however many replicas it has.
            first = context.replica_id_in_sync_group % local == 0
            given = tf.where(first, values, tf.zeros_like(values))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, given)

        return self._strategy.experimental_local_results(self._strategy.run(on_replica))[0]


def _wide(dtype: np.dtype[Any]) -> Any:
    """Returns the type that values of `dtype` are added up in: one that collectives know."""
    if dtype.kind != "f":
        return np.int64
    return np.float64 if dtype == np.float64 else np.float32
