from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from ccfnet_tf.errors import NotFiniteError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.evaluation import PREDICTIONS, PROBABILITIES, SCORES, Evaluation
from ccfnet_tf.evaluation.hard_switch import THRESHOLDS
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs
from ccfnet_tf.labels import VOID, Taxonomy, distinct_colours
from ccfnet_tf.network.calibration_parameters import Calibration
from tests.evaluation.conftest import Draw

TAXONOMY = Taxonomy(("sky", "sea", "[red]sand"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))


def some(draw: Draw, count: int, **options: Any) -> list[Evaluation]:
    return [
        Evaluation.of(*draw(seed, **options), TAXONOMY, index=seed, name=f"image {seed}")
        for seed in range(count)
    ]


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
    coarse, fine, refine = (getattr(outputs, head) for head in ("coarse", "fine", "refine"))
    expected = {
        "coarse": coarse.argmax(-1),
        "fine": fine.argmax(-1),
        "average": (np.exp(coarse) + np.exp(fine)).argmax(-1),
        "refine": refine.argmax(-1),
        "oracle": np.where(coarse.argmax(-1) == label, label, fine.argmax(-1)),
    }
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
    label, (coarse, fine, refine, attention) = draw(1, size=(60, 70))
    calibration = Calibration((scale,), (), 0.5, 0.7)
    ours = Evaluation.of(
        label, HeadOutputs(coarse, fine, refine, attention), TAXONOMY, calibration=calibration
    )
    known = label != VOID
    logs = {"coarse": coarse, "fine": fine, "refine": refine.astype(np.float64) * scale}
    p = {head: np.exp(each.astype(np.float64))[known] for head, each in logs.items()}
    p["refine"] /= p["refine"].sum(-1, keepdims=True)
    named = {head: each.argmax(-1) for head, each in p.items()}
    two = {head: np.sort(each)[:, -2:] for head, each in p.items()}
    chosen, of_fine = (
        np.take_along_axis(p[head], named["coarse"][:, np.newaxis], 1)[:, 0]
        for head in ("refine", "fine")
    )
    shared = {
        "attention": 1 / (1 + np.exp(-(attention[known] * 0.5 + 0.7))),
        "difficulty": 1 - chosen,
        "fine_difficulty": 1 - of_fine,
        "risk": 1 - p["refine"].max(-1),
        "disagreement": (named["coarse"] != named["fine"]).astype(float),
    }
    for head, scores in SCORES.items():
        wrong = named[head] != label[known]
        own = {
            "max_softmax": 1 - p[head].max(-1),
            "entropy": -(p[head] * np.log(p[head])).sum(-1),
            "margin": two[head][:, 0] - two[head][:, 1],
        }
        for score in scores:
            values = shared.get(score, own.get(score))
            ranking = ours.ranking(head, score)
            assert ranking.error_rate == pytest.approx(wrong.mean())
            auroc = metrics.roc_auc_score(wrong, values)
            assert ranking.auroc == pytest.approx(auroc, abs=2e-5), (head, score)
            precision = metrics.average_precision_score(wrong, values)
            assert ranking.average_precision == pytest.approx(precision, abs=2e-4), (head, score)
            if score in PROBABILITIES[head]:
                reliability = ours.reliability(head, score)
                place = np.minimum((values * 15).astype(int), 14)
                gaps = [abs((wrong - values)[place == b].sum()) for b in range(15)]
                assert reliability.ece == pytest.approx(sum(gaps) / wrong.size, abs=1e-4)


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
    for name in PREDICTIONS:
        assert tree[name]["mean_iou"] == tree[name]["mean_iou_present"]
        for figure in ("iou", "dice", "precision", "recall", "boundary_iou"):
            assert list(tree[name][figure]) == list(TAXONOMY.names)
        assert set(tree["means"]) == {k for k in tree[name] if "class" in k or "mean" in k}
    assert np.sum(tree["refine"]["confusion"]) == tree["pixels"] == evaluation.refine.pixels
    assert tree["difficulty"]["auroc"] == tree["scores"]["coarse"]["difficulty"]["auroc"]
    assert tree["difficulty"]["by_target"]["easy"]["coarse"] == 1
    assert (tree["split"], tree["pictures"]) == ("test", 3)
    for head, scores in SCORES.items():
        assert tuple(tree["scores"][head]) == scores
        for score, figures in tree["scores"][head].items():
            assert ("ece" in figures) == (score in PROBABILITIES[head])
            assert len(figures["risk_coverage"]["coverage"]) <= 100
    bands = tree["cascade"]["near_boundaries"]
    assert list(bands) == ["1", "2", "4", "8", "16"]
    assert [band["pixels"] for band in bands.values()] == sorted(
        band["pixels"] for band in bands.values()
    )
    everywhere = tree["cascade"]["everywhere"]
    assert everywhere["pixels"] == tree["pixels"]
    gained = everywhere["corrected"] - everywhere["spoiled"]
    accuracies = (everywhere[head]["pixel_accuracy"] for head in ("refine", "coarse"))
    assert gained / tree["pixels"] == pytest.approx(np.subtract(*accuracies))


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
        (lambda tree: tree.clear(), "not the state"),
        (lambda tree: tree.update(counts=[]), "not the state"),
        (lambda tree: tree.update(classes=["a"]), "other classes"),
        (lambda tree: tree["counts"].pop("boundary"), "boundary"),
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
