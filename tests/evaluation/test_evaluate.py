"""A stand-in network whose answers are written into the image makes every figure known."""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.errors import DataError, NotFiniteError, ResourceError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.difficulty import ScoreHistogram
from ccfnet_tf.evaluation.easy_hard import GroupAccuracy
from ccfnet_tf.evaluation.evaluate import Evaluation, Evaluator, evaluate
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.network.weights import named_variables
from ccfnet_tf.report.evaluation_tables import report
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


def test_counts_equal_those_of_numpy(model: keras.Model) -> None:
    image, label = random_part(7, seed=0)
    ours = evaluate(model, batches(image, label, 3), TAXONOMY)

    known = label != VOID
    answers = [image[..., channel].astype(int) % 10 for channel in range(3)]
    right = np.stack([(answer == label)[known] for answer in answers])
    logit = (image[..., 2] // 10 / 10 - 1.2)[known]
    for head, answer in zip(("coarse", "fine", "refine"), answers, strict=True):
        expected = Confusion.of(label, answer, classes=CLASSES)
        np.testing.assert_array_equal(getattr(ours, head).counts, expected.counts)
    np.testing.assert_array_equal(ours.by_target.counts, GroupAccuracy.of(~right[0], right).counts)
    np.testing.assert_array_equal(
        ours.by_attention.counts, GroupAccuracy.of(logit > 1e-6, right).counts
    )
    exact = ScoreHistogram.of(logit, ~right[0])
    assert ours.difficulty.auroc == pytest.approx(exact.auroc, abs=1e-3)
    # All of coarse's maxima are the same, so they tell nothing; the logit is log(2 / e^4).
    assert ours.max_softmax.auroc == 0.5
    doubt = ScoreHistogram.of(np.full(right[0].size, np.log(2) - 4), ~right[0])
    np.testing.assert_array_equal(ours.max_softmax.counts, doubt.counts)
    assert ours.pictures == 7


class Spread(keras.layers.Layer):
    """Logits from -30 to 30 by the bytes of the channels, each 1/4 and a little more."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return (tf.cast(images, tf.float32) - 128.0) * tf.constant([0.23, 0.234, 0.231])


def test_doubt_is_as_fine_where_coarse_is_sure() -> None:
    images = keras.Input((None, None, 3))
    outputs = {
        "coarse": Spread(name="coarse_logits")(images),
        "attention": Attention(name="attention_logits")(images),
        "refine": Answer(0, "last")(images) + 0 * Answer(1, "fine_logits")(images),
    }
    rng = np.random.default_rng(9)
    image = rng.integers(0, 256, size=(2, 200, 200, 3)).astype(np.uint8)
    logits = (image.astype(np.float32) - 128) * np.float32([0.23, 0.234, 0.231])
    ordered = np.sort(logits.astype(np.float64), axis=-1)
    doubt = np.logaddexp(ordered[..., 0], ordered[..., 1]) - ordered[..., 2]
    # The surer, the more often right, also where softmax says 1 - 1e-7 and less.
    wrong = rng.random(doubt.shape) < 1 / (2 + np.abs(np.clip(doubt, -50, 0)) / 8)
    label = (logits.argmax(-1) + wrong) % 3
    state = evaluate(
        keras.Model(images, outputs), batches(image, label.astype(np.int32), 1), TAXONOMY
    )
    exact = ScoreHistogram.of(doubt.ravel(), wrong.ravel())
    assert state.max_softmax.auroc == pytest.approx(exact.auroc, abs=1e-5)
    below = ScoreHistogram.of(np.full(1, -13.0), np.full(1, True)).counts[0].argmax()
    found = np.count_nonzero(state.max_softmax.counts[:, :below].sum(axis=0))
    assert found > 1000
    assert found == pytest.approx(np.count_nonzero(exact.counts[:, :below].sum(axis=0)), rel=0.01)


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
    state = evaluate(keras.Model(images, outputs), batches(image, label, 1), TAXONOMY)
    wanted = ScoreHistogram.of(values[0, ..., 0].ravel(), label.ravel() != 0)
    np.testing.assert_array_equal(state.difficulty.counts, wanted.counts)


def test_padding_and_batch_size_change_nothing(model: keras.Model) -> None:
    image, label = random_part(5, seed=1)
    whole = evaluate(model, batches(image, label, 5), TAXONOMY)
    padded = (
        np.concatenate([image, np.zeros_like(image[:1])]),
        np.concatenate([label, np.full_like(label[:1], VOID)]),
    )
    assert evaluate(model, batches(*padded, 2), TAXONOMY).to_json() == whole.to_json()


def test_merge_of_parts_equals_the_whole(model: keras.Model) -> None:
    image, label = random_part(6, seed=2)
    evaluator = Evaluator(model, TAXONOMY)
    whole = evaluator.run(batches(image, label, 2))
    head = evaluator.run(batches(image[:1], label[:1], 2))
    tail = evaluator.run(batches(image[1:], label[1:], 2))
    assert head.merge(tail).to_json() == whole.to_json()
    assert Evaluation.empty(TAXONOMY).merge(whole).to_json() == whole.to_json()
    with pytest.raises(ValueError, match="do not add up"):
        whole.merge(Evaluation.empty(TAXONOMY, split="val"))


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
    state = evaluate(model, dataset, TAXONOMY, advance=lambda: calls.append(1))
    assert state.refine.pixels == 16 + 48
    assert len(calls) == 2
    assert evaluate(model, dataset.take(1), TAXONOMY).refine.pixels == 16


def test_json_is_the_contract(model: keras.Model) -> None:
    image, label = random_part(2, seed=3)
    label[label == 2] = 0
    image[..., :2] = np.minimum(image[..., :2], 1)
    state = evaluate(model, batches(image, label, 2), TAXONOMY, pictures=9, split="val")
    tree = json.loads(json.dumps(state.to_json(), allow_nan=False))
    for head in ("coarse", "fine", "refine"):
        assert {"pixel_accuracy", "class_accuracy", "mean_iou", "iou"} <= set(tree[head])
        assert list(tree[head]["iou"]) == list(TAXONOMY.names)
        assert 0 <= tree[head]["mean_iou"] <= 1
        assert tree[head]["mean_iou"] == tree[head]["mean_iou_present"]
        assert set(tree["means"]) == {key for key in tree[head] if "class" in key or "mean" in key}
    # Labels have two classes, and refine names the third.
    ious = list(tree["refine"]["iou"].values())
    assert tree["refine"]["mean_iou"] == pytest.approx(sum(ious) / 2)
    assert tree["refine"]["mean_iou_union"] == pytest.approx(sum(ious) / 3)
    assert f"{100 * sum(ious) / 2:.2f}" in shown(state)
    assert tree["coarse"]["iou"]["[red]sand"] is None
    assert tree["refine"]["iou"]["[red]sand"] == 0
    assert 0 <= tree["difficulty"]["auroc"] <= 1
    assert tree["difficulty"]["by_target"]["easy"]["coarse"] == 1
    assert (tree["split"], tree["pictures"]) == ("val", 9)
    assert tree["pixels"] == int((label != VOID).sum())


def shown(state: Evaluation) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(report(state))
    return console.export_text()


def test_all_void_is_shown_as_dashes_with_the_rule(model: keras.Model) -> None:
    image, label = random_part(1, seed=4)
    state = evaluate(model, batches(image, np.full_like(label, VOID), 1), TAXONOMY)
    tree = json.loads(json.dumps(state.to_json(), allow_nan=False))
    assert tree["refine"]["pixel_accuracy"] is None
    assert tree["difficulty"]["auroc"] is None
    text = shown(state)
    assert "-: a class that neither labels nor predictions" in text
    assert "nan" not in text.lower()


def test_tables_fit_and_keep_odd_names(model: keras.Model) -> None:
    image, label = random_part(4, seed=5)
    text = shown(evaluate(model, batches(image, label, 4), TAXONOMY))
    assert "[red]sand" in text
    assert "test: 4 images" in text
    assert "absent as 0" not in text
    label[label == 2] = 0
    fewer = shown(evaluate(model, batches(image, label, 4), TAXONOMY))
    assert "Class means where labels lack" in fewer
    assert max(map(len, fewer.splitlines())) <= 80
    assert max(map(len, text.splitlines())) <= 80


def test_one_class_alone_is_said_beside_its_figures(model: keras.Model) -> None:
    image, label = random_part(2, seed=6)
    some = evaluate(model, batches(image, label, 2), TAXONOMY)
    assert some.warning is None
    assert "warning" not in some.to_json()
    alone = evaluate(
        model, batches(image, np.where(label == VOID, VOID, 1).astype(np.int32), 2), TAXONOMY
    )
    name = TAXONOMY.names[1]
    tree = alone.to_json()
    assert tree["classes_in_labels"] == [name]
    assert f"The labels contain '{name}' alone" in tree["warning"]
    text = " ".join(shown(alone).split())
    assert f"The labels contain '{name}' alone" in text
    assert text.index("alone") < text.index("IoU by class")


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
        evaluate(model, batches(image, label, 1), TAXONOMY)


def test_a_bad_file_keeps_its_own_words(model: keras.Model) -> None:
    def read(_: np.ndarray) -> np.ndarray:
        raise DataError("labels/a.png: holds value 99, classes are 0..2: repair it")

    dataset = tf.data.Dataset.range(1).map(
        lambda i: (tf.numpy_function(read, [i], tf.uint8), tf.zeros([1, 2, 2], tf.int32))
    )
    with pytest.raises(DataError) as caught:
        evaluate(model, dataset, TAXONOMY)
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
    with pytest.raises(DataError, match="data have 2 classes but the network answers with 3"):
        Evaluator(model, Taxonomy(("a", "b"), ((0, 0, 0), (1, 1, 1))))


@pytest.mark.slow
def test_the_real_network_is_counted_as_it_answers() -> None:
    """At any size: below 32 pixels both see the image mirrored."""
    network = build()
    for key, variable in named_variables(network).items():
        if key.endswith("gamma"):  # gains at which answers differ from pixel to pixel
            variable.assign(np.full(variable.shape, 3, np.float32))
    rng = np.random.default_rng(8)
    evaluator, predictor = Evaluator(network, TAXONOMY), KerasNetwork(network)
    for size in ((40, 48), (31, 45), (70, 20), (7, 9), (1, 1)):
        image = rng.integers(0, 256, size=(2, *size, 3)).astype(np.uint8)
        label = rng.integers(VOID, CLASSES, size=(2, *size)).astype(np.int32)
        state = evaluator.run(batches(image, label, 2))
        heads = [predictor.predict_all_heads(each) for each in image]
        for head in ("coarse", "fine", "refine"):
            answers = np.stack([getattr(each, head) for each in heads])
            expected = Confusion.of(label, answers, classes=CLASSES)
            np.testing.assert_array_equal(getattr(state, head).counts, expected.counts)
        known = label != VOID
        hard = (np.stack([each.coarse for each in heads]) != label)[known]
        risk = np.stack([each.difficulty for each in heads])[known]
        exact = ScoreHistogram.of(np.log(risk / (1 - risk)), hard).auroc
        assert state.difficulty.auroc == pytest.approx(exact, abs=1e-3)


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
