"""Hides messages that native libraries write to file descriptor 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def start_tensorflow() -> None:
    """Imports TensorFlow without its messages about CUDA and CPU instructions.

    C++ code writes them before the log level takes effect. A failing import still raises its
    exception.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_native_messages():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def without_native_messages() -> Iterator[None]:
    """Discards what the process writes to file descriptor 2; exceptions are raised as usual."""
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
