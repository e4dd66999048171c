"""Rewrites the calls of layers in a network; layers and weights are shared with the original."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import keras


def rewrite_calls(model: keras.Model, call: Callable[..., Any]) -> keras.Model:
    """Returns the network with other calls of its layers, and of those of models inside it.

    Args:
        model: A functional model.
        call: Called in place of each layer that is not a model: `call(layer, *inputs, **options)`.
    """
    rewritten = cache(lambda inner: rewrite_calls(inner, call))  # once if it is called twice

    def call_of(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Model):
            return rewritten(layer)(*args, **kwargs)
        return call(layer, *args, **kwargs)

    return keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=call_of
    )
