from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.network.backbone_weights import copy_weights
from ccfnet_tf.network.backbones import LayerOptions, build_backbone
from ccfnet_tf.network.efficientnet_lite import VARIANTS


def randomise(model: keras.Model) -> None:
    """Sets random batch norm statistics and scales, so that a missing copy is detected."""
    rng = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.gamma.assign(rng.uniform(0.5, 1.2, size))
            layer.beta.assign(rng.normal(0, 0.1, size))
            layer.moving_mean.assign(rng.normal(0, 0.1, size))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, size))


def symmetric(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Rebuilds MobileNetV2's padding (0, 1), made for even sizes, as (1, 1)."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.ZeroPadding2D):
        config["padding"] = 1
    return type(layer).from_config(config)


def plain_resnet50() -> tuple[keras.Model, str]:
    shape = (None, None, 3)
    plain = keras.applications.ResNet50(include_top=False, input_shape=shape, weights=None)
    return plain, "conv5_block3_out"


def plain_mobilenet_v2() -> tuple[keras.Model, str]:
    shape = (None, None, 3)
    plain = keras.applications.MobileNetV2(include_top=False, input_shape=shape, weights=None)
    return keras.models.clone_model(plain, clone_function=symmetric), "block_16_project_BN"


def plain_lite(name: str) -> Callable[[], tuple[keras.Model, str]]:
    def make() -> tuple[keras.Model, str]:
        build = VARIANTS[name]
        plain = build(include_top=False, input_shape=(None, None, 3), weights=None)
        return plain, "block7a_project_bn"

    return make


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param("resnet50", plain_resnet50, marks=pytest.mark.slow),
        ("mobilenet_v2", plain_mobilenet_v2),
        *(
            pytest.param(name, plain_lite(name), marks=pytest.mark.slow)
            for name in ("efficientnet_lite0", "efficientnet_lite2")
        ),
    ],
)
def test_atrous_consistency(name: str, make: Callable[[], tuple[keras.Model, str]]) -> None:
    keras.utils.set_random_seed(0)
    plain, last = make()
    randomise(plain)
    dilated = build_backbone(name, None, LayerOptions())
    copy_weights(plain, dilated)
    plain = keras.Model(plain.input, plain.get_layer(last).output)
    rng = np.random.default_rng(0)
    for size in [(97, 97), (65, 129), (41, 57)]:  # n + 1 = 13; 9 and 17; 6 and 8
        x = rng.normal(0, 1, (1, *size, 3)).astype(np.float32)
        detail, features = (y.numpy() for y in dilated(x))
        assert features.shape[1:3] == tuple((side - 1) // 8 + 1 for side in size)
        assert detail.shape[1:3] == tuple((side - 1) // 4 + 1 for side in size)
        expected = plain(x).numpy()
        tolerance = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(features[:, ::4, ::4], expected, atol=tolerance)
        assert expected.std() > 10 * tolerance


@pytest.mark.parametrize(
    ("name", "parameters", "detail", "features"),
    [
        # keras.applications' own counts without the classifier
        ("resnet50", 23_587_712, 256, 2048),
        pytest.param("resnet101", 42_658_176, 256, 2048, marks=pytest.mark.slow),
        # 2 257 984 without the last convolution (320 x 1280) and its batch norm (4 x 1280)
        ("mobilenet_v2", 1_843_264, 144, 320),
        # 4 652 008 and 6 092 072 weights (published: 4.7 and 6.1 million) without the classifier
        # (1281 x 1000) and the last convolution (320 or 352 x 1280, and 2 x 1280), and with the
        # moving statistics, of which there are as many as of beta and gamma.
        ("efficientnet_lite0", 2_998_304, 144, 320),
        pytest.param("efficientnet_lite2", 4_413_488, 144, 352, marks=pytest.mark.slow),
    ],
)
def test_parameters_and_channels(name: str, parameters: int, detail: int, features: int) -> None:
    backbone = build_backbone(name, None, LayerOptions())
    assert backbone.name == "backbone"
    assert backbone.count_params() == parameters
    assert [output.shape for output in backbone.outputs] == [
        (None, None, None, detail),
        (None, None, None, features),
    ]


def test_precision_is_set_on_every_layer_but_not_globally() -> None:
    precision = LayerOptions("mixed_bfloat16", batch_norm_momentum=0.9, synchronized=True)
    backbone = build_backbone("mobilenet_v2", None, precision)
    norms = [x for x in backbone.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {x.dtype_policy.name for x in backbone.layers[1:]} == {"mixed_bfloat16"}
    assert {(x.momentum, x.synchronized) for x in norms} == {(0.9, True)}
    assert keras.config.dtype_policy().name == "float32"
    assert {x.compute_dtype for x in backbone.layers[1:]} == {"bfloat16"}
    assert {keras.backend.standardize_dtype(v.dtype) for v in backbone.variables} == {"float32"}


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'resnet5': expected resnet50.*did you mean 'resnet50'"):
        build_backbone("resnet5", None, LayerOptions())


def test_residual_branches_of_a_random_resnet_start_at_zero() -> None:
    backbone = build_backbone("resnet50", None, LayerOptions())
    last = [layer for layer in backbone.layers if layer.name.endswith("_3_bn")]
    assert len(last) == 16
    assert all(not layer.gamma.numpy().any() for layer in last)
    assert backbone.get_layer("conv2_block1_0_bn").gamma.numpy().all()


def test_a_random_mobilenet_has_nonzero_features() -> None:
    features = build_backbone("mobilenet_v2", None, LayerOptions())(np.ones((1, 33, 33, 3)))[1]
    assert np.ptp(features.numpy()) > 0
