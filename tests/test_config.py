from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ccfnet_tf.cli.fit_options import parse_fit
from ccfnet_tf.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    find_config,
    from_yaml,
    preset_names,
    to_yaml,
)
from ccfnet_tf.errors import ConfigError

SCENES = DataConfig(format="scenes")


def of_preset(name: str) -> RunConfig:
    root = [] if name.startswith("demo") else ["--data.root", "somewhere"]
    return parse_fit(["--config", name, *root]).config


def test_yaml_round_trips() -> None:
    config = RunConfig(replace(SCENES, scale=(0.7, 1.3)), ModelConfig(), TrainConfig(), seed=3)
    assert from_yaml(to_yaml(config), source="x") == config


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_configuration(name: str) -> None:
    config = of_preset(name)
    assert from_yaml(to_yaml(config), source=name) == config


@pytest.mark.parametrize("name", [n for n in preset_names() if n.endswith("_paper")])
def test_paper_presets_follow_the_paper(name: str) -> None:
    config = of_preset(name)
    assert config.model.attention_input == "features"
    assert config.model.fine_input == "pyramid"
    train = config.train
    weights = (train.coarse_loss_weight, train.attention_loss_weight, train.refine_loss_weight)
    assert weights == (1.0, 1.0, 1.0)
    assert train.fine_loss_weight == 0.0
    assert not train.balanced_attention
    assert name.removesuffix("_paper") in preset_names()


def test_the_preset_for_boards_changes_the_backbone_only() -> None:
    config, board = of_preset("folder"), of_preset("folder_board")
    assert board.model.backbone == "efficientnet_lite0"
    assert replace(board, model=replace(board.model, backbone=config.model.backbone)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", "unknown key 'trian'; did you mean 'train'"),
        ("train: {epocs: 3}", "unknown key 'train.epocs'; did you mean 'train.epochs'"),
        ("train: 3", "'train' must be a mapping of keys"),
        ("[1, 2]", "expected the keys"),
        ("{", "not YAML"),
        ("train: {epochs: 0}", "train.epochs is 0"),
        ("train: {epochs: x}", "train.epochs is 'x': it must be an integer"),
        ("train: {epochs: true}", "train.epochs is True: it must be an integer"),
        ("train: {class_weights: 3}", "train.class_weights is 3"),
        ("train: {class_weights: [a]}", r"train.class_weights is \['a'\]"),
        ("train: {checkpoint_every: 3}", "train.checkpoint_every is 3: it must be a string"),
        ("train: {learning_rate: .nan}", "train.learning_rate is nan"),
        ("data: {format: nonsense}", "data.format is 'nonsense'"),
        ("data: {scale: [1]}", r"data.scale is \[1\]"),
        ("data: {scale: {}}", "data.scale is {}"),
        ("data: {root: 3}", "data.root is 3"),
        ("model: {backbone: [resnet50]}", r"model.backbone is \['resnet50'\]"),
        ("seed: x", "seed is 'x': it must be an integer"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_an_invalid_file_is_a_one_line_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_yaml(text, source="run.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (DataConfig, {"fold": 100}, "data.fold is 100"),
        (DataConfig, {"rotate": 200.0}, "data.rotate is 200"),
        (DataConfig, {"cutout": 0.9}, "data.cutout is 0.9"),
        (TrainConfig, {"class_weights": (1.0, -1.0)}, "train.class_weights is -1"),
        (TrainConfig, {"class_weights": (0.0, 0.0)}, "all are 0"),
        (DataConfig, {"crop": 10}, "data.crop is 10"),
        (DataConfig, {"crop": 100_000}, "data.crop is 100000"),
        (DataConfig, {"scale": (2.0, 1.0)}, "data.scale"),
        (ModelConfig, {"dropout": 1.0}, "model.dropout"),
        (TrainConfig, {"batch": 0}, "train.batch is 0"),
        (TrainConfig, {"checkpoint_every": "0 steps"}, "train.checkpoint_every is '0 steps'"),
        (TrainConfig, {"checkpoint_every": "soon"}, "such as '1 epoch'"),
        (TrainConfig, {"learning_rate": 0.0}, "train.learning_rate"),
        (TrainConfig, {"label_smoothing": 0.51}, "train.label_smoothing is 0.51"),
        (TrainConfig, {"coarse_loss_weight": 0.0, "refine_loss_weight": 0.0}, "losses are all 0"),
    ],
)
def test_values_out_of_range_are_refused(section: type, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        section(**values)


def test_a_folder_format_needs_a_root() -> None:
    with pytest.raises(ConfigError, match=r"data\.root"):
        RunConfig(data=DataConfig(format="folder"))


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"demo, .*did you mean 'folder'"):
        find_config("foldr")


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        (
            {"coarse_scale": 0.5},
            {},
            r"model.coarse_scale is 0.5: .* set train.batch_norm to frozen",
        ),
        ({"coarse_scale": 1.5}, {}, r"model.coarse_scale is 1.5: .* set train.batch_norm to"),
        ({"blend": "hard"}, {"attention_loss_weight": 0.0}, "model.blend is hard: .* attention"),
        ({"gate": "affine"}, {"refine_loss_weight": 0.0}, "model.gate is affine: .* refine"),
        (
            {},
            {"hard_pixel_weight": 4.0, "attention_loss_weight": 0.0},
            r"train.hard_pixel_weight is 4.0: .* set train.attention_loss_weight above 0",
        ),
        (
            {},
            {"hard_pixel_weight": 4.0, "refine_loss_weight": 0.0, "best_by": "coarse"},
            r"train.hard_pixel_weight is 4.0: it needs a loss of fine or refine",
        ),
        ({}, {"fine_loss_pixels": "hard"}, "train.fine_loss_pixels is hard: .* fine"),
        (
            {},
            {"fine_loss_pixels": "hard", "fine_loss_weight": 0.5, "ohem_share": 0.5},
            r"train.ohem_share is 0.5 but .* set train.ohem_share to 1",
        ),
        (
            {},
            {
                "best_by": "coarse",
                "coarse_loss_weight": 0.0,
                "refine_loss_weight": 0.0,
                "fine_loss_weight": 1.0,
            },
            "train.best_by is coarse: .* set train.coarse_loss_weight",
        ),
        (
            {},
            {"best_by": "fine", "refine_loss_weight": 0.0},
            "train.best_by is fine: .* set train.fine_loss_weight",
        ),
    ],
)
def test_keys_without_effect_together_are_refused(
    model: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    scenes = DataConfig(format="scenes")
    with pytest.raises(ConfigError, match=message):
        RunConfig(scenes, ModelConfig(**model), TrainConfig(**train))
    RunConfig(
        scenes,
        ModelConfig(**model),
        TrainConfig(batch_norm="frozen", fine_loss_weight=0.5, fine_loss_pixels="hard"),
    )


@pytest.mark.parametrize(
    "train",
    [
        {"best_by": "fine"},  # trained by the loss of refine
        {"best_by": "coarse", "coarse_loss_weight": 0.0},
        {"best_by": "fine", "refine_loss_weight": 0.0, "fine_loss_weight": 1.0},
    ],
)
def test_a_trained_prediction_may_select_the_checkpoint(train: dict[str, Any]) -> None:
    RunConfig(DataConfig(format="scenes"), train=TrainConfig(**train))
