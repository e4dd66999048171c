"""Two logical CPUs for the tests of replicas, set at collection, before TensorFlow starts."""

from __future__ import annotations

import pytest
import tensorflow as tf

from ccfnet_tf.training.distribution.devices import split_cpu

split_cpu(2)


@pytest.fixture
def two_replicas() -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
