"""Makes `keras.models.load_model` know the classes of this package before they are imported.

Keras finds custom classes by registered names. Each name stands here for the module that registers
it, which is imported when a saved model asks for it: so `import ccfnet_tf` is enough to load one,
and costs neither TensorFlow nor Keras.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PACKAGE = "ccfnet"

_HEADS = "ccfnet_tf.network.heads"
_GEOMETRY = "ccfnet_tf.network.geometry"
_LAYERS = "ccfnet_tf.network.layers"

MODULES = {
    "CCFNet": "ccfnet_tf.network.model",
    **dict.fromkeys(["BatchNorm", "Conv", "DepthwiseConv", "Dropout"], _LAYERS),
    **dict.fromkeys(["Normalise", "PadToGrid", "ResizeLike", "ToImage"], _GEOMETRY),
    **dict.fromkeys(["AddConfidence", "Blend", "Entropy", "Judgement", "LogSoftmax"], _HEADS),
    "PyramidPooling": _HEADS,
    "PolyDecay": "ccfnet_tf.training.optimizer",
}
"""Where each class that a saved model may hold is registered."""


class _Unimported:
    """Stands for a class whose module is not imported yet."""

    def __init__(self, name: str) -> None:
        self.name = name

    def from_config(self, config: dict[str, Any]) -> Any:
        """Imports the class, which takes this object's place, and makes what Keras asks for."""
        cls = getattr(import_module(MODULES[self.name]), self.name)
        return cls.from_config(config)


def register(keras: Any) -> None:
    """Adds the names to Keras's, where their classes are not there already."""
    known = keras.saving.get_custom_objects()
    for name in MODULES:
        known.setdefault(f"{PACKAGE}>{name}", _Unimported(name))
