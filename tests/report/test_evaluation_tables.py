from __future__ import annotations

import io

import numpy as np

from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.io.console import new_console
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.report.evaluation_tables import report
from tests.evaluation.conftest import drawn

TAXONOMY = Taxonomy(("sky", "sea", "[red]sand"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))


def shown(state: Evaluation) -> str:
    console, file = new_console(), io.StringIO()
    console.file, console.width = file, 80
    console.print(report(state), soft_wrap=False)
    return file.getvalue()


def test_tables_fit_and_keep_odd_names() -> None:
    label, outputs = drawn(0)
    evaluation = Evaluation.of(label, outputs, TAXONOMY)
    text = shown(evaluation)
    for word in ("[red]sand", "test: 1 image,", "attention", "difficulty", "risk", " *"):
        assert word in text
    for value in (evaluation.refine.mean_iou_present, evaluation.refine.pixel_accuracy):
        assert f"{100 * value:.2f}" in text  # type: ignore[operator]
    auroc = evaluation.ranking("coarse", "difficulty").auroc
    assert f"{auroc:.3f}" in text
    assert "absent as 0" not in text
    fewer = shown(Evaluation.of(np.where(label == 2, 0, label), outputs, TAXONOMY))
    assert "Class means where labels lack" in fewer
    for each in (text, fewer):
        assert max(map(len, each.splitlines())) <= 80
        assert "…" not in each
        assert "\\n" not in each  # a heading of two lines


def test_the_best_free_score_may_be_that_of_a_later_head() -> None:
    label, outputs = drawn(0)
    wrong = outputs.coarse.argmax(-1) != label
    doubtful, sure = (np.log(np.float32(p)) for p in ([0.4, 0.3, 0.3], [0.98, 0.01, 0.01]))
    refine = np.where(wrong[..., np.newaxis], doubtful, sure)
    text = shown(Evaluation.of(label, outputs._replace(refine=refine), TAXONOMY))
    coarse, rest = text.split("Scores of refine's errors")
    assert "refine max softmax *" in coarse
    assert "fine difficulty *" in coarse
    assert "refine max softmax" not in rest
    assert max(map(len, text.splitlines())) <= 80


def test_all_void_is_shown_as_dashes_with_the_rule() -> None:
    label, outputs = drawn(1, void=1.0)
    text = shown(Evaluation.of(label, outputs, TAXONOMY))
    assert "-: a class that neither labels nor predictions" in text
    assert "nan" not in text.lower()


def test_one_class_alone_is_said_before_its_figures() -> None:
    label, outputs = drawn(2)
    alone = Evaluation.of(np.where(label == VOID, VOID, 1), outputs, TAXONOMY)
    text = " ".join(shown(alone).split())
    assert text.index("The labels contain only 'sea'") < text.index("mean IoU")
