"""`evaluation.json` that is missing, damaged or old."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf.errors import DataError
from ccfnet_tf.evaluation.evaluation import PREDICTIONS, Evaluation
from ccfnet_tf.report.read_evaluation_json import Evaluated
from ccfnet_tf.report.run_report import report_page
from tests.report.conftest import TAXONOMY

DAMAGE: list[tuple[tuple[str, ...], Any, str]] = [
    (("scores",), None, "'scores' is missing"),
    (("cascade", "everywhere", "corrected"), -3, "'cascade.everywhere.corrected' is -3"),
    (("refine", "mean_iou"), "much", "'refine.mean_iou' is 'much'"),
    (("refine", "mean_iou"), 1e300, "'refine.mean_iou' is 1e+300"),
    (("refine", "mean_iou"), True, "'refine.mean_iou' is True"),
    (("refine", "confusion"), [[1, 2], [3]], "'refine.confusion' is a list of 2"),
    (("refine", "confusion"), [[1.5]], "'refine.confusion' is float64 [1, 1]"),
    (("scores", "refine", "risk", "risk_coverage", "risk"), [0.1], "lists of different lengths"),
    (("scores", "coarse", "difficulty", "reliability"), [3], "is 3"),
    (("split",), 7, "'split' is 7"),
    (("split",), "load", "'split' is 'load'"),
]


@pytest.mark.parametrize(("keys", "value", "fault"), DAMAGE)
def test_a_damaged_value_is_named(
    keys: tuple[str, ...], value: Any, fault: str, evaluation: Evaluation, tmp_path: Path
) -> None:
    tree: Any = evaluation.to_json()
    *places, last = keys
    owner = tree
    for key in places:
        owner = owner[key]
    if value is None:
        del owner[last]
    else:
        owner[last] = value
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=re.escape(fault) + ".*run `ccfnet-tf evaluate` again"):
        report_page(Evaluated.read(path), TAXONOMY, title="x")


def test_a_file_without_the_scores_of_later_heads_is_read(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    tree = evaluation.to_json()
    path.write_text(json.dumps(tree))
    assert "refine entropy" in report_page(Evaluated.read(path), TAXONOMY, title="x")
    for head in ("fine", "refine"):
        for score in ("max_softmax", "entropy", "margin"):
            del tree["scores"]["coarse"][f"{head}_{score}"]
    for band in (tree["cascade"]["everywhere"], *tree["cascade"]["near_boundaries"].values()):
        for name in PREDICTIONS:
            del band[name]["iou"]
    path.write_text(json.dumps(tree))
    page = report_page(Evaluated.read(path), TAXONOMY, title="x")
    assert "fine difficulty" in page
    assert "refine entropy" not in page


def test_what_is_missing_says_which_command_writes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"run `ccfnet-tf evaluate {tmp_path}` first"):
        Evaluated.read(tmp_path / "evaluation.json")


def test_infinity_is_no_figure(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text('{"refine": {"iou": {"a": Infinity}}}')
    with pytest.raises(DataError, match=r"'refine\.iou\.a' is inf"):
        Evaluated.read(path).by_class("refine", "iou")
