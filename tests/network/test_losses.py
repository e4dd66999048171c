from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.network import losses
from ccfnet_tf.network.heads import Blend


def test_void_is_negative_or_255_and_nothing_else() -> None:
    labels = tf.constant([[[0, 2, -1, 255]]])
    target = losses.split_void(labels, 3)
    np.testing.assert_array_equal(target.labels, [[[0, 2, 0, 0]]])
    np.testing.assert_array_equal(target.valid, [[[True, True, False, False]]])


def test_255_is_a_class_where_there_are_256() -> None:
    target = losses.split_void(tf.constant([[[255]]]), 256)
    assert bool(target.valid[0, 0, 0])


def test_masks_with_a_channel_axis_are_accepted() -> None:
    assert losses.split_void(tf.zeros([2, 4, 5, 1], tf.uint8), 3).labels.shape == (2, 4, 5)


def test_a_wrong_label_is_refused_and_not_void() -> None:
    target = losses.split_void(tf.constant([[[7]]]), 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="7"):
        losses.cross_entropy(tf.zeros([1, 1, 1, 3]), target)


def test_attention_target_by_hand() -> None:
    coarse = tf.constant([[[[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]]])
    labels = tf.constant([[[0, 0, 1]]])
    np.testing.assert_array_equal(losses.attention_target(coarse, labels), [[[1, 0, 0]]])


def test_no_gradient_flows_through_the_target() -> None:
    coarse = tf.Variable([[[[2.0, 1.0], [0.0, 3.0]]]])
    with tf.GradientTape() as tape:
        target = tf.cast(losses.attention_target(coarse, tf.constant([[[0, 0]]])), tf.float32)
        loss = tf.reduce_sum(target)
    assert tape.gradient(loss, coarse) is None


def test_cross_entropy_by_hand() -> None:
    logits = tf.constant([[[[0.0, np.log(3.0)], [1.0, 1.0], [9.0, -9.0]]]], tf.float32)
    target = losses.split_void(tf.constant([[[1, 0, -1]]]), 2)
    expected = [[[-np.log(0.75), np.log(2.0), 0.0]]]
    np.testing.assert_allclose(losses.cross_entropy(logits, target), expected, rtol=1e-6)


def test_the_loss_and_prediction_of_the_blend_follow_from_the_heads() -> None:
    rng = np.random.default_rng(0)
    coarse, fine = (tf.constant(rng.normal(size=(2, 4, 5, 3)) * 4, tf.float32) for _ in "ab")
    attention = tf.constant(rng.normal(size=(2, 4, 5, 2)) * 4, tf.float32)
    target = losses.split_void(tf.constant(rng.integers(-1, 3, (2, 4, 5))), 3)
    refine = Blend()([tf.nn.log_softmax(coarse), attention, fine])
    parts = [losses.cross_entropy(logits, target) for logits in (coarse, fine)]
    found = losses.blend_cross_entropy(*parts, attention, target.valid)  # attention is the gate
    np.testing.assert_allclose(found, losses.cross_entropy(refine, target), atol=1e-5)
    prediction = losses.blend_prediction(coarse, fine, attention)
    np.testing.assert_array_equal(prediction, tf.argmax(refine, -1))


def test_the_attention_loss_is_a_softmax_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    # A difference of 200 gives a probability of 0 in float32, whose logarithm must stay finite.
    attention = tf.constant(rng.normal(size=(2, 4, 5, 2)) * [1.0, 100.0], tf.float32)
    easy = tf.constant(rng.integers(0, 2, (2, 4, 5)), tf.int32)
    target = losses.Target(easy, tf.constant(rng.integers(0, 2, (2, 4, 5)) > 0))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(attention)
        ours = losses.attention_cross_entropy(attention, easy, target.valid)
        plain = losses.cross_entropy(attention, target)
    np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-6)
    assert float(tf.reduce_max(ours)) > 90.0
    gradients = [tape.gradient(loss, attention) for loss in (ours, plain)]
    np.testing.assert_allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e3], ids=["usual", "probabilities_underflow"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_losses_and_their_gradients_equal_float64(smoothing: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    shapes = {"coarse": 4, "fine": 4, "gate": 2}
    logits = {head: scale * rng.normal(size=(2, 4, 5, n)) for head, n in shapes.items()}
    labels = rng.integers(-1, 4, (2, 4, 5))
    labels[0, 0, 0] = 255  # void too
    given = {head: tf.constant(value, tf.float32) for head, value in logits.items()}
    target = losses.split_void(tf.constant(labels), 4)
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = losses.head_cross_entropies(**given, target=target, smoothing=smoothing)
        total = tf.add_n([tf.reduce_sum(values) for values in found.values()])
    exact = {head: tf.constant(value.numpy(), tf.float64) for head, value in given.items()}
    valid = (labels >= 0) & (labels < 4)
    truth = np.eye(4)[np.where(valid, labels, 0)] * (1 - smoothing) + smoothing / 4
    with tf.GradientTape() as exact_tape:
        exact_tape.watch(exact)
        logs = {head: tf.nn.log_softmax(value) for head, value in exact.items()}
        hard, easy = tf.split(logs["gate"], 2, -1)
        both = tf.stack([easy + logs["coarse"], hard + logs["fine"]])
        logs = {
            "coarse": logs["coarse"],
            "fine": logs["fine"],
            "refine": tf.reduce_logsumexp(both, 0),
        }
        wanted = {head: -tf.reduce_sum(truth * x, -1) * valid for head, x in logs.items()}
        exact_total = tf.add_n([tf.reduce_sum(values) for values in wanted.values()])
    if scale > 1:
        assert float(tf.reduce_min(logs["refine"])) < -120.0  # exp of it is 0 in float32
    for head, values in wanted.items():
        np.testing.assert_allclose(found[head], values, rtol=1e-5, atol=1e-5, err_msg=head)
    gradients, exact_gradients = (
        tape.gradient(total, given),
        exact_tape.gradient(exact_total, exact),
    )
    for head, gradient in exact_gradients.items():
        np.testing.assert_allclose(gradients[head], gradient, atol=1e-4, err_msg=head)


def test_class_weights_and_smoothed_labels_combine_as_in_keras() -> None:
    rng = np.random.default_rng(0)
    coarse, fine, gate = (tf.constant(rng.normal(size=(2, 4, 5, n)), tf.float32) for n in (4, 4, 2))
    labels = rng.integers(0, 4, (2, 4, 5))
    weight = np.array([0.2, 3.0, 1.0, 0.0], np.float32)[labels]
    keras_loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1, reduction="sum"
    )
    target = losses.split_void(tf.constant(labels), 4)
    found = losses.head_cross_entropies(coarse, fine, gate, target, smoothing=0.1)
    refine = Blend()([tf.nn.log_softmax(coarse), gate, fine])
    for head, logits in {"coarse": coarse, "fine": fine, "refine": refine}.items():
        wanted = float(keras_loss(np.eye(4, dtype=np.float32)[labels], logits, weight))
        assert float(tf.reduce_sum(weight * found[head])) == pytest.approx(wanted, rel=1e-5), head


def test_count_is_exact_beyond_the_range_of_float32() -> None:
    mask = tf.ones([2**12, 2**12 + 1], tf.bool)
    assert float(losses.count(mask)) == pytest.approx(2**24 + 2**12)


@pytest.mark.parametrize(
    ("hard", "easy", "expected"),
    [(1.0, 3.0, (2.0, 2.0 / 3.0)), (0.0, 5.0, (5.0, 1.0)), (0.0, 0.0, (0.0, 0.0))],
)
def test_balance_by_hand(hard: float, easy: float, expected: tuple[float, float]) -> None:
    weights = losses.balance(tf.constant(hard), tf.constant(easy))
    np.testing.assert_allclose([float(w) for w in weights], expected, rtol=1e-6)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("case", ["distinct", "ties", "all equal", "all void", "one labelled"])
def test_the_hardest_pixels_are_those_of_a_sort(share: float, case: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(size=(2, 5, 6)).astype(np.float32)
    valid = rng.random(values.shape) < 0.8
    if case == "ties":
        values = np.round(values)
    elif case == "all equal":
        values = np.ones_like(values)
    elif case == "all void":
        valid = np.zeros_like(valid)
    elif case == "one labelled":
        valid = np.arange(values.size).reshape(values.shape) == 7
    values = np.where(valid, values, 0).astype(np.float32)
    found = losses.hardest(tf.constant(values), tf.constant(valid), share).numpy()
    labelled = np.sort(values[valid])[::-1]
    kept = int(np.ceil(share * labelled.size - 1e-6))
    wanted = labelled[:kept].sum(dtype=float) * labelled.size / max(kept, 1)
    np.testing.assert_allclose(found.sum(), wanted, rtol=1e-5)
    assert not found[~valid].any()
    if case == "distinct" and share < 1:
        assert np.count_nonzero(found) == kept
        assert values[found > 0].min() == labelled[kept - 1]


def test_a_product_that_rounds_up_keeps_no_pixel_more() -> None:
    values = tf.reshape(tf.range(1.0, 31.0), [1, 5, 6])
    found = losses.hardest(values, tf.ones_like(values, tf.bool), 0.1)  # .1 x 30 is above 3
    assert np.count_nonzero(found) == 3


def test_ties_share_the_gradient_equally() -> None:
    values = tf.Variable([[[3.0, 1.0, 1.0, 1.0]]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(losses.hardest(values, tf.ones_like(values, tf.bool), 0.5))
    # Two of four are kept, each counts twice; three share the second place.
    expected = [[[2.0, 2 / 3, 2 / 3, 2 / 3]]]
    np.testing.assert_allclose(tape.gradient(loss, values), expected, rtol=1e-6)
