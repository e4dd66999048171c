"""How TensorFlow is imported by the command line: late, and without its notes."""

from __future__ import annotations

import os
import sys


def start_tensorflow() -> None:
    """Imports TensorFlow without its notes on CUDA and CPU instructions.

    They are written by C++ to the file descriptor before any log level counts. What a failing
    import has to say is an exception, and shows.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    screen, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nowhere)
