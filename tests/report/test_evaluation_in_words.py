"""Sentences and tiles: what they claim is what was counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs
from ccfnet_tf.labels import VOID
from ccfnet_tf.report.evaluation_in_words import confusions, selective, sentences, tiles
from ccfnet_tf.report.read_evaluation_json import Evaluated
from tests.report.conftest import TAXONOMY, load, outputs_of, samples


def evaluated(tmp_path: Path, evaluation: Evaluation) -> Evaluated:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation.to_json()))
    return Evaluated.read(path)


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Returns risk and whether refine is wrong, of all labelled pixels."""
    risks, wrongs = [], []
    for index, sample in enumerate(samples()):
        label = load(sample)[1]
        refine = outputs_of(index, 0).refine[label != VOID]
        risks.append(1 - np.exp(refine).max(-1))
        wrongs.append(refine.argmax(-1) != label[label != VOID])
    return np.concatenate(risks), np.concatenate(wrongs)


def test_what_the_riskiest_pixels_hold(tmp_path: Path, evaluation: Evaluation) -> None:
    risk, wrong = pixels()
    order = np.argsort(risk, kind="stable")
    kept = wrong[order[: round(0.8 * order.size)]]
    found, right = selective(evaluated(tmp_path, evaluation))
    assert found == pytest.approx(1 - kept.sum() / wrong.sum(), abs=0.005)
    assert right == pytest.approx(1 - kept.mean(), abs=0.005)


def test_ties_everywhere_find_errors_by_chance(tmp_path: Path) -> None:
    label = np.arange(400).reshape(20, 20) % 2
    same = np.full((20, 20, 4), np.log(0.25), np.float32)
    outputs = HeadOutputs(same, same, same, np.zeros((20, 20), np.float32))
    state = Evaluation.of(label.astype(np.int32), outputs, TAXONOMY)
    assert selective(evaluated(tmp_path, state)) == pytest.approx((0.2, 0.5))


@pytest.mark.parametrize("calibrated", [True, False, None])
def test_an_uncalibrated_run_is_called_so(
    calibrated: bool | None, tmp_path: Path, evaluation: Evaluation
) -> None:
    read = evaluated(tmp_path, evaluation)
    if calibrated is not None:
        read.tree["calibrated"] = calibrated
    text = "\n".join(sentences(read))
    assert ("The run was not calibrated" in text) == (calibrated is False)


def test_sentences_carry_the_figures(tmp_path: Path, evaluation: Evaluation) -> None:
    text = "\n".join(sentences(evaluated(tmp_path, evaluation)))
    tree: dict[str, Any] = evaluation.to_json()
    accuracy = tree["refine"]["pixel_accuracy"]
    assert f"the right class to {100 * accuracy:.1f}\u00a0% of the pixels" in text
    assert "On 6 images of the test split" in text
    weakest = min(
        (value, name) for name, value in tree["refine"]["iou"].items() if value is not None
    )
    assert f"Weakest class: {weakest[1]} (IoU {100 * weakest[0]:.1f}\u00a0%" in text
    scores = tree["scores"]["coarse"]
    free = max(scores[name]["auroc"] for name in scores.keys() - {"attention", "difficulty"})
    assert f"AUROC {scores['difficulty']['auroc']:.3f} against {free:.3f}" in text
    better = scores["difficulty"]["auroc"] > free
    assert ("difficulty map finds errors of coarse better" in text) == better


def test_the_best_score_without_a_map_is_named(tmp_path: Path, evaluation: Evaluation) -> None:
    found = evaluated(tmp_path, evaluation)
    found.tree["scores"]["coarse"]["refine_entropy"]["auroc"] = 0.999
    assert "that needs no map (entropy of refine): AUROC" in "\n".join(sentences(found))


@pytest.mark.parametrize(
    ("coarse", "average", "expected"),
    [
        (0.895, 0.9031, []),
        (0.9031, 0.9, []),
        (0.895, 0.9037, ["the plain average of coarse and fine reaches 90.4"]),
        (0.91, 0.9037, ["coarse alone reaches 91.0", "the plain average"]),
    ],
)
def test_only_what_is_printed_as_more_is_called_better(
    coarse: float, average: float, expected: list[str], tmp_path: Path, evaluation: Evaluation
) -> None:
    found = evaluated(tmp_path, evaluation)
    figures = {"coarse": coarse, "fine": 0.8, "refine": 0.9028, "average": average}
    for name, figure in figures.items():
        found.tree[name]["pixel_accuracy"] = figure
    text = "\n".join(sentences(found))
    assert ("is not the best of them" in text) == bool(expected)
    assert all(each in text for each in expected)
    assert ("accuracy stays at 90.3\u00a0%" in text) == (coarse == 0.9031)


def test_the_largest_confusion_is_named(tmp_path: Path, evaluation: Evaluation) -> None:
    found = confusions(evaluated(tmp_path, evaluation), 2)
    wrong = evaluation.refine.counts * ~np.eye(4, dtype=bool)
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    assert found[0].pixels == wrong.max()
    assert (found[0].truth, found[0].predicted) == (TAXONOMY.names[row], TAXONOMY.names[column])
    assert found[0].of_all == pytest.approx(wrong.max() / evaluation.refine.counts.sum())
    assert found[0].share == pytest.approx(wrong.max() / evaluation.refine.counts[row].sum())


@pytest.mark.parametrize("case", ["void", "all right", "one class"])
def test_degenerate_evaluations_have_a_summary(case: str, tmp_path: Path) -> None:
    label = np.zeros((8, 8), np.int32) if case == "one class" else np.arange(64).reshape(8, 8) % 3
    sure = np.where(np.eye(4, dtype=bool)[label], 0.0, -40.0).astype(np.float32)
    if case == "void":
        label = np.full((8, 8), VOID)
    outputs = HeadOutputs(sure, sure, sure, np.full((8, 8), -9, np.float32))
    state = Evaluation.of(label.astype(np.int32), outputs, TAXONOMY)
    found = evaluated(tmp_path, state)
    shown = tiles(found)
    text = "\n".join(sentences(found))
    if case == "void":
        assert {tile.figure for tile in shown} == {"n/a"}
        assert text == "No pixel is labelled, so nothing was measured."
    else:
        assert [tile.figure for tile in shown] == [
            "100.0\u00a0%",
            "100.0\u00a0%",
            "n/a",
            "100.0\u00a0%",
        ]
        assert "100.0\u00a0% of the pixels" in text
    assert "nan" not in text
