"""Counts the multiply-adds of the network's parts from its graph and the image size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from keras import Model, layers

Shape = tuple[int | None, ...]

_HEADS = {"coarse": "coarse", "attention": "attention"}
_FINE = ("fine", "pyramid", "detail")


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one forward pass for one image, in 10^9 (GMAC).

    Only convolutions and dense layers are counted: batch norm, pooling (the pyramid's too: .04 % of
    the paper's network at 241x241), resizing and softmax cost time but few multiplications.

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
        """Sum of all parts."""
        return self.backbone + self.coarse + self.attention + self.fine


def cost(model: Model, height: int, width: int) -> Cost:
    """Returns the cost of `build_ccfnet`'s network for an image of `height` x `width` pixels."""
    parts = {"backbone": 0, "coarse": 0, "attention": 0, "fine": 0}
    for name, macs in count(model, (1, height, width, 3)).items():
        parts[_part(name)] += macs
    return Cost(**{part: macs / 1e9 for part, macs in parts.items()})


def count(model: Model, images: Shape) -> dict[str, int]:
    """Returns the multiply-adds of every layer that has any; `a/b` is layer b of the model a.

    A layer that is called several times, such as a backbone at two scales, counts each call.

    Shapes are propagated with `compute_output_shape`, so nothing is computed.

    Args:
        model: A functional model with one input; it may contain other models.
        images: Shape of the input.

    Raises:
        TypeError: A layer has a kernel, and there is no rule for its type.
    """
    shapes: dict[int, Shape] = {id(model.inputs[0]): images}
    macs_by_layer: Counter[str] = Counter()
    for node in _calls(model):
        layer = node.operation
        shapes_in = [shapes[id(tensor)] for tensor in node.input_tensors]
        input_shape: Any = shapes_in if len(shapes_in) > 1 else shapes_in[0]
        if isinstance(layer, Model):
            nested = count(layer, input_shape)
            macs_by_layer.update({f"{layer.name}/{name}": macs for name, macs in nested.items()})
        elif macs := _multiply_adds(layer, input_shape):
            macs_by_layer[layer.name] += macs
        output_shapes = layer.compute_output_shape(input_shape)
        output_shapes = output_shapes if len(node.output_tensors) > 1 else [output_shapes]
        for output, shape in zip(node.output_tensors, output_shapes, strict=True):
            shapes[id(output)] = tuple(shape)
    return dict(macs_by_layer)


def _calls(model: Model) -> Iterator[Any]:
    """Yields the calls of layers in a functional model, each after those that it depends on."""
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        yield from (node for node in nodes if not isinstance(node.operation, layers.InputLayer))


def _part(name: str) -> str:
    if name.startswith("backbone/"):
        return "backbone"
    first = name.split("_", maxsplit=1)[0]
    if first in _FINE:
        return "fine"
    return _HEADS[first]


def _multiply_adds(layer: Any, input_shape: Any) -> int:
    for kind, rule in _RULES.items():
        if isinstance(layer, kind):
            return rule(layer, input_shape)
    if any(len(weight.shape) > 1 for weight in layer.weights):
        raise TypeError(f"{layer.name}: no rule for the multiply-adds of a {type(layer).__name__}")
    return 0


def _positions(layer: Any, input_shape: Shape) -> int:
    """Returns the number of output positions, at each of which the kernel is applied."""
    return math.prod(side or 1 for side in layer.compute_output_shape(input_shape)[:-1])


def _convolution(layer: Any, input_shape: Shape) -> int:
    # Kernel [h, w, channels in / groups, channels out]; dilation adds no multiply-adds. A dense
    # layer's kernel is [in, out]; a depthwise one's [h, w, channels, depth multiplier].
    return _positions(layer, input_shape) * math.prod(layer.kernel.shape)


def _separable(layer: Any, input_shape: Shape) -> int:
    kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
    return _positions(layer, input_shape) * sum(math.prod(kernel.shape) for kernel in kernels)


def _transposed(layer: Any, input_shape: Shape) -> int:
    return math.prod(side or 1 for side in input_shape[:-1]) * math.prod(layer.kernel.shape)


_RULES: dict[type, Callable[[Any, Shape], int]] = {
    layers.Conv2DTranspose: _transposed,  # before Conv2D, in case it becomes a subclass
    layers.SeparableConv2D: _separable,
    layers.Conv2D: _convolution,
    layers.DepthwiseConv2D: _convolution,
    layers.Dense: _convolution,
}
