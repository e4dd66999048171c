"""Imports TensorFlow quietly, and without packages that nothing here uses."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OPTIONAL = ("sklearn", "matplotlib")
"""Packages that Keras imports if they are installed, for scikit-learn estimators and plots."""


def start_tensorflow() -> None:
    """Imports TensorFlow without its messages about CUDA and CPU instructions.

    C++ code writes them before the log level takes effect. A failing import still raises its
    exception. Keras does not get its optional packages, which take about 40 % of the import.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_native_messages(), _hidden(*_OPTIONAL):
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def _hidden(*packages: str) -> Iterator[None]:
    """Makes the import of packages fail that are not imported yet; later they can be imported."""
    new = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(new))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in new:
            del sys.modules[name]


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
