"""CCFNet: cascade coarse-to-fine semantic segmentation, on TensorFlow and Keras 3.

The public names load what they need when they are first used, so that `import ccfnet_tf` and
`ccfnet-tf --help` do not wait for TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from ccfnet_tf.keras_registration import register

if TYPE_CHECKING:
    from ccfnet_tf.errors import CCFNetError
    from ccfnet_tf.network.ccfnet import build_ccfnet
    from ccfnet_tf.network.model import CCFNet
    from ccfnet_tf.runs.run_folder import load_run
    from ccfnet_tf.runtimes.predictor import Predictor

    __version__: str

__all__ = ["CCFNet", "CCFNetError", "Predictor", "build_ccfnet", "load_run"]

_HOMES = {
    "CCFNet": "ccfnet_tf.network.model",
    "CCFNetError": "ccfnet_tf.errors",
    "Predictor": "ccfnet_tf.runtimes.predictor",
    "build_ccfnet": "ccfnet_tf.network.ccfnet",
    "load_run": "ccfnet_tf.runs.run_folder",
}


wrapt.register_post_import_hook(register, "keras")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("ccfnet-tf")
    raise AttributeError(f"module 'ccfnet_tf' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
