"""Keras features work as in Keras, or a one-line error names the alternative."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf import keras_registration
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.network.fast_layers import Dropout
from ccfnet_tf.network.model import CCFNet

CLASSES = 3
Toy = Callable[..., Any]
Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 33, 40, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (4, 33, 40)).astype(np.int32)
    labels[0, :20] = -1
    return images, labels


def pixel_losses(model: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each head's cross-entropy [B, H, W], computed with NumPy, 0 where void."""
    valid, truth = labels >= 0, np.maximum(labels, 0)
    outputs = {key: value.numpy().astype(np.float64) for key, value in model(images).items()}

    def nll(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.where(valid, -np.take_along_axis(logs, ids[..., None], -1)[..., 0], 0.0)

    easy = (outputs["coarse"].argmax(-1) == truth).astype(int)
    targets = {"coarse": truth, "refine": truth, "attention": easy}
    return {head: nll(outputs[head], ids) for head, ids in targets.items()}


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 33, 40), (4, 33, 40, 1)])
def test_sample_weight_per_image_and_per_pixel(
    shape: tuple[int, ...], toy: Toy, arrays: Arrays
) -> None:
    images, labels = arrays
    model = toy(CLASSES)
    model.compile("sgd")
    weight = np.random.default_rng(1).random(shape).astype(np.float32)
    found = model.evaluate(
        images, labels, sample_weight=weight, batch_size=4, verbose=0, return_dict=True
    )
    by_pixel = weight.reshape(4, 33, 40) if weight.size > 4 else weight.reshape(4, 1, 1)
    pixels = (labels >= 0).sum()
    expected = {
        head: (values * by_pixel).sum() / pixels
        for head, values in pixel_losses(model, images, labels).items()
    }
    for head, value in expected.items():
        assert found[f"{head}_loss"] == pytest.approx(value, rel=1e-5), head
    assert found["loss"] == pytest.approx(sum(expected.values()), rel=1e-5)


def test_a_pixel_of_weight_zero_changes_no_weights(toy: Toy, arrays: Arrays) -> None:
    images, labels = arrays
    weight = (np.random.default_rng(1).random(labels.shape) > 0.5).astype(np.float32)
    other = np.where(weight > 0, labels, (labels + 1) % CLASSES)
    weights = []
    for truth in (labels, other):
        keras.utils.set_random_seed(0)
        model = toy(CLASSES)
        model.compile(keras.optimizers.SGD(0.1))
        # In a tf.data pipeline, as a third element.
        data = tf.data.Dataset.from_tensors((images, np.where(labels < 0, -1, truth), weight))
        model.fit(data, verbose=0, shuffle=False)
        weights.append([v.numpy() for v in model.trainable_variables])
    for one, two in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_sample_weight_of_another_shape_is_refused(toy: Toy, arrays: Arrays) -> None:
    model = toy(CLASSES)
    model.compile("sgd")
    with pytest.raises(ConfigError, match=r"sample_weight has shape .* per pixel \[B, H, W\]"):
        model.evaluate(*arrays, sample_weight=np.ones((4, 7, 7)), batch_size=4, verbose=0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "loss": ({"loss": "mse"}, "loss is 'mse': CCFNet defines its own losses"),
    "metrics": ({"metrics": ["accuracy"]}, r"metrics is \['accuracy'\]: CCFNet reports"),
    "weighted_metrics": ({"weighted_metrics": ["accuracy"]}, "weighted_metrics is"),
    "list": ({"loss_weights": [1, 1]}, r"loss_weights is \[1, 1\]: expected LossWeights or a dict"),
    "head": ({"loss_weights": {"corse": 1}}, "loss_weights has 'corse': .* mean 'coarse'"),
    "number": ({"loss_weights": {"fine": "x"}}, r"loss_weights\['fine'\] is 'x': expected a num"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_would_be_ignored_are_refused(case: str, toy: Toy) -> None:
    keys, text = REFUSED[case]
    with pytest.raises(ConfigError, match=text) as caught:
        toy(CLASSES).compile("sgd", **keys)
    assert "\n" not in str(caught.value)


def test_keras_arguments_by_position_are_accepted(toy: Toy) -> None:
    with pytest.raises(ConfigError, match="loss is 'mse'"):
        toy(CLASSES).compile("sgd", "mse")


def test_loss_weights_may_be_a_dict(toy: Toy) -> None:
    model = toy(CLASSES)
    model.compile("sgd", loss_weights={"fine": 0.5, "coarse": 2})
    assert vars(model.heads_weights) == {"coarse": 2, "attention": 1, "refine": 1, "fine": 0.5}


@pytest.mark.parametrize("weights", [[1.0, float("nan"), 1.0], [1.0, -1.0, 1.0], [0, 0, 0]])
def test_class_weights_are_not_negative(weights: list[float], toy: Toy) -> None:
    with pytest.raises(ConfigError, match="class_weights"):
        toy(CLASSES).compile("sgd", class_weights=weights)


def test_empty_keras_arguments_are_ignored(toy: Toy) -> None:
    model = toy(CLASSES)
    model.compile("sgd", None, {"fine": np.float32(0.5)}, [])
    assert model.heads_weights.fine == 0.5


def test_compiling_again_does_not_duplicate_metrics(toy: Toy, arrays: Arrays) -> None:
    model = toy(CLASSES)
    for _ in range(2):
        model.compile("sgd")
        model.fit(*arrays, verbose=0)
    assert len(model.metrics_names) == len(set(model.metrics_names))


def test_missing_labels_are_reported(toy: Toy, arrays: Arrays) -> None:
    model = toy(CLASSES)
    model.compile("sgd")
    with pytest.raises(ConfigError, match="labels are missing"):
        model.fit(arrays[0], verbose=0)


def test_balanced_groups_use_sample_weight(toy: Toy, arrays: Arrays) -> None:
    images, labels = arrays
    model = toy(CLASSES)
    model.compile("sgd", balanced_attention=True)
    weight = np.random.default_rng(1).random(labels.shape).astype(np.float32)
    found = model.evaluate(
        images, labels, sample_weight=weight, batch_size=4, verbose=0, return_dict=True
    )
    losses = pixel_losses(model, images, labels)["attention"]
    hard = model(images)["coarse"].numpy().argmax(-1) != labels
    groups = [mask & (labels >= 0) for mask in (hard, ~hard)]
    total = weight[labels >= 0].sum()
    means = [(losses * weight)[mask].sum() / weight[mask].sum() for mask in groups]
    expected = total * np.mean(means) / (labels >= 0).sum()
    assert found["attention_loss"] == pytest.approx(expected, rel=1e-4)


def test_class_weight_is_refused_because_keras_applies_it_per_image(
    toy: Toy, arrays: Arrays
) -> None:
    model = toy(CLASSES)
    model.compile("sgd")
    for train in (model.fit, model.train_on_batch):
        with pytest.raises(ConfigError, match=r"compile\(class_weights=\[\.\.\.\]\)"):
            train(*arrays, class_weight={0: 2.0})


@pytest.mark.parametrize("eager", [False, True])
def test_a_label_that_is_not_a_class_is_reported(eager: bool, toy: Toy, arrays: Arrays) -> None:
    images, labels = arrays
    labels = np.where(labels == 2, 7, labels)
    model = toy(CLASSES)
    model.compile("sgd", run_eagerly=eager)
    for call in (model.fit, model.evaluate):
        with pytest.raises(
            DataError, match="found label 7 but the largest class id is 2: labels"
        ) as why:
            call(images, labels, verbose=0)
        assert "\n" not in str(why.value)


@pytest.mark.parametrize("eager", [False, True])
def test_labels_of_another_shape_are_reported(eager: bool, toy: Toy, arrays: Arrays) -> None:
    images, labels = arrays
    wrong = [np.eye(CLASSES)[labels], labels[:, 1:], labels[..., None][:, :, 1:], labels[:, 0, 0]]
    for given in wrong:
        model = toy(CLASSES)
        model.compile("sgd", run_eagerly=eager)
        for call in (model.fit, model.evaluate, model.train_on_batch):
            with pytest.raises(DataError, match="expected one class id per pixel") as why:
                call(images, given)
            assert f"{given.shape[1:]}"[1:-1].rstrip(",") in str(why.value)
            assert "\n" not in str(why.value)


@pytest.mark.parametrize(("label", "eager"), [(1 / 255, False), (float("nan"), True)])
def test_labels_that_are_not_integers_are_reported(
    label: float, eager: bool, toy: Toy, arrays: Arrays
) -> None:
    images, labels = arrays
    broken = labels.astype(np.float32)
    broken[1, 2, 3:5] = label
    model = toy(CLASSES)
    model.compile("sgd", run_eagerly=eager)
    with pytest.raises(DataError, match="pixels whose label is not an integer: 2: labels must be"):
        model.fit(images, broken, verbose=0)
    model.fit(images, labels.astype(np.float32), verbose=0)  # whole numbers may be floats


def test_labels_of_both_ranks_are_accepted_in_turn(toy: Toy, arrays: Arrays) -> None:
    images, labels = arrays
    model = toy(CLASSES)
    model.compile("sgd")
    for given in (labels, labels[..., None]):
        model.evaluate(images, given, verbose=0)


def test_images_divided_by_255_raise_a_warning(toy: Toy, arrays: Arrays) -> None:
    images, labels = arrays
    model = toy(CLASSES)
    model.compile("sgd")
    calls: list[Callable[..., Any]] = [model.fit, model.evaluate, model.train_on_batch]
    for call in calls:
        with pytest.warns(
            UserWarning, match="range from 0 to 1: CCFNet expects RGB values from 0 to 255"
        ):
            call(images / 255, labels)
    with pytest.warns(UserWarning, match="do not divide by 255"):
        model.predict(x=tf.constant(images / 255), verbose=0)
    model.fit(np.zeros_like(images), labels, verbose=0)  # black images are images


def test_a_last_batch_not_divisible_by_accumulate_is_refused(toy: Toy, arrays: Arrays) -> None:
    images, labels = (np.concatenate([array, array[:1]]) for array in arrays)
    model = toy(CLASSES)
    model.compile("sgd", accumulate=2)
    with pytest.raises(ConfigError, match=r"images 1 accumulate 2: .*drop_remainder=True"):
        model.fit(images, labels, batch_size=4, verbose=0, shuffle=False)


def test_metrics_are_unique_and_include_mean_iou_and_attention(toy: Toy, arrays: Arrays) -> None:
    images, labels = arrays
    model = toy(CLASSES)
    model.compile("sgd")
    history = model.fit(images, labels, verbose=0, validation_data=arrays).history
    assert len(model.metrics_names) == len(set(model.metrics_names))
    assert {"loss", "refine_mean_iou", "attention_accuracy", "skipped_steps"} <= set(history)
    values = model.evaluate(images, labels, verbose=0)
    named = model.evaluate(images, labels, verbose=0, return_dict=True)
    assert values == [named[name] for name in model.metrics_names if name in named]
    outputs = {key: value.numpy() for key, value in model(images).items()}
    valid = labels >= 0
    right = outputs["coarse"].argmax(-1) == labels
    says_easy = outputs["attention"][..., 1] > outputs["attention"][..., 0]
    assert named["attention_accuracy"] == pytest.approx((says_easy == right)[valid].mean())
    guess = outputs["refine"].argmax(-1)
    ious = [
        ((guess == c) & (labels == c))[valid].sum() / ((guess == c) | (labels == c))[valid].sum()
        for c in range(CLASSES)
    ]
    assert named["refine_mean_iou"] == pytest.approx(np.mean(ious))


def test_a_class_without_labels_is_not_in_the_mean(toy: Toy, arrays: Arrays) -> None:
    images, labels = arrays
    model = toy(CLASSES)
    model.compile("sgd")
    named = model.evaluate(images, np.minimum(labels, 0), verbose=0, return_dict=True)
    share = (model(images)["refine"].numpy().argmax(-1) == 0)[labels >= 0].mean()
    assert named["refine_mean_iou"] == pytest.approx(share)


def test_training_of_a_loaded_model_continues_bit_by_bit(
    toy: Toy, arrays: Arrays, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    model = toy(CLASSES, behind_body=Dropout(0.5, name="dropout"))
    options = {
        "loss_weights": {"fine": 0.5},
        "label_smoothing": 0.1,
        "hard_pixel_weight": 4.0,
        "clip_norm": 0.5,
        "balanced_attention": True,
        "class_weights": [1.0, 2.0, 0.5],
        "accumulate": 2,
    }
    model.compile(keras.optimizers.AdamW(1e-2), **options)
    model.fit(*arrays, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, CCFNet)
    one = model.fit(*arrays, epochs=2, verbose=0, shuffle=False).history
    two = loaded.fit(*arrays, epochs=2, verbose=0, shuffle=False).history
    assert one == two
    pairs = zip(
        [*model.variables, *model.optimizer.variables],
        [*loaded.variables, *loaded.optimizer.variables],
        strict=True,
    )
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=mine.path)
    config = loaded.get_compile_config()
    assert {key: config[key] for key in options if key != "loss_weights"} == {
        key: value for key, value in options.items() if key != "loss_weights"
    }


def test_a_model_that_was_never_compiled_loads(toy: Toy, arrays: Arrays, tmp_path: Path) -> None:
    model = toy(CLASSES)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.compiled
    np.testing.assert_array_equal(model(arrays[0])["refine"], loaded(arrays[0])["refine"])


def test_every_class_of_a_saved_model_is_registered() -> None:
    found = {}
    for name, module in keras_registration.MODULES.items():
        cls = getattr(importlib.import_module(module), name)
        found[f"{keras_registration.PACKAGE}>{name}"] = cls
        assert cls.__module__ == module
    registered = keras.saving.get_custom_objects()
    mine = {name: cls for name, cls in registered.items() if name.startswith("ccfnet>")}
    metrics = {"ccfnet>MeanIoU", "ccfnet>PixelAccuracy", "ccfnet>SkippedSteps"}  # never saved
    assert {name: mine[name] for name in found} == found
    assert set(mine) - set(found) <= metrics


@pytest.mark.parametrize(
    "first",
    ["import ccfnet_tf, keras", pytest.param("import keras, ccfnet_tf", marks=pytest.mark.slow)],
)
def test_importing_the_package_is_enough_to_load(first: str, toy: Toy, tmp_path: Path) -> None:
    model = toy(CLASSES)
    model.compile("sgd")
    model.save(tmp_path / "model.keras")
    code = f"{first}; m = keras.models.load_model({str(tmp_path / 'model.keras')!r});"
    code += "assert type(m).__name__ == 'CCFNet' and m.compiled"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
