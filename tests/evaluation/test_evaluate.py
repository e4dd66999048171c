"""The pass: every image once, in parts too, whatever its size."""

from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.errors import DataError
from ccfnet_tf.evaluation.evaluate import evaluate
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs, Prediction
from ccfnet_tf.labels import Sample, Taxonomy, distinct_colours
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from tests.evaluation.conftest import drawn
from tests.evaluation.test_evaluation import assert_same

SAMPLES = [Sample(f"image {index}", f"{index}.jpg", f"{index}.png") for index in range(7)]


class Drawn:
    """Answers the image that is filled with a number by the outputs drawn for that number."""

    taxonomy = Taxonomy(("a", "b", "c"), distinct_colours(3))
    at_once = 1
    calibration = UNCALIBRATED

    def head_outputs(self, image: np.ndarray) -> HeadOutputs:
        return drawn(int(image[0, 0, 0]), size=image.shape[:2])[1]

    def prediction(self, outputs: HeadOutputs) -> Prediction:
        raise NotImplementedError

    def predict(self, image: np.ndarray) -> Prediction:
        raise NotImplementedError


def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    index = SAMPLES.index(sample)
    size = (20 + index, 30 - index)
    return np.full((*size, 3), index, np.uint8), drawn(index, size=size)[0]


def test_every_image_is_counted_once_and_in_order() -> None:
    calls: list[int] = []
    found = evaluate(Drawn(), SAMPLES, load, split="val", advance=lambda: calls.append(1))
    assert len(calls) == found.pictures == 7
    assert found.split == "val"
    assert found.images.names == tuple(sample.name for sample in SAMPLES)
    one_by_one = [
        Evaluation.of(
            load(sample)[1],
            Drawn().head_outputs(load(sample)[0]),
            Drawn.taxonomy,
            split="val",
            index=index,
            name=sample.name,
        )
        for index, sample in enumerate(SAMPLES)
    ]
    assert_same(found, Evaluation.total(one_by_one, Drawn.taxonomy, split="val"))


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_parts_on_several_machines_are_the_whole(parts: int) -> None:
    found = [evaluate(Drawn(), SAMPLES, load, shard=(k, parts)) for k in range(1, parts + 1)]
    assert sum(each.pictures for each in found) == 7
    assert_same(Evaluation.total(found[::-1], Drawn.taxonomy), evaluate(Drawn(), SAMPLES, load))


def test_labels_of_other_classes_are_refused() -> None:
    def strange(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = load(sample)
        return image, np.where(label == 2, 3, label)

    with pytest.raises(DataError, match=r"0\.png: contains class 3, but the network has 3 classes"):
        evaluate(Drawn(), SAMPLES, strange)


def test_a_bad_file_keeps_its_own_words() -> None:
    def damaged(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        raise DataError(f"{sample.label}: damaged: replace it")

    with pytest.raises(DataError, match=r"0\.png: damaged: replace it"):
        evaluate(Drawn(), SAMPLES, damaged)
