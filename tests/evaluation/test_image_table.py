from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.labels import VOID, Taxonomy, distinct_colours
from tests.evaluation.conftest import Draw

CLASSES = 5
TAXONOMY = Taxonomy(tuple("abcde"), distinct_colours(CLASSES))


@pytest.fixture(scope="module")
def evaluation(draw: Draw) -> Evaluation:
    """Three images, the middle one all void, counted in another order."""
    parts = [
        Evaluation.of(
            *draw(seed, classes=CLASSES, size=(20 + seed, 31), void=[0.1, 1.0, 0.5][seed]),
            TAXONOMY,
            index=10 * seed,
            name=f"sub/{seed}, odd",
        )
        for seed in (2, 0, 1)
    ]
    return Evaluation.total(parts, TAXONOMY)


def test_csv_has_a_row_for_each_image(evaluation: Evaluation, draw: Draw) -> None:
    rows = list(csv.DictReader(io.StringIO(evaluation.images.to_csv())))
    assert [row["image"] for row in rows] == ["sub/0, odd", "sub/1, odd", "sub/2, odd"]
    assert rows[1]["refine_pixel_accuracy"] == rows[1]["mean_risk"] == ""
    assert (rows[1]["pixels"], rows[1]["height"], rows[1]["width"]) == ("0", "21", "31")
    label, outputs = draw(2, classes=CLASSES, size=(22, 31), void=0.5)
    known, row = label != VOID, rows[2]
    assert int(row["pixels"]) == known.sum()
    for head in ("coarse", "fine", "refine"):
        confusion = Confusion.of(label, getattr(outputs, head).argmax(-1), classes=CLASSES)
        assert float(row[f"{head}_pixel_accuracy"]) == pytest.approx(
            confusion.pixel_accuracy, abs=1e-6
        )
        assert float(row[f"{head}_mean_iou"]) == pytest.approx(confusion.mean_iou_present, abs=1e-6)
    coarse, refine = (getattr(outputs, h).argmax(-1) == label for h in ("coarse", "refine"))
    assert int(row["corrected"]) == (refine & ~coarse & known).sum()
    assert int(row["spoiled"]) == (coarse & ~refine & known).sum()
    risk = 1 - np.exp(outputs.refine).max(-1)[known]
    chosen = outputs.coarse.argmax(-1)[..., np.newaxis]
    difficulty = 1 - np.exp(np.take_along_axis(outputs.refine, chosen, -1))[..., 0][known]
    attention = 1 / (1 + np.exp(-outputs.attention[known]))
    assert float(row["mean_risk"]) == pytest.approx(risk.mean(), abs=2e-6)
    assert float(row["mean_difficulty"]) == pytest.approx(difficulty.mean(), abs=2e-6)
    assert float(row["mean_attention"]) == pytest.approx(attention.mean(), abs=2e-6)
    assert float(row["share_at_risk"]) == pytest.approx((risk > 0.5).mean(), abs=1e-6)


def test_npz_has_the_confusion_matrix_of_each_image(evaluation: Evaluation, draw: Draw) -> None:
    with np.load(io.BytesIO(evaluation.images.to_npz())) as file:
        assert file["names"].tolist() == ["sub/0, odd", "sub/1, odd", "sub/2, odd"]
        cells = file["fine"]
    counts = np.zeros((3, CLASSES, CLASSES), np.int64)
    counts[tuple(cells[:, :3].T)] = cells[:, 3]
    for place, void in ((0, 0.1), (2, 0.5)):
        label, outputs = draw(place, classes=CLASSES, size=(20 + place, 31), void=void)
        wanted = Confusion.of(label, outputs.fine.argmax(-1), classes=CLASSES)
        np.testing.assert_array_equal(counts[place], wanted.counts)
    assert not counts[1].any()
    np.testing.assert_array_equal(counts.sum(0), evaluation.fine.counts)


def test_files_have_the_same_bytes_each_time(evaluation: Evaluation) -> None:
    assert evaluation.images.to_npz() == evaluation.images.to_npz()
