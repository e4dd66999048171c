"""Plans: which runs a study consists of, and how long each of them trains.

OUT/STUDY/plan.json   epochs and precision of every run, recipes with their digests, list of runs
OUT/STUDY/NAME.yaml   configuration that a run is started with
OUT/STUDY/NAME/       its run folder

The number of epochs is fixed when a study is started, so that runs added later and resumed runs
train as long as the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ccfnet_tf.config import (
    NAMED_WEIGHTS,
    RunConfig,
    find_config,
    from_tree,
    from_yaml,
    read_tree,
    to_yaml,
)
from ccfnet_tf.errors import ConfigError, DataError, RunError
from ccfnet_tf.io.annotation_json import Record, plain_reason, read_json, records, text, whole
from ccfnet_tf.io.new_folder import refuse_file, refuse_unwritable
from ccfnet_tf.reproduce.inputs import Input
from ccfnet_tf.reproduce.recipes import (
    CASCADE,
    RECIPES,
    SPLIT,
    Head,
    Recipe,
    Study,
    with_keys,
)
from ccfnet_tf.runs.run_folder import CHECKPOINTS, CONFIG, read_config
from ccfnet_tf.runs.write_run_files import write_text

PLAN = "plan.json"

MAY_CHANGE = {
    "data": ("root", "cache", "workers"),
    "train": ("strategy", "virtual_cpus", "checkpoint_every"),
}
"""Keys that may change when a study is continued: where the data are, and the machine."""

_NOT_IN_DIGEST = {
    "data": (*MAY_CHANGE["data"], "fold", "lists", "label_map"),
    "model": ("backbone_weights", "init_from"),
    "train": (*MAY_CHANGE["train"], "precision"),
}
"""Keys that a digest leaves out. Of files, it has the content; the precision is in the plan."""


_OF_RUNS = {
    "data": (*MAY_CHANGE["data"], "fold"),
    "model": (),
    "train": (*MAY_CHANGE["train"], "precision", "epochs", "best_by"),
}
"""Keys that `keys_beside_preset` leaves out; tables have those of runs."""

_PATHS = ("data.lists", "data.label_map", "model.backbone_weights", "model.init_from")


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
        precision: Compute type of every run.
        inputs: What the recipes read.
        recipes: Recipes of the runs.
        same: Requested recipes that equal another one, and the name of that one.
        seeds: Number of seeds that was requested, whenever it grew.
        runs: In the order in which they are trained.
    """

    data_set: str
    study: Study
    epochs: int
    minutes: float | None
    timing: Timing | None
    precision: str
    inputs: tuple[Input, ...]
    recipes: tuple[PlannedRecipe, ...]
    same: dict[str, str]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]

    @property
    def split(self) -> str:
        """The split that the study is evaluated on."""
        return SPLIT[self.study]

    def recipe(self, name: str) -> PlannedRecipe:
        """Returns the recipe of a name."""
        return next(recipe for recipe in self.recipes if recipe.name == name)


def recipe_digest(config: RunConfig, inputs: Sequence[Input]) -> str:
    """Returns a digest of what a configuration trains, wherever its files are stored.

    Only keys that differ from their defaults count, so that a new key with a default does not
    change the digest of existing recipes. Seed, fold and precision do not count.

    Args:
        config: The configuration.
        inputs: What it reads, of which the content counts.
    """
    tree: dict[str, Any] = {"inputs": {each.key: each.digest for each in inputs}}
    if config.model.backbone_weights in NAMED_WEIGHTS:
        tree["weights"] = config.model.backbone_weights
    for section, left_out in _NOT_IN_DIGEST.items():
        found = getattr(config, section)
        defaults = type(found)()
        tree[section] = {
            key: value
            for key, value in vars(found).items()
            if value != getattr(defaults, key) and key not in left_out
        }
    listed = json.dumps(tree, sort_keys=True, default=list)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


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


def extended(earlier: Plan, new: Plan, folder: Path, configs: Mapping[str, RunConfig]) -> Plan:
    """Returns a plan with the recipes and runs of both.

    Args:
        earlier: The plan in the folder.
        new: What is requested now.
        folder: Folder of the study.
        configs: Configurations of the requested recipes by name, for messages.

    Raises:
        RunError: They have other data, epochs or budgets, or a recipe has changed.
    """
    for key in ("data_set", "study", "epochs", "precision"):
        refuse_other(key, getattr(earlier, key), getattr(new, key), folder)
    before = {recipe.name: recipe for recipe in earlier.recipes}
    for recipe in new.recipes:
        if before.get(recipe.name, recipe).digest != recipe.digest:
            changes = [
                *_changed_keys(earlier, recipe.name, folder, configs[recipe.name]),
                *_changed_inputs(earlier, new),
            ]
            found = f" ({', '.join(changes)})" if changes else ""
            raise RunError(
                f"{folder}: recipe '{recipe.name}' has changed since this study was started"
                f"{found}: use the original keys, or choose another --out"
            )
    recipes = {recipe.name: recipe for recipe in (*earlier.recipes, *new.recipes)}
    return replace(
        earlier,
        inputs=new.inputs,
        recipes=tuple(recipes.values()),
        same={**earlier.same, **new.same},
        seeds=tuple(dict.fromkeys((*earlier.seeds, max(*earlier.seeds, *new.seeds)))),
        runs=tuple(dict.fromkeys((*earlier.runs, *new.runs))),
    )


def _changed_keys(plan: Plan, recipe: str, folder: Path, now: RunConfig) -> Iterator[str]:
    """Yields the keys in which a recipe differs from the one that a study was started with."""
    path = config_file(folder, next(run for run in plan.runs if run.recipe == recipe))
    if not path.is_file():
        return
    before = from_yaml(path.read_text(encoding="utf-8", errors="replace"), source=str(path))
    for section, ignored in _NOT_IN_DIGEST.items():
        values, originals = vars(getattr(now, section)), vars(getattr(before, section))
        for key, value in values.items():
            named = key == "backbone_weights" and not {value, originals[key]}.isdisjoint(
                NAMED_WEIGHTS
            )
            if value != originals[key] and (key not in ignored or named):
                yield f"{section}.{key} {originals[key]}, now {value}"


def _changed_inputs(before: Plan, now: Plan) -> Iterator[str]:
    """Yields what was read with other content, or from other files, when a study was started."""
    digests = [{each.key: each.digest for each in plan.inputs} for plan in (before, now)]
    for key in dict.fromkeys((*digests[0], *digests[1])):
        if digests[0].get(key) != digests[1].get(key):
            yield "names of images or classes" if key == "data" else f"content of {key}"


def refuse_other(what: str, before: object, now: object, folder: Path) -> None:
    """Checks that an option is the one that a study was started with.

    Raises:
        RunError: It is another.
    """
    if before != now:
        raise RunError(
            f"{folder}: was started with {what.replace('_', ' ')} {before}, now {now}: use the "
            "original options, or choose another --out"
        )


def write_plan(folder: Path, plan: Plan, configs: dict[str, RunConfig]) -> None:
    """Writes a plan, and the configurations of those of its runs that have none or have not begun.

    Raises:
        ResourceError: The folder cannot be written.
    """
    refuse_file(folder)
    refuse_unwritable(folder)
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1) + "\n")
    for run in plan.runs:
        kept = has_begun(folder / run.name) and _planned(config_file(folder, run)) is not None
        if run.recipe in configs and not kept:
            text = to_yaml(config_of(run, configs[run.recipe]))
            write_text(config_file(folder, run), text)


def has_begun(run: Path) -> bool:
    """Returns whether a run has a checkpoint, from which it is resumed."""
    names = ("last.npz", "previous.npz", "best.npz")
    return any((run / CHECKPOINTS / name).is_file() for name in names)


def refuse_foreign(folder: Path, run: PlannedRun) -> None:
    """Checks that a run was started with the configuration in the study's folder.

    Raises:
        RunError: It was started with another, or one of the two is missing or damaged.
    """
    path, own = config_file(folder, run), folder / run.name / CONFIG
    planned = _planned(path)
    if planned is None:
        raise RunError(
            f"{path}: missing or damaged; it says what the run was started with: restore it, or "
            "run the command that started it again, which writes it"
        )
    if not own.is_file():
        raise RunError(
            f"{own}: no such file; it says what the run was trained with: restore it, or move "
            f"{own.parent} away; then run the same command again"
        )
    if _with_keys_of(read_config(own), planned) == planned:
        return
    raise RunError(
        f"{folder / run.name}: its config.yaml is not that of {path.name} beside it: move the "
        "folder away, then run the same command again"
    )


def _planned(path: Path) -> RunConfig | None:
    """Returns the configuration that a run is started with; None if it is missing or damaged."""
    try:
        return from_yaml(path.read_text(encoding="utf-8", errors="replace"), source=str(path))
    except (OSError, ConfigError):
        return None


def _with_keys_of(config: RunConfig, other: RunConfig) -> RunConfig:
    """Returns a configuration with the keys of another that a run may change."""
    lists = {key: getattr(other.data, key) for key in ("lists", "label_map")}  # its own copies
    kept = {
        section: {key: getattr(getattr(other, section), key) for key in keys}
        for section, keys in MAY_CHANGE.items()
    }
    return replace(
        config,
        data=replace(config.data, **kept["data"], **lists),
        train=replace(config.train, **kept["train"]),
    )


def keys_beside_preset(plan: Plan, folder: Path) -> dict[str, Any]:
    """Returns the keys in which the cascade of a study differs from the preset of the data set.

    Keys of the machine and of single runs are left out, and of paths only the name is given.
    """
    run = next(each for each in plan.runs if each.recipe == CASCADE.name)
    path = config_file(folder, run)
    config = from_yaml(path.read_text(encoding="utf-8", errors="replace"), source=str(path))
    preset = from_tree(_with_root(read_tree(find_config(plan.data_set)), config.data.root))
    return {
        f"{section}.{key}": Path(value).name if f"{section}.{key}" in _PATHS and value else value
        for section, left_out in _OF_RUNS.items()
        for key, value in vars(getattr(config, section)).items()
        if key not in left_out and value != getattr(getattr(preset, section), key)
    }


def _with_root(tree: dict[str, Any], root: str | None) -> dict[str, Any]:
    return {**tree, "data": {**tree["data"], "root": root}}


def config_file(folder: Path, run: PlannedRun) -> Path:
    """Returns the path of the configuration of a run."""
    return folder / f"{run.name}.yaml"


def read_plan(folder: Path) -> Plan | None:
    """Returns the plan of a study; None if none was started in the folder.

    Raises:
        DataError: The plan is damaged.
    """
    path = folder / PLAN
    if path.is_dir():
        raise DataError(f"{path}: is a folder: move it away, or choose another --out")
    if not path.is_file():
        return None
    where = str(path)
    try:
        tree = read_json(path)
        study: Any = text(tree, "study", where)
        known = {recipe.name for recipe in RECIPES[study]}
        recipes = tuple(_recipe(each, where, known) for each in records(tree, "recipes", where))
        names = {recipe.name for recipe in recipes}
        timing = tree["timing"]
        return Plan(
            data_set=text(tree, "data_set", where),
            study=study,
            epochs=whole(tree, "epochs", where),
            minutes=None if tree["minutes"] is None else float(tree["minutes"]),
            timing=None if timing is None else Timing(**timing),
            precision=text(tree, "precision", where),
            inputs=tuple(Input(**each) for each in records(tree, "inputs", where)),
            recipes=recipes,
            same={str(name): str(other) for name, other in dict(tree["same"]).items()},
            seeds=_seeds(tree["seeds"]),
            runs=tuple(_run(each, where, names) for each in records(tree, "runs", where)),
        )
    except DataError as error:
        raise DataError(f"{plain_reason(error)}: restore it, or choose another --out") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: damaged ({type(error).__name__}: {error}): restore it, or choose another "
            "--out"
        ) from error


def _seeds(values: list[Any]) -> tuple[int, ...]:
    if not values:
        raise ValueError("no number of seeds")
    return tuple(int(each) for each in values)


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
