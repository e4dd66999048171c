"""A stand-in network whose answers are written into the image makes every figure known."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from ccfnet_tf.errors import DataError, NotFiniteError, ResourceError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.evaluation.epoch_end_states import EpochCounts, Evaluator
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.evaluation.reliability import Reliability
from ccfnet_tf.evaluation.score_histogram import ScoreHistogram
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.network.labels_and_maps import other_classes
from tests.inference.conftest import build

CLASSES = 3
TAXONOMY = Taxonomy(("sky", "sea", "[red]sand"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))


class Answer(keras.layers.Layer):
    """Reads a class id out of a channel: logits 4 for it and 0 for the others."""

    def __init__(self, channel: int, name: str) -> None:
        super().__init__(name=name)
        self.channel = channel

    def call(self, images: tf.Tensor) -> tf.Tensor:
        ids = tf.cast(images[..., self.channel], tf.int32)
        return 4.0 * tf.one_hot(ids % 10, CLASSES)


class Attention(keras.layers.Layer):
    """Reads hard - easy out of the tens of the last channel: 50 is 0, a step is 1/10."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        logit = tf.floor(images[..., 2] / 10) / 10 - 1.2
        return tf.stack([logit, tf.zeros_like(logit)], axis=-1)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    images = keras.Input((None, None, 3))
    outputs = {
        "coarse": Answer(0, "coarse_logits")(images),
        "attention": Attention(name="attention_logits")(images),
        "refine": keras.layers.Softmax(name="refine")(Answer(2, "last")(images)),
    }
    fine = Answer(1, "fine_logits")(images)
    # As in the real network, fine lies behind refine's input and is not an output.
    outputs["refine"] = outputs["refine"] + 0 * fine
    return keras.Model(images, outputs)


def random_part(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, CLASSES, size=(count, 6, 5, 3))
    image[..., 2] += 10 * rng.integers(0, 25, size=image.shape[:3])
    label = rng.choice([0, 1, 2, VOID], size=(count, 6, 5), p=[0.5, 0.3, 0.1, 0.1])
    return image.astype(np.uint8), label.astype(np.int32)


def batches(image: np.ndarray, label: np.ndarray, batch: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((image, label)).batch(batch)


def evaluate(model: keras.Model, dataset: tf.data.Dataset, **options: Any) -> EpochCounts:
    return Evaluator(model, TAXONOMY).run(dataset, **options)


def assert_same(one: EpochCounts, two: EpochCounts) -> None:
    for name in (*HEADS, "attention"):
        np.testing.assert_array_equal(getattr(one, name).counts, getattr(two, name).counts)
    # Pixels are equal; TensorFlow's exp depends in its last bit on the place in a batch.
    np.testing.assert_allclose(one.risk.counts, two.risk.counts, rtol=1e-7)


def test_counts_equal_those_of_numpy(model: keras.Model) -> None:
    image, label = random_part(7, seed=0)
    ours = evaluate(model, batches(image, label, 3))

    known = label != VOID
    answers = [image[..., channel].astype(int) % 10 for channel in range(3)]
    wrong = (answers[0] != label)[known]
    logit = (image[..., 2] // 10 / 10 - 1.2)[known]
    for head, answer in zip(HEADS, answers, strict=True):
        expected = Confusion.of(label, answer, classes=CLASSES)
        np.testing.assert_array_equal(getattr(ours, head).counts, expected.counts)
    exact = ScoreHistogram.of(logit, wrong)
    assert ours.attention.auroc == pytest.approx(exact.auroc, abs=1e-3)
    # Difficulty by its definition, at every threshold: ties count half.
    probabilities = np.exp(4.0 * np.eye(CLASSES)[answers[2]])
    probabilities /= probabilities.sum(-1, keepdims=True)
    of_coarse = np.take_along_axis(probabilities, answers[0][..., np.newaxis], -1)[..., 0]
    expected = roc_auc_score(wrong, (1 - of_coarse)[known])
    assert ours.difficulty.auroc == pytest.approx(expected, abs=1e-6)
    assert ours.pictures == 7


def test_the_verb_counts_the_same(toy: Callable[..., Any]) -> None:
    keras.utils.set_random_seed(5)
    network = toy(CLASSES)
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, size=(2, 40, 48, 3)).astype(np.uint8)
    label = rng.integers(VOID, CLASSES, size=(2, 40, 48)).astype(np.int32)
    ours = evaluate(network, batches(image, label, 2))
    segmenter = KerasNetwork(network, taxonomy=TAXONOMY)
    parts = [
        Evaluation.of(label[index], segmenter.head_outputs(image[index]), TAXONOMY, index=index)
        for index in range(2)
    ]
    theirs = Evaluation.total(parts, TAXONOMY)
    for head in HEADS:
        np.testing.assert_array_equal(getattr(ours, head).counts, getattr(theirs, head).counts)
    np.testing.assert_array_equal(ours.attention.counts, theirs.counts["score/coarse/attention"])
    difficulty = ScoreHistogram(theirs.counts["score/coarse/difficulty"])
    np.testing.assert_array_equal(ours.difficulty.counts.sum(-1), difficulty.counts.sum(-1))
    # The graph and NumPy round probabilities differently, which moves few pixels to another bin.
    assert ours.difficulty.auroc == pytest.approx(difficulty.auroc, abs=1e-3)
    assert ours.difficulty.auroc != ours.attention.auroc
    risk = theirs.reliability("refine", "risk")
    assert ours.risk.ece == pytest.approx(risk.ece, abs=1e-4)
    np.testing.assert_array_equal(ours.risk.counts[:2].sum(-1), risk.counts[:2].sum(-1))


@pytest.mark.parametrize("scale", [1e-30, 0.01, 3.0, 40.0, 1e5, np.inf])
def test_the_graph_has_the_bins_of_numpy(scale: float) -> None:
    rng = np.random.default_rng(10)
    values = rng.normal(size=(1, 50, 60, 1)).astype(np.float32) * np.float32(scale)

    class Fixed(keras.layers.Layer):
        def call(self, images: tf.Tensor) -> tf.Tensor:
            return tf.concat([tf.constant(values), tf.zeros_like(values)], -1)

    images = keras.Input((None, None, 3))
    outputs = {
        "coarse": Answer(0, "coarse_logits")(images),
        "attention": Fixed(name="attention_logits")(images),
        "refine": Answer(0, "last")(images) + 0 * Answer(1, "fine_logits")(images),
    }
    image = np.zeros((1, 50, 60, 3), np.uint8)
    label = rng.integers(0, 2, (1, 50, 60)).astype(np.int32)
    state = evaluate(keras.Model(images, outputs), batches(image, label, 1))
    wanted = ScoreHistogram.of(values[0, ..., 0].ravel(), label.ravel() != 0)
    np.testing.assert_array_equal(state.attention.counts, wanted.counts)


@pytest.mark.parametrize("case", ["random", "certain", "ties"])
def test_the_graph_has_the_reliability_of_numpy(case: str) -> None:
    rng = np.random.default_rng(11)
    logits = rng.normal(size=(1, 50, 60, CLASSES)).astype(np.float32) * 3
    logits = {"random": logits, "certain": logits * 1e4, "ties": logits * 0}[case]
    logs = tf.nn.log_softmax(logits)

    class Fixed(keras.layers.Layer):
        def call(self, images: tf.Tensor) -> tf.Tensor:
            return logs + 0.0 * images[..., :1]

    images = keras.Input((None, None, 3))
    outputs = {
        "coarse": Answer(0, "coarse_logits")(images),
        "attention": Attention(name="attention_logits")(images),
        "refine": Fixed(name="last")(images) + 0 * Answer(1, "fine_logits")(images),
    }
    image = np.zeros((1, 50, 60, 3), np.uint8)
    label = rng.integers(VOID, CLASSES, (1, 50, 60)).astype(np.int32)
    state = evaluate(keras.Model(images, outputs), batches(image, label, 1))
    known = label != VOID
    ids = logits.argmax(-1)[known]
    risk = other_classes(tf.exp(logs[known]), tf.constant(ids, tf.int32)).numpy()
    wanted = Reliability.of(risk, ids != label[known])
    np.testing.assert_array_equal(state.risk.counts, wanted.counts)
    assert state.risk.ece == wanted.ece
    void = evaluate(keras.Model(images, outputs), batches(image, np.full_like(label, VOID), 1))
    assert void.risk.ece is None


def test_padding_and_batch_size_change_nothing(model: keras.Model) -> None:
    image, label = random_part(5, seed=1)
    whole = evaluate(model, batches(image, label, 5))
    padded = (
        np.concatenate([image, np.zeros_like(image[:1])]),
        np.concatenate([label, np.full_like(label[:1], VOID)]),
    )
    assert_same(evaluate(model, batches(*padded, 2)), whole)


def test_parts_add_up(model: keras.Model) -> None:
    """As workers add them up, each with a part of the images."""
    image, label = random_part(6, seed=2)
    whole = evaluate(model, batches(image, label, 2))
    seen: list[list[np.ndarray]] = []

    def total(counts: Sequence[np.ndarray]) -> list[np.ndarray]:
        seen.append([*counts])
        return [sum(each) for each in zip(*seen, strict=True)]  # type: ignore[misc]

    evaluate(model, batches(image[:1], label[:1], 2), total=total)
    assert_same(evaluate(model, batches(image[1:], label[1:], 2), total=total), whole)


def test_sizes_may_differ_between_batches(model: keras.Model) -> None:
    pairs = [((1, 4, 4, 3), (1, 4, 4)), ((2, 3, 8, 3), (2, 3, 8))]

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for image, label in pairs:
            yield np.zeros(image, np.uint8), np.zeros(label, np.int32)

    signature = (
        tf.TensorSpec([None, None, None, 3], tf.uint8),
        tf.TensorSpec([None, None, None], tf.int32),
    )
    dataset = tf.data.Dataset.from_generator(parts, output_signature=signature)
    calls: list[int] = []
    state = evaluate(model, dataset, advance=lambda: calls.append(1))
    assert state.refine.pixels == 16 + 48
    assert len(calls) == 2
    assert evaluate(model, dataset.take(1)).refine.pixels == 16


class Broken(keras.layers.Layer):
    def call(self, images: tf.Tensor) -> tf.Tensor:
        return tf.fill(tf.shape(images), np.float32("nan"))


def test_nan_is_refused() -> None:
    images = keras.Input((None, None, 3))
    nan = Broken()(images)
    outputs = {"coarse": nan, "attention": nan[..., :2], "refine": nan}
    model = keras.Model(images, {**outputs, "refine": Answer(0, "fine_logits")(images) + nan})
    image, label = random_part(1, seed=6)
    with pytest.raises(NotFiniteError, match="NaN on"):
        evaluate(model, batches(image, label, 1))


def test_a_bad_file_keeps_its_own_words(model: keras.Model) -> None:
    def read(_: np.ndarray) -> np.ndarray:
        raise DataError("labels/a.png: holds value 99, classes are 0..2: repair it")

    dataset = tf.data.Dataset.range(1).map(
        lambda i: (tf.numpy_function(read, [i], tf.uint8), tf.zeros([1, 2, 2], tf.int32))
    )
    with pytest.raises(DataError) as caught:
        evaluate(model, dataset)
    assert str(caught.value) == "labels/a.png: holds value 99, classes are 0..2: repair it"


def test_memory_that_runs_out_names_the_batch(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(model, TAXONOMY)

    def full(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(evaluator, "_count", full)
    with pytest.raises(ResourceError, match="batch of 2 images of 5x6 pixels"):
        evaluator.run(batches(*random_part(2, seed=7), 2))


def test_data_of_other_classes_are_refused(model: keras.Model) -> None:
    with pytest.raises(DataError, match="data have 2 classes but the network predicts 3"):
        Evaluator(model, Taxonomy(("a", "b"), ((0, 0, 0), (1, 1, 1))))


@pytest.mark.slow
def test_the_real_network_is_counted_as_it_answers() -> None:
    """At any size: below 32 pixels both see the image mirrored."""
    network = build()
    for key, variable in named_variables(network).items():
        if key.endswith("gamma"):  # gains at which predictions differ from pixel to pixel
            variable.assign(np.full(variable.shape, 3, np.float32))
    rng = np.random.default_rng(8)
    evaluator, predictor = Evaluator(network, TAXONOMY), KerasNetwork(network)
    for size in ((40, 48), (31, 45), (70, 20), (7, 9), (1, 1)):
        image = rng.integers(0, 256, size=(2, *size, 3)).astype(np.uint8)
        label = rng.integers(VOID, CLASSES, size=(2, *size)).astype(np.int32)
        state = evaluator.run(batches(image, label, 2))
        outputs = [predictor.head_outputs(each) for each in image]
        for head in HEADS:
            answers = np.stack([getattr(each, head).argmax(-1) for each in outputs])
            expected = Confusion.of(label, answers, classes=CLASSES)
            np.testing.assert_array_equal(getattr(state, head).counts, expected.counts)
        known = label != VOID
        wrong = (np.stack([each.coarse.argmax(-1) for each in outputs]) != label)[known]
        logits = np.stack([each.attention for each in outputs])[known]
        exact = ScoreHistogram.of(logits, wrong).auroc
        assert state.attention.auroc == pytest.approx(exact, abs=1e-3)


def resident() -> float:
    """Returns this process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(model: keras.Model) -> None:
    image = np.zeros((1, 256, 256, 3), np.uint8)
    label = np.zeros((1, 256, 256), np.int32)
    one = tf.data.Dataset.from_tensors((image, label))
    evaluator = Evaluator(model, TAXONOMY)
    evaluator.run(one.repeat(20))
    before = resident()
    evaluator.run(one.repeat(400))
    # Scores of 380 images, if they were kept, would be 100 MB for each head.
    assert resident() - before < 60
