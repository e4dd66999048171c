"""The table that `reproduce` prints at its end: the main columns of the page, of what was run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.table import Table
from rich.text import Text

from ccfnet_tf.io.annotation_json import Record
from ccfnet_tf.reproduce.pages import (
    NONE,
    Cells,
    ablation_cells,
    claim_cells,
    fold_cells,
    overall,
)
from ccfnet_tf.reproduce.recipes import DATA_SETS, SPLIT, Study

_COLUMNS: Mapping[Study, Cells] = {
    "claim": ("trained", "mean IoU", "accuracy", "difference", "refine is better"),
    "ablations": ("recipe", "mean IoU", "accuracy", "difference", "better than the cascade"),
    "folds": (
        *("fold", "mean IoU of coarse", "of fine", "of the average", "of refine"),
        "accuracy of refine",
    ),
}
_CELLS: Mapping[Study, Callable[[Record], tuple[Cells, list[Cells]]]] = {
    "claim": claim_cells,
    "ablations": ablation_cells,
    "folds": fold_cells,
}


def console_table(results: Record, study: Study) -> Table:
    """Returns the main figures of a study, in %.

    Args:
        results: Content of the results file of the data set, in which the study is.
        study: Which one.
    """
    found = results[study]
    headings, rows = _CELLS[study](found)
    split = {"test": "test", "val": "validation"}[SPLIT[study]]
    title = f"{DATA_SETS[results['data_set']]}, {study}, {split} split, %"
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=_caption(found, study),
        caption_justify="left",
    )
    places = [headings.index(heading) for heading in _COLUMNS[study]]
    first, *others = _COLUMNS[study]
    table.add_column(first, no_wrap=study == "ablations")
    for heading in others:
        table.add_column(heading, justify="right")
    for row in rows:
        if row[places[2]] != NONE:  # it was run
            table.add_row(_short(row[0]), *(Text(row[place]) for place in places[1:]))
    return table


def _caption(found: Record, study: Study) -> str:
    finished = f"{len(found['runs'])} of {len(found['planned'])} runs finished"
    if study == "folds":
        return finished
    if study == "ablations":
        same = [f"{name} is the same as {other}" for name, other in found["same"].items()]
        return "; ".join(["difference: mean IoU of the row minus the cascade", *same, finished])
    difference = "difference: mean IoU of refine of the cascade minus the row"
    return f"{difference}; refine is above all four in mean IoU: {overall(found)}; {finished}"


def _short(label: str) -> Text:
    """Returns the name of an ablation, or what a recipe is without the width of its network."""
    name, colon, _ = label.partition(":")
    return Text(name.strip("`") if colon and label[0] == "`" else label.split(" (", maxsplit=1)[0])
