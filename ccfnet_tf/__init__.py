"""CCFNet: cascade coarse-to-fine semantic segmentation, on TensorFlow and Keras 3.

Public names are imported lazily, on first access, so that `import ccfnet_tf` and
`ccfnet-tf --help` do not import TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from ccfnet_tf.keras_registration import register

if TYPE_CHECKING:
    from ccfnet_tf.config import DataConfig
    from ccfnet_tf.datasets.open_data_set import read_parts
    from ccfnet_tf.errors import CCFNetError
    from ccfnet_tf.evaluation.evaluate import evaluate
    from ccfnet_tf.evaluation.evaluation import Evaluation
    from ccfnet_tf.network.ccfnet import build_ccfnet
    from ccfnet_tf.network.model import CCFNet
    from ccfnet_tf.runs.run_folder import load_run
    from ccfnet_tf.runtimes.public_predictor import Predictor
    from ccfnet_tf.runtimes.served import ServedNetwork

    __version__: str

__all__ = [
    "CCFNet",
    "CCFNetError",
    "DataConfig",
    "Evaluation",
    "Predictor",
    "ServedNetwork",
    "build_ccfnet",
    "evaluate",
    "load_run",
    "read_parts",
]

_MODULES = {
    "CCFNet": "ccfnet_tf.network.model",
    "CCFNetError": "ccfnet_tf.errors",
    "DataConfig": "ccfnet_tf.config",
    "Evaluation": "ccfnet_tf.evaluation.evaluation",
    "Predictor": "ccfnet_tf.runtimes.public_predictor",
    "ServedNetwork": "ccfnet_tf.runtimes.served",
    "build_ccfnet": "ccfnet_tf.network.ccfnet",
    "evaluate": "ccfnet_tf.evaluation.evaluate",
    "load_run": "ccfnet_tf.runs.run_folder",
    "read_parts": "ccfnet_tf.datasets.open_data_set",
}


wrapt.register_post_import_hook(register, "keras")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("ccfnet-tf")
    raise AttributeError(f"module 'ccfnet_tf' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
