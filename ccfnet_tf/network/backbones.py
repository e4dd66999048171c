"""Feature extractors of `keras.applications`, dilated to output stride 8.

Only the first three poolings are kept; the convolutions behind the dropped ones are dilated, so
every weight keeps its name, its shape and its meaning: the features at `[:, ::4, ::4]` are those
of the plain network at stride 32 (paper 3.1, third improvement of DeepLab and PSPNet).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from ccfnet_tf.errors import ConfigError, nearest
from ccfnet_tf.network.geometry import Normalisation
from ccfnet_tf.network.layers import FASTER
from ccfnet_tf.network.weights import NO_WEIGHTS, copy_weights, plain_backbone


@dataclass(frozen=True)
class LayerOptions:
    """How layers compute, written into each of them; the global policy is left alone.

    Attributes:
        policy: Keras dtype policy, such as `float32` or `mixed_bfloat16`.
        batch_norm_momentum: Momentum of the batch norm statistics.
        synchronized: Batch norm statistics over all replicas.
    """

    policy: str = "float32"
    batch_norm_momentum: float = 0.99
    synchronized: bool = False


@dataclass(frozen=True)
class Backbone:
    """One feature extractor.

    Attributes:
        application: Its builder in `keras.applications`.
        normalisation: What its ImageNet weights expect.
        detail: Layer whose output is the stride-4 features.
        features: Layer whose output is the stride-8 features.
        change: Returns what differs in the dilated form, as (layer name) -> config entries.
    """

    application: Callable[..., keras.Model]
    normalisation: Normalisation
    detail: str
    features: str
    change: Callable[[str], dict[str, Any]]


def _change_resnet(name: str) -> dict[str, Any]:
    found = re.fullmatch(r"conv([45])_block(\d+)_([012])_conv", name)
    if found is None:
        return {}
    stage, block, conv = found.groups()
    if conv == "2":
        return {"dilation_rate": 2 if stage == "4" else 4}
    return {"strides": 1} if block == "1" else {}


def _change_mobilenet_v2(name: str) -> dict[str, Any]:
    found = re.fullmatch(r"block_(\d+)_(pad|depthwise)", name)
    if found is None:
        return {}
    block, kind = int(found[1]), found[2]
    # The dilation of a block is the factor between its input's plain stride and 8: blocks 7 to 13
    # used to read a stride-16 map, 14 to 16 a stride-32 map.
    dilation = 1 if block <= 6 else 2 if block <= 13 else 4
    if kind == "pad":
        # Keras pads (0, 1) for even sizes, which moves features off pixel 8k.
        return {"padding": dilation}
    if block in (6, 13):
        return {"strides": 1, "dilation_rate": dilation}
    return {"dilation_rate": dilation} if dilation > 1 else {}


BACKBONES: dict[str, Backbone] = {
    "resnet50": Backbone(
        application=keras.applications.ResNet50,
        normalisation="caffe",
        detail="conv2_block3_out",
        features="conv5_block3_out",
        change=_change_resnet,
    ),
    "resnet101": Backbone(
        application=keras.applications.ResNet101,
        normalisation="caffe",
        detail="conv2_block3_out",
        features="conv5_block3_out",
        change=_change_resnet,
    ),
    "mobilenet_v2": Backbone(
        application=keras.applications.MobileNetV2,
        normalisation="symmetric",
        # 144 channels behind a ReLU; the block's own answer is a narrow linear map of 24.
        detail="block_3_expand_relu",
        # DeepLab's choice: 320 channels, without the 1280 made for the classifier (`out_relu`).
        features="block_16_project_BN",
        change=_change_mobilenet_v2,
    ),
}


def find_backbone(name: str) -> Backbone:
    """Returns the entry of `BACKBONES`.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in BACKBONES:
        raise ConfigError(
            f"model.backbone is '{name}': expected {', '.join(BACKBONES)}"
            + nearest(name, BACKBONES)
        )
    return BACKBONES[name]


def build_backbone(name: str, weights: str | Path | None, options: LayerOptions) -> keras.Model:
    """Builds a dilated backbone.

    Args:
        name: A key of `BACKBONES`.
        weights: `imagenet`, `none` or None, or a file; see `weights.plain_backbone`.
        options: How its layers compute.

    Returns:
        A model named `backbone`: normalised [B, 8n+1, 8m+1, 3] -> [detail [B, 2n+1, 2m+1, D],
        features [B, n+1, m+1, F]], feature k centred on pixel 4k and 8k.

    Raises:
        ConfigError: The name or the weights file is wrong.
        ResourceError: The weights could not be downloaded.
    """
    spec = find_backbone(name)
    plain = plain_backbone(spec.application, name, weights)

    def rebuild(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = {**layer.get_config(), "dtype": options.policy, **spec.change(layer.name)}
        if isinstance(layer, keras.layers.BatchNormalization):
            config["momentum"] = options.batch_norm_momentum
            config["synchronized"] = options.synchronized
        return FASTER.get(type(layer), type(layer)).from_config(config)

    images = keras.Input((None, None, 3), name="backbone_images")
    whole = keras.models.clone_model(plain, input_tensors=images, clone_function=rebuild)
    outputs = [whole.get_layer(layer).output for layer in (spec.detail, spec.features)]
    backbone = keras.Model(images, outputs, name="backbone")
    if weights not in (None, NO_WEIGHTS):
        copy_weights(plain, backbone)
    else:
        _start_as_identity(backbone)
    return backbone


def _start_as_identity(backbone: keras.Model) -> None:
    """Zeroes the last batch norm scale of each of ResNet's residual branches.

    A random network then begins as its shortcuts alone and grows depth as it learns, which makes
    the first steps count (Goyal et al. 2017, section 5.1). MobileNetV2's blocks have no such
    name: some have no shortcut, and would pass nothing on.
    """
    for layer in backbone.layers:
        if layer.name.endswith("_3_bn"):
            layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
