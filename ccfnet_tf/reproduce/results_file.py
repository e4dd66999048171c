"""docs/results/DATA_SET.json: the figures of all studies of a data set, and what was scored.

    {"data_set": ..., "scored": [{"study", "recipe", "digest", "commit"}, ...],
     "claim": {...}, "ablations": {...}, "folds": {...}}

A study is replaced as a whole by what its run folders say. `scored` only grows: it records each
recipe before it is evaluated on the test split.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.io.annotation_json import Record, read_json, records, text
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
        found = [
            str(each["digest"])
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

    def record(self, plan: Plan, recipe: PlannedRecipe) -> None:
        """Records that a recipe is about to be scored on the test split."""
        tree = self.read()
        entry = {"study": plan.study, "recipe": recipe.name, "digest": recipe.digest}
        known = [{key: each[key] for key in entry} for each in tree["scored"]]
        if entry not in known:
            tree["scored"].append({**entry, "commit": commit()})
            self._write(tree)

    def replace(self, study: str, results: dict[str, Any]) -> Record:
        """Replaces the results of a study; returns the complete content."""
        tree = {**self.read(), study: results}
        self._write(tree)
        return tree

    def _write(self, tree: Record) -> None:
        ordered = {key: tree[key] for key in ("data_set", "scored", *RECIPES) if key in tree}
        write_text(self.path, json.dumps(ordered, indent=1, allow_nan=False) + "\n")
