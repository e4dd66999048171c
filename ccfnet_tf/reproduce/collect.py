"""Reads the figures of a study from its run folders."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.errors import DataError, RunError
from ccfnet_tf.evaluation.evaluation import PROBABILITIES, SCORES
from ccfnet_tf.evaluation.image_table import COMPARED, NEAR_PREFIX
from ccfnet_tf.io.annotation_json import Record, plain_reason, read_json, records
from ccfnet_tf.report.comparison import Compared, read_prediction, refuse_unlike
from ccfnet_tf.report.read_evaluation_json import Evaluated
from ccfnet_tf.reproduce.plan import Plan, PlannedRun, keys_beside_preset, refuse_foreign
from ccfnet_tf.reproduce.results_file import ResultsFile, distinct
from ccfnet_tf.reproduce.verdict import Comparison, differences, over_seeds
from ccfnet_tf.runs.run_folder import METRICS
from ccfnet_tf.runs.write_run_files import sound_rows
from ccfnet_tf.training.data_digest import FILE as DATA_DIGEST
from ccfnet_tf.training.data_digest import Row, read_samples

FREE = ("fine_difficulty", "max_softmax", "entropy", "margin", "disagreement")
"""Scores of the errors of coarse that difficulty is compared with."""

COMPARED_SCORES = ("difficulty", "attention", *FREE)
RANKINGS = ("auroc", "average_precision")

OF_PROBABILITIES = ("ece", "adaptive_ece", "ece_within_4_pixels")
"""Figures of scores that are probabilities (`PROBABILITIES`) alone."""

SCORE_FIGURES = (
    *RANKINGS,
    "fpr_at_95_recall_of_errors",
    "fpr95_correct_positive",
    "aurc",
    "e_aurc",
    "augrc",
    *OF_PROBABILITIES,
)
"""Figures of a score in `evaluation.json`."""

NEAR = "4"
"""Pixels from a boundary, as a key of `evaluation.json`."""

OWN_PARTS = ("average", "fine")
"""Predictions of the cascade that refine is compared with in the claim."""


RESTORE = "restore it, or move the folder of that run away, then run the same command again"
"""What to do about a file of a finished run."""


@dataclass(frozen=True)
class Finished:
    """A run that was trained and evaluated.

    Attributes:
        planned: What it is.
        path: Its folder.
        evaluated: Its `evaluation.json`.
    """

    planned: PlannedRun
    path: Path
    evaluated: Evaluated

    def prediction(self, name: str) -> Compared:
        """Returns the counts per image of one of `COMPARED`."""
        return read_prediction(self.path.name, self.path, name)


def collect(
    plan: Plan, finished: Sequence[PlannedRun], folder: Path, results: ResultsFile
) -> dict[str, Any]:
    """Returns the content of a study for the results file.

    Args:
        plan: The plan of the study.
        finished: Those of its runs that are trained and scored.
        folder: Folder of the study.
        results: Says how often each recipe was scored.

    Raises:
        CCFNetError: A file of a finished run is damaged, or does not belong to the plan.
    """
    runs = [_finished(run, folder) for run in finished]
    refuse_other_data(runs)
    scored = results.read()["scored"]
    tree: dict[str, Any] = {
        "split": plan.split,
        "epochs": plan.epochs,
        "budget_minutes": plan.minutes,
        "keys_beside_preset": keys_beside_preset(plan, folder),
        "planned": [run.name for run in plan.runs],
        "seeds": list(plan.seeds),
        "same": plan.same,
        "recipes": {
            recipe.name: {
                "summary": recipe.summary,
                "head": recipe.head,
                "digest": recipe.digest,
            }
            for recipe in plan.recipes
        },
        "runs": [_row(found, plan.epochs, scored) for found in runs],
    }
    if plan.study == "folds":
        return tree | {"mean_over_folds": _over_folds(runs)}
    tree["comparisons"] = [
        {"recipe": recipe, "head": head, **comparison.to_json()}
        for recipe, head, comparison in _comparisons(plan, runs)
    ]
    if plan.study == "claim":
        tree["difficulty"] = _difficulty(runs, _planned(plan, "cascade"))
        tree["scores"] = _scores(runs)
    return tree


def _finished(run: PlannedRun, folder: Path) -> Finished:
    path = folder / run.name
    refuse_foreign(folder, run)
    return Finished(run, path, read_prediction(path.name, path).evaluated)


def refuse_other_data(runs: Sequence[Finished]) -> None:
    """Checks that all runs were trained and evaluated on the same images and labels.

    Raises:
        RunError: An image or its label changed in training or validation, a fold has others, or
            a run does not say which it had.
        DataError: The images or labels of the evaluations of a fold differ on the test split.
    """
    rows: dict[str, tuple[Row, Path]] = {}
    first: dict[int, tuple[set[str], Finished]] = {}
    for found in runs:
        own = read_samples(found.path)
        if not own:
            digest = found.path / DATA_DIGEST
            fault = "damaged, or of another version" if digest.exists() else "no such file"
            raise RunError(f"{digest}: {fault}: {RESTORE}")
        for name, row in own.items():
            other, path = rows.setdefault(name, (row, found.path))
            if other != row:
                raise RunError(
                    f"{found.path}: the image or label of '{name}' differs from that in {path}: "
                    "restore the data, move away the folders of runs on other data, then run the "
                    "same command again"
                )
        names, before = first.setdefault(found.planned.fold, (set(own), found))
        if names != set(own):
            raise RunError(
                f"{found.path}: was trained and validated on other images than {before.path}: "
                "move away the folders of runs on other data, then run the same command again"
            )
        if before is not found and found.evaluated.split == "test":
            refuse_unlike(before.prediction("refine"), found.prediction("refine"))


def _row(found: Finished, epochs: int, scored: Sequence[Record]) -> dict[str, Any]:
    number, place = found.evaluated.number, (found.planned.recipe, found.planned.fold)
    return {
        "recipe": found.planned.recipe,
        "seed": found.planned.seed,
        "fold": found.planned.fold,
        "scorings": len(distinct(scored, "digest", *place)),
        "scoring_commits": len(distinct(scored, "commit", *place)),
        **_training(found.path, epochs),
        **_machine(found.path),
        "images": found.evaluated.count("pictures"),
        "pixels": found.evaluated.count("pixels"),
        "figures": {name: _figures(found.evaluated, name) for name in COMPARED},
        "scores_of_coarse": {
            score: {key: number("scores", "coarse", score, key) for key in RANKINGS}
            for score in COMPARED_SCORES
        },
    }


def _figures(evaluated: Evaluated, name: str) -> dict[str, float | None]:
    keys = ("pixel_accuracy", "class_accuracy", "class_accuracy_all", "mean_iou", "mean_iou_all")
    near = ("cascade", "near_boundaries", NEAR, name)
    return {key: evaluated.number(name, key) for key in keys} | {
        NEAR_PREFIX + key: evaluated.number(*near, key) for key in ("pixel_accuracy", "mean_iou")
    }


def _training(run: Path, epochs: int) -> dict[str, Any]:
    """Returns steps, skipped steps, and minutes of the epochs of a run.

    All are None if `metrics.csv` lost the row of an epoch.
    """
    metrics = run / METRICS
    rows = sound_rows(metrics)
    if len(rows) != epochs:
        return dict.fromkeys(("steps", "skipped_steps", "minutes"))
    try:
        return {
            "steps": int(rows[-1]["step"]),
            "skipped_steps": round(sum(float(row["skipped_steps"]) for row in rows)),
            "minutes": round(sum(float(row["seconds"]) for row in rows) / 60, 1),
        }
    except (KeyError, ValueError) as error:
        fault = f"damaged ({type(error).__name__}: {error})"
        raise DataError(f"{metrics}: {fault}: {RESTORE}") from error


def _machine(run: Path) -> dict[str, Any]:
    """Returns what a run was trained with; several values if it was continued elsewhere."""
    path = run / "environment.json"
    try:
        starts = records(read_json(path), "starts", str(path))
    except DataError as error:
        raise DataError(f"{plain_reason(error)}: {RESTORE}") from error
    if not starts:
        raise DataError(f"{path}: has no starts: {RESTORE}")
    rows = [{**start, "gpus": _gpus(start), "tensorflow": _tensorflow(start)} for start in starts]
    keys = ("commit", "processor", "cpus", "gpus", "precision", "tensorflow")
    return {key: [*dict.fromkeys(_plain(row.get(key)) for row in rows)] for key in keys}


def _gpus(start: Record) -> int:
    """Returns the number of GPUs among TensorFlow's devices."""
    devices = start.get("devices")
    return sum("GPU" in str(each) for each in devices) if isinstance(devices, list) else 0


def _tensorflow(start: Record) -> Any:
    versions = start.get("versions")
    return versions.get("tensorflow") if isinstance(versions, dict) else None


def _plain(value: object) -> str | int | None:
    return value if value is None or type(value) is int else str(value)


def _comparisons(plan: Plan, runs: Sequence[Finished]) -> Iterable[tuple[str, str, Comparison]]:
    """Yields refine of the cascade against each other recipe, and against its own parts.

    In the claim, a difference above 0 says that refine of the cascade is better. Of ablations, the
    difference is that of the ablation to the cascade.
    """
    cascade = dict(_by_place(runs, "cascade"))
    if plan.study == "claim" and cascade:
        for own in OWN_PARTS:
            pairs = [(each.prediction("refine"), each.prediction(own)) for each in cascade.values()]
            yield "cascade", own, _compared(pairs, _planned(plan, "cascade"))
    for recipe in plan.recipes:
        others = dict(_by_place(runs, recipe.name))
        places = [place for place in cascade if place in others]
        if recipe.name == "cascade" or not places:
            continue
        pairs = [
            (cascade[place].prediction("refine"), others[place].prediction(recipe.head))
            for place in places
        ]
        if plan.study == "ablations":
            pairs = [(other, own) for own, other in pairs]
        yield recipe.name, recipe.head, _compared(pairs, _planned(plan, recipe.name))


def _by_place(runs: Sequence[Finished], recipe: str) -> Iterable[tuple[tuple[int, int], Finished]]:
    for found in runs:
        if found.planned.recipe == recipe:
            yield (found.planned.fold, found.planned.seed), found


def _planned(plan: Plan, recipe: str) -> int:
    return sum(run.recipe == recipe for run in plan.runs)


def _compared(pairs: Sequence[tuple[Compared, Compared]], planned: int) -> Comparison:
    for one, other in pairs:
        refuse_unlike(one, other)
    everywhere = differences([(one.counts, other.counts) for one, other in pairs], planned)
    near = differences([(one.near, other.near) for one, other in pairs], planned)
    prefixed = {NEAR_PREFIX + name: difference for name, difference in near.items()}
    return Comparison(len(pairs), everywhere | prefixed)


def _difficulty(runs: Sequence[Finished], planned: int) -> list[dict[str, Any]]:
    """Returns each score of coarse's errors, and whether difficulty is above the free ones."""
    cascade = [found for _, found in _by_place(runs, "cascade")]
    rows = []
    for score in COMPARED_SCORES if cascade else ():
        row: dict[str, Any] = {"score": score}
        for key in RANKINGS:
            own, values = (
                [found.evaluated.number("scores", "coarse", name, key) for found in cascade]
                for name in ("difficulty", score)
            )
            row[key] = spread_of(values)
            if score in FREE and None not in (*own, *values):
                gains = np.subtract(np.array(own, float), np.array(values, float)).tolist()
                row[f"{key}_verdict"] = over_seeds(gains, planned)
        rows.append(row)
    return rows


def _scores(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Returns every figure of the scores of the cascade, mean and deviation over seeds."""
    cascade = [found.evaluated for _, found in _by_place(runs, "cascade")]
    pairs = [(head, score) for head in ("coarse", "refine") for score in SCORES[head]]
    rows = []
    for head, score in pairs if cascade else ():
        row: dict[str, Any] = {"errors_of": head, "score": score}
        for key in ("error_rate", *SCORE_FIGURES):
            known = key not in OF_PROBABILITIES or score in PROBABILITIES[head]
            values = [each.number("scores", head, score, key) for each in cascade if known]
            row[key] = spread_of(values)
        rows.append(row)
    return rows


def _over_folds(runs: Sequence[Finished]) -> dict[str, Any]:
    """Returns mean and deviation of each figure over folds."""
    rows = [{name: _figures(found.evaluated, name) for name in COMPARED} for found in runs]
    if not rows:
        return {}
    return {
        name: {key: spread_of([row[name][key] for row in rows]) for key in rows[0][name]}
        for name in COMPARED
    }


def spread_of(values: Sequence[float | None]) -> dict[str, Any]:
    """Returns mean, sample standard deviation (n - 1) and number of values.

    Both are None if a value is; the deviation also of a single value.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "deviation": None, "values": len(values)}
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "deviation": deviation, "values": len(known)}
