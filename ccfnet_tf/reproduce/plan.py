"""Plans: which runs a study consists of, and how long each of them trains.

OUT/STUDY/plan.json   epochs of every run, recipes with their digests, and the list of runs
OUT/STUDY/NAME.yaml   configuration of a run
OUT/STUDY/NAME/       its run folder

The number of epochs is fixed when a study is started, so that runs added later and resumed runs
train as long as the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ccfnet_tf.config import RunConfig, to_yaml
from ccfnet_tf.errors import DataError, RunError
from ccfnet_tf.io.annotation_json import Record, read_json, records, text, whole
from ccfnet_tf.io.checksum import sha256_of
from ccfnet_tf.io.new_folder import refuse_file, refuse_unwritable
from ccfnet_tf.reproduce.recipes import RECIPES, SPLIT, Head, Recipe, Study, with_keys
from ccfnet_tf.runs.write_run_files import write_text

PLAN = "plan.json"

_OF_THE_MACHINE = {
    "data": ("root", "fold", "cache", "workers", "lists", "label_map"),
    "model": ("backbone_weights", "init_from"),
    "train": ("precision", "strategy", "virtual_cpus", "checkpoint_every"),
}
"""Keys that a digest leaves out: places and machines. Of files, the digest has the content."""


@dataclass(frozen=True)
class Timing:
    """Durations measured before a study.

    Attributes:
        start_seconds: Once per run: building and tracing the network.
        step_seconds: Per step, with its share of the validation at the end of an epoch.
        steps: Steps per epoch.
    """

    start_seconds: float
    step_seconds: float
    steps: int

    def epochs(self, minutes: float) -> int:
        """Returns the epochs that fit into a budget; may be 0."""
        return max(0, int((60 * minutes - self.start_seconds) // (self.step_seconds * self.steps)))


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study.

    Attributes:
        name: Name of its folder.
        recipe: Name of its recipe.
        seed: Of initial weights, validation split and order of the data.
        fold: Fold that is the test split; 0 for data sets without folds.
    """

    name: str
    recipe: str
    seed: int
    fold: int

    @classmethod
    def of(cls, recipe: str, seed: int, fold: int) -> PlannedRun:
        """Returns the run of a recipe, named after its seed and fold."""
        return cls(f"{recipe}-fold{fold}-seed{seed}", recipe, seed, fold)


@dataclass(frozen=True)
class PlannedRecipe:
    """A recipe as it was resolved for a study.

    Attributes:
        name: Name of the recipe.
        head: The prediction that is evaluated.
        digest: Of the resolved configuration; the same for every seed and fold.
        summary: What it is.
    """

    name: str
    head: Head
    digest: str
    summary: str


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        data_set: `stanford_background` or `sift_flow`.
        study: `claim`, `ablations` or `folds`.
        epochs: Epochs of every run.
        minutes: Budget of a run from which `epochs` follows; None if they were given.
        timing: What `epochs` was computed from; None if they were given.
        recipes: Recipes of the runs.
        runs: In the order in which they are trained.
    """

    data_set: str
    study: Study
    epochs: int
    minutes: float | None
    timing: Timing | None
    recipes: tuple[PlannedRecipe, ...]
    runs: tuple[PlannedRun, ...]

    @property
    def split(self) -> str:
        """The split that the study is evaluated on."""
        return SPLIT[self.study]

    def recipe(self, name: str) -> PlannedRecipe:
        """Returns the recipe of a name."""
        return next(recipe for recipe in self.recipes if recipe.name == name)


def recipe_digest(config: RunConfig) -> str:
    """Returns a digest of what a configuration trains, wherever its files are stored.

    Only keys that differ from their defaults count, so that a new key with a default does not
    change the digest of existing recipes. Seed and fold do not count.

    Raises:
        DataError: The file with the initial weights cannot be read.
    """
    tree = {}
    for section in ("data", "model", "train"):
        found = getattr(config, section)
        defaults = type(found)()
        tree[section] = {
            key: value
            for key, value in vars(found).items()
            if value != getattr(defaults, key) and key not in _OF_THE_MACHINE[section]
        }
    tree["model"]["weights"] = _weights(config.model.backbone_weights)
    listed = json.dumps(tree, sort_keys=True, default=list)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _weights(name: str) -> str:
    path = Path(name)
    try:
        return sha256_of(path) if path.is_file() else name
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def resolved(recipe: Recipe, base: RunConfig, epochs: int, width: int | None) -> RunConfig:
    """Returns the configuration of a recipe for seed 0 and fold 0.

    Args:
        recipe: The recipe.
        base: Configuration of the cascade.
        epochs: Epochs of every run.
        width: `model.head_channels` of recipes with `equal_work`.
    """
    keys: dict[str, Any] = {"train.epochs": epochs}
    if recipe.equal_work and width is not None:
        keys["model.head_channels"] = width
    return with_keys(recipe.applied(base), keys)


def config_of(run: PlannedRun, config: RunConfig) -> RunConfig:
    """Returns the configuration of a recipe for the seed and the fold of a run."""
    return replace(config, seed=run.seed, data=replace(config.data, fold=run.fold))


def runs_of(recipes: Sequence[Recipe], seeds: int, folds: Sequence[int]) -> tuple[PlannedRun, ...]:
    """Returns the runs of recipes; all recipes of a seed come before the next seed."""
    return tuple(
        PlannedRun.of(recipe.name, seed, fold)
        for fold in folds
        for seed in range(seeds)
        for recipe in recipes
    )


def extended(earlier: Plan, new: Plan, folder: Path) -> Plan:
    """Returns a plan with the recipes and runs of both.

    Raises:
        RunError: They have other data, epochs or budgets, or a recipe has changed.
    """
    for key in ("data_set", "study", "epochs", "minutes"):
        before, now = getattr(earlier, key), getattr(new, key)
        if before != now:
            raise RunError(
                f"{folder}: was started with {key.replace('_', ' ')} {before}, now {now}: use "
                "the original options, or choose another --out"
            )
    before = {recipe.name: recipe for recipe in earlier.recipes}
    for recipe in new.recipes:
        if before.get(recipe.name, recipe).digest != recipe.digest:
            raise RunError(
                f"{folder}: recipe '{recipe.name}' has changed since this study was started: use "
                "the original keys, or choose another --out"
            )
    recipes = {**before, **{recipe.name: recipe for recipe in new.recipes}}
    runs = tuple(dict.fromkeys((*earlier.runs, *new.runs)))
    return replace(earlier, recipes=tuple(recipes.values()), runs=runs)


def write_plan(folder: Path, plan: Plan, configs: dict[str, RunConfig]) -> None:
    """Writes a plan and the configurations of its recipes' runs.

    Raises:
        ResourceError: The folder cannot be written.
    """
    refuse_file(folder)
    refuse_unwritable(folder)
    for run in plan.runs:
        path = config_file(folder, run)
        if run.recipe in configs and not path.is_file():
            write_text(path, to_yaml(config_of(run, configs[run.recipe])))
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1) + "\n")


def config_file(folder: Path, run: PlannedRun) -> Path:
    """Returns the path of the configuration of a run."""
    return folder / f"{run.name}.yaml"


def read_plan(folder: Path) -> Plan | None:
    """Returns the plan of a study; None if none was started in the folder.

    Raises:
        DataError: The plan is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        return None
    tree, where = read_json(path), str(path)
    try:
        study: Any = text(tree, "study", where)
        known = {recipe.name for recipe in RECIPES[study]}
        recipes = tuple(_recipe(each, where, known) for each in records(tree, "recipes", where))
        names = {recipe.name for recipe in recipes}
        timing = tree["timing"]
        return Plan(
            text(tree, "data_set", where),
            study,
            whole(tree, "epochs", where),
            None if tree["minutes"] is None else float(tree["minutes"]),
            None if timing is None else Timing(**timing),
            recipes,
            tuple(_run(each, where, names) for each in records(tree, "runs", where)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: damaged ({type(error).__name__}: {error}): choose another --out"
        ) from error


def _recipe(tree: Record, where: str, known: set[str]) -> PlannedRecipe:
    name, head = text(tree, "name", where), text(tree, "head", where)
    if name not in known or head not in ("coarse", "fine", "refine"):
        raise ValueError(f"unknown recipe '{name}' with head '{head}'")
    chosen: Any = head
    return PlannedRecipe(name, chosen, text(tree, "digest", where), text(tree, "summary", where))


def _run(tree: Record, where: str, recipes: set[str]) -> PlannedRun:
    run = PlannedRun.of(
        text(tree, "recipe", where), whole(tree, "seed", where), whole(tree, "fold", where)
    )
    if run.recipe not in recipes or tree["name"] != run.name:
        raise ValueError(f"run '{tree['name']}' is not one of its recipe")
    return run
