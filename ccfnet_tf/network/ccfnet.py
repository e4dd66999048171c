"""`build_ccfnet` combines the input geometry, the backbone and the heads into a `CCFNet`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import keras
from keras import KerasTensor

from ccfnet_tf.config import AttentionInput, Blend, ComputeType, FineInput, Gate, check_cascade
from ccfnet_tf.errors import ConfigError, nearest
from ccfnet_tf.network import heads
from ccfnet_tf.network.backbones import LayerOptions, build_backbone, find_backbone
from ccfnet_tf.network.model import FINE_LAYER, GATE, CCFNet
from ccfnet_tf.network.normalise_pad_resize import (
    GRID_OF_TWO_SIZES,
    STRIDE,
    Enlarge,
    HalfSize,
    Normalise,
    PadToGrid,
    ResizeLike,
    ToImage,
)

_DETAIL_STRIDE = 4
_OTHER_SIZES: dict[float, tuple[Any, str]] = {
    0.5: (HalfSize, "half_size"),
    1.5: (Enlarge, "enlarge"),
}
_DISTANCES = {0.5: (2 * STRIDE, 1), 1.0: (STRIDE, 1), 1.5: (2 * STRIDE, 3)}
"""Arguments of `ToImage` for features at stride 8 of the image at each size."""


@dataclass(frozen=True)
class _Maps:
    """Inputs of the heads.

    Attributes:
        images: [B, H, W, 3].
        detail: Features at stride 4.
        features: Features at stride 8.
        other: Features of the image at another size, at stride 8 of that size; None if the network
            reads the image at full size only.
    """

    images: KerasTensor
    detail: KerasTensor
    features: KerasTensor
    other: KerasTensor | None = None

    def at(self, scale: float) -> KerasTensor:
        """Returns the features of the image at a scale: 1, or that of the other size."""
        return self.features if scale == 1 else self.other


def build_ccfnet(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    backbone_weights: str | Path | None = "imagenet",
    head_channels: int = 512,
    dropout: float = 0.1,
    attention_input: AttentionInput = "features",
    fine_input: FineInput = "pyramid",
    gate: Gate = "attention",
    blend: Blend = "soft",
    blend_threshold: float = 0.05,
    coarse_scale: float = 1.0,
    attention_scale: float = 1.0,
    batch_norm_momentum: float = 0.99,
    synchronized: bool = False,
    precision: ComputeType = "float32",
) -> CCFNet:
    """Builds CCFNet (paper 3.1). The defaults are the architecture of the paper.

    Initial weights are random. Call `keras.utils.set_random_seed` first for reproducible weights.

    Args:
        num_classes: C, at least 2.
        backbone: `resnet50`, `resnet101`, `mobilenet_v2`, `efficientnet_lite0` or
            `efficientnet_lite2`, dilated to output stride 8.
        backbone_weights: `imagenet` (downloaded and cached by Keras), `none` or None for random
            weights, or a file: Keras's weights of that application without its classifier
            (`.weights.h5`, `.h5`), an `.npz` file with its arrays `layer/variable`, or for
            EfficientNet-Lite TensorFlow's `.tar.gz`.
        head_channels: Number of channels of the heads' hidden convolutions.
        dropout: Dropout rate before each classifier, in 0..1 (1 excluded).
        attention_input: `features`, or `features_and_coarse` to give the attention head the
            probabilities and entropy of the coarse head as well, and its confidence at full
            resolution.
        fine_input: `pyramid`, or `pyramid_and_detail` to give the fine head the stride-4 features
            and the probabilities of the coarse head as well, or `pyramid_and_stride4` to give it
            the stride-4 features only.
        gate: What weights fine and coarse in refine: the probabilities of `attention` (the paper),
            or an `affine` function of its logit, learned through the loss of refine.
        blend: `soft` adds both predictions, weighted by the gate; `hard` uses fine where attention
            is above `blend_threshold`, and coarse elsewhere.
        blend_threshold: P(coarse is wrong) above which a hard blend uses fine.
        coarse_scale: 1 (the paper), or 0.5 or 1.5: coarse reads the image at half or one and a
            half times its size, through the same backbone weights.
        attention_scale: 1 (the paper), or 0.5: attention reads the features of the image at half
            size, as coarse then does, so that it is known before anything is computed at full size.
        batch_norm_momentum: Momentum of all batch norm statistics.
        synchronized: Compute batch norm statistics over all replicas of a distribution strategy.
        precision: Compute type of the hidden layers. Logits and all later values are float32.

    Returns:
        A model that takes RGB images [B, H, W, 3] with values 0..255, where H and W are at least
        32, and returns a dict of float32 tensors: `coarse` logits [B, H, W, C], `attention` logits
        [B, H, W, 2] (0 hard, 1 easy) and `refine` log-probabilities [B, H, W, C]. If the weights
        of fine and coarse are not those of attention, it also returns their logits, `gate`
        [B, H, W, 2] (0 fine, 1 coarse). Its layer `fine_logits` outputs [B, H, W, C]. Its layer
        `backbone` is a model that contains all variables of the backbone.

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
    _check_choice("gate", gate, get_args(Gate))
    _check_choice("blend", blend, get_args(Blend))
    check_cascade(gate, blend, blend_threshold, coarse_scale, attention_scale)
    _check_choice("precision", precision, get_args(ComputeType))

    policy = precision if precision == "float32" else f"mixed_{precision}"
    style = heads.HeadStyle(
        channels=head_channels,
        dropout=dropout,
        layers=LayerOptions(policy, batch_norm_momentum, synchronized),
    )
    maps = _extract(backbone, backbone_weights, style.layers, coarse_scale)

    coarse_small = heads.head(maps.at(coarse_scale), num_classes, "coarse", style)
    coarse = _to_image(coarse_small, maps, "coarse_logits", *_DISTANCES[coarse_scale])
    probabilities = None
    if attention_input == "features_and_coarse" or fine_input == "pyramid_and_detail":
        probabilities = heads.Judgement(dtype="float32", name="coarse_probabilities")(coarse_small)

    judged = probabilities if attention_input == "features_and_coarse" else None
    attention = _attention(maps, coarse, judged, style, attention_scale)
    of_coarse = probabilities if fine_input == "pyramid_and_detail" else None
    fine = _fine(maps, of_coarse, num_classes, style, detail=fine_input != "pyramid")
    coarse_logs = heads.LogSoftmax(dtype="float32", name="coarse_log_probabilities")(coarse)
    weights = _gate(attention, gate, blend, blend_threshold)
    refine = heads.Blend(dtype="float32", name="refine")([coarse_logs, weights, fine])
    outputs = {"coarse": coarse, "attention": attention, "refine": refine}
    if weights is not attention:
        outputs[GATE] = weights
    return CCFNet(inputs=maps.images, outputs=outputs, name="ccfnet")


def _gate(attention: KerasTensor, gate: Gate, blend: Blend, threshold: float) -> KerasTensor:
    """Returns the logits of the weights of fine and coarse, [B, H, W, 2]."""
    if blend == "hard":
        return heads.HardGate(threshold, dtype="float32", name=GATE)(attention)
    if gate == "affine":
        return heads.AffineGate(dtype="float32", name=GATE)(attention)
    return attention


def _attention(
    maps: _Maps,
    coarse: KerasTensor,
    probabilities: KerasTensor | None,
    style: heads.HeadStyle,
    scale: float,
) -> KerasTensor:
    """Returns the logits of the attention head, [B, H, W, 2].

    Without the probabilities of coarse, attention sees the features alone.
    """
    features, distance = maps.at(scale), _DISTANCES[scale]
    if probabilities is None:
        attention = heads.head(features, 2, "attention", style)
        return _to_image(attention, maps, "attention_logits", *distance)
    if maps.other is not None and scale == 1:
        probabilities = ResizeLike(dtype="float32", name="attention_coarse")(
            [probabilities, features]
        )
    attention_features = heads.judged(features, probabilities, style)
    attention = heads.head(attention_features, 2, "attention", style)
    attention = _to_image(attention, maps, "attention_upsampled", *distance)
    return heads.AddConfidence(dtype="float32", name="attention_logits")([attention, coarse])


def _fine(
    maps: _Maps,
    probabilities: KerasTensor | None,
    num_classes: int,
    style: heads.HeadStyle,
    *,
    detail: bool,
) -> KerasTensor:
    """Returns the logits of the fine branch, [B, H, W, C], with stride-4 features or without."""
    context, stride = heads.pyramid(maps.features, style), STRIDE
    if detail:
        if maps.other is not None and probabilities is not None:
            probabilities = ResizeLike(dtype="float32", name="fine_coarse")(
                [probabilities, maps.features]
            )
        context = heads.with_detail(context, probabilities, maps.detail, style)
        stride = _DETAIL_STRIDE
    fine = heads.head(context, num_classes, "fine", style)
    return _to_image(fine, maps, FINE_LAYER, stride)


def _extract(
    name: str, weights: str | Path | None, options: LayerOptions, coarse_scale: float
) -> _Maps:
    images = keras.Input((None, None, 3), dtype="float32", name="images")
    form = find_backbone(name).normalisation
    x = Normalise(form, dtype="float32", name="normalise")(images)
    grid = STRIDE if coarse_scale == 1 else GRID_OF_TWO_SIZES
    x = PadToGrid(grid, dtype="float32", name="pad_to_grid")(x)
    backbone = build_backbone(name, weights, options)
    detail, features = backbone(x)
    if coarse_scale == 1:
        return _Maps(images, detail, features)
    layer, layer_name = _OTHER_SIZES[coarse_scale]
    _, other = backbone(layer(dtype="float32", name=layer_name)(x))
    return _Maps(images, detail, features, other)


def _to_image(
    logits: KerasTensor, maps: _Maps, name: str, stride: int = STRIDE, per: int = 1
) -> KerasTensor:
    return ToImage(stride, per, dtype="float32", name=name)([logits, maps.images])


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
