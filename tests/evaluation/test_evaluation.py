from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from ccfnet_tf.errors import NotFiniteError
from ccfnet_tf.evaluation.boundaries import BANDS
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.evaluation.evaluation import PREDICTIONS, PROBABILITIES, SCORES, Evaluation
from ccfnet_tf.evaluation.hard_switch import THRESHOLDS
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs
from ccfnet_tf.labels import VOID, Taxonomy, distinct_colours
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from tests.evaluation.conftest import Draw
from tests.evaluation.test_auroc_and_aurc import slow_areas, slow_rates
from tests.evaluation.test_boundaries import slow_edge, slow_rings
from tests.evaluation.test_reliability import slow_ece

TAXONOMY = Taxonomy(("sky", "sea", "[red]sand"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))
WIDE = Taxonomy(("sky", "sea", "sand", "only predicted", "nowhere"), distinct_colours(5))
"""The classes of `wide`."""

Image = tuple[np.ndarray, HeadOutputs]


def some(draw: Draw, count: int, **options: Any) -> list[Evaluation]:
    return [
        Evaluation.of(*draw(seed, **options), TAXONOMY, index=seed, name=f"image {seed}")
        for seed in range(count)
    ]


def wide(draw: Draw) -> list[Image]:
    """Draws two images with pixels in every band around boundaries and outside of all.

    Their labels have a hole of void that covers boundaries, and lack the last two of `WIDE`;
    predictions lack the last.
    """
    images = []
    for seed in (0, 1):
        label, (*heads, attention) = draw(seed, classes=4, size=(80, 120), block=40)
        label[label == 3] = 0
        label[30:55, 35:60] = VOID
        padded = [np.pad(head, ((0, 0), (0, 0), (0, 1)), constant_values=-60) for head in heads]
        images.append((label, HeadOutputs(*padded, attention)))
    return images


def total(images: list[Image], calibration: Calibration = UNCALIBRATED) -> Evaluation:
    parts = (
        Evaluation.of(*image, WIDE, calibration=calibration, index=index, name=str(index))
        for index, image in enumerate(images)
    )
    return Evaluation.total(parts, WIDE)


def predictions_of(label: np.ndarray, outputs: HeadOutputs) -> dict[str, np.ndarray]:
    """Returns each of `PREDICTIONS` by its definition, [H, W]."""
    coarse, fine, refine = (getattr(outputs, head) for head in ("coarse", "fine", "refine"))
    return {
        "coarse": coarse.argmax(-1),
        "fine": fine.argmax(-1),
        "average": (np.exp(coarse) + np.exp(fine)).argmax(-1),
        "refine": refine.argmax(-1),
        "oracle": np.where(coarse.argmax(-1) == label, label, fine.argmax(-1)),
    }


def pixels_of(images: list[Image]) -> dict[str, np.ndarray]:
    """Returns label, ring and predictions of the labelled pixels, each [N]."""
    parts = [
        {"label": label, "ring": slow_rings(label), **predictions_of(label, outputs)}
        for label, outputs in images
    ]
    known = [part["label"] != VOID for part in parts]
    return {
        key: np.concatenate([part[key][at] for part, at in zip(parts, known, strict=True)])
        for key in parts[0]
    }


def slow_scores(
    label: np.ndarray, outputs: HeadOutputs, calibration: Calibration
) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], np.ndarray], np.ndarray]:
    """Computes scores of the labelled pixels from their definitions, in float64.

    Returns:
        For each head whether it is wrong, [N]; for each head and score the values, [N]; and
        refine's probabilities, [N, C].
    """
    known = label != VOID
    logs = {head: getattr(outputs, head).astype(np.float64)[known] for head in HEADS}
    named = {head: each.argmax(-1) for head, each in logs.items()}
    logs["refine"] = logs["refine"] * np.array(calibration.scale)
    p = {head: np.exp(each) for head, each in logs.items()}
    p["refine"] /= p["refine"].sum(-1, keepdims=True)
    two = {head: np.sort(each)[:, -2:] for head, each in p.items()}
    chosen, of_fine = (
        np.take_along_axis(p[head], named["coarse"][:, np.newaxis], 1)[:, 0]
        for head in ("refine", "fine")
    )
    attention = outputs.attention[known] * calibration.attention_scale + calibration.attention_bias
    shared = {
        "attention": 1 / (1 + np.exp(-attention)),
        "difficulty": 1 - chosen,
        "fine_difficulty": 1 - of_fine,
        "risk": 1 - p["refine"].max(-1),
        "disagreement": (named["coarse"] != named["fine"]).astype(float),
    }
    own = {
        head: {
            "max_softmax": 1 - p[head].max(-1),
            "entropy": -(p[head] * np.log(p[head])).sum(-1),
            "margin": 1 - (two[head][:, 1] - two[head][:, 0]),
        }
        for head in HEADS
    }
    shared |= {
        f"{head}_{name}": each for head in ("fine", "refine") for name, each in own[head].items()
    }
    scores = {
        (head, score): (shared | own[head])[score] for head in HEADS for score in SCORES[head]
    }
    wrong = {head: each != label[known] for head, each in named.items()}
    return wrong, scores, p["refine"]


def as_text(evaluation: Evaluation) -> str:
    return json.dumps(evaluation.to_json(), allow_nan=False)


def assert_same(one: Evaluation, two: Evaluation) -> None:
    assert one.counts.keys() == two.counts.keys()
    for key, counts in one.counts.items():
        np.testing.assert_array_equal(counts, two.counts[key], err_msg=key)
    assert one.images.names == two.images.names
    np.testing.assert_array_equal(one.images.numbers, two.images.numbers)
    for head, cells in one.images.cells.items():
        np.testing.assert_array_equal(cells, two.images.cells[head])
    assert as_text(one) == as_text(two)
    assert one.images.to_csv() == two.images.to_csv()
    assert one.images.to_npz() == two.images.to_npz()


def test_every_prediction_is_counted(draw: Draw) -> None:
    label, outputs = draw(0)
    ours = Evaluation.of(label, outputs, TAXONOMY)
    expected = predictions_of(label, outputs)
    assert tuple(expected) == PREDICTIONS
    for name, prediction in expected.items():
        confusion = Confusion.of(label, prediction, classes=3)
        state = ours.classes(name)
        np.testing.assert_array_equal(state.truth, confusion.truth)
        np.testing.assert_array_equal(state.predicted, confusion.predicted)
        np.testing.assert_array_equal(state.hits, confusion.hits)
        if name in ("coarse", "fine", "refine"):
            np.testing.assert_array_equal(getattr(ours, name).counts, confusion.counts)
    known = label != VOID
    right = {name: (prediction == label)[known] for name, prediction in expected.items()}
    assert ours.changed() == (
        (right["refine"] & ~right["coarse"]).sum(),
        (right["coarse"] & ~right["refine"]).sum(),
    )


def test_a_switch_reads_attention_without_calibration(draw: Draw) -> None:
    label, outputs = draw(3, size=(60, 70))
    calibration = Calibration(attention_scale=0.4, attention_bias=1.5)
    ours = Evaluation.of(label, outputs, TAXONOMY, calibration=calibration)
    coarse, fine = outputs.coarse.argmax(-1), outputs.fine.argmax(-1)
    scores = {
        "attention": outputs.attention,
        "max_softmax": -np.log(1 / (1 - np.exp(outputs.coarse.astype(np.float64)).max(-1)) - 1),
    }
    for name, logit in scores.items():
        points = ours.to_json()["switch"][name]
        assert len(points) == len(THRESHOLDS) + 1
        for place in (40, 56, 60):
            switched = np.where(logit > THRESHOLDS[place], fine, coarse)
            confusion = Confusion.of(label, switched, classes=3)
            point = points[place + 1]
            assert point["fine_share"] == pytest.approx(
                (logit > THRESHOLDS[place])[label != VOID].mean()
            )
            assert point["pixel_accuracy"] == pytest.approx(confusion.pixel_accuracy)
            assert point["mean_iou"] == pytest.approx(confusion.mean_iou_present)
    assert ours.to_json()["switch"]["as_good_as_fine"]["threshold"] < 1


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_every_score_ranks_as_its_definition_does(draw: Draw, scale: float) -> None:
    label, outputs = draw(1, size=(60, 70))
    calibration = Calibration((scale,), (), 0.5, 0.7)
    ours = Evaluation.of(label, outputs, TAXONOMY, calibration=calibration)
    wrong, scores, _ = slow_scores(label, outputs, calibration)
    for (head, score), values in scores.items():
        ranking = ours.ranking(head, score)
        assert ranking.error_rate == pytest.approx(wrong[head].mean())
        auroc = metrics.roc_auc_score(wrong[head], values)
        assert ranking.auroc == pytest.approx(auroc, abs=2e-5), (head, score)
        precision = metrics.average_precision_score(wrong[head], values)
        assert ranking.average_precision == pytest.approx(precision, abs=2e-4), (head, score)


@pytest.mark.parametrize(("head", "score"), [("coarse", "difficulty"), ("refine", "risk")])
def test_every_figure_of_a_score(draw: Draw, head: str, score: str) -> None:
    label, outputs = draw(1, size=(60, 70))
    figures = Evaluation.of(label, outputs, TAXONOMY).to_json()["scores"][head][score]
    wrong, scores, _ = slow_scores(label, outputs, UNCALIBRATED)
    values, flags = scores[head, score], wrong[head]
    aurc, augrc = slow_areas(values, flags)
    best = slow_areas(flags + values / 2, flags)[0]  # the right pixels first, without ties
    flagged, kept = slow_rates(values, flags)
    places = np.argsort(values, kind="stable")
    adaptive = np.empty(values.size, int)
    adaptive[places] = np.arange(values.size) * 15 // values.size
    expected = {
        "error_rate": flags.mean(),
        "auroc": metrics.roc_auc_score(flags, values),
        "average_precision": metrics.average_precision_score(flags, values),
        "fpr_at_95_recall_of_errors": flagged,
        "fpr95_correct_positive": kept,
        "aurc": aurc,
        "e_aurc": aurc - best,
        "augrc": augrc,
        "ece": slow_ece(values, flags, np.minimum((values * 15).astype(int), 14)),
        "adaptive_ece": slow_ece(values, flags, adaptive),
    }
    assert {key: figures[key] for key in expected} == pytest.approx(expected, abs=1e-3)


def test_calibration_errors_near_boundaries_and_everywhere(draw: Draw) -> None:
    images, calibration = wide(draw), Calibration((0.6,), (), 0.5, 0.7)
    tree = total(images, calibration).to_json()["scores"]
    slow = [slow_scores(*image, calibration) for image in images]
    near = pixels_of(images)["ring"] <= BANDS.index(4)
    for head, probabilities in PROBABILITIES.items():
        wrong = np.concatenate([each[0][head] for each in slow])
        for score in probabilities:
            values = np.concatenate([each[1][head, score] for each in slow])
            place = np.minimum((values * 15).astype(int), 14)
            everywhere = slow_ece(values, wrong, place)
            within = slow_ece(values[near], wrong[near], place[near])
            figures = tree[head][score]
            assert abs(everywhere - within) > 1e-4
            assert figures["ece"] == pytest.approx(everywhere, abs=1e-6), (head, score)
            assert figures["ece_within_4_pixels"] == pytest.approx(within, abs=1e-6), (head, score)
            assert [row["pixels"] for row in figures["reliability"]] == np.bincount(
                place, minlength=15
            ).tolist()


def test_the_class_wise_calibration_error(draw: Draw) -> None:
    images, calibration = wide(draw), Calibration((0.6,), (), 0.5, 0.7)
    found = total(images, calibration).to_json()["class_wise_ece"]
    p = np.concatenate([slow_scores(*image, calibration)[2] for image in images])
    truth = pixels_of(images)["label"]
    place = np.minimum((p * 15).astype(int), 14)
    expected = [slow_ece(p[:, c], truth == c, place[:, c]) for c in range(5)]
    assert list(found["classes"]) == list(WIDE.names)
    assert list(found["classes"].values()) == pytest.approx(expected, abs=1e-6)
    # Labels have the first three classes.
    assert found["mean"] == pytest.approx(np.mean(expected[:3]), abs=1e-6)
    assert abs(np.mean(expected[:3]) - np.mean(expected)) > 1e-3


def slow_iou(one: np.ndarray, other: np.ndarray) -> float | None:
    """Returns the IoU of two masks, or None if both are empty."""
    union = (one | other).sum()
    return (one & other).sum() / union if union else None


def mean_of(values: list[float | None], truth: np.ndarray) -> float:
    """Returns the mean over the classes that labels contain."""
    return float(np.mean([values[index] for index in np.unique(truth)]))


def test_the_figures_of_each_prediction(draw: Draw) -> None:
    images = wide(draw)
    tree, pixels = total(images).to_json(), pixels_of(images)
    truth, classes = pixels["label"], range(5)
    assert np.unique(truth).tolist() == [0, 1, 2]
    options = {"labels": classes, "average": None, "zero_division": np.nan}
    for name in PREDICTIONS:
        figures, predicted = tree[name], pixels[name]
        recall = metrics.recall_score(truth, predicted, **options)
        iou = [slow_iou(truth == c, predicted == c) for c in classes]
        by_class = {
            "iou": iou,
            "precision": metrics.precision_score(truth, predicted, **options),
            "recall": recall,
            "dice": metrics.f1_score(truth, predicted, **options),
        }
        for key, values in by_class.items():
            expected = [None if v is None or np.isnan(v) else v for v in values]
            assert figures[key] == pytest.approx(dict(zip(WIDE.names, expected, strict=True))), key
        means = {
            "pixel_accuracy": metrics.accuracy_score(truth, predicted),
            "class_accuracy": recall[:3].mean(),
            "class_accuracy_all": recall[:3].sum() / 5,
            "mean_iou": mean_of(iou, truth),
            "mean_iou_present": mean_of(iou, truth),
            "mean_iou_union": np.mean([value for value in iou if value is not None]),
            "mean_iou_all": sum(value or 0 for value in iou) / 5,
        }
        assert {key: figures[key] for key in means} == pytest.approx(means)
        assert set(tree["means"]) == {*means, "mean_boundary_iou"} - {"pixel_accuracy"}
        if name in HEADS:
            matrix = metrics.confusion_matrix(truth, predicted, labels=classes)
            np.testing.assert_array_equal(figures["confusion"], matrix)
        else:
            assert "confusion" not in figures


def test_boundary_iou_of_each_class_and_its_mean(draw: Draw) -> None:
    images = wide(draw)
    tree, truth = total(images).to_json(), pixels_of(images)["label"]
    for name in PREDICTIONS:
        predicted = [np.where(im[0] == VOID, VOID, predictions_of(*im)[name]) for im in images]
        # Regions of all images side by side; an image has its own edges.
        of_label, of_prediction = (
            [np.where(slow_edge(ids), ids, VOID).ravel() for ids in maps]
            for maps in ([label for label, _ in images], predicted)
        )
        one, other = np.concatenate(of_label), np.concatenate(of_prediction)
        expected = [slow_iou(one == c, other == c) for c in range(5)]
        found = tree[name]["boundary_iou"]
        assert found == pytest.approx(dict(zip(WIDE.names, expected, strict=True)))
        assert tree[name]["mean_boundary_iou"] == pytest.approx(mean_of(expected, truth))


def test_the_cascade_within_each_band_and_everywhere(draw: Draw) -> None:
    images = wide(draw)
    cascade, pixels = total(images).to_json()["cascade"], pixels_of(images)
    assert list(cascade["near_boundaries"]) == ["1", "2", "4", "8", "16"]
    bands = [*cascade["near_boundaries"].values(), cascade["everywhere"]]
    sizes = [band["pixels"] for band in bands]
    assert len(set(sizes)) == len(sizes)  # every band adds pixels
    for ring, band in enumerate(bands):
        inside = pixels["ring"] <= ring
        assert band["pixels"] == inside.sum()
        truth = pixels["label"][inside]
        for name in PREDICTIONS:
            predicted = pixels[name][inside]
            iou = [slow_iou(truth == c, predicted == c) for c in range(5)]
            accuracy = metrics.accuracy_score(truth, predicted)
            assert band[name]["pixel_accuracy"] == pytest.approx(accuracy)
            assert band[name]["mean_iou"] == pytest.approx(mean_of(iou, truth))
            assert band[name]["iou"] == pytest.approx(dict(zip(WIDE.names, iou, strict=True)))
        coarse, refine = (pixels[name][inside] == truth for name in ("coarse", "refine"))
        assert band["corrected"] == (~coarse & refine).sum()
        assert band["spoiled"] == (coarse & ~refine).sum()
        assert band["corrected_share"] == pytest.approx(refine[~coarse].mean())
        assert band["spoiled_share"] == pytest.approx((~refine)[coarse].mean())


def test_easy_and_hard_pixels(draw: Draw) -> None:
    images = wide(draw)
    found, pixels = total(images).to_json()["difficulty"], pixels_of(images)
    attention = np.concatenate([out.attention[label != VOID] for label, out in images])
    right = {head: pixels[head] == pixels["label"] for head in HEADS}
    for key, hard in (("by_target", ~right["coarse"]), ("by_attention", attention > 0)):
        for group, mask in (("easy", ~hard), ("hard", hard)):
            expected = {"share": mask.mean()} | {head: right[head][mask].mean() for head in HEADS}
            assert found[key][group] == pytest.approx(expected)
    assert found["hard_share"] == pytest.approx((~right["coarse"]).mean())


@pytest.mark.parametrize("above", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_what_is_kept_is_counted(draw: Draw, above: float) -> None:
    label, outputs = draw(1, size=(60, 70))
    evaluation = Evaluation.of(label, outputs, TAXONOMY)
    known = label != VOID
    risk = 1 - np.exp(outputs.refine[known].astype(np.float64)).max(-1)
    right = (outputs.refine.argmax(-1) == label)[known]
    coverage, accuracy = evaluation.kept(above)
    # A pixel that shares the bin of the threshold may be kept.
    least, most = ((risk <= above + slack).mean() for slack in (-1e-6, 1e-4))
    assert coverage is not None
    assert least <= coverage <= most
    if above:
        assert accuracy == pytest.approx(right[risk <= above].mean(), abs=1e-3)
    else:
        assert (coverage, accuracy) == (0, None)
    if above == 1:
        assert (coverage, accuracy) == (1, evaluation.refine.pixel_accuracy)


def test_what_is_kept_of_ties_and_of_void(draw: Draw) -> None:
    logs = np.full((4, 5, 2), np.log(0.5), np.float32)
    taxonomy = Taxonomy(("a", "b"), distinct_colours(2))
    label = np.arange(20, dtype=np.int32).reshape(4, 5) % 4 // 3
    outputs = HeadOutputs(logs, logs, logs, np.zeros((4, 5), np.float32))
    ties = Evaluation.of(label, outputs, taxonomy)
    assert ties.kept(0.5) == (1, 0.75)  # the first class everywhere, with a risk of 0.5
    assert ties.kept(0.49) == (0, None)
    (void,) = some(draw, 1, void=1.0)
    assert void.kept(0.5) == (None, None)


def test_calibration_changes_no_label(draw: Draw) -> None:
    label, outputs = draw(2)
    plain = Evaluation.of(label, outputs, TAXONOMY)
    # A bias at which the largest calibrated probability is another class's.
    odd = Calibration((0.5, 1.0, 2.0), (0.0, 1.0, -1.0), 2.0, -1.0)
    other = Evaluation.of(label, outputs, TAXONOMY, calibration=odd)
    for key in ("classes", "boundary", "changed", "by_target"):
        np.testing.assert_array_equal(plain.counts[key], other.counts[key])
    risk = "reliability/refine/risk"
    assert (plain.counts[risk] != other.counts[risk]).any()


@pytest.mark.parametrize("cut", [0, 1, 3, 4])
def test_parts_add_up_to_the_whole(draw: Draw, cut: int) -> None:
    parts = some(draw, 4)
    whole = Evaluation.total(parts, TAXONOMY)
    head, tail = (Evaluation.total(part, TAXONOMY) for part in (parts[cut:], parts[:cut]))
    assert_same(head.merge(tail), whole)
    # Through a file, as from another machine.
    states = [json.loads(json.dumps(each.to_state())) for each in (head, tail)]
    assert_same(
        Evaluation.total((Evaluation.from_state(tree, TAXONOMY) for tree in states), TAXONOMY),
        whole,
    )


def test_what_does_not_add_up(draw: Draw) -> None:
    (one,) = some(draw, 1)
    with pytest.raises(ValueError, match="do not add up"):
        one.merge(Evaluation.empty(TAXONOMY, split="val"))
    with pytest.raises(ValueError, match="do not add up"):
        one.merge(Evaluation.empty(TAXONOMY, wrapping="--tta flip"))
    with pytest.raises(ValueError, match="image 'image 0' is in more than one part"):
        one.merge(one)


def test_a_chunk_of_pixels_counts_as_the_whole_image(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    label, outputs = draw(3)
    whole = Evaluation.of(label, outputs, TAXONOMY)
    monkeypatch.setattr("ccfnet_tf.evaluation.evaluation.CHUNK", 101)
    assert_same(Evaluation.of(label, outputs, TAXONOMY), whole)


def test_json_is_the_contract(draw: Draw) -> None:
    evaluation = Evaluation.total(some(draw, 3), TAXONOMY)
    tree = json.loads(as_text(evaluation))
    assert tree["pixels"] == evaluation.refine.pixels
    for key, score in (("auroc", "difficulty"), ("auroc_of_max_softmax", "max_softmax")):
        assert tree["difficulty"][key] == tree["scores"]["coarse"][score]["auroc"]
    assert (tree["split"], tree["pictures"]) == ("test", 3)
    for head, scores in SCORES.items():
        assert tuple(tree["scores"][head]) == scores
        for score, figures in tree["scores"][head].items():
            assert ("ece" in figures) == (score in PROBABILITIES[head])
            assert len(figures["risk_coverage"]["coverage"]) <= 100


def test_all_void(draw: Draw) -> None:
    (evaluation,) = some(draw, 1, void=1.0)
    tree = json.loads(as_text(evaluation))
    assert tree["pixels"] == 0
    assert tree["refine"]["pixel_accuracy"] is None
    assert tree["difficulty"]["auroc"] is None
    assert tree["scores"]["refine"]["risk"]["aurc"] is None
    assert tree["class_wise_ece"]["mean"] is None
    assert_same(Evaluation.empty(TAXONOMY).merge(evaluation), evaluation)
    assert json.loads(as_text(Evaluation.empty(TAXONOMY)))["pictures"] == 0


@pytest.mark.parametrize("classes", [1, 2])
def test_no_error_and_few_classes(classes: int) -> None:
    taxonomy = Taxonomy(tuple("ab"[:classes]), distinct_colours(classes))
    label = np.zeros((8, 9), np.int32)
    logs = np.full((8, 9, classes), -40, np.float32)
    logs[..., 0] = 0
    outputs = HeadOutputs(logs, logs, logs, np.zeros((8, 9), np.float32))
    tree = json.loads(as_text(Evaluation.of(label, outputs, taxonomy)))
    assert tree["refine"]["pixel_accuracy"] == 1
    risk = tree["scores"]["refine"]["risk"]
    assert (risk["error_rate"], risk["auroc"], risk["average_precision"]) == (0, None, None)
    assert (risk["aurc"], risk["augrc"], risk["ece"]) == (0, 0, 0)
    assert tree["scores"]["coarse"]["attention"]["ece"] == 0.5
    assert "warning" in tree


def test_one_class_alone_is_said(draw: Draw) -> None:
    label, outputs = draw(4)
    assert Evaluation.of(label, outputs, TAXONOMY).warning is None
    alone = np.where(label == VOID, VOID, 1)
    tree = Evaluation.of(alone, outputs, TAXONOMY).to_json()
    assert tree["classes_in_labels"] == ["sea"]
    assert "The labels contain only 'sea'" in tree["warning"]


def test_outputs_that_cannot_be_counted(draw: Draw) -> None:
    label, outputs = draw(5)
    broken = outputs.fine.copy()
    broken[label != VOID, 1] = np.nan
    with pytest.raises(NotFiniteError, match=r"a.png: the network's output is NaN on \d+ labelled"):
        Evaluation.of(label, outputs._replace(fine=broken), TAXONOMY, name="a.png")
    hidden = outputs.fine.copy()
    hidden[label == VOID] = np.nan
    Evaluation.of(label, outputs._replace(fine=hidden), TAXONOMY)
    with pytest.raises(ValueError, match="coarse has shape"):
        Evaluation.of(label[1:], outputs, TAXONOMY)
    with pytest.raises(ValueError, match=r"class ids -1..7"):
        Evaluation.of(np.where(label == 0, 7, label), outputs, TAXONOMY)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree.clear(), "'split' is missing"),
        (lambda tree: tree.update(counts=[]), "not the state"),
        (lambda tree: tree.update(classes=["a"]), "other classes"),
        (lambda tree: tree["counts"].pop("boundary"), "'boundary' is missing: damaged, or written"),
        (lambda tree: tree["counts"]["changed"].update(shape=[6, 3]), r"expected \[6, 2\]"),
        (lambda tree: tree["counts"]["changed"].update(int64="eA=="), "damaged"),
        (lambda tree: tree["counts"]["changed"].update(int64=7), "not the state"),
        (lambda tree: tree["images"]["names"].append("b"), "expected"),
    ],
)
def test_a_damaged_state_is_refused(draw: Draw, change: Any, says: str) -> None:
    (one,) = some(draw, 1)
    tree = json.loads(json.dumps(one.to_state()))
    change(tree)
    with pytest.raises(ValueError, match=says):
        Evaluation.from_state(tree, TAXONOMY)
