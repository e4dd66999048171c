"""Summarises an evaluation in sentences, which follow from the figures of `evaluation.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ccfnet_tf.report.read_evaluation_json import Evaluated

KEPT = 0.8
"""Share of the pixels that the summary keeps, those with the lowest risk."""

WEAKEST = 3
"""Largest number of classes named as the weakest."""

_FREE = {"fine_difficulty": "1 - fine's probability of coarse's class",
         "max_softmax": "maximum softmax", "entropy": "entropy", "margin": "margin",
         "disagreement": "disagreement of coarse and fine",
         **{f"{head}_{score}": f"{name} of {head}" for head in ("fine", "refine")
            for score, name in (("max_softmax", "maximum softmax"), ("entropy", "entropy"),
                                ("margin", "margin"))}}  # fmt: skip


class Tile(NamedTuple):
    """A figure in large type, and its meaning."""

    figure: str
    meaning: str


class Confused(NamedTuple):
    """Pixels of one class that are predicted as another.

    Attributes:
        truth: Name of the class of the label.
        predicted: Name of the class that is predicted.
        share: Share of the class's pixels, 0..1.
        of_all: Share of all pixels.
        pixels: Number of pixels.
    """

    truth: str
    predicted: str
    share: float
    of_all: float
    pixels: int


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a fraction as percent; None is `n/a`."""
    return "n/a" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def tiles(evaluated: Evaluated) -> list[Tile]:
    """Returns the four figures at the top of a report."""
    present = sum(value is not None for value in evaluated.by_class("refine", "recall"))
    found, kept = selective(evaluated)
    rest = f"{100 * (1 - KEPT):.0f}\u00a0%"
    return [
        Tile(percent(evaluated.number("refine", "pixel_accuracy")), "of all pixels are right"),
        Tile(
            percent(evaluated.number("refine", "mean_iou")),
            f"mean IoU over {counted(present, 'class', 'classes')}",
        ),
        Tile(
            percent(found),
            f"of all errors are among the {rest} of the pixels with the highest risk",
        ),
        Tile(
            percent(kept),
            f"are right of the {100 * KEPT:.0f}\u00a0% of the pixels with the lowest risk",
        ),
    ]


def sentences(evaluated: Evaluated) -> list[str]:
    """Returns the summary, one or two sentences for each subject that has figures."""
    parts = (_accuracy, _weakest, _cascade, _boundaries, _calibration, _maps)
    return [text for part in parts for text in part(evaluated)]


def selective(evaluated: Evaluated) -> tuple[float | None, float | None]:
    """Returns how many errors risk finds if the `KEPT` pixels with the lowest risk are kept.

    Returns:
        The share of all errors that are among the other pixels, and the share of right pixels
        among those kept. Both are None if no pixel is labelled, the first if no pixel is wrong.
    """
    coverage, risk = evaluated.risk_coverage("refine", "risk")
    if not coverage:
        return None, None
    # Pixels between two points are ties, kept in any order, so errors grow linearly.
    errors = np.concatenate([[0.0], np.multiply(coverage, risk)])
    kept_errors = float(np.interp(KEPT, [0.0, *coverage], errors))
    every = float(errors[-1])
    return (1 - kept_errors / every if every else None), 1 - kept_errors / KEPT


def confusions(evaluated: Evaluated, count: int) -> list[Confused]:
    """Returns the largest confusions of two classes by pixels, at most `count`."""
    matrix = evaluated.confusion("refine")
    if matrix is None:
        return []
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong.ravel(), kind="stable")[:count]
    pairs = [divmod(int(place), len(matrix)) for place in places]
    names = evaluated.classes
    return [
        Confused(names[row], names[column], wrong[row, column] / matrix[row].sum(),
                 wrong[row, column] / matrix.sum(), int(wrong[row, column]))
        for row, column in pairs
        if wrong[row, column]
    ]  # fmt: skip


def counted(count: int, one: str, many: str = "") -> str:
    """Returns a number and its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _accuracy(evaluated: Evaluated) -> Iterator[str]:
    accuracy = evaluated.number("refine", "pixel_accuracy")
    if accuracy is None:
        yield "No pixel is labelled, so nothing was measured."
        return
    images = counted(evaluated.count("pictures"), "image")
    pixels = evaluated.count("pixels")
    yield (
        f"On {images} of the {evaluated.split} split, with {pixels:,} labelled pixels, the network "
        f"gives the right class to {percent(accuracy)} of the pixels."
    )


def _weakest(evaluated: Evaluated) -> Iterator[str]:
    known = [
        (value, place)
        for place, value in enumerate(evaluated.by_class("refine", "iou"))
        if value is not None and evaluated.by_class("refine", "recall")[place] is not None
    ]
    if len(known) < 2:
        return
    known.sort()
    named = known[: min(WEAKEST, len(known) // 2)]
    matrix = evaluated.confusion("refine")
    texts = []
    for value, place in named:
        text = f"{evaluated.classes[place]} (IoU {percent(value)}"
        row = (
            None if matrix is None else np.where(np.arange(len(matrix)) == place, 0, matrix[place])
        )
        if row is not None and row.any():
            share = row.max() / matrix[place].sum()  # type: ignore[index]
            text += (
                f"; {percent(share)} of it is predicted as {evaluated.classes[int(row.argmax())]}"
            )
        texts.append(text + ")")
    best, place = known[-1]
    yield (
        f"Weakest {'class' if len(texts) == 1 else 'classes'}: {', '.join(texts)}. "
        f"Best: {evaluated.classes[place]} (IoU {percent(best)})."
    )


def _cascade(evaluated: Evaluated) -> Iterator[str]:
    corrected = evaluated.number("cascade", "everywhere", "corrected_share")
    spoiled = evaluated.number("cascade", "everywhere", "spoiled_share")
    if corrected is None or spoiled is None:
        return
    before = percent(evaluated.number("coarse", "pixel_accuracy"))
    after = percent(evaluated.number("refine", "pixel_accuracy"))
    yield (
        f"The second stage corrects {percent(corrected)} of the errors of the first one (coarse) "
        f"and spoils {percent(spoiled)} of what was right: accuracy "
        + (f"stays at {after}." if before == after else f"changes from {before} to {after}.")
    )
    names = {
        "coarse": "coarse alone",
        "fine": "fine alone",
        "average": "the plain average of coarse and fine",
    }
    refine = evaluated.number("refine", "pixel_accuracy") or 0.0
    figures = {
        what: evaluated.number(name, "pixel_accuracy") or 0.0 for name, what in names.items()
    }
    better = [
        f"{what} reaches {percent(figure)}"
        for what, figure in figures.items()
        if figure > refine and percent(figure) != after  # not of figures that are printed alike
    ]
    if better:
        yield f"The network's prediction ({after}) is not the best of them: {', '.join(better)}."


def _boundaries(evaluated: Evaluated) -> Iterator[str]:
    near = ("cascade", "near_boundaries", "4")
    pixels, every = evaluated.count(*near, "pixels"), evaluated.count("pixels")
    here = evaluated.number(*near, "refine", "pixel_accuracy")
    whole = evaluated.number("refine", "pixel_accuracy")
    if not pixels or here is None or whole is None or whole == 1:
        return
    errors = (1 - here) * pixels / ((1 - whole) * every)
    yield (
        f"{percent(errors)} of the errors are within 4 pixels of a boundary between classes, where "
        f"{percent(pixels / every)} of the pixels are."
    )


def _calibration(evaluated: Evaluated) -> Iterator[str]:
    bins = evaluated.reliability("refine", "risk")
    ece = evaluated.number("scores", "refine", "risk", "ece")
    total = sum(pixels for pixels, _, _ in bins)
    if not total or ece is None:
        return
    stated = sum(pixels * predicted for pixels, predicted, _ in bins) / total
    wrong = sum(pixels * observed for pixels, _, observed in bins) / total
    yield (
        f"The network states a risk of {percent(stated)} on average, and {percent(wrong)} of the "
        f"pixels are wrong. Stated risk and share of errors differ by {100 * ece:.1f} percentage "
        "points on average over 15 bins (ECE)."
    )
    if evaluated.calibrated is False:
        yield (
            "The run was not calibrated (ccfnet-tf calibrate), so risk may be too high or too low."
        )


def _maps(evaluated: Evaluated) -> Iterator[str]:
    measured = [name for name in _FREE if name in evaluated.scores("coarse")]
    aurocs = {
        name: evaluated.number("scores", "coarse", name, "auroc")
        for name in ("difficulty", "attention", *measured)
    }
    free = {name: value for name in measured if (value := aurocs[name]) is not None}
    if not free:
        return
    best = max(free, key=lambda name: free[name])
    for name in ("difficulty", "attention"):
        auroc = aurocs[name]
        if auroc is not None:
            own, other = f"{auroc:.3f}", f"{free[best]:.3f}"
            how = "better than" if auroc > free[best] else "worse than"
            how = "as well as" if own == other else how
            yield (
                f"The {name} map finds errors of coarse {how} the best score that needs no map "
                f"({_FREE[best]}): AUROC {own} against {other}."
            )
