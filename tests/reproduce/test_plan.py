"""Budgets, digests and plans."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ccfnet_tf.config import RunConfig, find_config, from_tree, from_yaml, read_tree
from ccfnet_tf.errors import ConfigError, DataError, RunError
from ccfnet_tf.reproduce import timing
from ccfnet_tf.reproduce.inputs import read_inputs
from ccfnet_tf.reproduce.plan import (
    PlannedRun,
    Timing,
    config_file,
    extended,
    read_plan,
    recipe_digest,
    refuse_foreign,
    runs_of,
    write_plan,
)
from ccfnet_tf.reproduce.recipes import (
    ABLATIONS,
    CASCADE,
    CLAIM,
    DATA_SETS,
    RECIPES,
    SPLIT,
    find_ablations,
    with_keys,
)
from tests.epoch_states import write_state
from tests.reproduce.conftest import base_config, plan_of, train


@pytest.mark.parametrize(
    ("minutes", "epochs"),
    [(1.0, 0), (10 / 60 + 2, 1), (10 / 60 + 3.99, 1), (10 / 60 + 4, 2), (60, 29)],
)
def test_a_budget_holds_whole_epochs_after_the_start(minutes: float, epochs: int) -> None:
    assert Timing(start_seconds=10, step_seconds=2, steps=60).epochs(minutes) == epochs


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_every_recipe_changes_the_presets_but_the_cascade(data_set: str) -> None:
    tree = read_tree(find_config(data_set))
    tree["data"]["root"] = "data"
    base = from_tree(tree)
    digests = {each.name: recipe_digest(each.applied(base), ()) for each in (*CLAIM, *ABLATIONS)}
    same = {name for name, digest in digests.items() if digest == recipe_digest(base, ())}
    scale = "one_scale" if base.model.coarse_scale == 1 else "enlarged_coarse"
    assert same == {"cascade", "gate_affine", scale}  # left out of the ablations
    assert digests["fine_wide"] == digests["fine_alone"]  # before its width is known
    assert len(set(digests.values())) == len(digests) - 3
    for recipe in (*CLAIM, *ABLATIONS):
        config = recipe.applied(base)
        weights = {
            head: getattr(config.train, f"{head}_loss_weight") for head in ("coarse", "fine")
        }
        assert config.train.best_by == recipe.head
        assert recipe.head == "refine" or weights[recipe.head] > 0


@pytest.mark.parametrize(
    "keys",
    [
        {"model.gate": "affine", "model.coarse_scale": 0.5},
        {"model.gate": "attention", "model.blend": "hard", "train.fine_loss_pixels": "hard"},
        {"model.gate": "attention", "model.coarse_scale": 0.5, "model.blend": "hard"},
        {"model.coarse_scale": 0.5, "model.attention_scale": 0.5},
        {"model.gate": "affine", "model.coarse_scale": 1.5},
    ],
)
def test_every_recipe_is_valid_for_another_cascade(tmp_path: Path, keys: dict[str, str]) -> None:
    base = with_keys(base_config(tmp_path), keys)
    configs = [recipe.applied(base) for recipe in (*CLAIM, *ABLATIONS)]
    assert len({recipe_digest(config, ()) for config in configs}) > 10


def test_ablations_are_found_by_name() -> None:
    with pytest.raises(ConfigError, match=r"crop_18: expected .*; did you mean 'crop_185'\?"):
        find_ablations(["crop_18"])
    assert [each.name for each in find_ablations(["crop_185", "ohem", "crop_185"])] == [
        "cascade", "crop_185", "ohem",
    ]  # fmt: skip
    assert find_ablations([]) == ABLATIONS
    assert all(recipes[0] is CASCADE for recipes in RECIPES.values())


def test_ablations_do_not_see_the_test_split() -> None:
    assert SPLIT == {"claim": "test", "ablations": "val", "folds": "test"}


def test_heads_alone_read_the_image_at_full_size(tmp_path: Path) -> None:
    base = with_keys(
        base_config(tmp_path), {"model.coarse_scale": 0.5, "model.attention_scale": 0.5}
    )
    for recipe in CLAIM[1:]:
        model = recipe.applied(base).model
        assert (model.coarse_scale, model.attention_scale) == (1, 1)


def test_coarse_alone_reads_the_enlarged_image_and_fine_alone_does_not(tmp_path: Path) -> None:
    base = with_keys(base_config(tmp_path), {"model.coarse_scale": 1.5})
    scales = {recipe.name: recipe.applied(base).model.coarse_scale for recipe in CLAIM}
    assert scales == {"cascade": 1.5, "coarse_alone": 1.5, "fine_alone": 1, "fine_wide": 1}


def test_a_digest_is_of_what_is_trained_alone(tmp_path: Path) -> None:
    config = base_config(tmp_path)
    own = recipe_digest(config, ())
    same = {
        "data.root": "/elsewhere", "data.fold": 3, "seed": 5, "train.precision": "bfloat16",
        "data.workers": 2,
    }  # fmt: skip
    assert recipe_digest(with_keys(config, same), ()) == own
    for key, value in (
        ("train.epochs", 3), ("data.crop", 185), ("model.dropout", 0.2),
        ("model.backbone_weights", "imagenet"),
    ):  # fmt: skip
        assert recipe_digest(with_keys(config, {key: value}), ()) != own


def test_a_digest_has_the_content_of_what_is_read(data: Path, tmp_path: Path) -> None:
    lists, weights, init_from = (tmp_path / name for name in ("lists", "weights.h5", "init_from"))
    label_map = tmp_path / "map.yaml"
    shutil.copytree(data / "lists", lists)
    shutil.copytree(data / "set", tmp_path / "set")
    label_map.write_text("c: [a]\nd: [b]\n")
    weights.write_bytes(b"1")
    base = with_keys(
        base_config(tmp_path / "set"),
        {
            "data.format": "folder", "data.lists": str(lists), "data.label_map": str(label_map),
            "model.backbone_weights": str(weights), "model.init_from": str(init_from),
        },
    )  # fmt: skip
    train(init_from, base_config(tmp_path))

    def digest() -> str:
        return recipe_digest(base, read_inputs(base))

    own, known = digest(), read_inputs(base)
    changes: list[Callable[[], object]] = [
        lambda: (lists / "fold_1" / "test.txt").write_text("4\n"),
        lambda: weights.write_bytes(b"2"),
        lambda: write_state(init_from / "checkpoints" / "best.npz", 1, variable=1.0),
        lambda: label_map.write_text("d: [a]\nc: [b]\n"),
        lambda: shutil.copy(data / "set/images/0.png", tmp_path / "set/images/x.png"),
    ]
    seen = {own}
    for change in changes:
        change()
        if change is changes[-1]:
            shutil.copy(data / "set/masks/0.png", tmp_path / "set/masks/x.png")
            train_list = lists / "fold_0" / "train.txt"
            train_list.write_text(train_list.read_text() + "x\n")
        seen.add(digest())
    assert len(seen) == 1 + len(changes)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"model.backbone_weights is .*: no such file"):
        read_inputs(base)
    assert known[0] in read_inputs(base, known)


def test_a_seed_is_complete_before_the_next_begins() -> None:
    runs = runs_of(CLAIM[:2], 2, (0, 1))
    names = [run.name for run in runs]
    assert names[:3] == [
        "cascade-fold0-seed0", "coarse_alone-fold0-seed0", "cascade-fold0-seed1",
    ]  # fmt: skip
    assert names[4] == "cascade-fold1-seed0"


def test_a_plan_and_its_configurations_are_read_back(tmp_path: Path) -> None:
    plan, configs = plan_of(base_config(tmp_path))
    plan = replace(plan, timing=Timing(1.5, 2.25, 64))
    write_plan(tmp_path / "study", plan, configs)
    assert read_plan(tmp_path / "study") == plan
    run = PlannedRun.of("coarse_alone", 2, 0)
    path = config_file(tmp_path / "study", run)
    config = from_yaml(path.read_text(), source="file")
    assert (config.seed, config.train.best_by, config.train.fine_loss_weight) == (2, "coarse", 0)
    assert read_plan(tmp_path / "none") is None


@pytest.mark.parametrize(
    "change",
    [
        {"study": "other"}, {"epochs": "2"}, {"minutes": "x"}, {"recipes": [{}]}, {"timing": {}},
        {"seeds": []},
        {"runs": [{"name": "../x", "recipe": "cascade", "seed": 0, "fold": 0}]},
    ],
)  # fmt: skip
def test_a_damaged_plan_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    plan, configs = plan_of(base_config(tmp_path))
    write_plan(tmp_path, plan, configs)
    tree = json.loads((tmp_path / "plan.json").read_text())
    for content in (json.dumps(tree | change), "{}", "[]", "rubbish"):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(DataError, match=r"plan\.json: .*restore it, or choose another --out"):
            read_plan(tmp_path)


def test_a_study_is_extended_by_seeds_and_not_by_other_recipes(tmp_path: Path) -> None:
    base = base_config(tmp_path)
    one, _ = plan_of(base, seeds=1)
    more, configs = plan_of(base, seeds=3)
    grown = extended(one, more, tmp_path, configs)
    assert len(grown.runs) == 12
    assert extended(grown, one, tmp_path, configs) == grown
    other, _ = plan_of(with_keys(base, {"data.crop": 185}))
    with pytest.raises(RunError, match="recipe 'cascade' has changed since this study"):
        extended(one, other, tmp_path, configs)
    with pytest.raises(RunError, match=r"was started with precision float32, now bfloat16"):
        extended(one, replace(more, precision="bfloat16"), tmp_path, configs)


def test_fit_keeps_the_planned_configuration(data: Path, tmp_path: Path) -> None:
    """Or every run would be taken for one of another study."""
    from ccfnet_tf.training.claim_run_folder import claim, keep_files

    keys = {"data.format": "folder", "data.lists": str(data / "lists")}
    plan, configs = plan_of(with_keys(base_config(data / "set"), keys), seeds=1)
    write_plan(tmp_path, plan, configs)
    run = plan.runs[0]
    planned = from_yaml(config_file(tmp_path, run).read_text(), source="file")
    moved = with_keys(planned, {"data.root": str(tmp_path), "data.workers": 3})
    config = claim(moved, tmp_path / run.name, resume=True, config_given=True)
    config = replace(config, data=keep_files(config.data, tmp_path / run.name))
    train(tmp_path / run.name, config)
    refuse_foreign(tmp_path, run)
    train(tmp_path / "other", with_keys(config, {"train.batch": 3}))
    (tmp_path / "other" / "config.yaml").replace(tmp_path / run.name / "config.yaml")
    with pytest.raises(RunError, match=r"its config\.yaml is not that of cascade-fold0"):
        refuse_foreign(tmp_path, run)


@pytest.fixture
def scenes() -> RunConfig:
    tree = {"data": {"format": "scenes", "scenes": 100, "val_share": 0.2}, "train": {"batch": 4}}
    return from_tree(tree)


def test_a_step_is_timed_by_the_second_epoch(
    tmp_path: Path, scenes: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fit(arguments: list[str], **_: str) -> None:
        calls.append(arguments)
        config = from_yaml(Path(arguments[4]).read_text(), source="file")
        lists = Path(str(config.data.lists))
        counts = [len((lists / f"{part}.txt").read_text().split()) for part in ("train", "val")]
        assert counts == [32, 8]  # of 80 and 20
        assert config.train.epochs == 2
        run = Path(arguments[2])
        run.mkdir()
        (run / "metrics.csv").write_text("epoch,seconds\n1,50\n2,16\n")

    monkeypatch.setattr(timing, "run_command", fit)
    (tmp_path / "run").mkdir()  # an interrupted one
    for _ in range(2):  # the second time from the file
        found = timing.measure(scenes, tmp_path, Console(quiet=True))
        assert found == Timing(start_seconds=34, step_seconds=2, steps=20)
    assert len(calls) == 1
    timing.measure(with_keys(scenes, {"model.head_channels": 64}), tmp_path, Console(quiet=True))
    assert len(calls) == 2  # another configuration
    monkeypatch.setattr(timing, "processor", lambda: "another")
    timing.measure(with_keys(scenes, {"model.head_channels": 64}), tmp_path, Console(quiet=True))
    assert len(calls) == 3
    (tmp_path / "run" / "metrics.csv").write_text("epoch,seconds\n1,5\n2,0.0\n")
    fast = timing.measure(
        with_keys(scenes, {"model.head_channels": 64}), tmp_path, Console(quiet=True)
    )
    assert fast.epochs(1) > 0
    with pytest.raises(ConfigError, match=r"train\.batch is 4000"):
        timing.measure(with_keys(scenes, {"train.batch": 4000}), tmp_path, Console(quiet=True))
