"""`build_ccfnet` combines the input geometry, the backbone and the heads into a `CCFNet`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import keras
from keras import KerasTensor

from ccfnet_tf.config import AttentionInput, ComputeType, FineInput
from ccfnet_tf.errors import ConfigError, nearest
from ccfnet_tf.network import heads
from ccfnet_tf.network.alignment import STRIDE, Normalise, PadToGrid, ToImage
from ccfnet_tf.network.backbones import LayerOptions, build_backbone, find_backbone
from ccfnet_tf.network.model import FINE_LAYER, CCFNet

_DETAIL_STRIDE = 4


@dataclass(frozen=True)
class _Maps:
    """Inputs of the heads: the images, and the features at stride 4 and 8."""

    images: KerasTensor
    detail: KerasTensor
    features: KerasTensor


def build_ccfnet(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    backbone_weights: str | Path | None = "imagenet",
    head_channels: int = 512,
    dropout: float = 0.1,
    attention_input: AttentionInput = "features",
    fine_input: FineInput = "pyramid",
    batch_norm_momentum: float = 0.99,
    synchronized: bool = False,
    precision: ComputeType = "float32",
) -> CCFNet:
    """Builds CCFNet (paper 3.1). The defaults are the architecture of the paper.

    Initial weights are random. Call `keras.utils.set_random_seed` first for reproducible weights.

    Args:
        num_classes: C, at least 2.
        backbone: `resnet50`, `resnet101` or `mobilenet_v2`, dilated to output stride 8.
        backbone_weights: `imagenet` (downloaded and cached by Keras), `none` or None for random
            weights, or a weights file of that Keras application without its classifier.
        head_channels: Number of channels of the heads' hidden convolutions.
        dropout: Dropout rate before each classifier, in 0..1 (1 excluded).
        attention_input: `features`, or `features_and_coarse` to give the attention head the
            probabilities and entropy of the coarse head as well, and its confidence at full
            resolution.
        fine_input: `pyramid`, or `pyramid_and_detail` to give the fine head the stride-4 features
            and the probabilities of the coarse head as well.
        batch_norm_momentum: Momentum of all batch norm statistics.
        synchronized: Compute batch norm statistics over all replicas of a distribution strategy.
        precision: Compute type of the hidden layers. Logits and all later values are float32.

    Returns:
        A model that takes RGB images [B, H, W, 3] with values 0..255, where H and W are at least
        32, and returns a dict of float32 tensors: `coarse` logits [B, H, W, C], `attention` logits
        [B, H, W, 2] (0 hard, 1 easy) and `refine` log-probabilities [B, H, W, C]. Its layer
        `fine_logits` outputs [B, H, W, C]. Its layer `backbone` is a model that contains all
        variables of the backbone.

    Raises:
        ConfigError: An argument is invalid, or the weights file does not match the backbone.
        ResourceError: The weights could not be downloaded.

    Examples:
        >>> model = build_ccfnet(
        ...     3, backbone="mobilenet_v2", backbone_weights=None, head_channels=8
        ... )
        >>> outputs = model(keras.ops.zeros([1, 40, 56, 3]))
        >>> {name: tuple(value.shape) for name, value in sorted(outputs.items())}
        {'attention': (1, 40, 56, 2), 'coarse': (1, 40, 56, 3), 'refine': (1, 40, 56, 3)}
    """
    find_backbone(backbone)
    _check_count("num_classes", num_classes, 2)
    _check_count("head_channels", head_channels, 1)
    _check_share("dropout", dropout)
    _check_share("batch_norm_momentum", batch_norm_momentum)
    _check_choice("attention_input", attention_input, get_args(AttentionInput))
    _check_choice("fine_input", fine_input, get_args(FineInput))
    _check_choice("precision", precision, get_args(ComputeType))

    policy = precision if precision == "float32" else f"mixed_{precision}"
    style = heads.HeadStyle(
        channels=head_channels,
        dropout=dropout,
        layers=LayerOptions(policy, batch_norm_momentum, synchronized),
    )
    maps = _extract(backbone, backbone_weights, style.layers)

    coarse_small = heads.head(maps.features, num_classes, "coarse", style)
    coarse = _to_image(coarse_small, maps, "coarse_logits")
    probabilities = None
    if attention_input == "features_and_coarse" or fine_input == "pyramid_and_detail":
        probabilities = heads.Judgement(dtype="float32", name="coarse_probabilities")(coarse_small)

    attention = _attention(maps, coarse, probabilities, style, attention_input)
    fine = _fine(maps, probabilities, num_classes, style, fine_input)
    coarse_logs = heads.LogSoftmax(dtype="float32", name="coarse_log_probabilities")(coarse)
    refine = heads.Blend(dtype="float32", name="refine")([coarse_logs, attention, fine])
    outputs = {"coarse": coarse, "attention": attention, "refine": refine}
    return CCFNet(inputs=maps.images, outputs=outputs, name="ccfnet")


def _attention(
    maps: _Maps,
    coarse: KerasTensor,
    probabilities: KerasTensor | None,
    style: heads.HeadStyle,
    attention_input: AttentionInput,
) -> KerasTensor:
    """Returns the logits of the attention head, [B, H, W, 2]."""
    if attention_input == "features":
        attention = heads.head(maps.features, 2, "attention", style)
        return _to_image(attention, maps, "attention_logits")
    attention_features = heads.judged(maps.features, probabilities, style)
    attention = heads.head(attention_features, 2, "attention", style)
    attention = _to_image(attention, maps, "attention_upsampled")
    return heads.AddConfidence(dtype="float32", name="attention_logits")([attention, coarse])


def _fine(
    maps: _Maps,
    probabilities: KerasTensor | None,
    num_classes: int,
    style: heads.HeadStyle,
    fine_input: FineInput,
) -> KerasTensor:
    """Returns the logits of the fine branch, [B, H, W, C]."""
    context, stride = heads.pyramid(maps.features, style), STRIDE
    if fine_input == "pyramid_and_detail":
        context = heads.with_detail(context, probabilities, maps.detail, style)
        stride = _DETAIL_STRIDE
    fine = heads.head(context, num_classes, "fine", style)
    return _to_image(fine, maps, FINE_LAYER, stride)


def _extract(name: str, weights: str | Path | None, options: LayerOptions) -> _Maps:
    images = keras.Input((None, None, 3), dtype="float32", name="images")
    form = find_backbone(name).normalisation
    x = Normalise(form, dtype="float32", name="normalise")(images)
    x = PadToGrid(dtype="float32", name="pad_to_grid")(x)
    detail, features = build_backbone(name, weights, options)(x)
    return _Maps(images, detail, features)


def _to_image(logits: KerasTensor, maps: _Maps, name: str, stride: int = STRIDE) -> KerasTensor:
    return ToImage(stride, dtype="float32", name=name)([logits, maps.images])


def _check_count(key: str, value: int, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{key} is {value!r}: it must be an integer of at least {minimum}")


def _check_share(key: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{key} is {value!r}: it must be at least 0 and less than 1")


def _check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(
            f"{key} is '{value}': expected {' or '.join(known)}" + nearest(str(value), known)
        )
