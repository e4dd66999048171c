"""Figures on the screen: readable at 80 columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ccfnet_tf.errors import printable
from ccfnet_tf.evaluation.boundaries import BANDS
from ccfnet_tf.evaluation.confusion import ABSENT_RULE, ratio
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.evaluation.evaluation import OF_MAPS, PREDICTIONS, PROBABILITIES, SCORES, Evaluation
from ccfnet_tf.evaluation.evaluation_json import mean_boundary_iou
from ccfnet_tf.inference.segmenter_protocol import MAPS

DASH = "-"

_LISTED = {"coarse": (*OF_MAPS["coarse"], "fine_difficulty"), "refine": OF_MAPS["refine"]}
"""For each head whose errors are ranked, the scores that always have a row; the best other has one
too."""

SWITCH_ROWS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Thresholds of the table of the hard switch; the nearest that were counted are shown."""

BOUNDARY_NOTE = (
    "pixels: share of all pixels that lies within the distance. corrected: coarse is wrong and "
    "refine right; spoiled: the opposite; both as a share of the pixels within the distance."
)
"""What the columns of the table of boundaries mean."""

SWITCH_NOTE = (
    "pixels: share that fine labels. By softmax: as many pixels, chosen by coarse's maximum "
    "softmax instead of attention."
)
"""What the columns of the table of the hard switch mean."""

SCORE_NOTE = (
    "*: needs no head of its own; the last row is the best of the others by AUROC. AP: average "
    "precision, for which chance is the share of errors. FPR of errors: right pixels flagged where "
    "95 % of the errors are. FPR95: errors kept where 95 % of the right pixels are. risk is 1 - "
    "refine's max softmax; fine difficulty is 1 - fine's probability of coarse's class."
)
"""What the columns of the table of scores mean."""


def percent(value: float | None) -> str:
    """Returns a fraction as percent with two decimals, or a dash where there is none."""
    return DASH if value is None else f"{value * 100:.2f}"


def report(evaluation: Evaluation) -> RenderableType:
    """Returns the tables of an evaluation, one below the other; evaluation.json has the rest."""
    parts: list[RenderableType] = [
        summary_table(evaluation),
        class_table(evaluation),
        boundary_table(evaluation),
        Text(BOUNDARY_NOTE, style="dim"),
        *switch_table(evaluation),
        *score_tables(evaluation),
        Text(SCORE_NOTE, style="dim"),
    ]
    if len(evaluation.shown) < len(evaluation.taxonomy.names):
        parts.insert(1, means_table(evaluation))
    if (warning := evaluation.warning) is not None:
        parts.insert(0, Text(warning, style="bold yellow"))
    if _has_dash(evaluation):
        parts.append(Text(f"{DASH}: {ABSENT_RULE}", style="dim"))
    return Group(*parts)


def summary_table(evaluation: Evaluation) -> Table:
    """Returns pixel accuracy, class accuracy, mean IoU and Boundary IoU of the predictions."""
    pictures = f"{evaluation.pictures} image{'' if evaluation.pictures == 1 else 's'}"
    size = f"{pictures}, {evaluation.classes('refine').pixels:,} labelled pixels"
    wrapping = f", {evaluation.wrapping}" if evaluation.wrapping else ""
    table = _table(f"{evaluation.split}{wrapping}: {size}; in %", "prediction")
    for name in ("pixel accuracy", "class accuracy", "mean IoU", "Boundary IoU"):
        table.add_column(name, justify="right")
    for name in PREDICTIONS:
        state = evaluation.classes(name)
        figures = (
            state.pixel_accuracy,
            state.class_accuracy,
            state.mean_iou_present,
            mean_boundary_iou(evaluation, name),
        )
        style = {"refine": "bold", "average": "dim", "oracle": "dim"}.get(name, "")
        table.add_row(name, *map(percent, figures), style=style)
    return table


def means_table(evaluation: Evaluation) -> Table:
    """Returns the class means over the classes that labels contain, and over all."""
    present, classes = len(evaluation.shown), len(evaluation.taxonomy.names)
    table = _table("Class means where labels lack some classes, in %", "prediction")
    for name in ("class accuracy", "mean IoU"):
        table.add_column(f"{name}, {present} classes in labels", justify="right")
        table.add_column(f"all {classes}, absent as 0", justify="right")
    for head in HEADS:
        state = evaluation.classes(head)
        table.add_row(
            head,
            percent(state.class_accuracy),
            percent(state.class_accuracy_all),
            percent(state.mean_iou_present),
            percent(state.mean_iou_all),
            style="bold" if head == "refine" else "",
        )
    return table


def class_table(evaluation: Evaluation) -> Table:
    """Returns the IoU of each class by the heads, and further figures of refine."""
    table = _table("Each class, in %", "class")
    further = [f"{name},\nrefine" for name in ("precision", "recall", "Boundary IoU")]
    for name in (*(f"IoU,\n{head}" for head in HEADS), *further):
        table.add_column(Text(name), justify="right")  # the console escapes line breaks of strings
    refine = evaluation.classes("refine")
    columns = [
        *(evaluation.classes(head).iou for head in HEADS),
        refine.precision,
        refine.recall,
        evaluation.boundary("refine").iou,
    ]
    for name, *values in zip(evaluation.taxonomy.names, *columns, strict=True):
        # Text: a name may hold [brackets]
        table.add_row(Text(printable(name)), *map(percent, values))
    return table


def boundary_table(evaluation: Evaluation) -> Table:
    """Returns pixel accuracies near boundaries, and what refine changes of coarse there."""
    table = _table("Pixel accuracy within so many pixels of boundaries, %", "within")
    shown = ("coarse", "fine", "average", "refine")
    for name in ("pixels", *shown, "corrected", "spoiled"):
        table.add_column(name, justify="right")
    everything = evaluation.classes("refine").pixels
    for within in (*BANDS, None):
        states = [evaluation.classes(name, within) for name in shown]
        pixels = states[0].pixels
        shares = [ratio(count, pixels) for count in evaluation.changed(within)]
        figures = [ratio(pixels, everything), *(state.pixel_accuracy for state in states), *shares]
        name = "all" if within is None else str(within)
        table.add_row(name, *map(percent, figures))
    return table


def switch_table(evaluation: Evaluation) -> list[RenderableType]:
    """Returns the result of using fine only where attention is above a threshold, and a note.

    The last columns have the same share of pixels chosen by coarse's maximum softmax instead.
    Without labelled pixels there is no table.
    """
    points = evaluation.switch("attention").points
    if not points:
        return []
    table = _table("Fine where attention is above a threshold, coarse elsewhere, %", "above")
    for name in (
        "pixels",
        "accuracy",
        "mean IoU",
        "accuracy,\nby softmax",
        "mean IoU,\nby softmax",
    ):
        table.add_column(Text(name), justify="right")
    by_softmax = evaluation.switch("max_softmax")
    for place in SWITCH_ROWS:
        point = min(points, key=lambda point: abs(point.threshold - place))
        figures = (point.fine_share, point.pixel_accuracy, point.mean_iou)
        others = by_softmax.at_share(point.fine_share) or (None, None)
        table.add_row(f"{point.threshold:.2f}", *map(percent, (*figures, *others)))
    return [table, Text(SWITCH_NOTE, style="dim")]


def score_tables(evaluation: Evaluation) -> list[Table]:
    """Returns how well the maps, fine difficulty and the best other free score find errors."""
    tables = []
    for head, listed in _LISTED.items():
        rate = percent(evaluation.ranking(head, listed[0]).error_rate)
        table = _table(f"Scores of {head}'s errors, {rate} % of the pixels", "score")
        for name in ("AUROC", "AP", "FPR of errors", "FPR95", "AURC", "ECE %"):
            table.add_column(name, justify="right")
        for score in listed:
            name = score.replace("_", " ") + ("" if score in MAPS else " *")
            table.add_row(name, *_score_figures(evaluation, head, score))
        others = [score for score in SCORES[head] if score not in (*listed, *MAPS)]
        aurocs = {score: evaluation.ranking(head, score).auroc or 0.0 for score in others}
        best = max(aurocs, key=lambda score: aurocs[score])
        figures = _score_figures(evaluation, head, best)
        table.add_row(f"{best.replace('_', ' ')} *", *figures)
        tables.append(table)
    return tables


def _score_figures(evaluation: Evaluation, head: str, score: str) -> list[str]:
    ranking = evaluation.ranking(head, score)
    probable = score in PROBABILITIES[head]
    figures = (
        ranking.auroc,
        ranking.average_precision,
        ranking.fpr_at_error_recall,
        ranking.fpr_at_correct_recall,
        ranking.aurc,
    )
    ece = evaluation.reliability(head, score).ece if probable else None
    return [*map(_decimal, figures), percent(ece)]


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    return table


def _decimal(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _has_dash(evaluation: Evaluation) -> bool:
    states = [evaluation.classes(head) for head in HEADS]
    return any(value is None for state in states for value in (*state.iou, *state.recall))
