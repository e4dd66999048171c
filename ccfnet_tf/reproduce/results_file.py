"""docs/results/DATA_SET.json: the figures of all studies of a data set, and what was scored.

    {"data_set": ..., "scored": [{"study", "recipe", "fold", "digest", "commit"}, ...],
     "claim": {...}, "ablations": {...}, "folds": {...}}

A study is replaced as a whole by what its run folders say. `scored` only grows: it records each
recipe before it is evaluated on the test split of a fold, whichever study does so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.io.annotation_json import Record, plain_reason, read_json, records, text, whole
from ccfnet_tf.io.locked_folder import locked_folder
from ccfnet_tf.io.machine import commit
from ccfnet_tf.report.evaluation_in_words import counted
from ccfnet_tf.reproduce.plan import Plan, PlannedRun
from ccfnet_tf.reproduce.recipes import RECIPES
from ccfnet_tf.runs.write_run_files import write_text


def distinct(scored: Iterable[Record], key: str, recipe: str, fold: int) -> list[str]:
    """Returns the digests, or the commits, of the scorings of a recipe on a fold, oldest first."""
    found = [each for each in scored if (each["recipe"], each["fold"]) == (recipe, fold)]
    return list(dict.fromkeys(str(each.get(key)) for each in found))


@dataclass(frozen=True)
class ResultsFile:
    """The results of a data set.

    Attributes:
        path: The file; it need not exist.
        data_set: Name of the data set.
    """

    path: Path
    data_set: str

    def read(self) -> Record:
        """Returns the content; of a missing file, that without any results.

        Raises:
            DataError: The file is damaged, or of another data set.
        """
        if self.path.is_dir():
            raise DataError(f"{self.path}: is a folder: move it away, or give another --results")
        if not self.path.is_file():
            return {"data_set": self.data_set, "scored": []}
        try:
            return self._checked(read_json(self.path))
        except (DataError, ValueError) as error:  # ValueError: NaN or infinity
            reason = plain_reason(error).removeprefix(f"{self.path}: ")
            raise DataError(
                f"{self.path}: {reason}: restore the file, which knows what was scored on the test "
                "split, or give another --results"
            ) from error

    def _checked(self, tree: Record) -> Record:
        where = str(self.path)
        json.dumps(tree, allow_nan=False)
        if text(tree, "data_set", where) != self.data_set:
            raise DataError(f"{where}: is of {tree['data_set']}, not of {self.data_set}")
        for each in records(tree, "scored", where):
            for key in ("study", "recipe", "digest"):
                text(each, key, where)
            whole(each, "fold", where)
        for study in RECIPES:
            if study in tree:
                of_study = tree[study] if isinstance(tree[study], dict) else {}
                records(of_study, "runs", f"{where}: '{study}'")
        return tree

    def scorings(self, recipe: str, fold: int) -> list[str]:
        """Returns the digests under which a recipe was scored on a test split, oldest first."""
        return distinct(self.read()["scored"], "digest", recipe, fold)

    def refuse_second_scoring(self, recipe: str, folds: Iterable[int], digests: set[str]) -> None:
        """Checks that a recipe was not scored on a test split in another form.

        Args:
            recipe: Name of the recipe.
            folds: Folds that would be the test split.
            digests: What the recipe may be: several if its epochs are not known yet.

        Raises:
            ConfigError: It was.
        """
        for fold in folds:
            others = self.scorings(recipe, fold)
            if others and digests.isdisjoint(others):
                of_fold = f" of fold {fold}" if fold else ""
                raise ConfigError(
                    f"recipe '{recipe}' was scored on the test split{of_fold} before it was "
                    f"changed ({self.path}): choose changes by the validation split; to score it "
                    "once more, which the tables then say, add --again"
                )

    def stored_runs(self, study: str) -> list[tuple[Any, ...]]:
        """Returns recipe, seed and fold of each run of a study in the file."""
        runs = self.read().get(study, {"runs": []})["runs"]
        return [tuple(run.get(key) for key in ("recipe", "seed", "fold")) for run in runs]

    def refuse_fewer_runs(self, study: str, runs: int) -> None:
        """Checks that the results of a study are not replaced by those of fewer runs.

        Args:
            study: The study.
            runs: Number of its runs that are finished, or trained and about to be scored.

        Raises:
            ConfigError: They would be.
        """
        stored = len(self.stored_runs(study))
        if stored > runs:
            raise ConfigError(
                f"{self.path}: has {counted(stored, 'finished run')} of '{study}', --out has "
                f"{runs}, which would replace them: give the --out of those runs, or another "
                "--results, or add --again"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from changing the file and the page meanwhile."""
        with locked_folder(self.path.parent):
            yield

    def record(self, plan: Plan, run: PlannedRun) -> None:
        """Records that a run is about to be scored on the test split, by the present code."""
        entry = {
            "study": plan.study,
            "recipe": run.recipe,
            "fold": run.fold,
            "digest": plan.recipe(run.recipe).digest,
            "commit": commit(),
        }
        tree = self.read()
        if entry not in tree["scored"]:
            tree["scored"].append(entry)
            self._write(tree)

    def record_once(self, plan: Plan, run: PlannedRun) -> None:
        """Records a run that was scored otherwise, such as by `evaluate`, or elsewhere."""
        if plan.recipe(run.recipe).digest not in self.scorings(run.recipe, run.fold):
            self.record(plan, run)

    def replace(self, study: str, results: dict[str, Any]) -> Record:
        """Replaces the results of a study; returns the complete content."""
        self._write({**self.read(), study: results})
        return self.read()  # as the file has it: a page from it later is the same

    def _write(self, tree: Record) -> None:
        ordered = {key: tree[key] for key in ("data_set", "scored", *RECIPES) if key in tree}
        write_text(self.path, json.dumps(ordered, indent=1, allow_nan=False) + "\n")
