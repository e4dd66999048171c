from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.config import from_yaml, to_yaml
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.options import parse_fit


def test_without_arguments_it_is_the_demo() -> None:
    options = parse_fit([])
    assert options.config.data.format == "scenes"
    assert options.config.model.backbone == "resnet50"
    assert options.out == Path("runs/demo")
    assert not options.resume
    assert not options.config_given


def test_keys_override_the_preset() -> None:
    args = [
        "--config",
        "stanford_background",
        "--data.root",
        "x",
        "--train.epochs=3",
        "--seed",
        "7",
    ]
    config = parse_fit(args).config
    assert (config.data.root, config.train.epochs, config.seed) == ("x", 3, 7)
    assert config.train.optimizer == "adamw"  # the preset's


def test_a_yaml_file_is_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {format: scenes}\ntrain: {epochs: 4}\n")
    options = parse_fit(["--config", str(file)])
    assert options.config.train.epochs == 4
    assert options.out == Path("runs/mine")
    assert options.config_given


def test_resume_starts_from_the_run_s_own_configuration(tmp_path: Path) -> None:
    config = parse_fit(["--train.epochs", "9"]).config
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse_fit(["--resume", "--out", str(tmp_path)]).config == config


def test_print_config_can_be_given_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_fit(["--train.epochs", "5", "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert from_yaml(printed, source="printed") == parse_fit(["--train.epochs", "5"]).config


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train.epoch", "3"], "unknown key 'train.epoch'; did you mean 'train.epochs'"),
        (["--train.epochs", "x"], "train.epochs is 'x': it must be a whole number"),
        (["--train.epochs", "0"], "train.epochs is 0"),
        (["--model.backbone", "resnet5"], "one of resnet50, .*did you mean 'resnet50'"),
        (["--config", "demoo"], "neither a preset .*did you mean 'demo'"),
        (["--data.scale", "5"], "data.scale is '5': it must be a list"),
        (["--out"], "expected one argument"),
        (["--resume=3"], "ignored explicit argument"),
    ],
)
def test_a_mistake_is_one_line_with_the_mend(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_fit(args)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  epocs: 4\n")
    with pytest.raises(ConfigError, match=r"'train\.epocs'; did you mean 'train\.epochs'"):
        parse_fit(["--config", str(file)])


def test_help_shows_the_defaults_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 4321}\n")
    with pytest.raises(SystemExit) as ended:
        parse_fit(["--config", str(file), "--help"])
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Passes over the training part. (type: int, default: 4321)" in printed
    assert "those of mine.yaml" in printed
    with pytest.raises(SystemExit):
        parse_fit(["-h"])
    lines = capsys.readouterr().out.splitlines()
    assert "--debug                show the traceback of an error" in lines  # the epilog's own form


def test_help_of_an_unknown_key_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epocs: 4}\n")
    with pytest.raises(ConfigError, match=r"did you mean 'train\.epochs'"):
        parse_fit(["--config", str(file), "--help"])


def test_a_fault_of_yaml_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\ntrain: epochs: 3\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: line 2 is not YAML \(mapping values"):
        parse_fit(["--resume", "--out", str(tmp_path)])


@pytest.mark.parametrize("text", ["{", "", "[1]", "train: [3]", "\xff"])
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: ") as caught:
        parse_fit(["--config", str(file)])
    assert "\n" not in str(caught.value)
