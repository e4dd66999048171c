"""The state of an evaluation: integer counts per image and per split; all figures follow from them.

Uses NumPy only. Every count is an int64 that adds up, so parts of a split that were evaluated
separately, also on different machines, give exactly the result of one evaluation of the split.

Shapes: C classes; an image of H x W pixels, N of them labelled. `WRONG` and `RIGHT` are the rows
of counts [2, K] of a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.errors import NotFiniteError
from ccfnet_tf.evaluation.auroc_and_aurc import Ranking
from ccfnet_tf.evaluation.base64_arrays import pack, unpack
from ccfnet_tf.evaluation.boundaries import BANDS, RINGS, boundary_counts, ring_of
from ccfnet_tf.evaluation.confusion import ClassCounts, Confusion, ratio
from ccfnet_tf.evaluation.easy_hard import HEADS, GroupAccuracy
from ccfnet_tf.evaluation.hard_switch import SWITCHES, THRESHOLDS, HardSwitch, count_switch
from ccfnet_tf.evaluation.image_table import (
    CELLS,
    COMPARED,
    NEAR_PREFIX,
    NUMBERS,
    ImageTable,
    cells_of,
)
from ccfnet_tf.evaluation.pixel_scores import HeadScores, calibrated, calibrated_attention, sigmoid
from ccfnet_tf.evaluation.reliability import BINS as RELIABILITY_BINS
from ccfnet_tf.evaluation.reliability import (
    Reliability,
    count_class_reliability,
    count_reliability,
    in_steps,
)
from ccfnet_tf.evaluation.score_histogram import BINS, bins_of, count_bins
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration

PREDICTIONS = ("coarse", "fine", "average", "refine", "oracle")
"""Predictions that are compared: the heads; the average of coarse's and fine's probabilities; and
the oracle, coarse where it is right and fine elsewhere, the limit of any gate between the two."""

SCORES = {
    "coarse": (
        "attention",
        "difficulty",
        "fine_difficulty",
        "max_softmax",
        "entropy",
        "margin",
        "disagreement",
        "fine_max_softmax",
        "fine_entropy",
        "fine_margin",
        "refine_max_softmax",
        "refine_entropy",
        "refine_margin",
    ),
    "fine": ("max_softmax", "entropy", "margin"),
    "refine": ("risk", "entropy", "margin", "attention", "difficulty", "disagreement"),
}
"""For each head, the scores that are compared with its errors. `risk` is refine's max softmax;
`fine_difficulty` is 1 - fine's probability of coarse's class. Max softmax, entropy and margin are
those of the head itself, or with a prefix those of another head."""

OF_MAPS = {"coarse": ("attention", "difficulty"), "fine": (), "refine": ("risk",)}
"""Those of `SCORES` that are one of the three maps, of the errors that the map is about."""

PROBABILITIES = {
    "coarse": ("attention", "difficulty", "fine_difficulty", "max_softmax"),
    "fine": ("max_softmax",),
    "refine": ("risk",),
}
"""Those of them that are a probability that this head is wrong."""

NEAR = BANDS.index(4)
"""The last ring of the band in which calibration is also measured: within 4 pixels."""

CHUNK = 2**17
"""Pixels whose scores are in memory at a time."""

Counts = dict[str, np.ndarray]
"""int64 arrays that add up."""


class Kept(NamedTuple):
    """The pixels that keep their label where those with a larger risk lose it.

    Attributes:
        coverage: Their share of the labelled pixels, 0..1; None without labelled pixels.
        pixel_accuracy: Share of them that refine labels correctly, 0..1; None if there are none.
    """

    coverage: float | None
    pixel_accuracy: float | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Counts of some images of a split; merges by addition.

    Attributes:
        taxonomy: The C classes.
        split: Name of the split.
        wrapping: The options of `evaluate` that change predictions; may be empty.
        counts: int64 arrays:
            `classes` [RINGS, len(PREDICTIONS), 3, C], `ClassCounts` in each ring around boundaries;
            `boundary` [len(PREDICTIONS), 3, C], `ClassCounts` of Boundary IoU;
            `changed` [RINGS, 2], errors of coarse that refine corrects, right pixels it spoils;
            `by_target`, `by_attention` [2, 4], `GroupAccuracy`;
            `switch/SCORE` [T+1, 2, 3, C], `HardSwitch` of each of `SWITCHES`;
            `score/HEAD/SCORE` [2, K], of each of `SCORES`;
            `reliability/HEAD/SCORE` [2, 3, 15], of each of `PROBABILITIES`, within 4 pixels of a
            boundary and elsewhere;
            `class_reliability` [C, 3, 15], of refine's probabilities.
        images: Counts of each image.
    """

    taxonomy: Taxonomy
    split: str
    wrapping: str
    counts: Counts
    images: ImageTable

    @classmethod
    def empty(cls, taxonomy: Taxonomy, *, split: str = "test", wrapping: str = "") -> Evaluation:
        """Returns the state before the first image."""
        counts = {key: np.zeros(shape, np.int64) for key, shape in _shapes(taxonomy)}
        return cls(taxonomy, split, wrapping, counts, ImageTable.joined([]))

    @classmethod
    def of(
        cls,
        label: np.ndarray,
        outputs: HeadOutputs,
        taxonomy: Taxonomy,
        *,
        calibration: Calibration = UNCALIBRATED,
        split: str = "test",
        wrapping: str = "",
        index: int = 0,
        name: str = "",
    ) -> Evaluation:
        """Counts one image.

        Args:
            label: Integer [H, W], 0..C-1 or `VOID`.
            outputs: Outputs of the network, not calibrated.
            taxonomy: The C classes.
            calibration: Applied to probabilities, difficulty, risk and attention; not to labels.
            split: Name of the split.
            wrapping: As the attribute.
            index: Index of the image in the split.
            name: Name of the image.

        Raises:
            ValueError: The outputs have another size or other classes, or a class id is outside
                0..C-1.
            NotFiniteError: An output is NaN on a labelled pixel.
        """
        _refuse_other_shapes(label, outputs, len(taxonomy.names))
        counts, images = _count_image(label, outputs, calibration, index, name)
        return cls(taxonomy, split, wrapping, counts, images)

    @classmethod
    def total(
        cls,
        parts: Iterable[Evaluation],
        taxonomy: Taxonomy,
        *,
        split: str = "test",
        wrapping: str = "",
    ) -> Evaluation:
        """Adds up parts, one at a time.

        Raises:
            ValueError: Parts have different classes, splits or wrappings, or an image is in two
                parts.
        """
        counts = cls.empty(taxonomy).counts
        tables = []
        for part in parts:
            if (part.taxonomy, part.split, part.wrapping) != (taxonomy, split, wrapping):
                raise ValueError(
                    "evaluations of different classes, splits or wrappings do not add up"
                )
            for key, value in part.counts.items():
                counts[key] += value
            tables.append(part.images)
        return cls(taxonomy, split, wrapping, counts, ImageTable.joined(tables))

    def merge(self, other: Evaluation) -> Evaluation:
        """Returns the state of both parts together; errors as in `total`."""
        options = {"split": self.split, "wrapping": self.wrapping}
        return Evaluation.total([self, other], self.taxonomy, **options)

    def to_state(self) -> dict[str, Any]:
        """Returns the state as a tree for JSON, which `from_state` reads."""
        return {
            "split": self.split,
            "wrapping": self.wrapping,
            "classes": list(self.taxonomy.names),
            "counts": {key: pack(value) for key, value in self.counts.items()},
            "images": {
                "names": list(self.images.names),
                "numbers": pack(self.images.numbers),
                "cells": {head: pack(self.images.cells[head]) for head in CELLS},
            },
        }

    @classmethod
    def from_state(cls, tree: Any, taxonomy: Taxonomy) -> Evaluation:
        """Returns the evaluation that `to_state` encoded.

        Args:
            tree: The tree, read from JSON.
            taxonomy: The expected classes.

        Raises:
            ValueError: Something is missing or damaged, or the classes are not those expected.
        """
        try:
            split, wrapping, classes, packed, images = (
                tree[key] for key in ("split", "wrapping", "classes", "counts", "images")
            )
            names, numbers, cells = (images[key] for key in ("names", "numbers", "cells"))
            if classes != list(taxonomy.names):
                raise ValueError("it has other classes")
            counts = {key: unpack(packed[key], shape) for key, shape in _shapes(taxonomy)}
            table = ImageTable(
                tuple(str(name) for name in names),
                unpack(numbers, (len(names), len(NUMBERS))),
                {head: unpack(cells[head], (None, 4)) for head in CELLS},
            )
        except KeyError as error:
            message = f"{error} is missing: damaged, or written by another version"
            raise ValueError(message) from error
        except TypeError as error:
            raise ValueError(f"not the state of an evaluation ({error!r})") from error
        highest = max(int(rows[:, 1:3].max(initial=0)) for rows in table.cells.values())
        if highest >= len(taxonomy.names):
            raise ValueError(f"a cell has class id {highest}")
        return cls(taxonomy, str(split), str(wrapping), counts, table)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `evaluation.json`, as docs/evaluation.md describes it."""
        from ccfnet_tf.evaluation.evaluation_json import to_json  # which needs this module

        return to_json(self)

    @property
    def pictures(self) -> int:
        """Number of images."""
        return len(self.images.names)

    @property
    def coarse(self) -> Confusion:
        """Confusion of the coarse head."""
        return self._confusion("coarse")

    @property
    def fine(self) -> Confusion:
        """Confusion of the fine branch alone."""
        return self._confusion("fine")

    @property
    def refine(self) -> Confusion:
        """Confusion of the blend, the network's prediction."""
        return self._confusion("refine")

    def classes(self, prediction: str, within: int | None = None) -> ClassCounts:
        """Returns how often each class is true, predicted and both.

        Args:
            prediction: One of `PREDICTIONS`.
            within: One of `BANDS`, pixels from a boundary; None for all labelled pixels.
        """
        rings = self.counts["classes"][: _rings(within)]
        return ClassCounts(rings[:, PREDICTIONS.index(prediction)].sum(axis=0))

    def boundary(self, prediction: str) -> ClassCounts:
        """Returns the counts whose IoU is the Boundary IoU of one of `PREDICTIONS`."""
        return ClassCounts(self.counts["boundary"][PREDICTIONS.index(prediction)])

    def changed(self, within: int | None = None) -> tuple[int, int]:
        """Returns how many pixels refine corrects and spoils; `within`: as in `classes`."""
        corrected, spoiled = self.counts["changed"][: _rings(within)].sum(axis=0).tolist()
        return corrected, spoiled

    def switch(self, score: str) -> HardSwitch:
        """Returns the result of using fine where one of `SWITCHES` is above a threshold."""
        return HardSwitch(self.counts[f"switch/{score}"])

    def ranking(self, head: str, score: str) -> Ranking:
        """Returns how well one of `SCORES` ranks the head's errors."""
        return Ranking.of(self.counts[f"score/{head}/{score}"])

    def kept(self, above: float) -> Kept:
        """Returns what `predict --abstain-above` leaves of the predictions.

        Args:
            above: Largest risk, 0..1, with which a pixel keeps its label. It is rounded up to the
                end of a bin of `ScoreHistogram`, by less than 1e-4.
        """
        with np.errstate(divide="ignore"):
            logit = np.log([above]) - np.log1p([-above])
        last = int(bins_of(logit)[0])
        wrong, right = self.counts["score/refine/risk"][:, : last + 1].sum(axis=1).tolist()
        pixels = self.classes("refine").pixels
        return Kept(ratio(wrong + right, pixels), ratio(right, wrong + right))

    def reliability(self, head: str, score: str, *, near: bool = False) -> Reliability:
        """Returns the reliability of one of `PROBABILITIES`; `near`: within 4 pixels only."""
        counts = self.counts[f"reliability/{head}/{score}"]
        return Reliability(counts[0] if near else counts.sum(axis=0))

    def class_reliability(self, index: int) -> Reliability:
        """Returns the reliability of refine's probability of a class."""
        return Reliability(self.counts["class_reliability"][index])

    @property
    def by_target(self) -> GroupAccuracy:
        """Accuracies where hard means that coarse is wrong (the paper's target)."""
        return GroupAccuracy(self.counts["by_target"])

    @property
    def by_attention(self) -> GroupAccuracy:
        """Accuracies where hard means that attention is above 1/2."""
        return GroupAccuracy(self.counts["by_attention"])

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the classes that labels contain."""
        pixels = self.classes("refine").truth
        return tuple(n for n, count in zip(self.taxonomy.names, pixels, strict=True) if count)

    @property
    def warning(self) -> str | None:
        """A warning if the labels contain only one class; else None."""
        if len(self.shown) != 1:
            return None
        others = len(self.taxonomy.names) - 1
        return (
            f"The labels contain only '{self.shown[0]}'. All figures are over that one class: a "
            f"network that predicts nothing else reaches 100 %. "
            f"The other {others} {'class is' if others == 1 else 'classes are'} not measured."
        )

    def _confusion(self, head: str) -> Confusion:
        return self.images.confusion(head, len(self.taxonomy.names))


def _shapes(taxonomy: Taxonomy) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the name and the shape of each of `Evaluation.counts`."""
    classes, predictions = len(taxonomy.names), len(PREDICTIONS)
    yield "classes", (RINGS, predictions, 3, classes)
    yield "boundary", (predictions, 3, classes)
    yield "changed", (RINGS, 2)
    yield "by_target", (2, 1 + len(HEADS))
    yield "by_attention", (2, 1 + len(HEADS))
    yield "class_reliability", (classes, 3, RELIABILITY_BINS)
    for score in SWITCHES:
        yield f"switch/{score}", (len(THRESHOLDS) + 1, 2, 3, classes)
    for head, scores in SCORES.items():
        for score in scores:
            yield f"score/{head}/{score}", (2, 2 if score == "disagreement" else BINS)
    for head, scores in PROBABILITIES.items():
        for score in scores:
            yield f"reliability/{head}/{score}", (2, 3, RELIABILITY_BINS)


def _rings(within: int | None) -> int:
    return RINGS if within is None else BANDS.index(within) + 1


def _refuse_other_shapes(label: np.ndarray, outputs: HeadOutputs, classes: int) -> None:
    wanted = dict.fromkeys(HEADS, (*label.shape, classes)) | {"attention": label.shape}
    for name, shape in wanted.items():
        found = getattr(outputs, name).shape
        if found != shape:
            raise ValueError(f"{name} has shape {list(found)}: expected {list(shape)}")
    if label.size and not VOID <= label.min() <= label.max() < classes:
        raise ValueError(f"class ids {label.min()}..{label.max()}: expected 0..{classes - 1}")


def _count_image(
    label: np.ndarray, outputs: HeadOutputs, calibration: Calibration, index: int, name: str
) -> tuple[Counts, ImageTable]:
    """Returns the counts of one image and its row of the table."""
    classes = outputs.refine.shape[-1]
    places = np.flatnonzero(label != VOID)
    truth = label.ravel()[places].astype(np.int64)
    ring = ring_of(label).ravel()[places]
    predictions = np.zeros((len(PREDICTIONS), places.size), np.int32)
    counts: Counts = {"class_reliability": np.zeros((classes, 3, RELIABILITY_BINS), np.int64)}
    sums = np.zeros(4, np.int64)
    for start in range(0, max(1, places.size), CHUNK):  # also once for an image of void
        part = slice(start, start + CHUNK)
        logs = {head: _columns(getattr(outputs, head), places[part]) for head in HEADS}
        attention = outputs.attention.ravel()[places[part]]
        pixels = _Pixels(truth[part], ring[part], logs, attention, calibration)
        pixels.refuse_nan(name)
        predictions[:, part] = pixels.predictions
        sums += pixels.sums()
        for key, value in pixels.counts():
            counts[key] = counts[key] + value if key in counts else value
    counts["classes"] = _class_counts(truth, predictions, ring, classes)
    predicted = np.full((len(PREDICTIONS), *label.shape), VOID, np.int32)
    predicted.reshape(len(PREDICTIONS), -1)[:, places] = predictions
    counts["boundary"] = boundary_counts(label, predicted, classes)
    coarse, refine = (
        predictions[PREDICTIONS.index(head)] == truth for head in ("coarse", "refine")
    )
    changes = (refine & ~coarse, coarse & ~refine)
    rows = [np.bincount(ring[flags], minlength=RINGS) for flags in changes]
    counts["changed"] = np.stack(rows, axis=1).astype(np.int64)
    changed = counts["changed"].sum(axis=0)
    numbers = [index, *label.shape, places.size, *changed, *sums]
    cells: Counts = {}
    for prefix, chosen in (("", np.s_[:]), (NEAR_PREFIX, ring <= NEAR)):
        for compared in COMPARED:
            found = predictions[PREDICTIONS.index(compared)][chosen]
            cells[prefix + compared] = cells_of(truth[chosen], found, classes, index)
    return counts, ImageTable((name,), np.array([numbers], np.int64), cells)


def _columns(logs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns float32 [C, N] of a head's output [H, W, C] at some pixels."""
    return np.ascontiguousarray(logs.reshape(-1, logs.shape[-1])[places].T)


class _Pixels:
    """Scores of some labelled pixels of an image, and their counts."""

    def __init__(
        self,
        truth: np.ndarray,
        ring: np.ndarray,
        logs: dict[str, np.ndarray],
        attention: np.ndarray,
        calibration: Calibration,
    ) -> None:
        self.truth, self.near = truth, ring <= NEAR
        self.attention = attention  # not calibrated, as a hard blend reads it
        self.coarse, self.fine, self.refine = (HeadScores.of(logs[head]) for head in HEADS)
        self.label = self.refine.label  # before calibration, which changes no label
        changed = calibrated(logs["refine"], calibration)
        if changed is not logs["refine"]:
            self.refine = HeadScores.of(changed)
        self.maps = {
            "attention": calibrated_attention(attention, calibration),
            "difficulty": self.refine.wrong_logit(self.coarse.label),
            "risk": self.refine.wrong_logit(self.label),
        }
        average = HeadScores.of(self.coarse.probabilities + self.fine.probabilities)
        oracle = np.where(self.coarse.label == truth, truth, self.fine.label)
        self.predictions = np.stack(
            [self.coarse.label, self.fine.label, average.label, self.label, oracle]
        )
        labels = {"coarse": self.coarse.label, "fine": self.fine.label, "refine": self.label}
        self.wrong = {head: label != truth for head, label in labels.items()}

    def refuse_nan(self, name: str) -> None:
        """Raises NotFiniteError if an output is NaN."""
        values = (self.coarse.first, self.fine.first, self.refine.first, self.maps["attention"])
        count = int(np.isnan(values).any(axis=0).sum())
        if count:
            raise NotFiniteError(
                f"{name}: the network's output is NaN on {count} labelled pixels: its weights are "
                "damaged; use an earlier checkpoint or train again with a lower learning rate"
            )

    def sums(self) -> list[int]:
        """Returns the sums of the three maps / STEP, and the pixels with a risk above 1/2."""
        steps = [in_steps(sigmoid(logit)) for logit in self.maps.values()]
        above = int((self.maps["risk"] > 0).sum())
        return [*(int(each.sum(dtype=np.float64)) for each in steps), above]

    def counts(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the names and values of counts that add up over pixels."""
        bins = {name: bins_of(logit) for name, logit in self._logits.items()}
        disagree = (self.coarse.label != self.fine.label).astype(np.int64)
        elsewhere = (~self.near).astype(np.int64)
        for head, wrong in self.wrong.items():
            for score in SCORES[head]:
                if score == "disagreement":
                    cells = np.bincount(disagree + 2 * ~wrong, minlength=4)
                    yield f"score/{head}/{score}", cells.reshape(2, 2)
                else:
                    found = bins[self._name(head, score)]
                    yield f"score/{head}/{score}", count_bins(found, wrong)
            for score in PROBABILITIES[head]:
                probability = sigmoid(self._logits[self._name(head, score)])
                counted = count_reliability(probability, wrong, elsewhere, 2)
                yield f"reliability/{head}/{score}", counted
        yield (
            "class_reliability",
            count_class_reliability(self.refine.probabilities, self.truth),
        )
        for score, logit in (
            ("attention", self.attention),
            ("max_softmax", self.coarse.max_softmax),
        ):
            labels = (self.truth, self.coarse.label, self.fine.label)
            yield f"switch/{score}", count_switch(logit, *labels, len(self.coarse.logs))
        right = np.stack([~wrong for wrong in self.wrong.values()])
        yield "by_target", GroupAccuracy.of(self.wrong["coarse"], right).counts
        yield "by_attention", GroupAccuracy.of(self.maps["attention"] > 0, right).counts

    @cached_property
    def _logits(self) -> dict[str, np.ndarray]:
        """Logits of the scores, float32 [N]; those that follow from one head are `HEAD_SCORE`."""
        heads = zip(HEADS, (self.coarse, self.fine, self.refine), strict=True)
        of_heads = {
            f"{head}_{score}": getattr(scores, score)
            for head, scores in heads
            for score in ("max_softmax", "entropy", "margin")
        }
        fine_difficulty = self.fine.wrong_logit(self.coarse.label)
        return {**self.maps, "fine_difficulty": fine_difficulty, **of_heads}

    def _name(self, head: str, score: str) -> str:
        """Returns the name in `_logits` of one of `SCORES`."""
        return score if score in self._logits else f"{head}_{score}"


def _class_counts(
    truth: np.ndarray, predictions: np.ndarray, ring: np.ndarray, classes: int
) -> np.ndarray:
    """Returns int64 [RINGS, P, 3, C] of truth and ring [N] and predictions [P, N]."""

    def count(ids: np.ndarray, rings: np.ndarray) -> np.ndarray:
        cells = np.bincount(rings * classes + ids, minlength=RINGS * classes)
        return cells.reshape(RINGS, classes)

    true = count(truth, ring)
    rows = []
    for prediction in predictions:
        hit = prediction == truth
        rows.append([true, count(prediction, ring), count(truth[hit], ring[hit])])
    return np.array(rows, np.int64).transpose(2, 0, 1, 3)
