"""The page of `ccfnet-tf report`: the figures of an evaluation, and a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from ccfnet_tf.evaluation.boundaries import BANDS
from ccfnet_tf.evaluation.confusion import ABSENT_RULE
from ccfnet_tf.evaluation.evaluation import OF_MAPS, PROBABILITIES, SCORES
from ccfnet_tf.inference.segmenter_protocol import MAPS
from ccfnet_tf.inference.writers import map_image
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.report.evaluation_in_words import confusions, counted, sentences, tiles
from ccfnet_tf.report.evaluation_plots import boundary_plots, figure_rows, map_plots, training_plots
from ccfnet_tf.report.gallery import ERRORS, LAYERS, SORTINGS, Entry, sorted_places
from ccfnet_tf.report.html_pages import css_colour, render
from ccfnet_tf.report.read_evaluation_json import Evaluated

MATRIX = 64
"""Largest number of classes for which a page contains the confusion matrix."""

PAIRS = 8
"""Number of confusions of two classes that are listed."""

_CASCADE = ("coarse", "fine", "refine", "oracle")
_FIGURES = (
    "auroc",
    "average_precision",
    "fpr_at_95_recall_of_errors",
    "fpr95_correct_positive",
    "aurc",
    "ece",
)


class _Score(NamedTuple):
    """A row of a table of scores: name, whether it is one of the three maps, and its `_FIGURES`."""

    name: str
    own: bool
    figures: list[float | None]


def report_page(
    evaluated: Evaluated,
    taxonomy: Taxonomy,
    *,
    title: str,
    run: Path | None = None,
    entries: Sequence[Entry] = (),
    images: int = 0,
) -> str:
    """Returns the page.

    Args:
        evaluated: The evaluation.
        taxonomy: Colours of its classes.
        title: Title of the page.
        run: Run whose training curves are shown; None for no curves.
        entries: Images of the gallery; may be empty.
        images: Number of images of the split, which may be more than the gallery shows.

    Raises:
        DataError: Something is missing in the evaluation.
    """
    return render(
        "report.html",
        "gallery.js" if entries else None,
        {
            "title": title,
            "evaluated": evaluated,
            "images": counted(evaluated.count("pictures"), "image"),
            "tiles": tiles(evaluated),
            "sentences": sentences(evaluated),
            "predictions": figure_rows(evaluated),
            "cascade": _cascade(evaluated),
            "score_tables": [_scores(evaluated, head) for head in ("coarse", "refine")],
            "map_plots": map_plots(evaluated),
            "class_rows": _classes(evaluated, taxonomy),
            "confused": confusions(evaluated, PAIRS),
            "matrix": _matrix(evaluated),
            "boundary_plots": boundary_plots(evaluated),
            "bands": _bands(evaluated),
            "training_plots": training_plots(run) if run else [],
            "gallery": _gallery(entries, taxonomy) if entries else None,
            "left_out": images - len(entries) if entries else 0,
            "split_images": images,
            "other": sum(entry.other for entry in entries),
            "sortings": {name: shown for name, (shown, _) in SORTINGS.items()},
            "layers": LAYERS,
            "errors": ERRORS,
            "scale": _scale(),
            "rule": ABSENT_RULE,
        },
    )


def _cascade(evaluated: Evaluated) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("corrected", "spoiled"):
        found[key] = evaluated.count("cascade", "everywhere", key)
        found[f"{key}_share"] = evaluated.number("cascade", "everywhere", f"{key}_share")
    return found


def _scores(evaluated: Evaluated, head: str) -> dict[str, Any]:
    """Returns a table of the scores of one head's errors that were measured.

    Files of older versions have fewer scores.
    """
    maps = OF_MAPS[head]
    rows = []
    for score in (score for score in SCORES[head] if score in evaluated.scores(head)):
        probable = score in PROBABILITIES[head]
        figures = [
            _shown(evaluated.number("scores", head, score, key), 4 if key == "ece" else 3)
            if key != "ece" or probable
            else None
            for key in _FIGURES
        ]
        rows.append(_Score(score.replace("_", " "), score in maps, figures))
    rate = evaluated.number("scores", head, maps[0], "error_rate")
    best = [
        _best([row.figures[column] for row in rows], largest=column < 2)
        for column in range(len(_FIGURES))
    ]
    return {"head": head, "rate": rate, "rows": rows, "best": best}


def _shown(value: float | None, digits: int) -> float | None:
    """Returns a figure as it is shown, so that of two that look equal none is the better one."""
    return None if value is None else round(value, digits)


def _best(values: Sequence[float | None], *, largest: bool) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return max(known) if largest else min(known)


def _classes(evaluated: Evaluated, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    matrix = evaluated.confusion("refine")
    total = 0 if matrix is None else int(matrix.sum())
    columns = {
        "coarse": evaluated.by_class("coarse", "iou"),
        "fine": evaluated.by_class("fine", "iou"),
        "iou": evaluated.by_class("refine", "iou"),
        "precision": evaluated.by_class("refine", "precision"),
        "recall": evaluated.by_class("refine", "recall"),
        "dice": evaluated.by_class("refine", "dice"),
        "boundary": evaluated.by_class("refine", "boundary_iou"),
        "ece": evaluated.by_class("class_wise_ece", "classes"),
    }
    return [
        {
            "name": name,
            "colour": css_colour(taxonomy.palette[place]),
            "share": None if matrix is None or not total else matrix[place].sum() / total,
            **{key: values[place] for key, values in columns.items()},
        }
        for place, name in enumerate(evaluated.classes)
    ]


def _matrix(evaluated: Evaluated) -> list[dict[str, Any]] | None:
    """Returns the rows of the confusion matrix, each as shares of the pixels of its class."""
    matrix = evaluated.confusion("refine")
    if matrix is None or len(matrix) > MATRIX:
        return None
    rows = []
    for name, row in zip(evaluated.classes, matrix, strict=True):
        total = int(row.sum())
        shares = row / total if total else np.zeros(len(row))
        cells = [
            {"share": float(share), "level": round(10 * float(share)), "pixels": int(pixels)}
            for share, pixels in zip(shares, row, strict=True)
        ]
        rows.append({"name": name, "pixels": total, "cells": cells})
    return rows


def _bands(evaluated: Evaluated) -> list[dict[str, Any]]:
    everywhere = evaluated.count("cascade", "everywhere", "pixels")
    rows = []
    for width in (*BANDS, None):
        place = ("near_boundaries", str(width)) if width else ("everywhere",)
        pixels = evaluated.count("cascade", *place, "pixels")
        figures = [evaluated.number("cascade", *place, name, "pixel_accuracy") for name in _CASCADE]
        changed = [evaluated.count("cascade", *place, key) for key in ("corrected", "spoiled")]
        rows.append(
            {
                "within": f"{width} px" if width else "everywhere",
                "share": pixels / everywhere if everywhere else None,
                "figures": figures,
                "changed": [count / pixels if pixels else None for count in changed],
            }
        )
    return rows


def _gallery(entries: Sequence[Entry], taxonomy: Taxonomy) -> dict[str, Any]:
    """Returns what the page's script is given."""
    return {
        "layers": list(LAYERS),
        "maps": list(MAPS),
        "orders": sorted_places(entries),
        "classes": [
            {"name": name, "colour": css_colour(colour)}
            for name, colour in zip(taxonomy.names, taxonomy.palette, strict=True)
        ],
        "errors": [{"name": name, "colour": css_colour(colour)} for name, colour in ERRORS],
        "images": [
            {
                "name": entry.row.name,
                "height": entry.size[0],
                "width": entry.size[1],
                "pixels": entry.row.pixels,
                "accuracy": entry.row.accuracy,
                "coarse": entry.row.coarse_accuracy,
                "corrected": entry.row.corrected,
                "spoiled": entry.row.spoiled,
                "risk": entry.row.risk,
                "classes": entry.classes,
                "layers": entry.layers,
            }
            for entry in entries
        ],
    }


def _scale() -> Markup:
    """Returns the colours of the maps from 0 to 1, for a gradient of a style sheet."""
    ramp = map_image(np.linspace(0, 1, 9, dtype=np.float32)[np.newaxis])[0]
    return Markup(", ".join(css_colour(colour) for colour in ramp.tolist()))
