"""The content of `evaluation.json`; docs/evaluation.md describes each key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ccfnet_tf.evaluation.boundaries import BANDS
from ccfnet_tf.evaluation.confusion import ABSENT_RULE, MEANS, ClassFigures, mean, ratio
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.evaluation.evaluation import PREDICTIONS, PROBABILITIES, SCORES, Evaluation
from ccfnet_tf.evaluation.hard_switch import SWITCHES
from ccfnet_tf.evaluation.reliability import adaptive_ece

Tree = dict[str, Any]

LARGEST_MATRIX = 256
"""Largest number of classes with a confusion matrix here; `images.npz` always has the matrices."""


def to_json(evaluation: Evaluation) -> Tree:
    """Returns the content of `evaluation.json`: fractions 0..1, None for undefined figures."""
    scores = {
        head: {score: _score(evaluation, head, score) for score in SCORES[head]} for head in SCORES
    }
    return {
        "split": evaluation.split,
        **({"wrapping": evaluation.wrapping} if evaluation.wrapping else {}),
        "pictures": evaluation.pictures,
        "pixels": evaluation.classes("refine").pixels,
        "classes_in_labels": list(evaluation.shown),
        **({"warning": evaluation.warning} if evaluation.warning else {}),
        **{name: _prediction(evaluation, name) for name in PREDICTIONS},
        "difficulty": {
            "auroc": scores["coarse"]["difficulty"]["auroc"],
            "auroc_of_max_softmax": scores["coarse"]["max_softmax"]["auroc"],
            "hard_share": scores["coarse"]["difficulty"]["error_rate"],
            "by_target": evaluation.by_target.to_json(),
            "by_attention": evaluation.by_attention.to_json(),
        },
        "cascade": {
            "everywhere": _cascade(evaluation, None),
            "near_boundaries": {str(width): _cascade(evaluation, width) for width in BANDS},
        },
        "switch": _switch(evaluation),
        "scores": scores,
        "class_wise_ece": _class_wise(evaluation),
        "means": MEANS,
        "rule": ABSENT_RULE,
    }


def mean_boundary_iou(evaluation: Evaluation, prediction: str) -> float | None:
    """Returns the mean Boundary IoU over the classes that labels contain."""
    return _mean_present(evaluation, evaluation.boundary(prediction).iou)


def class_wise_ece(evaluation: Evaluation) -> float | None:
    """Returns the mean over the classes that labels contain of the ECE of refine's probability."""
    classes = range(len(evaluation.taxonomy.names))
    values = tuple(evaluation.class_reliability(index).ece for index in classes)
    return _mean_present(evaluation, values)


def _prediction(evaluation: Evaluation, name: str) -> Tree:
    state = evaluation.classes(name)
    names, boundary = evaluation.taxonomy.names, evaluation.boundary(name).iou
    by_class = {
        "iou": state.iou,
        "dice": state.dice,
        "precision": state.precision,
        "recall": state.recall,
        "boundary_iou": boundary,
    }
    tree = {
        **_means(state),
        "mean_boundary_iou": _mean_present(evaluation, boundary),
        **{key: dict(zip(names, values, strict=True)) for key, values in by_class.items()},
    }
    if name in HEADS and len(names) <= LARGEST_MATRIX:
        tree["confusion"] = getattr(evaluation, name).counts.tolist()
    return tree


def _means(state: ClassFigures) -> Tree:
    return {
        "pixel_accuracy": state.pixel_accuracy,
        "class_accuracy": state.class_accuracy,
        "class_accuracy_all": state.class_accuracy_all,
        "mean_iou": state.mean_iou_present,
        "mean_iou_present": state.mean_iou_present,
        "mean_iou_union": state.mean_iou_union,
        "mean_iou_all": state.mean_iou_all,
    }


def _cascade(evaluation: Evaluation, within: int | None) -> Tree:
    states = {name: evaluation.classes(name, within) for name in PREDICTIONS}
    corrected, spoiled = evaluation.changed(within)
    coarse = states["coarse"]
    right = int(coarse.hits.sum())
    return {
        "pixels": coarse.pixels,
        **{
            name: {
                "pixel_accuracy": state.pixel_accuracy,
                "mean_iou": state.mean_iou_present,
                "iou": dict(zip(evaluation.taxonomy.names, state.iou, strict=True)),
            }
            for name, state in states.items()
        },
        "corrected": corrected,
        "spoiled": spoiled,
        "corrected_share": ratio(corrected, coarse.pixels - right),
        "spoiled_share": ratio(spoiled, right),
    }


def _switch(evaluation: Evaluation) -> Tree:
    point = evaluation.switch("attention").as_good_as_fine
    return {
        **{score: [asdict(p) for p in evaluation.switch(score).points] for score in SWITCHES},
        "as_good_as_fine": None if point is None else asdict(point),
    }


def _score(evaluation: Evaluation, head: str, score: str) -> Tree:
    ranking = evaluation.ranking(head, score)
    tree: Tree = {
        "error_rate": ranking.error_rate,
        "auroc": ranking.auroc,
        "average_precision": ranking.average_precision,
        "fpr_at_95_recall_of_errors": ranking.fpr_at_error_recall,
        "fpr95_correct_positive": ranking.fpr_at_correct_recall,
        "aurc": ranking.aurc,
        "e_aurc": ranking.e_aurc,
        "augrc": ranking.augrc,
        "risk_coverage": ranking.risk_coverage(),
    }
    if score in PROBABILITIES[head]:
        reliability = evaluation.reliability(head, score)
        tree |= {
            "ece": reliability.ece,
            "adaptive_ece": adaptive_ece(evaluation.counts[f"score/{head}/{score}"]),
            "ece_within_4_pixels": evaluation.reliability(head, score, near=True).ece,
            "reliability": reliability.curve(),
        }
    return tree


def _class_wise(evaluation: Evaluation) -> Tree:
    names = evaluation.taxonomy.names
    eces = {name: evaluation.class_reliability(index).ece for index, name in enumerate(names)}
    return {"mean": class_wise_ece(evaluation), "classes": eces}


def _mean_present(evaluation: Evaluation, values: tuple[float | None, ...]) -> float | None:
    """Returns the mean over the classes that labels contain, of those that have a value."""
    present = evaluation.classes("refine").truth > 0
    return mean(tuple(value for value, there in zip(values, present, strict=True) if there))
