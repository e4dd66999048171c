"""Files of a ranking: a table, a contact sheet, and tasks for Label Studio.

    ranking.csv          one row per chosen image, the most useful first
    contact_sheet.png    image, prediction and risk of the first 100
    label_studio.json    tasks with the prediction as pre-annotation, to import
    label_studio.xml     the labelling configuration that the tasks need

Tasks are in Label Studio's basic JSON format (labelstud.io/guide/predictions). Its `score` is a
confidence: with uncertainty sampling it shows the task of the lowest score first. So it is 1 minus
the score of the ranking.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from ccfnet_tf.inference.choose_images_to_label import AT_RISK
from ccfnet_tf.inference.writers import map_image, overlay_image, with_scale
from ccfnet_tf.io.draw_sheet import shown_ids, to_width
from ccfnet_tf.io.label_studio_rle import from_brush
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.report.samples_sheet import Row, draw_blocks

TABLE, SHEET = "ranking.csv", "contact_sheet.png"
TASKS, CONFIGURATION = "label_studio.json", "label_studio.xml"

MOST_ON_SHEET = 100

_TITLES = ("image", "prediction", "risk")
_NAMED_CLASSES = 3
_FROM, _TO = "label", "image"  # names of the tags in the labelling configuration


@dataclass(frozen=True)
class Ranked:
    """A chosen image, as the table shows it.

    Attributes:
        path: Path below the folder that was ranked, with `/`.
        score: Gain relative to the first image, 0..1.
        wrong: float64 [C]; expected number of wrong pixels by predicted class.
        share_at_risk: Share of the pixels whose risk is above .5.
        near_duplicates: Paths of the images that were dropped as near-duplicates of it.
    """

    path: str
    score: float
    wrong: np.ndarray
    share_at_risk: float
    near_duplicates: tuple[str, ...]


def table(ranked: Sequence[Ranked], taxonomy: Taxonomy) -> str:
    """Returns `ranking.csv`: the columns of `Ranked`; `uncertain_classes` are the worst three."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        (
            "rank",
            "path",
            "score",
            "expected_wrong_pixels",
            "share_at_risk",
            "uncertain_classes",
            "near_duplicates",
        )
    )
    for rank, each in enumerate(ranked, start=1):
        worst = np.argsort(-each.wrong, kind="stable")[:_NAMED_CLASSES]
        names = [taxonomy.names[index] for index in worst if each.wrong[index] > 0]
        figures = (f"{each.score:.4f}", f"{each.wrong.sum():.1f}", f"{each.share_at_risk:.4f}")
        writer.writerow(
            (rank, each.path, *figures, "; ".join(names), "; ".join(each.near_duplicates))
        )
    return file.getvalue()


def sheet_cells(
    image: np.ndarray, labels: np.ndarray, risk: np.ndarray, taxonomy: Taxonomy
) -> list[np.ndarray]:
    """Returns image, prediction and risk of one image, each uint8 [h, 240, 3].

    Args:
        image: uint8 [H, W, 3].
        labels: int32 [H, W]; predicted class ids.
        risk: float32 [H, W].
        taxonomy: Colours of the classes.
    """
    drawn = [image, overlay_image(labels, image, taxonomy), map_image(risk)]
    return [to_width(each) for each in drawn]


def sheet(
    ranked: Sequence[Ranked],
    cells: Sequence[list[np.ndarray]],
    ids: Sequence[int],
    taxonomy: Taxonomy,
) -> np.ndarray:
    """Draws the contact sheet, uint8 [H, W, 3], with a legend of classes and the scale of risk.

    Args:
        ranked: The images.
        cells: For each of the first images, `sheet_cells`.
        ids: Class ids of the legend.
        taxonomy: Names and colours of the classes.
    """
    blocks: list[tuple[str, list[Row]]] = []
    for rank, (each, row) in enumerate(zip(ranked, cells, strict=False), start=1):
        name = (
            f"{rank}   {each.path}   score {each.score:.2f}   "
            f"{100 * each.share_at_risk:.1f} % of pixels with a risk above {AT_RISK:g}"
        )
        blocks.append((name, [(_TITLES, row)]))
    return with_scale(draw_blocks(blocks, ids, taxonomy), "risk: right 0", "1 wrong")


def task(
    ranked: Ranked, labels: np.ndarray, taxonomy: Taxonomy, *, prefix: str, rank: int, model: str
) -> dict[str, Any]:
    """Returns a task of Label Studio whose pre-annotation is the prediction, as brush masks.

    Args:
        ranked: The image.
        labels: int32 [H, W]; predicted class ids.
        taxonomy: Names of the classes.
        prefix: Beginning of the image's URL.
        rank: Rank of the image, from 1.
        model: Name of the model that predicted it.
    """
    height, width = labels.shape
    regions = [
        {
            "id": f"region{index}",
            "type": "brushlabels",
            "from_name": _FROM,
            "to_name": _TO,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": list(from_brush(labels == index)),
                "brushlabels": [taxonomy.names[index]],
            },
        }
        for index in shown_ids([labels])
    ]
    score = round(1.0 - ranked.score, 6)
    return {
        "data": {
            "image": prefix + quote(ranked.path),
            "rank": rank,
            "expected_wrong_pixels": round(float(ranked.wrong.sum()), 1),
        },
        "predictions": [{"model_version": model, "score": score, "result": regions}],
    }


def task_line(tree: dict[str, Any]) -> str:
    """Returns a task as one line of JSON."""
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False)


def configuration(taxonomy: Taxonomy) -> str:
    """Returns `label_studio.xml`: a brush for each class, in its colour."""
    lines = [
        f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>'
        for name, colour in zip(taxonomy.names, taxonomy.palette, strict=True)
    ]
    return "\n".join(
        (
            "<View>",
            f'  <Image name="{_TO}" value="$image" zoom="true"/>',
            f'  <BrushLabels name="{_FROM}" toName="{_TO}">',
            *lines,
            "  </BrushLabels>",
            "</View>\n",
        )
    )
