"""What `fit` does to every weight in a few steps, held to plain arithmetic in float64.

Which faults of `train_step` which test sees:

    run with training=False                        every case but those that freeze batch norm
    attention learns nothing from refine's loss    refine_alone
    coarse learns nothing from refine's loss       refine_alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.network.heads import AffineGate
from ccfnet_tf.network.model import LossWeights
from tests.network import by_hand
from tests.network.by_hand import HEADS, Learning, Weights

CLASSES, STEPS, BATCH, SIZE, RATE = 3, 2, 4, 12, 0.3
Toy = Callable[..., Any]

ALONE = {f"{head}_alone": Learning(**{h: 1.5 * (h == head) for h in HEADS}) for head in HEADS}
CASES: dict[str, Learning] = {
    "paper": Learning(),
    **ALONE,
    "uneven": Learning(0.7, 0.4, 2.0, 0.9),
    "class_weights": Learning(fine=1.0, class_weights=[0.2, 3.0, 1.0]),
    "balanced": Learning(balanced=True),
    "clipped": Learning(clip_norm=0.05),
    "clipped_where_nothing_is_to_clip": Learning(clip_norm=1e4),
    "in_parts": Learning(parts=2),
    "frozen": Learning(frozen=True),
    "fine_on_hard_pixels": Learning(fine=1.5, fine_above=0.5),
    "hardest_pixels": Learning(fine=1.5, ohem=0.3),
    "weighted_hard_pixels": Learning(fine=0.5, of_hard=4.0),
    "weighted_hard_pixels_of_all_kinds": Learning(
        fine=1.5, of_hard=2.0, ohem=0.3, affine_gate=True, class_weights=[0.2, 3.0, 1.0], parts=2
    ),
    "affine_gate": Learning(fine=0.5, affine_gate=True),
    "smoothed_hardest_pixels": Learning(fine=1.5, ohem=0.3, smoothing=0.5),
    "smoothed_fine_on_hard_pixels": Learning(
        fine=1.5, fine_above=0.5, affine_gate=True, smoothing=0.2
    ),
    "all_at_once": Learning(0.7, 0.4, 2.0, 0.9, [0.2, 3.0, 1.0], True, 0.3, parts=2, smoothing=0.2),
}
NO_OTHER = ("paper", "clipped_where_nothing_is_to_clip")


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches with void distributed unevenly over images and batches."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, BATCH, SIZE, SIZE, 3)).astype(np.float32)
    labels = (images[..., 0] > 0).astype(np.int32) + (images[..., 1] > 0.8)  # can be learned
    void = rng.random(labels.shape) < rng.random((STEPS, BATCH, 1, 1))
    return list(zip(images, np.where(void, -1, labels), strict=True))


def compiled(toy: Toy, how: Learning, **options: Any) -> Any:
    keras.utils.set_random_seed(1)
    gate = AffineGate(name="gate") if how.affine_gate else None
    model = toy(CLASSES, gate=gate)
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:  # zeros and ones would hide what they multiply
        variable.assign(variable + rng.normal(scale=0.2, size=variable.shape))
    model.get_layer("backbone").get_layer("body_norm").trainable = not how.frozen
    model.compile(
        keras.optimizers.SGD(RATE),
        loss_weights=LossWeights(how.coarse, how.attention, how.refine, how.fine),
        clip_norm=how.clip_norm,
        balanced_attention=how.balanced,
        class_weights=how.class_weights,
        accumulate=how.parts,
        fine_threshold=how.fine_above,
        ohem_share=how.ohem,
        hard_pixel_weight=how.of_hard,
        label_smoothing=how.smoothing,
        **options,
    )
    return model


def values(model: Any) -> Weights:
    return {name: v.numpy().astype(np.float64) for name, v in named_variables(model).items()}


def descended(weights: Weights, how: Learning) -> tuple[Weights, dict[str, float]]:
    """Returns the weights after gradient descent, and the metrics of the epoch."""
    found = []
    for images, labels in batches():
        one = by_hand.step(weights, images, labels, how)
        moved = {name: weights[name] - RATE * g for name, g in one.gradients.items()}
        weights = {**weights, **one.statistics, **moved}
        found.append(one)
    pixels = sum(one.pixels for one in found)
    figures = {
        name: sum(one.figures[name] * one.pixels for one in found) / pixels
        for name in found[0].figures
    }
    figures["gradient_norm"] = sum(one.norm for one in found) / len(found)
    return weights, figures


@pytest.fixture(scope="module")
def plain(toy: Toy) -> Weights:
    """The weights after steps with the paper's loss."""
    return descended(values(compiled(toy, Learning())), Learning())[0]


@pytest.mark.parametrize("case", CASES)
def test_fit_equals_gradient_descent_by_hand(case: str, toy: Toy, plain: Weights) -> None:
    how = CASES[case]
    model = compiled(toy, how, run_eagerly=case != "paper")
    start = values(model)
    wanted, figures = descended(start, how)
    if case not in NO_OTHER:  # a setting that is ignored must show by far
        assert max(np.abs(wanted[name] - plain[name]).max() for name in plain) > 1e-3
        assert all((wanted[name] != start[name]).any() for name in start if name.startswith("gate"))
    data = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((BATCH, SIZE, SIZE, 3), tf.float32),
            tf.TensorSpec((BATCH, SIZE, SIZE), tf.int32),
        ),
    )
    history = model.fit(data, verbose=0, shuffle=False, steps_per_epoch=STEPS).history
    for name, value in values(model).items():
        np.testing.assert_allclose(value, wanted[name], atol=2e-5, err_msg=name)
    for name, value in figures.items():
        assert history[name] == [pytest.approx(value, rel=1e-4)], name


@pytest.mark.parametrize("head", HEADS)
def test_each_loss_trains_the_heads_it_depends_on(head: str, toy: Toy) -> None:
    """The refine loss trains all three heads; every other loss trains only its own head."""
    taught = {"refine": {"coarse", "attention", "fine"}}.get(head, {head})
    how = ALONE[f"{head}_alone"]
    model = compiled(toy, how, run_eagerly=True)
    before = values(model)
    model.fit(*batches()[0], batch_size=BATCH, verbose=0)
    after = values(model)
    moved = {name for name in after if (after[name] != before[name]).any()}
    assert {
        n.removesuffix("_logits/kernel") for n in moved if "body" not in n and "kernel" in n
    } == taught
    assert "body/kernel" in moved


def test_validation_changes_nothing(toy: Toy) -> None:
    """Validation uses the moving statistics and changes neither weights nor statistics."""
    model = compiled(toy, Learning())
    model.get_layer("backbone").get_layer("body_norm").moving_mean.assign(np.linspace(-1, 1, 6))
    before = values(model)
    images, labels = batches()[0]
    found = model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    wanted = by_hand.step(before, images, labels, replace(Learning(), frozen=True))
    for name, value in wanted.figures.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
