"""docs/results/DATA_SET.json: the figures of all studies of a data set, and what was scored.

    {"data_set": ..., "scored": [{"study", "recipe", "digest", "commit"}, ...],
     "claim": {...}, "ablations": {...}, "folds": {...}}

A study is replaced as a whole by what its run folders say. `scored` only grows: it records each
recipe before it is evaluated on the test split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.io.annotation_json import Record, read_json, records, text
from ccfnet_tf.io.locked_folder import locked_folder
from ccfnet_tf.io.machine import commit
from ccfnet_tf.reproduce.plan import Plan, PlannedRecipe
from ccfnet_tf.reproduce.recipes import RECIPES
from ccfnet_tf.runs.write_run_files import write_text


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
            DataError: The file is damaged.
        """
        if not self.path.is_file():
            return {"data_set": self.data_set, "scored": []}
        tree, where = read_json(self.path), str(self.path)
        for each in records(tree, "scored", where):
            for key in ("study", "recipe", "digest"):
                text(each, key, where)
        return tree

    def scorings(self, study: str, recipe: str) -> list[str]:
        """Returns the digests under which a recipe was scored on the test split, oldest first."""
        return self._distinct("digest", study, recipe)

    def scoring_commits(self, study: str, recipe: str) -> list[str]:
        """Returns the commits of the code that scored a recipe on the test split, oldest first."""
        return self._distinct("commit", study, recipe)

    def _distinct(self, key: str, study: str, recipe: str) -> list[str]:
        found = [
            str(each.get(key))
            for each in self.read()["scored"]
            if (each["study"], each["recipe"]) == (study, recipe)
        ]
        return list(dict.fromkeys(found))

    def refuse_second_scoring(self, plan: Plan) -> None:
        """Checks that no recipe of a plan was scored on the test split in another form.

        Raises:
            ConfigError: One was.
        """
        for recipe in plan.recipes:
            others = self.scorings(plan.study, recipe.name)
            if others and recipe.digest not in others:
                raise ConfigError(
                    f"recipe '{recipe.name}' was scored on the test split before it was changed "
                    f"({self.path}): choose changes by the validation split; to score it once "
                    "more, which the tables then say, add --again"
                )

    def refuse_fewer_runs(self, plan: Plan, finished: int) -> None:
        """Checks that the results of a study are not replaced by those of fewer runs.

        Args:
            plan: The plan of the study.
            finished: Number of its runs that are finished.

        Raises:
            ConfigError: They would be.
        """
        stored = self.read().get(plan.study)
        runs = len(stored["runs"]) if isinstance(stored, dict) else 0
        if runs > finished:
            raise ConfigError(
                f"{self.path}: has {runs} finished runs of '{plan.study}', --out has {finished}, "
                "which would replace them: give the --out of those runs, or another --results, or "
                "add --again"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from changing the file and the page meanwhile."""
        with locked_folder(self.path.parent):
            yield

    def record(self, plan: Plan, recipe: PlannedRecipe) -> None:
        """Records that a recipe is about to be scored on the test split, by the present code."""
        tree, entry = self.read(), self._entry(plan, recipe) | {"commit": commit()}
        if entry not in tree["scored"]:
            tree["scored"].append(entry)
            self._write(tree)

    def record_once(self, plan: Plan, recipe: PlannedRecipe) -> None:
        """Records a recipe that was scored otherwise, such as by `evaluate`, or elsewhere."""
        if recipe.digest not in self.scorings(plan.study, recipe.name):
            self.record(plan, recipe)

    @staticmethod
    def _entry(plan: Plan, recipe: PlannedRecipe) -> Record:
        return {"study": plan.study, "recipe": recipe.name, "digest": recipe.digest}

    def replace(self, study: str, results: dict[str, Any]) -> Record:
        """Replaces the results of a study; returns the complete content."""
        self._write({**self.read(), study: results})
        return self.read()  # as the file has it: a page from it later is the same

    def _write(self, tree: Record) -> None:
        ordered = {key: tree[key] for key in ("data_set", "scored", *RECIPES) if key in tree}
        write_text(self.path, json.dumps(ordered, indent=1, allow_nan=False) + "\n")
