"""Multiplications of the network, by part, from its graph and an image's size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import Model, layers

Shape = tuple[int | None, ...]

_HEADS = {"coarse": "coarse", "attention": "attention"}
_FINE = ("fine", "pyramid", "detail")


@dataclass(frozen=True)
class Cost:
    """Multiply-add pairs of an image's way through the network once, in 10^9 (GMAC).

    Convolutions and dense layers alone: batch norm, pooling (the pyramid's too: .04 % of the
    paper's form at 241x241), resizing and softmax cost time but hardly any multiplications.

    Attributes:
        backbone: The feature extractor.
        coarse: The coarse head.
        attention: The attention head.
        fine: The pyramid and the fine head.
    """

    backbone: float
    coarse: float
    attention: float
    fine: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.backbone + self.coarse + self.attention + self.fine


def cost(model: Model, height: int, width: int) -> Cost:
    """Returns what `build_ccfnet`'s network costs for an image of `height` x `width` pixels."""
    parts = {"backbone": 0, "coarse": 0, "attention": 0, "fine": 0}
    for name, macs in count(model, (1, height, width, 3)).items():
        parts[_part(name)] += macs
    return Cost(**{part: macs / 1e9 for part, macs in parts.items()})


def count(model: Model, images: Shape) -> dict[str, int]:
    """Returns the multiply-adds of every layer that has any; `a/b` is layer b of the model a.

    Shapes are followed through the graph by the layers' own rule, so nothing is computed.

    Args:
        model: A functional model of one input, with models inside or without.
        images: Shape of its input.

    Raises:
        TypeError: A layer multiplies by a kernel, and there is no rule for its kind.
    """
    shapes: dict[int, Shape] = {id(model.inputs[0]): images}
    found: dict[str, int] = {}
    for layer in model.operations:
        if isinstance(layer, layers.InputLayer):
            continue
        node = layer._inbound_nodes[0]  # `layer.input` of a model inside is its own, not ours
        shapes_in = [shapes[id(tensor)] for tensor in node.input_tensors]
        seen: Any = shapes_in if len(shapes_in) > 1 else shapes_in[0]
        if isinstance(layer, Model):
            inside = count(layer, seen)
            found |= {f"{layer.name}/{name}": macs for name, macs in inside.items()}
        elif macs := _multiply_adds(layer, seen):
            found[layer.name] = macs
        answers = layer.compute_output_shape(seen)
        answers = answers if len(node.output_tensors) > 1 else [answers]
        for output, shape in zip(node.output_tensors, answers, strict=True):
            shapes[id(output)] = tuple(shape)
    return found


def _part(name: str) -> str:
    if name.startswith("backbone/"):
        return "backbone"
    first = name.split("_", maxsplit=1)[0]
    if first in _FINE:
        return "fine"
    return _HEADS[first]


def _multiply_adds(layer: Any, seen: Any) -> int:
    for kind, rule in _RULES.items():
        if isinstance(layer, kind):
            return rule(layer, seen)
    if any(len(weight.shape) > 1 for weight in layer.weights):
        raise TypeError(f"{layer.name}: no rule for what a {type(layer).__name__} multiplies")
    return 0


def _places(layer: Any, seen: Shape) -> int:
    """Returns at how many places of the answer a kernel is laid on."""
    return math.prod(side or 1 for side in layer.compute_output_shape(seen)[:-1])


def _convolution(layer: Any, seen: Shape) -> int:
    # [h, w, channels in / groups, channels out]: dilation spreads it and adds nothing. A dense
    # layer's kernel is [in, out]; a depthwise one's [h, w, channels, answers of each].
    return _places(layer, seen) * math.prod(layer.kernel.shape)


def _separable(layer: Any, seen: Shape) -> int:
    kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
    return _places(layer, seen) * sum(math.prod(kernel.shape) for kernel in kernels)


def _transposed(layer: Any, seen: Shape) -> int:
    return math.prod(side or 1 for side in seen[:-1]) * math.prod(layer.kernel.shape)


_RULES: dict[type, Callable[[Any, Shape], int]] = {
    layers.Conv2DTranspose: _transposed,  # before Conv2D, in case one is made the other's child
    layers.SeparableConv2D: _separable,
    layers.Conv2D: _convolution,
    layers.DepthwiseConv2D: _convolution,
    layers.Dense: _convolution,
}
