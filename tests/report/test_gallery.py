"""The layers of images: what they show, how many there are, and that they are small."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ccfnet_tf.datasets.layouts.stanford_background import read_regions
from ccfnet_tf.evaluation.read_image_table import ImageRow
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs
from ccfnet_tf.inference.writers import map_image
from ccfnet_tf.labels import VOID, Sample, Taxonomy, distinct_colours
from ccfnet_tf.report import gallery as module
from ccfnet_tf.report.gallery import (
    ALL,
    EACH,
    ERRORS,
    LAYERS,
    LONGEST,
    MAPS,
    choose,
    compared,
    gallery,
)
from tests.report.conftest import TAXONOMY, Drawn, load, outputs_of, samples

ROW = ImageRow("a", 100, 0.5, 0.4, 3, 1, 0.2)


def decoded(address: str) -> np.ndarray:
    data = base64.b64decode(address.partition(",")[2])
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def test_label_maps_have_the_colours_of_the_classes() -> None:
    sample = samples()[0]
    label = load(sample)[1]
    (entry,) = gallery(Drawn(), [(sample, ROW)], load, TAXONOMY)
    layers = dict(zip(LAYERS, map(decoded, entry.layers), strict=True))
    palette = np.array([*TAXONOMY.palette, (0, 0, 0)], np.uint8)
    np.testing.assert_array_equal(layers["label"], palette[label])  # VOID is the last
    for head in ("coarse", "refine"):
        predicted = getattr(outputs_of(0, 0), head).argmax(-1)
        np.testing.assert_array_equal(layers[head], palette[predicted])
    assert entry.classes == (0, 1, 2)
    assert {picture.shape[:2] for picture in layers.values()} == {label.shape} == {entry.size}


def test_errors_are_what_refine_changes_of_coarse() -> None:
    label = np.array([[0, 0, 0, 0, VOID]])
    coarse, refine = np.array([[0, 1, 0, 1, 0]]), np.array([[0, 0, 1, 2, 0]])
    kinds = compared(label, coarse, refine)
    names = [ERRORS[kind][0] for kind in kinds[0]]
    assert names == ["right in both", "corrected", "spoiled", "wrong in both", "void"]


def test_maps_are_dark_where_they_are_low() -> None:
    sample = samples()[1]
    (entry,) = gallery(Drawn(), [(sample, ROW)], load, TAXONOMY)
    layers = dict(zip(LAYERS, map(decoded, entry.layers), strict=True))
    prediction = Drawn().prediction(outputs_of(1, 0))
    for name in MAPS:
        expected = map_image(getattr(prediction, name)).astype(float)
        # Lossy, and noise from pixel to pixel is the worst case.
        assert np.corrcoef(layers[name].ravel(), expected.ravel())[0, 1] > 0.8, name


def test_a_large_image_is_shown_smaller() -> None:
    shape = (300, 900)

    class Large:
        taxonomy = TAXONOMY
        at_once = 1
        predict = None
        prediction = Drawn().prediction

        def head_outputs(self, image: np.ndarray) -> HeadOutputs:
            logs = np.log(np.full((*shape, 4), 0.25, np.float32))
            return HeadOutputs(logs, logs, logs, np.zeros(shape, np.float32))

    def large(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.int32)

    (entry,) = gallery(Large(), [(samples()[0], ROW)], large, TAXONOMY)  # type: ignore[arg-type]
    assert entry.size == (round(LONGEST / 3), LONGEST)
    assert {decoded(layer).shape[:2] for layer in entry.layers} == {entry.size}


def test_hundreds_of_classes_keep_their_colours() -> None:
    taxonomy = Taxonomy(tuple(map(str, range(300))), distinct_colours(300))
    ids = np.arange(300).reshape(15, 20)
    shown = decoded(module._labels_png(ids, taxonomy))
    np.testing.assert_array_equal(shown, np.array(taxonomy.palette, np.uint8)[ids])


def test_a_prediction_that_was_not_evaluated_is_noticed() -> None:
    sample = samples()[3]
    label = load(sample)[1]
    prediction = Drawn().prediction(outputs_of(3, 0))
    right = float((prediction.labels == label)[label != VOID].mean())
    risk = float(prediction.risk[label != VOID].mean())
    cases = ((right, risk, False), (right - 0.02, risk, True), (right, risk + 0.02, True))
    for accuracy, mean_risk, other in cases:
        row = replace(ROW, accuracy=accuracy, risk=mean_risk)
        assert gallery(Drawn(), [(sample, row)], load, TAXONOMY)[0].other is other


def test_of_a_large_split_the_first_of_each_sorting_are_shown() -> None:
    rng = np.random.default_rng(0)
    count = 2000
    rows = [
        ImageRow(str(n), 100, rng.random(), 0.5, int(rng.integers(0, 99)),
                 int(rng.integers(0, 99)), rng.random())
        for n in range(count)
    ]  # fmt: skip
    chosen = choose(rows)
    assert EACH <= len(chosen) <= 4 * EACH
    assert chosen == sorted(chosen)
    assert int(np.argmin([row.accuracy or 0 for row in rows])) in chosen
    assert int(np.argmax([row.risk or 0 for row in rows])) in chosen
    assert choose(rows[:ALL]) == list(range(ALL))


def test_images_without_a_labelled_pixel_come_last() -> None:
    void = ImageRow("void", 0, None, None, 0, 0, None)
    rows = [void, *(ImageRow(str(n), 10, n / 10, 0.5, n, n, n / 10) for n in range(5))]
    for _, key in module.SORTINGS.values():
        assert sorted(rows, key=lambda row: -key(row))[-1].name in ("void", "0")
    worst = module.SORTINGS["worst"][1]
    assert sorted(rows, key=lambda row: -worst(row))[-1] is void


def test_143_photographs_take_less_than_15_megabytes(stanford_root: Path) -> None:
    """With outputs that change at random from one cell of 16x16 pixels to the next."""
    photographs = sorted((stanford_root / "images").glob("*.jpg"))[::60]
    taxonomy = Taxonomy(tuple(map(str, range(8))), distinct_colours(8))

    class Noisy(Drawn):
        def head_outputs(self, image: np.ndarray) -> HeadOutputs:
            rng = np.random.default_rng(image[:8, :8].ravel())
            height, width = image.shape[:2]
            cells = rng.normal(size=(-(-height // 16), -(-width // 16), 25)).astype(np.float32)
            logits = cv2.resize(2 * cells, (width, height))
            heads = np.split(logits[..., :24], 3, axis=-1)
            logs = [each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in heads]
            return HeadOutputs(*logs, logits[..., 24])

    def load_photograph(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        label = read_regions(sample.label)
        return np.array(Image.open(sample.image).convert("RGB")), np.where(label < 0, VOID, label)

    labels = stanford_root / "labels"
    shown = [
        (Sample(file.stem, str(file), str(labels / f"{file.stem}.regions.txt")), ROW)
        for file in photographs
    ]
    entries = gallery(Noisy(taxonomy=taxonomy), shown, load_photograph, taxonomy)
    each = [sum(map(len, entry.layers)) for entry in entries]
    assert 143 * np.mean(each) < 14e6  # a megabyte remains for the figures
