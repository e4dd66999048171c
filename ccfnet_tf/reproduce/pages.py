"""Tables of docs/results.md, written between markers from the results files.

    <!-- results:DATA_SET TABLE -->
    ...
    <!-- /results -->

TABLE is `claim`, `difficulty`, `scores`, `ablations` or `folds`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import Record
from ccfnet_tf.report.evaluation_in_words import counted
from ccfnet_tf.reproduce.collect import OF_PROBABILITIES, RANKINGS, SCORE_FIGURES, spread_of
from ccfnet_tf.reproduce.recipes import (
    ABLATIONS,
    CASCADE,
    CLAIM,
    DATA_SETS,
    PAPER,
    SPLIT,
    Recipe,
    Study,
)
from ccfnet_tf.runs.write_run_files import write_text

FIGURES = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "accuracy",
    "near_mean_iou": "mean IoU near boundaries",
    "near_pixel_accuracy": "accuracy near boundaries",
}
CLASS_MEANS = {"class_accuracy": "class accuracy"}
OVER_ALL = {
    "mean_iou_all": "mean IoU over all classes",
    "class_accuracy_all": "class accuracy over all classes",
}
ATTENTION = {"attention": "AUROC of attention", "difficulty": "AUROC of difficulty"}
DIFFERENCES = ("mean_iou", "near_mean_iou")
GAIN_HEADINGS = ("difference", "difference near boundaries")
PROVENANCE = ("seeds", "steps", "minutes", "skipped steps", "scorings", "commit", "machine")
NOT_RUN = "not run"
NONE = "-"
UNKNOWN = "unknown"

EXPLAINED = "docs/results.md and docs/reproduce.md of ccfnet-tf explain columns and verdicts.\n"
NOT_OURS = "It gives no settings; this is not a result of this project."

SCORE_HEADINGS = (
    "AUROC",
    "average precision",
    "FPR at 95 % of the errors",
    "FPR95",
    "AURC",
    "E-AURC",
    "AUGRC",
    "ECE, %",
    "adaptive ECE, %",
    "ECE within 4 pixels, %",
)
"""Headings of `SCORE_FIGURES`."""

NAMES = {
    "fine_difficulty": "1 - fine's probability of coarse's class",
    "max_softmax": "1 - maximum softmax of coarse",
    "entropy": "entropy of coarse",
    "margin": "margin of coarse",
    "disagreement": "coarse and fine disagree",
    **{
        f"{head}_{score}": f"{name} of {head}"
        for head in ("fine", "refine")
        for score, name in (
            ("max_softmax", "1 - maximum softmax"),
            ("entropy", "entropy"),
            ("margin", "margin"),
        )
    },
}
_START = r"<!-- results:(\w+) (\w+) -->\n"
_MARKED = re.compile(rf"{_START}(?:(?!<!-- results:).)*?<!-- /results -->", re.DOTALL)

Cells = Sequence[str]


def update_page(page: Path, results: Record) -> None:
    """Rewrites the tables of a data set in a page; a missing page is created.

    Args:
        page: The Markdown file. What stands outside the markers is kept.
        results: Content of the results file of the data set.

    Raises:
        DataError: The page has no markers for a table, or a figure is missing from the results.
        ResourceError: The page cannot be written.
    """
    write_text(page, page_text(page, results))


def page_text(page: Path, results: Record) -> str:
    """Returns the text that `update_page` writes, and raises what it raises."""
    try:
        data_set = str(results["data_set"])
        tables = {name: write(results) for name, write in TABLES.items()}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        path = page.with_suffix("") / f"{results.get('data_set')}.json"
        raise DataError(
            f"{path}: the results of {page} are damaged ({type(error).__name__}: {error}), or of "
            "another version: restore the file, or collect them from their run folders into "
            "another --results"
        ) from error
    before = _read(page)
    found = [name for owner, name in _MARKED.findall(before) if owner == data_set]
    started = [name for owner, name in re.findall(_START, before) if owner == data_set]
    if found != started:
        name = next(name for name in started if name not in found)
        raise DataError(
            f"{page}: the block after '<!-- results:{data_set} {name} -->' has no end: add the "
            "line '<!-- /results -->'"
        )
    if not found:  # of another data set, or empty
        before += ("\n" if before else "") + _new_page(data_set)
        found = list(TABLES)
    missing = [name for name in TABLES if name not in found]
    if missing:
        raise DataError(
            f"{page}: no place for a table: add the lines '<!-- results:{data_set} {missing[0]} "
            "-->' and '<!-- /results -->'"
        )

    def replaced(match: re.Match[str]) -> str:
        owner, name = match[1], match[2]
        if owner != data_set or name not in tables:
            return match[0]
        return f"<!-- results:{owner} {name} -->\n\n{tables[name]}\n\n<!-- /results -->"

    return _MARKED.sub(replaced, before)


def _read(page: Path) -> str:
    if page.is_dir():
        raise DataError(f"{page}: is a folder: move it away, or give another --results")
    try:
        return page.read_text(encoding="utf-8") if page.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{page}: cannot be read ({error}): restore it, or give another --results"
        ) from error


def _new_page(data_set: str) -> str:
    blocks = [
        f"## {name.capitalize()}\n\n<!-- results:{data_set} {name} -->\n<!-- /results -->\n"
        for name in TABLES
    ]
    return "\n".join([f"# {DATA_SETS[data_set]}\n", EXPLAINED, *blocks])


def claim_table(results: Record) -> str:
    """Returns the table of the claim: refine against what it is made of."""
    study, paper = results.get("claim"), PAPER[results["data_set"]]
    lines = [
        _about(study, "claim"),
        "",
        *_table(*claim_cells(study)),
        "",
        f"Refine is above all four in mean IoU: **{overall(study)}**.",
        "",
        f"The paper states a pixel accuracy of {paper} % for its own network. {NOT_OURS}",
    ]
    return "\n".join(lines)


def claim_cells(study: Record | None) -> tuple[Cells, list[Cells]]:
    """Returns headings and rows of the claim."""
    figures = FIGURES | CLASS_MEANS | (OVER_ALL if _lacks_classes(study) else {})
    headings = ("trained", *figures.values(), *GAIN_HEADINGS, "refine is better", *PROVENANCE)
    return headings, [*_claim_rows(study, tuple(figures))]


def _lacks_classes(study: Record | None) -> bool:
    """Returns whether the labels of a split lack classes, over which means may be taken too."""
    figures = [run["figures"]["refine"] for run in study["runs"]] if study else []
    return any(each["mean_iou_all"] != each["mean_iou"] for each in figures)


def _claim_rows(study: Record | None, figures: Sequence[str]) -> Iterator[Cells]:
    for recipe in CLAIM:
        yield _row(study, recipe, _summary(study, recipe), recipe.head, figures)
        if recipe is CASCADE:
            average = "plain average of its coarse and fine"
            yield _row(study, recipe, average, "average", figures)
            yield _row(study, recipe, "fine of the cascade, for comparison", "fine", figures)


def _summary(study: Record | None, recipe: Recipe) -> str:
    """Returns what a recipe is, with the width of the network where it was computed."""
    found = study["recipes"].get(recipe.name) if study else None
    return str(found["summary"]) if found else recipe.summary


def overall(study: Record | None) -> str:
    """Returns the verdict on all comparisons of the claim together."""
    if study is None:
        return NOT_RUN
    wanted = [("cascade", "average"), *((each.name, each.head) for each in CLAIM[1:])]
    found = [_comparison(study, *each) for each in wanted]
    verdicts = [each["mean_iou"]["verdict"] if each else "unfinished" for each in found]
    if "no" in verdicts:  # whatever the others become
        return "no"
    if "unfinished" in verdicts:
        return "unfinished"
    return "yes" if set(verdicts) == {"yes"} else "not shown"


def difficulty_table(results: Record) -> str:
    """Returns the table of difficulty against the scores that need no head of their own."""
    study = results.get("claim")
    headings = (
        "score",
        "AUROC",
        "difficulty is better",
        "average precision",
        "difficulty is better",
    )
    rows = [_score_cells(row) for row in study.get("difficulty", [])] if study else []
    return "\n".join(_table(headings, rows or [(NOT_RUN, *[NONE] * 4)]))


def _score_cells(row: Record) -> Cells:
    cells = [NAMES.get(row["score"], str(row["score"]))]
    for key in RANKINGS:
        cells += [_spread(row[key], scale=1, digits=4), str(row.get(f"{key}_verdict", NONE))]
    return cells


def scores_table(results: Record) -> str:
    """Returns the table of every figure of the scores, of the errors of coarse and of refine."""
    study = results.get("claim")
    headings = ("score", "errors of", *SCORE_HEADINGS)
    rows = [_figures_of_score(row) for row in study.get("scores", [])] if study else []
    return "\n".join(_table(headings, rows or [(NOT_RUN, *[NONE] * (len(headings) - 1))]))


def _score_name(row: Record) -> str:
    """Returns the name of a score; entropy and margin are those of the head with the errors."""
    return NAMES.get(row["score"], str(row["score"])).replace("of coarse", f"of {row['errors_of']}")


def _figures_of_score(row: Record) -> Cells:
    errors = f"{row['errors_of']}, {_spread(row['error_rate'])} %"
    return [_score_name(row), errors, *(_score_figure(row, key) for key in SCORE_FIGURES)]


def _score_figure(row: Record, key: str) -> str:
    if key in OF_PROBABILITIES:
        return _spread(row[key])
    return _spread(row[key], scale=1, digits=3)


def ablation_table(results: Record) -> str:
    """Returns the table of ablations: what each change of the cascade does; none before a run."""
    study = results.get("ablations")
    if not study:
        return _about(study, "ablations")
    return "\n".join([_about(study, "ablations"), "", *_table(*ablation_cells(study))])


def ablation_cells(study: Record | None) -> tuple[Cells, list[Cells]]:
    """Returns headings and rows of the ablations."""
    rows = [
        _row(study, recipe, f"`{recipe.name}`: {recipe.summary}", recipe.head, tuple(FIGURES))
        for recipe in ABLATIONS
    ]
    for row, recipe in zip(rows, ABLATIONS, strict=True):
        row[1 + len(FIGURES) : 1 + len(FIGURES)] = _attention_cells(study, recipe)
    headings = (
        *("recipe", *FIGURES.values(), *ATTENTION.values(), *GAIN_HEADINGS),
        *("better than the cascade", *PROVENANCE),
    )
    return headings, [*rows]


def _attention_cells(study: Record | None, recipe: Recipe) -> list[str]:
    """Returns how well attention and difficulty detect the errors of coarse, if trained."""
    runs = [run for run in study["runs"] if run["recipe"] == recipe.name] if study else []
    if not runs or recipe.head != "refine":
        return [NONE] * len(ATTENTION)
    found = [[run["scores_of_coarse"][score]["auroc"] for run in runs] for score in ATTENTION]
    return [_spread(spread_of(values), scale=1, digits=3) for values in found]


def fold_table(results: Record) -> str:
    """Returns the table of folds of the cascade."""
    study = results.get("folds")
    about = f"{_about(study, 'folds')} The cascade, seed 0."
    return "\n".join([about, "", *_table(*fold_cells(study))])


def fold_cells(study: Record | None) -> tuple[Cells, list[Cells]]:
    """Returns headings and rows of the folds."""
    means = ("mean IoU of coarse", "of fine", "of the average", "of refine")
    accuracies = ("accuracy of refine", "class accuracy of refine")
    over_all = ("mean IoU of refine over all classes", "class accuracy of refine over all classes")
    headings = ("fold", *means, *accuracies, *over_all, *PROVENANCE[1:])
    runs = study["runs"] if study else []
    rows = [_fold_cells(study, run) for run in runs]
    if len(runs) > 1:
        rows.append(_mean_cells(study))
    return headings, rows or [(NOT_RUN, *[NONE] * (len(headings) - 1))]


_FOLD_FIGURES = (
    *((name, "mean_iou") for name in ("coarse", "fine", "average", "refine")),
    ("refine", "pixel_accuracy"),
    ("refine", "class_accuracy"),
    ("refine", "mean_iou_all"),
    ("refine", "class_accuracy_all"),
)


def _fold_cells(study: Any, run: Record) -> Cells:
    figures = [_percent(run["figures"][name][key]) for name, key in _FOLD_FIGURES]
    return (str(run["fold"]), *figures, *_provenance(study, [run])[1:])


def _mean_cells(study: Any) -> Cells:
    found = study["mean_over_folds"]
    figures = [_spread(found[name][key]) for name, key in _FOLD_FIGURES]
    runs = study["runs"]
    return (f"mean of {len(runs)}", *figures, *_provenance(study, runs)[1:])


TABLES: dict[str, Callable[[Record], str]] = {
    "claim": claim_table,
    "difficulty": difficulty_table,
    "scores": scores_table,
    "ablations": ablation_table,
    "folds": fold_table,
}


def _about(study: Record | None, name: Study) -> str:
    """Returns a sentence on split and budget of a study."""
    split = {"test": "Test split", "val": "Validation split"}[SPLIT[name]]
    if not study:
        return f"{split}; {NOT_RUN}."
    images = sorted({run["images"] for run in study["runs"]})
    split += f", {' or '.join(map(str, images))} images" if images else ""
    minutes = [run["minutes"] for run in study["runs"] if run["recipe"] == CASCADE.name]
    took = f", {_range(minutes)} minutes for the cascade" if minutes else ""
    finished, planned = len(study["runs"]), len(study["planned"])
    seeds = ", then ".join(map(str, study["seeds"]))
    added = f" Planned with {seeds} seeds." if len(study["seeds"]) > 1 else ""
    epochs = counted(study["epochs"], "epoch")
    keys = study["keys_beside_preset"].items()
    options = ", ".join(f"`{key} {_escaped(str(value))}`" for key, value in keys)
    changed = f" Keys that differ from the preset: {options}." if options else ""
    return f"{split}; {epochs}{took}; {finished} of {planned} runs finished.{added}{changed}"


def _row(
    study: Record | None, recipe: Recipe, label: str, head: str, figures: Sequence[str]
) -> list[str]:
    """Returns a row: a label, figures over seeds, the comparison, and where they come from."""
    runs = [run for run in study["runs"] if run["recipe"] == recipe.name] if study else []
    if not runs:
        other = study["same"].get(recipe.name) if study else None
        state = NOT_RUN if other is None else f"same as {other}"
        return [label, state, *[NONE] * (len(figures) + len(DIFFERENCES) + len(PROVENANCE))]
    spreads = [_spread(spread_of([run["figures"][head][key] for run in runs])) for key in figures]
    comparison = _comparison(study, recipe.name, head)
    verdict = comparison["mean_iou"]["verdict"] if comparison else NONE
    where_from = _provenance(study, runs)
    gains = [_difference(comparison, figure) for figure in DIFFERENCES]
    return [label, *spreads, *gains, verdict, *where_from]


def _provenance(study: Any, runs: Sequence[Record]) -> Cells:
    return (
        ", ".join(str(seed) for seed in dict.fromkeys(run["seed"] for run in runs)),
        _range([run["steps"] for run in runs]),
        _range([run["minutes"] for run in runs]),
        _total([run["skipped_steps"] for run in runs]),
        _scorings(runs) if study["split"] == "test" else NONE,
        _joined([commit for run in runs for commit in run["commit"]]),
        "; ".join(dict.fromkeys(map(_machine, runs))),
    )


def _scorings(runs: Sequence[Record]) -> str:
    """Returns in how many forms a recipe was scored on the test split, and by how many commits."""
    commits = [run["scoring_commits"] for run in runs]
    several = f" ({_range(commits)} commits)" if max(commits) > 1 else ""
    return _range([run["scorings"] for run in runs]) + several


def _machine(run: Record) -> str:
    processor, cpus, precision = (_joined(run[key]) for key in ("processor", "cpus", "precision"))
    gpus = f", {_joined(run['gpus'])} GPUs" if any(run["gpus"]) else ""
    return f"{processor}, {cpus} cores{gpus}, {precision}, TensorFlow {_joined(run['tensorflow'])}"


def _comparison(study: Record | None, recipe: str, head: str) -> Record | None:
    for found in study["comparisons"] if study else ():
        if (found["recipe"], found["head"]) == (recipe, head):
            return dict(found)
    return None


def _difference(comparison: Record | None, figure: str) -> str:
    if comparison is None or comparison[figure]["mean"] is None:
        return NONE
    found = comparison[figure]
    spread = "" if found["spread"] is None else f" ± {100 * found['spread']:.2f}"
    ends = f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f}"
    return f"{100 * found['mean']:+.2f}{spread} ({ends})"


def _spread(found: Record, *, scale: float = 100, digits: int = 2) -> str:
    if found["mean"] is None:
        return NONE
    mean = f"{scale * found['mean']:.{digits}f}"
    deviation = found["deviation"]
    return mean if deviation is None else f"{mean} ± {scale * deviation:.{digits}f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f}"


def _total(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return str(sum(known)) if len(known) == len(values) else UNKNOWN


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return UNKNOWN
    low, high = min(known), max(known)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _joined(values: Sequence[object]) -> str:
    return ", ".join(dict.fromkeys(UNKNOWN if each is None else str(each) for each in values))


def _table(headings: Cells, rows: Sequence[Cells]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]


def _escaped(cell: str) -> str:
    """Returns the text of a cell without what would end the cell or the block."""
    return " ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;")
