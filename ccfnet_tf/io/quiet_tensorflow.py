"""Imports TensorFlow for the command line without its start-up messages."""

from __future__ import annotations

import os
import sys


def start_tensorflow() -> None:
    """Imports TensorFlow without its messages about CUDA and CPU instructions.

    C++ code writes them to file descriptor 2 before the log level takes effect. A failing import
    still raises its exception.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
