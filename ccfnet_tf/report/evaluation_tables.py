"""Figures on the screen: readable at 80 columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ccfnet_tf.errors import printable
from ccfnet_tf.evaluation.confusion import ABSENT_RULE
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.evaluation.evaluate import Evaluation

DASH = "-"


def percent(value: float | None) -> str:
    """Returns a fraction as percent with two decimals, or a dash where there is none."""
    return DASH if value is None else f"{value * 100:.2f}"


def report(evaluation: Evaluation) -> RenderableType:
    """Returns all tables of an evaluation, one below the other."""
    parts: list[RenderableType] = [
        summary_table(evaluation),
        class_table(evaluation),
        difficulty_table(evaluation),
        difficulty_line(evaluation),
    ]
    if evaluation.refine.present < len(evaluation.taxonomy.names):
        parts.insert(1, means_table(evaluation))
    if (warning := evaluation.warning) is not None:
        parts.insert(0, Text(warning, style="bold yellow"))
    if _has_dash(evaluation):
        parts.append(Text(f"{DASH}: {ABSENT_RULE}", style="dim"))
    return Group(*parts)


def summary_table(evaluation: Evaluation) -> Table:
    """Returns pixel accuracy, class accuracy and mean IoU of the three answers."""
    pictures = f"{evaluation.pictures} image{'' if evaluation.pictures == 1 else 's'}"
    size = f"{pictures}, {evaluation.refine.pixels:,} labelled pixels"
    table = _table(f"{evaluation.split}: {size}", "answer %")
    for name in ("pixel accuracy", "class accuracy", "mean IoU"):
        table.add_column(name, justify="right")
    for head in HEADS:
        state = getattr(evaluation, head)
        figures = (state.pixel_accuracy, state.class_accuracy, state.mean_iou_present)
        style = "bold" if head == "refine" else ""
        table.add_row(head, *map(percent, figures), style=style)
    return table


def means_table(evaluation: Evaluation) -> Table:
    """Returns the class means over the classes that labels contain, and over all."""
    present, classes = evaluation.refine.present, len(evaluation.taxonomy.names)
    table = _table("Class means where labels lack some classes", "answer %")
    for name in ("class accuracy", "mean IoU"):
        table.add_column(f"{name}, {present} classes in labels", justify="right")
        table.add_column(f"all {classes}, absent as 0", justify="right")
    for head in HEADS:
        state = getattr(evaluation, head)
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
    """Returns the IoU of each class by the three answers."""
    table = _table("IoU by class", "class %")
    for head in HEADS:
        table.add_column(head, justify="right")
    columns = [getattr(evaluation, head).iou for head in HEADS]
    for name, *values in zip(evaluation.taxonomy.names, *columns, strict=True):
        table.add_row(
            Text(printable(name)), *map(percent, values)
        )  # Text: a name may hold [brackets]
    return table


def difficulty_table(evaluation: Evaluation) -> Table:
    """Returns the accuracy on easy and on hard pixels, by both ways to call a pixel hard."""
    table = _table("Accuracy on easy and hard pixels", "pixels %")
    for name in ("share", *HEADS):
        table.add_column(name, justify="right")
    ways = (
        ("coarse is {}", {"easy": "right", "hard": "wrong"}, evaluation.by_target),
        ("attention says {}", {"easy": "easy", "hard": "hard"}, evaluation.by_attention),
    )
    for text, words, groups in ways:
        for group, figures in groups.to_json().items():
            table.add_row(text.format(words[group]), *map(percent, figures.values()))
    return table


def difficulty_line(evaluation: Evaluation) -> Text:
    """Returns how well P(hard) finds coarse's errors, beside the free baseline."""
    ours, free = (_decimal(s.auroc) for s in (evaluation.difficulty, evaluation.max_softmax))
    return Text(f"Difficulty, AUROC of coarse's errors: {ours} (coarse's max softmax: {free})")


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    return table


def _decimal(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _has_dash(evaluation: Evaluation) -> bool:
    states = [getattr(evaluation, head) for head in HEADS]
    return any(value is None for state in states for value in (*state.iou, *state.recall))
