from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.network.ccfnet import CCFNet, build_ccfnet

Build = Callable[..., CCFNet]
CLASSES, CHANNELS = 5, 16  # of the fixtures' networks

PAPER: dict[str, Any] = {}
FULL: dict[str, Any] = {
    "attention_input": "features_and_coarse",
    "fine_input": "pyramid_and_detail",
}
TWO_SCALES: dict[str, Any] = {**FULL, "coarse_scale": 0.5}
ENLARGED: dict[str, Any] = {**FULL, "coarse_scale": 1.5}
FORMS: dict[str, dict[str, Any]] = {
    "affine gate": {**FULL, "gate": "affine"},
    "hard blend": {**FULL, "blend": "hard", "blend_threshold": 0.4},
    "paper at two scales": {"coarse_scale": 0.5},
    "two scales": {**TWO_SCALES, "gate": "affine"},
    "enlarged coarse": {**ENLARGED, "gate": "affine"},
    "attention at half size": {**TWO_SCALES, "attention_scale": 0.5},
}

QUICK = ("hard blend", "two scales", "enlarged coarse")
"""Forms whose networks are built in the quick tests; each takes seconds."""


def branch(name: str) -> list[str]:
    return [f"{name}_{part}" for part in ("conv", "norm", "relu")]


COARSE = [*branch("coarse"), "coarse_dropout", "coarse_classifier", "coarse_logits"]
COARSE += ["coarse_log_probabilities"]
ATTENTION = [*branch("attention"), "attention_dropout", "attention_classifier", "attention_logits"]
PYRAMID = ["pyramid_pooling", "pyramid_join"]
for bins in (1, 2, 3, 6):
    PYRAMID += [*branch(f"pyramid_{bins}"), f"pyramid_{bins}_resize"]
FINE = [*branch("fine"), "fine_dropout", "fine_classifier", "fine_logits"]
COMMON = ["images", "normalise", "pad_to_grid", "backbone", *COARSE, *ATTENTION, *PYRAMID, *FINE]
COMMON += ["refine"]
EXTRA = ["coarse_probabilities", "coarse_entropy", "attention_join", "attention_upsampled"]
EXTRA += [*branch("pyramid_merge"), "pyramid_judged", "pyramid_resize", *branch("detail")]
EXTRA += ["detail_join"]


STRIDE4 = {"fine_input": "pyramid_and_stride4"}
OF_STRIDE4 = [*branch("pyramid_merge"), "pyramid_resize", *branch("detail"), "detail_join"]


@pytest.mark.parametrize(
    ("options", "names"),
    [(PAPER, COMMON), (FULL, COMMON + EXTRA), (STRIDE4, COMMON + OF_STRIDE4)],
)
def test_layer_names(small_network: Build, options: dict[str, Any], names: list[str]) -> None:
    assert sorted(layer.name for layer in small_network(**options).layers) == sorted(names)


def test_number_of_parameters_of_the_paper_architecture(small_network: Build) -> None:
    f, w, c = 320, CHANNELS, CLASSES
    norm = 4 * w
    coarse = 9 * f * w + norm + (w + 1) * c
    attention = 9 * f * w + norm + (w + 1) * 2
    pyramid = 4 * (f * w + norm)
    fine = 9 * (f + 4 * w) * w + norm + (w + 1) * c
    expected = 1_843_264 + coarse + attention + pyramid + fine
    assert small_network().count_params() == expected


def test_number_of_parameters_with_all_inputs(small_network: Build) -> None:
    f, w, c, d = 320, CHANNELS, CLASSES, 144
    norm = 4 * w
    coarse = 9 * f * w + norm + (w + 1) * c
    attention = 9 * (f + c + 1) * w + norm + (w + 1) * 2 + 1
    pyramid = 4 * (f * w + norm) + 9 * (f + 4 * w) * w + norm
    detail = d * 32 + 4 * 32
    fine = 9 * (w + c + 32) * w + norm + (w + 1) * c
    expected = 1_843_264 + coarse + attention + pyramid + detail + fine
    assert small_network(**FULL).count_params() == expected


@pytest.mark.parametrize("options", [PAPER, FULL, STRIDE4])
@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 33, 33), (3, 65, 47)])
def test_outputs(small_network: Build, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = small_network(**options)
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    outputs = model(images)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "coarse": (*shape, CLASSES),
        "attention": (*shape, 2),
        "refine": (*shape, CLASSES),
    }
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    np.testing.assert_allclose(np.exp(outputs["refine"]).sum(-1), 1.0, atol=1e-5)
    floats = model(images.astype(np.float32))
    np.testing.assert_array_equal(outputs["refine"], floats["refine"])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(FULL, id="attention"),
        *(
            pytest.param(options, id=name, marks=[] if name in QUICK else pytest.mark.slow)
            for name, options in FORMS.items()
        ),
    ],
)
def test_refine_is_the_blend_of_the_other_outputs(
    small_network: Build, options: dict[str, Any]
) -> None:
    model = small_network(**options)
    images = np.random.default_rng(0).integers(0, 256, (1, 41, 36, 3), np.uint8)
    outputs = model(images)
    fine = keras.Model(model.input, model.get_layer("fine_logits").output)(images)
    assert fine.shape == (1, 41, 36, CLASSES)
    logit = outputs["attention"][..., 0] - outputs["attention"][..., 1]
    if options.get("blend") == "hard":
        weight = tf.cast(tf.sigmoid(logit) > 0.4, tf.float32)
        assert 0 < tf.reduce_mean(weight) < 1
    elif options.get("gate") == "affine":
        weight = tf.sigmoid(0.1 * logit)
    else:
        weight = tf.sigmoid(logit)
    gate = tf.stack([weight, 1 - weight], -1)
    expected = gate[..., 1:] * tf.nn.softmax(outputs["coarse"]) + gate[..., :1] * tf.nn.softmax(
        fine
    )
    np.testing.assert_allclose(np.exp(outputs["refine"]), expected, atol=1e-5)


def test_sizes_known_at_run_time_only_give_the_same(small_network: Build) -> None:
    model = small_network(**FULL)
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8)
    traced = tf.function(lambda x: model(x, training=False), input_signature=[spec])
    for shape in [(1, 47, 65), (2, 33, 32)]:
        images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        for name, value in model(images).items():
            np.testing.assert_allclose(traced(images)[name], value, atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_low_precision_keeps_logits_float32(small_network: Build, precision: str) -> None:
    keras.utils.set_random_seed(0)
    model = small_network(**FULL, precision=precision)
    exact = small_network(**FULL)
    model.set_weights(exact.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (1, 33, 40, 3), np.uint8)
    outputs = model(images)
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    assert all(np.isfinite(value).all() for value in outputs.values())
    hidden = [x for x in model.layers if x.name.endswith(("_conv", "_norm", "_join"))]
    # The pyramid pools in float32, at negligible cost.
    exact_ones = [
        x for x in hidden if x.name.startswith(tuple(f"pyramid_{n}_" for n in (1, 2, 3, 6)))
    ]
    assert {x.compute_dtype for x in exact_ones} == {"float32"}
    assert {x.compute_dtype for x in hidden if x not in exact_ones} == {precision}
    assert [x.compute_dtype for x in model.layers if x.name.endswith("_classifier")] == [
        "float32"
    ] * 3
    expected = exact(images)["coarse"]
    # The loss of precision depends on the processor: some round sums more often than others.
    assert np.abs(outputs["coarse"] - expected).max() < 0.15 * np.ptp(expected)


def test_small_images_are_refused_in_one_line(small_network: Build) -> None:
    with pytest.raises(DataError, match="31 x 40 pixels") as caught:
        small_network()(np.zeros((1, 31, 40, 3), np.uint8))
    assert "\n" not in str(caught.value)


def transparent(model: CCFNet) -> None:
    """Sets weights that preserve a bump: positive, symmetric, narrow, without global context."""
    rng = np.random.default_rng(5)
    pooled = {f"pyramid_{bins}_norm" for bins in (1, 2, 3, 6)}
    simple = {"beta": 0.0, "bias": 0.0, "moving_mean": 0.0, "moving_variance": 1.0, "scale": 1.0}
    for layer in (*model.get_layer("backbone").layers, *model.layers):
        for variable in layer.variables if not isinstance(layer, keras.Model) else []:
            if variable.name == "kernel":
                variable.assign(narrow_kernel(variable.shape, layer, rng))
            elif variable.name == "gamma":
                variable.assign(np.full(variable.shape, 0.0 if layer.name in pooled else 1.0))
            elif variable.name in simple:
                variable.assign(np.full(variable.shape, simple[variable.name]))


def narrow_kernel(
    shape: tuple[int, ...], layer: keras.layers.Layer, rng: np.random.Generator
) -> np.ndarray:
    taps = np.exp(-2.0 * (np.arange(shape[0]) - shape[0] // 2) ** 2)
    kernel = np.outer(taps, taps)[:, :, None, None] * rng.uniform(0.5, 1.5, (1, 1, *shape[2:]))
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    kernel /= kernel.sum((0, 1) if depthwise else (0, 1, 2), keepdims=True)
    inner = layer.name.endswith(
        ("_3_conv", "_project", "_project_conv")
    )  # small beside the shortcut
    return kernel * (0.3 if inner else 1.0)


def centre_of_mass(weights: np.ndarray) -> np.ndarray:
    grid = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return (grid * weights).sum((1, 2)) / weights.sum()


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("mobilenet_v2", (97, 97)),
        ("mobilenet_v2", (100, 90)),
        *(
            pytest.param(backbone, size, marks=pytest.mark.slow)
            for backbone in ("resnet50", "resnet101", "efficientnet_lite0", "efficientnet_lite2")
            for size in ((97, 97), (100, 90))
        ),
    ],
)
def test_outputs_are_aligned_with_the_input(
    borrowed: Build, backbone: str, size: tuple[int, int]
) -> None:
    assert_aligned(borrowed(backbone, **FULL), size)


@pytest.mark.slow
@pytest.mark.parametrize("options", [TWO_SCALES, ENLARGED], ids=["half", "enlarged"])
def test_outputs_are_aligned_with_the_input_if_coarse_reads_it_at_another_size(
    borrowed: Build, options: dict[str, Any]
) -> None:
    assert_aligned(borrowed(**options), (200, 180), scale=2)


def assert_aligned(model: CCFNet, size: tuple[int, int], scale: int = 1) -> None:
    """Asserts that coarse and fine respond to a bump of brightness where it is.

    Args:
        model: A network; its weights are overwritten.
        size: Height and width of the image.
        scale: How many times larger than 6 pixels the bump is.
    """
    transparent(model)
    model = keras.Model(
        model.input,
        {name: model.get_layer(f"{name}_logits").output for name in ("coarse", "fine")},
    )
    y, x = np.mgrid[: size[0], : size[1]]
    for centre in scale * np.array([(48, 45), (53, 41)]):  # on the grid of features, and between
        bump = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * (6.0 * scale) ** 2))
        flat = np.full((1, *size, 3), 130.0, np.float32)
        lit = flat + 20.0 * bump[None, :, :, None].astype(np.float32)
        for name, value in model(lit).items():
            response = np.abs(value - model(flat)[name]).sum((0, 3))
            response = np.maximum(response - 0.2 * response.max(), 0.0)
            distance = np.abs(centre_of_mass(response) - centre)
            assert (distance < 0.5).all(), (name, centre, distance)


def gradients_reach(model: CCFNet, output: str, layer: str) -> bool:
    images = np.random.default_rng(0).integers(0, 256, (1, 33, 33, 3), np.uint8)
    part = keras.Model(model.input, model.get_layer(output).output)
    kernel = model.get_layer(layer).kernel
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(part(images) ** 2)
    gradient = tape.gradient(loss, kernel.value)
    return gradient is not None and bool(np.abs(gradient).max() > 0)


def test_no_gradient_flows_back_from_attention_and_fine_to_coarse(small_network: Build) -> None:
    model = small_network(**FULL)
    for output in ("attention_logits", "fine_logits"):
        assert not gradients_reach(model, output, "coarse_classifier")
        assert gradients_reach(model, output, output.replace("logits", "conv"))
    alone = small_network(**STRIDE4)
    weights = [layer.kernel for layer in alone.layers if layer.name.startswith("coarse_conv")]
    before = keras.Model(alone.input, alone.get_layer("fine_logits").output)
    assert not {"coarse_conv", "coarse_classifier"} & {layer.name for layer in before.layers}
    assert weights  # it has a coarse head, which fine does not see
    assert gradients_reach(model, "refine", "coarse_classifier")
    assert gradients_reach(model, "refine", "attention_conv")
    assert gradients_reach(model, "refine", "detail_conv")


@pytest.mark.parametrize(
    ("options", "layer", "shape"),
    [(TWO_SCALES, "half_size", (1, 33, 41, 3)), (ENLARGED, "enlarge", (1, 97, 121, 3))],
    ids=["half", "enlarged"],
)
def test_coarse_reads_the_features_of_the_image_at_its_size(
    small_network: Build, options: dict[str, Any], layer: str, shape: tuple[int, ...]
) -> None:
    """Both sizes use one backbone, and the other size is what an image of it gives."""
    model = small_network(**options)
    images = np.random.default_rng(0).uniform(0, 255, (1, 65, 81, 3)).astype(np.float32)
    assert model.count_params() == small_network(**FULL).count_params()
    resized = model.get_layer(layer)(model.get_layer("normalise")(images))
    assert resized.shape == shape
    _, features = model.get_layer("backbone")(resized)
    coarse = features
    for name in [*branch("coarse"), "coarse_classifier"]:
        coarse = model.get_layer(name)(coarse)
    expected = tf.raw_ops.ResizeBilinear(images=coarse, size=(65, 81), align_corners=True)
    np.testing.assert_allclose(model(images)["coarse"], expected, atol=1e-5)


def test_attention_at_half_size_does_not_see_the_image_at_full_size(small_network: Build) -> None:
    """It could not decide what to compute at full size otherwise."""
    image = np.random.default_rng(0).uniform(100, 150, (1, 65, 65, 3)).astype(np.float32)
    line = np.zeros(65, np.float32)
    line[20:44] = np.tile([-1.0, 2.0, -1.0, 0.0], 6)  # halving removes it: 1 2 1 sees zero
    network = small_network(**TWO_SCALES, attention_scale=0.5)
    seen, unseen = network(image), network(image + 20.0 * line[:, None, None])
    for name in ("attention", "coarse"):
        np.testing.assert_allclose(seen[name], unseen[name], atol=1e-3)
    assert np.abs(seen["refine"] - unseen["refine"]).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes is 1: .* at least 2"),
        ({"num_classes": 2.5}, "num_classes is 2.5"),
        ({"head_channels": 0}, "head_channels is 0: .* at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"batch_norm_momentum": -0.1}, "batch_norm_momentum is -0.1"),
        ({"backbone": "mobilenet"}, "'mobilenet': expected .*did you mean 'mobilenet_v2'"),
        ({"attention_input": "feature"}, "'feature': expected .*did you mean 'features'"),
        (
            {"fine_input": "detail"},
            "fine_input is 'detail': expected pyramid or pyramid_and_detail or",
        ),
        ({"precision": "bf16"}, "precision is 'bf16'"),
        ({"gate": "afine"}, "gate is 'afine': expected .*did you mean 'affine'"),
        ({"blend": "switch"}, "blend is 'switch': expected soft or hard"),
        ({"blend_threshold": 1.0}, "blend_threshold is 1.0"),
        ({"coarse_scale": 0.75}, "coarse_scale is 0.75: it must be 0.5, 1 or 1.5"),
        ({"attention_scale": 1.5}, "attention_scale is 1.5: it must be 1 or 0.5"),
        ({"attention_scale": 0.5}, "attention_scale is 0.5 but model.coarse_scale is 1:"),
        (
            {"coarse_scale": 1.5, "attention_scale": 0.5},
            "attention_scale is 0.5 but model.coarse_scale is 1.5",
        ),
        ({"gate": "affine", "blend": "hard"}, "gate is affine but model.blend is hard"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_ccfnet(**{"num_classes": 3, "backbone_weights": None, **options})
