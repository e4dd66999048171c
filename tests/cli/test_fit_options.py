from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ccfnet_tf.cli.fit_options import fit_options, parse_fit
from ccfnet_tf.config import from_yaml, to_yaml
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.runs.run_folder import read_config


def test_the_default_configuration_is_the_demo() -> None:
    options = parse_fit([])
    assert options.config.data.format == "scenes"
    assert options.config.model.backbone == "resnet50"
    assert options.out == Path("runs/demo")
    assert not options.resume
    assert not options.config_given


@pytest.mark.parametrize(
    "args",
    [
        ["--data.root", "x"],
        ["--data.root=x"],
        ["--data", '{"root": "x"}'],
        ["--data.root", "x", "--data.format", "labelme"],
        ["--data.root", "x", "--train.epochs", "3"],
        ["--data.lists", "y", "--data.root", "x", "--data.fold", "1"],
        ["--data.root", "x", "--resume", "--accept-changed-data"],
    ],
)
@pytest.mark.parametrize(("verb", "out"), [("fit", "folder"), ("crossval", "folder_crossval")])
def test_a_given_root_is_used(args: list[str], verb: str, out: str) -> None:
    options = parse_fit(args, verb=verb)
    assert options.config.data.root == "x"
    assert options.config.data.format == ("labelme" if "labelme" in args else "auto")
    preset = parse_fit(["--config", "folder", "--data.root", "x"]).config
    assert options.config.model == preset.model
    assert options.out == Path(f"runs/{out}")
    assert not options.config_given


@pytest.mark.parametrize(
    "args",
    [
        ["--data.root", ""],
        ["--data.lists", "y"],
        ["--data.label_map", "y"],
        ["--data.fold", "1"],
        ["--data.format", "auto"],
        ["--data.format", "voc"],
        ["--data.void_value", "0"],
        ["--data.damaged_records", "stop"],
    ],
)
def test_a_key_of_real_data_is_not_ignored(args: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not set: .*add --data\.root FOLDER"):
        parse_fit(args)


def test_keys_of_scenes_keep_the_demo_as_default() -> None:
    options = parse_fit(["--data.scenes", "20", "--data.crop", "65", "--data.val_share", "0.2"])
    assert options.config.data.format == "scenes"
    assert options.out == Path("runs/demo")
    assert parse_fit(["--data.format", "scenes", "--data.lists", "x"]).config.data.lists == "x"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "demo", "--data.root", "x"], "data.root is x: the format is 'scenes'"),
        (["--data.format", "scenes", "--data.root", "x"], "data.root is x: the format is 'scenes'"),
        (["--config", "FILE"], "data.root is stored: the format is 'scenes'"),
        (
            ["--data.root", "x", "--data.scenes", "20"],
            "data.scenes applies only to format 'scenes'",
        ),
        (
            ["--config", "voc.yaml", "--data.scene_size", "[40, 48]"],
            "data.scene_size applies only to format 'scenes', but the format is 'voc'",
        ),
        (
            ["--config", "demo", "--data.void_value", "0"],
            "data.void_value applies only to format 'folder'",
        ),
        (
            ["--config", "voc.yaml", "--data.void_value", "0"],
            "void_value applies only to format 'folder'",
        ),
        (
            ["--config", "voc.yaml", "--data.damaged_records", "stop"],
            "data.damaged_records applies only to format 'shards'",
        ),
        (["--data.root", "x", "--accept-changed-data"], "add --resume"),
    ],
)
def test_a_key_without_effect_is_refused(args: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "voc.yaml").write_text("data: {format: voc, root: x}\n")
    (tmp_path / "FILE").write_text("data: {format: scenes, root: stored}\n")
    args = [str(tmp_path / arg) if arg in ("voc.yaml", "FILE") else arg for arg in args]
    with pytest.raises(ConfigError, match=message) as caught:
        parse_fit(args)
    assert "\n" not in str(caught.value)


def test_a_stored_run_of_scenes_with_a_root_can_be_resumed(tmp_path: Path) -> None:
    """Earlier versions accepted a root with the scenes format."""
    (tmp_path / "config.yaml").write_text("data: {format: scenes, root: x}\n")
    args = ["--resume", "--out", str(tmp_path)]
    assert parse_fit(args).config.data.root == "x"
    assert read_config(tmp_path / "config.yaml").data.root == "x"
    with pytest.raises(ConfigError, match=r"data\.root is y: the format is 'scenes'"):
        parse_fit([*args, "--data.root", "y"])


def test_help_shows_the_configuration_that_would_be_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for args, name in (([], "demo"), (["--data.root", "x"], "folder")):
        with pytest.raises(SystemExit):
            parse_fit([*args, "--help"])
        printed = capsys.readouterr().out
        assert f"those of {name}.yaml" in printed
        assert "--accept-changed-data" in printed


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
    assert config.train.optimizer == "adamw"  # From the preset.


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


def test_print_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_fit(["--train.epochs", "5", "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert from_yaml(printed, source="printed") == parse_fit(["--train.epochs", "5"]).config


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train.epoch", "3"], "unknown key 'train.epoch'; did you mean 'train.epochs'"),
        (["--train.lr", "3"], "unknown key 'train.lr'; did you mean 'train.learning_rate'"),
        (["--train.wd", "3"], "unknown key 'train.wd'; did you mean 'train.weight_decay'"),
        (["--hlep"], "unknown key 'hlep'; did you mean '--help'"),
        (["--resme"], "unknown key 'resme'; did you mean '--resume'"),
        (["--outt", "x"], "unknown key 'outt'; did you mean '--out'"),
        (["--train.gpus", "3"], "unknown key 'train.gpus'; see ccfnet-tf fit --help"),
        (["--traim.epochs", "3"], "unknown key 'traim.epochs'; did you mean 'train.epochs'"),
        (["my-data/set"], "unexpected argument 'my-data/set': .* with --data.root"),
        (["--train.epochs", "x"], "train.epochs is 'x': it must be an integer"),
        (["--train.epochs", "0"], "train.epochs is 0"),
        (["--model.backbone", "resnet5"], "one of resnet50, .*did you mean 'resnet50'"),
        (["--config", "demoo"], "neither a preset .*did you mean 'demo'"),
        (["--data.scale", "5"], "data.scale is '5': it must be a list"),
        (["--train.epochs", "5\nseed: 3"], "train.epochs is '5"),
        (["-x", "1"], "unknown key 'x'"),
        (["--", "x"], "unknown key '--'"),
        (["--out"], "expected one argument"),
        (["--resume=3"], "ignored explicit argument"),
    ],
)
def test_a_mistake_is_a_one_line_error_with_the_fix(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_fit(args)
    assert "\n" not in str(caught.value)


def test_numbers_in_lists_are_parsed_like_single_numbers() -> None:
    args = ["--train.class_weights", "[1e-1, 2]", "--data.scale", "[5e-1, 2]"]
    config = parse_fit(args).config
    assert config.train.class_weights == (0.1, 2)
    assert config.data.scale == (0.5, 2)


def test_options_are_known_without_docstrings() -> None:
    code = "from ccfnet_tf.cli.fit_options import fit_options; print(len(fit_options()))"
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == len(fit_options())


def test_an_unknown_key_in_a_file_suggests_the_nearest(tmp_path: Path) -> None:
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
    assert "Passes over the training split. (type: int, default: 4321)" in printed
    assert "those of mine.yaml" in printed
    with pytest.raises(SystemExit):
        parse_fit(["-h"])
    lines = capsys.readouterr().out.splitlines()
    assert (
        "--debug                show the traceback of an error" in lines
    )  # The epilog is not wrapped.


def test_help_with_an_unknown_key_in_a_file_suggests_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epocs: 4}\n")
    with pytest.raises(ConfigError, match=r"did you mean 'train\.epochs'"):
        parse_fit(["--config", str(file), "--help"])


def test_a_yaml_error_has_a_line_number(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\ntrain: epochs: 3\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: line 2 is not YAML \(mapping values"):
        parse_fit(["--resume", "--out", str(tmp_path)])


@pytest.mark.parametrize("text", ["{", "", "[1]", "train: [3]", "\xff"])
def test_an_error_names_the_broken_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: ") as caught:
        parse_fit(["--config", str(file)])
    assert "\n" not in str(caught.value)


EVIL = "raise SystemExit('imported from a tag in a file')\n"


@pytest.mark.parametrize(
    "text",
    [
        "model: {class_path: evilmod.Evil}",
        "model: {class_path: evilmod.Evil, init_args: {x: 1}}",
        "data: {class_path: evilmod.Evil, root: x}",
        "train: {class_path: evilmod}",
        "data: {root: x, format: {class_path: evilmod.Evil}}",
        "train: {learning_rate: {class_path: evilmod.Evil, init_args: {}}}",
        "class_path: evilmod.RunConfig",
        "model: !!python/object:evilmod.Evil {}",
        "model: !!python/name:evilmod.Evil ''",
        "config: other.yaml",
        "data: other.yaml",
        "__path__: other.yaml",
    ],
)
@pytest.mark.parametrize("way", ["config", "resume", "section", "default"])
def test_yaml_tags_import_nothing(
    text: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evilmod.py").write_text(EVIL)
    (tmp_path / "other.yaml").write_text("class_path: evilmod.Evil\nroot: x\n")
    file = tmp_path / "config.yaml"
    file.write_text(text)
    args = {
        "config": ["--config", str(file)],
        "resume": ["--resume", "--out", str(tmp_path)],
        "section": ["--model", str(file)],
        "default": ["--data", "other.yaml", "--config", str(file)],
    }[way]
    for more in ([], ["--print_config"]):  # Another value could override that of the file.
        with pytest.raises(ConfigError) as caught:
            parse_fit([*args, *more])
        assert "\n" not in str(caught.value)
    assert "evilmod" not in sys.modules


def test_numbers_in_yaml_1_2_syntax_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {format: scenes}\ntrain: {learning_rate: 3e-4, weight_decay: 1e-2}\n")
    train = parse_fit(["--config", str(file)]).config.train
    assert (train.learning_rate, train.weight_decay) == (3e-4, 1e-2)
    assert from_yaml(file.read_text(), source="x").train == train
