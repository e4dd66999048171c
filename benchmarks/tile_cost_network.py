"""A cascade that computes fine only on the tiles that attention ranks first; see `tile_cost`.

Shapes: image H x W, T tiles of N x N pixels, K of them computed by fine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from ccfnet_tf.benchmark.flops import count
from ccfnet_tf.config import ModelConfig, find_config, read_tree
from ccfnet_tf.io.machine import usable_threads
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.model import FINE_LAYER
from ccfnet_tf.runtimes.litert import import_interpreter

PRESET = "stanford_background"
CLASSES = 8

SHARES = (0.5, 0.75, 1.0)
"""Shares of the tiles that are measured; between them, multiply-adds are linear."""

WHOLE = "fine, whole image"

Network = Callable[[Any], list[Any]]
"""Takes images float32 [1, H, W, 3]; returns labels int32 [H, W], and what else it computed."""


class Tiles(NamedTuple):
    """Square tiles that cover an image; those of the last row and column may exceed it.

    Attributes:
        height: Of the image.
        width: Of the image.
        side: N, height and width of a tile.
        halo: Pixels around a tile that the network sees too.
    """

    height: int
    width: int
    side: int
    halo: int

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return -(-self.height // self.side), -(-self.width // self.side)

    @property
    def total(self) -> int:
        """Number of tiles, T."""
        return self.grid[0] * self.grid[1]

    @property
    def outer(self) -> int:
        """Height and width that the network sees of a tile; 8n+1, so that nothing is padded."""
        return self.side + 2 * self.halo + 1

    def taken(self, share: float) -> int:
        """Returns the number of tiles K that are a share of all."""
        return round(share * self.total)

    def split(self, values: Any) -> Any:
        """Returns the tiles [T, N, N] of a map [H, W], which is padded with 0."""
        (rows, columns), side = self.grid, self.side
        padding = [[0, rows * side - self.height], [0, columns * side - self.width]]
        blocks = tf.reshape(tf.pad(values, padding), [rows, side, columns, side])
        return tf.reshape(tf.transpose(blocks, [0, 2, 1, 3]), [self.total, side, side])

    def join(self, values: Any) -> Any:
        """Returns the map [H, W] of tiles [T, N, N]."""
        (rows, columns), side = self.grid, self.side
        blocks = tf.transpose(tf.reshape(values, [rows, columns, side, side]), [0, 2, 1, 3])
        return tf.reshape(blocks, [rows * side, columns * side])[: self.height, : self.width]

    def errors(self, logit: Any) -> Any:
        """Returns the expected errors of coarse [T], from attention's logit [H, W]."""
        return tf.reduce_sum(self.split(tf.sigmoid(logit)), [1, 2])

    def windows(self, image: Any, chosen: Any) -> Any:
        """Returns what the network sees of the tiles [K] of an image [H, W, 3].

        The border of the image is repeated.
        """

        def seen(index: Any, length: int) -> Any:
            start = index[:, tf.newaxis] * self.side - self.halo
            return tf.clip_by_value(start + tf.range(self.outer), 0, length - 1)

        rows = tf.gather(image, seen(chosen // self.grid[1], self.height))
        columns = seen(chosen % self.grid[1], self.width)
        return tf.gather(rows, columns, axis=2, batch_dims=1)


def build(backbone: str) -> tuple[Any, Any]:
    """Returns the two stages of the cascade, with the heads of `PRESET` and random weights.

    Returns:
        A model of images [1, H, W, 3] that returns the logits of coarse and attention, by the image
        at half size, and one of images [B, h, w, 3] that returns the logits of fine.

    Raises:
        ConfigError: The backbone is unknown.
    """
    keys = ModelConfig(**read_tree(find_config(PRESET))["model"]).architecture()
    keys |= {"backbone": backbone, "backbone_weights": None, "fine_input": "pyramid_and_stride4"}
    half = build_ccfnet(CLASSES, **{**keys, "coarse_scale": 0.5, "attention_scale": 0.5})
    full = build_ccfnet(CLASSES, **{**keys, "coarse_scale": 1.0, "attention_scale": 1.0})
    first = {name: half.outputs_by_name[name] for name in ("coarse", "attention")}
    fine = full.get_layer(FINE_LAYER).output
    return keras.Model(half.input, first), keras.Model(full.input, fine)


def cascade(first: Any, fine: Any, tiles: Tiles, taken: int) -> Network:
    """Returns a network of labels [H, W] and expected errors of coarse [T].

    Args:
        first: The first stage.
        fine: The second stage.
        tiles: The tiles.
        taken: K.
    """
    inner = slice(tiles.halo, tiles.halo + tiles.side)

    def network(images: Any) -> list[Any]:
        outputs = first(images, training=False)
        labels, attention = _arg_max(outputs["coarse"][0]), outputs["attention"][0]
        errors = tiles.errors(attention[..., 0] - attention[..., 1])
        if not taken:
            return [labels, errors]
        chosen = tf.math.top_k(errors, taken).indices
        logits = fine(tiles.windows(images[0], chosen), training=False)[:, inner, inner]
        # LiteRT cannot update part of a tensor, but it can scatter into zeros: label + 1.
        shape = [tiles.total, tiles.side, tiles.side]
        computed = tiles.join(tf.scatter_nd(chosen[:, tf.newaxis], _arg_max(logits) + 1, shape))
        return [tf.where(computed > 0, computed - 1, labels), errors]

    return network


def _arg_max(logits: Any) -> Any:
    return tf.argmax(logits, -1, output_type=tf.int32)


class Row(NamedTuple):
    """A network of the table, and its multiply-adds in 10^9."""

    network: Network
    gmac: float


def rows(first: Any, fine: Any, tilings: list[Tiles]) -> dict[str, Row]:
    """Returns fine on the whole image, the first stage alone, and the cascades.

    Args:
        first: The first stage.
        fine: The second stage.
        tilings: Tiles of the same image.
    """
    height, width, *_ = tilings[0]
    whole, stage = gmac(fine, height, width), gmac(first, height, width)
    found = {
        WHOLE: Row(lambda images: [_arg_max(fine(images, training=False)[0])], whole),
        "no tile": Row(cascade(first, fine, tilings[0], 0), stage),
    }
    for tiles in tilings:
        tile = gmac(fine, tiles.outer, tiles.outer)
        for taken in map(tiles.taken, SHARES):
            name = f"{taken} of {tiles.total} tiles of {tiles.side} pixels, halo {tiles.halo}"
            found[name] = Row(cascade(first, fine, tiles, taken), stage + taken * tile)
    return found


def gmac(model: Any, height: int, width: int) -> float:
    """Returns the multiply-adds of a model for one image, in 10^9."""
    return sum(count(model, (1, height, width, 3)).values()) / 1e9


def compiled(network: Network, size: tuple[int, int]) -> dict[str, Network]:
    """Compiles a network for one image size: a graph of TensorFlow, and LiteRT in float32."""
    spec = tf.TensorSpec([1, *size, 3], tf.float32)
    graph = tf.function(network, autograph=False).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(graph)
    content = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module()).convert()
    interpreter = import_interpreter()(model_content=content, num_threads=usable_threads())
    interpreter.allocate_tensors()
    place, outputs = interpreter.get_input_details()[0], interpreter.get_output_details()

    def litert(images: Any) -> list[Any]:
        interpreter.set_tensor(place["index"], images)
        interpreter.invoke()
        return [interpreter.get_tensor(output["index"]) for output in outputs]

    return {
        "TensorFlow": lambda images: [x.numpy() for x in graph(tf.constant(images))],
        "LiteRT": litert,
    }
