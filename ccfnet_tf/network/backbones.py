"""Feature extractors of Keras and EfficientNet-Lite, dilated to output stride 8.

Only the first three downsampling steps are kept. The convolutions after the removed steps are
dilated instead, so every weight keeps its name, shape and meaning: the features at
`[:, ::4, ::4]` equal those of the original network at stride 32 (paper 3.1, third improvement of
DeepLab and PSPNet).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from ccfnet_tf.config import NO_WEIGHTS
from ccfnet_tf.errors import ConfigError, nearest
from ccfnet_tf.network import efficientnet_lite
from ccfnet_tf.network.backbone_weights import copy_weights, plain_backbone
from ccfnet_tf.network.fast_layers import FASTER
from ccfnet_tf.network.normalise_pad_resize import Normalisation


@dataclass(frozen=True)
class LayerOptions:
    """Precision and batch norm options set on every layer; the global policy is not changed.

    Attributes:
        policy: Keras dtype policy, such as `float32` or `mixed_bfloat16`.
        batch_norm_momentum: Momentum of the batch norm statistics.
        synchronized: Compute batch norm statistics over all replicas.
    """

    policy: str = "float32"
    batch_norm_momentum: float = 0.99
    synchronized: bool = False


@dataclass(frozen=True)
class Backbone:
    """One feature extractor.

    Attributes:
        application: Builder function in `keras.applications`, or one with its arguments.
        normalisation: Input normalisation that its ImageNet weights expect.
        detail: Name of the layer that outputs the stride-4 features.
        features: Name of the layer that outputs the stride-8 features.
        change: Takes a layer name and returns the config entries to change in the dilated form.
    """

    application: Callable[..., keras.Model]
    normalisation: Normalisation
    detail: str
    features: str
    change: Callable[[str], dict[str, Any]]


def _change_resnet(name: str) -> dict[str, Any]:
    match = re.fullmatch(r"conv([45])_block(\d+)_([012])_conv", name)
    if match is None:
        return {}
    stage, block, conv = match.groups()
    if conv == "2":
        return {"dilation_rate": 2 if stage == "4" else 4}
    return {"strides": 1} if block == "1" else {}


def _change_mobilenet_v2(name: str) -> dict[str, Any]:
    match = re.fullmatch(r"block_(\d+)_(pad|depthwise)", name)
    if match is None:
        return {}
    block, kind = int(match[1]), match[2]
    # The dilation of a block is its original input stride divided by 8: blocks 7 to 13 originally
    # read a stride-16 map, blocks 14 to 16 a stride-32 map.
    dilation = 1 if block <= 6 else 2 if block <= 13 else 4
    if kind == "pad":
        # Keras pads even sizes by (0, 1), which would shift features away from pixel 8k.
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
        # 144 channels after a ReLU; the output of the block itself is linear with 24 channels.
        detail="block_3_expand_relu",
        # As in DeepLab: 320 channels, without the 1280 that serve the classifier (`out_relu`).
        features="block_16_project_BN",
        change=_change_mobilenet_v2,
    ),
    **{
        name: Backbone(
            application=variant,
            normalisation="lite",
            # As in MobileNetV2: 144 channels after a ReLU6, and the last block without the
            # convolution that serves the classifier.
            detail="block3a_expand_activation",
            features="block7a_project_bn",
            change=efficientnet_lite.change,
        )
        for name, variant in efficientnet_lite.VARIANTS.items()
    },
}


def find_backbone(name: str) -> Backbone:
    """Returns the entry of `BACKBONES`.

    Raises:
        ConfigError: The name is unknown.
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
        weights: `imagenet`, `none` or None, or a file; see `backbone_weights.plain_backbone`.
        options: Precision and batch norm options of its layers.

    Returns:
        A model named `backbone` that maps normalised images [B, 8n+1, 8m+1, 3] to a list of
        detail features [B, 2n+1, 2m+1, D] and features [B, n+1, m+1, F]. Feature k is centred on
        pixel 4k and 8k, respectively.

    Raises:
        ConfigError: The name is unknown, or the weights file cannot be used.
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
    dilated = keras.models.clone_model(plain, input_tensors=images, clone_function=rebuild)
    outputs = [dilated.get_layer(layer).output for layer in (spec.detail, spec.features)]
    backbone = keras.Model(images, outputs, name="backbone")
    if weights not in (None, NO_WEIGHTS):
        copy_weights(plain, backbone)
    else:
        _start_as_identity(backbone)
    return backbone


def _start_as_identity(backbone: keras.Model) -> None:
    """Sets the last batch norm scale of each residual branch of a ResNet to zero.

    Each block of a randomly initialised network then starts as the identity, which makes the
    first training steps effective (Goyal et al. 2017, section 5.1). The blocks of MobileNetV2 and
    EfficientNet-Lite are left alone, because some have no shortcut and would output zeros.
    """
    for layer in backbone.layers:
        if layer.name.endswith("_3_bn"):
            layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
