"""Registers the package's Keras classes lazily, so that `keras.models.load_model` finds them.

Keras looks up custom classes by their registered names. This module maps each name to the module
that defines the class, and imports that module only when a saved model contains the class.
`import ccfnet_tf` is therefore enough to load a saved model, and imports neither TensorFlow nor
Keras.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PACKAGE = "ccfnet"

_HEADS = "ccfnet_tf.network.heads"
_GEOMETRY = "ccfnet_tf.network.normalise_pad_resize"
_LAYERS = "ccfnet_tf.network.fast_layers"

MODULES = {
    "CCFNet": "ccfnet_tf.network.model",
    **dict.fromkeys(["BatchNorm", "Conv", "DepthwiseConv", "Dropout"], _LAYERS),
    **dict.fromkeys(
        ["Enlarge", "HalfSize", "Normalise", "PadToGrid", "ResizeLike", "ToImage"], _GEOMETRY
    ),
    **dict.fromkeys(["AddConfidence", "Blend", "Entropy", "Judgement", "LogSoftmax"], _HEADS),
    **dict.fromkeys(["AffineGate", "HardGate", "PyramidPooling"], _HEADS),
    "PolyDecay": "ccfnet_tf.training.optimizer",
}
"""Module that defines each class a saved model may contain."""


class _Unimported:
    """Placeholder for a class whose module is not imported yet."""

    def __init__(self, name: str) -> None:
        self.name = name

    def from_config(self, config: dict[str, Any]) -> Any:
        """Imports the class, which replaces this placeholder, and creates the object."""
        cls = getattr(import_module(MODULES[self.name]), self.name)
        return cls.from_config(config)


def register(keras: Any) -> None:
    """Adds a placeholder for each class that is not registered with Keras yet."""
    custom_objects = keras.saving.get_custom_objects()
    for name in MODULES:
        custom_objects.setdefault(f"{PACKAGE}>{name}", _Unimported(name))
