"""Studies whose runs were made by hand, with evaluations as `evaluate` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import RunConfig, find_config, from_tree, read_tree, to_yaml
from ccfnet_tf.evaluation.shard_files import weights_digest
from ccfnet_tf.network.calibration_parameters import Calibration
from ccfnet_tf.reproduce.inputs import Input
from ccfnet_tf.reproduce.plan import (
    Plan,
    PlannedRecipe,
    PlannedRun,
    config_of,
    recipe_digest,
    resolved,
    runs_of,
    write_plan,
)
from ccfnet_tf.reproduce.recipes import RECIPES, Recipe, Study, with_keys
from ccfnet_tf.runs.calibration_file import calibration_text
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.runs.write_run_files import write_classes
from ccfnet_tf.training.data_digest import Row, write_digest
from tests.epoch_states import write_state
from tests.report.conftest import IMAGES, TAXONOMY, write_drawn

EPOCHS = 2


def base_config(root: Path) -> RunConfig:
    """Returns the preset of Stanford Background, small."""
    tree = read_tree(find_config("stanford_background"))
    tree["data"]["root"] = str(root)
    keys = {"model.backbone": "mobilenet_v2", "model.backbone_weights": "none"}
    keys["train.precision"] = "float32"
    return with_keys(from_tree(tree), keys)


def plan_of(
    base: RunConfig, study: Study = "claim", *, seeds: int = 3, folds: tuple[int, ...] = (0,)
) -> tuple[Plan, dict[str, RunConfig]]:
    recipes: tuple[Recipe, ...] = RECIPES[study]
    configs = {each.name: resolved(each, base, EPOCHS, 200) for each in recipes}
    planned = tuple(
        PlannedRecipe(each.name, each.head, recipe_digest(configs[each.name], ()), each.summary)
        for each in recipes
    )
    runs = runs_of(recipes, seeds, folds)
    plan = Plan(
        data_set="stanford_background",
        study=study,
        epochs=EPOCHS,
        minutes=10.0,
        timing=None,
        precision="float32",
        inputs=(Input("data", str(base.data.root), "1"),),
        recipes=planned,
        same={},
        seeds=(seeds,),
        runs=runs,
    )
    return plan, configs


def train(run: Path, config: RunConfig) -> None:
    """Writes what `fit` writes."""
    (run / "checkpoints").mkdir(parents=True)
    for name in ("best", "last"):
        write_state(run / "checkpoints" / f"{name}.npz", config.train.epochs)
    write_classes(run, TAXONOMY)
    (run / "config.yaml").write_text(to_yaml(config))
    rows = [f"{epoch},{64 * epoch},90,{epoch % 2}\n" for epoch in range(1, config.train.epochs + 1)]
    (run / "metrics.csv").write_text("epoch,step,seconds,skipped_steps\n" + "".join(rows))
    rows = [Row(str(index), "1", "2") for index in range(5)]
    write_digest(run, {"train": rows[config.seed % 5 :], "val": rows[: config.seed % 5]})
    start = {"commit": "abc123", "processor": "Made | CPU", "cpus": 2, "precision": "float32"}
    start |= {"devices": ["/device:CPU:0"], "versions": {"tensorflow": "2.21.0"}}
    (run / "environment.json").write_text(json.dumps({"starts": [start, start]}))


def calibrate(run: Path, scale: tuple[float, ...] = (2.0,), bias: tuple[float, ...] = ()) -> None:
    """Writes what `calibrate` writes."""
    calibration = Calibration(scale, bias)
    kernels = read_run(run).config.train.kernel_precision
    text = calibration_text(run / "checkpoints" / "best.npz", calibration, {}, kernels=kernels)
    (run / "calibration.json").write_text(text)


def score(run: Path, split: str, *, seed: int) -> None:
    """Writes what `evaluate` writes."""
    kept = {name: (run / name).read_text() for name in ("config.yaml", "metrics.csv")}
    write_drawn(run, seed, split, IMAGES[:3])
    for name, text in kept.items():
        (run / name).write_text(text)
    info = read_run(run)
    tree = json.loads((run / "evaluation.json").read_text())
    tree["weights"] = weights_digest(info, info.calibration())
    (run / "evaluation.json").write_text(json.dumps(tree))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen small images, and lists of two folds."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for side in ("images", "masks"):
        (folder / "set" / side).mkdir(parents=True)
    for i in range(14):
        mask = rng.integers(0, 2, (5, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = Image.fromarray(mask * 120 + 60).convert("RGB")
        image.save(folder / "set" / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "set" / "masks" / f"{i}.png")
    (folder / "set" / "classes.txt").write_text("a\nb\n")
    for fold in range(2):
        lists = folder / "lists" / f"fold_{fold}"
        lists.mkdir(parents=True)
        test = range(4 * fold, 4 * fold + 4)
        (lists / "test.txt").write_text("".join(f"{i}\n" for i in test))
        (lists / "train.txt").write_text("".join(f"{i}\n" for i in range(14) if i not in test))
    return folder


Finish = Callable[..., None]


@pytest.fixture(scope="session")
def finish() -> Finish:
    """Returns a function that finishes some runs of a study."""

    def finished(
        folder: Path, plan: Plan, configs: dict[str, RunConfig], runs: tuple[PlannedRun, ...]
    ) -> None:
        write_plan(folder, plan, configs)
        for run in runs:
            train(folder / run.name, config_of(run, configs[run.recipe]))
            if plan.split == "test" and plan.recipe(run.recipe).head == "refine":
                calibrate(folder / run.name)
            # Outputs get worse with the seed of the noise: the cascade has none.
            recipes = [recipe.name for recipe in plan.recipes]
            score(folder / run.name, plan.split, seed=recipes.index(run.recipe) + run.seed // 2)

    return finished
