"""`ccfnet-tf data ...` through the command line."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.cli import main as cli
from ccfnet_tf.cli.fit_options import parse_fit
from ccfnet_tf.datasets.open_data_set import list_set
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_USER_ERROR
from ccfnet_tf.labels import distinct_colours
from ccfnet_tf.palettes import PALETTES, PaletteName, accessible_colours
from tests.datasets.layouts import small_copies

VERBS = ("check", "stats", "show", "split", "convert", "scenes", "suspects")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for i in range(8):
        mask = rng.integers(0, 3, (36, 40), np.uint8)
        Image.fromarray(rng.integers(0, 255, (36, 40, 3), np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    return root


def data(*args: str | Path) -> int:
    return cli.main(["data", *map(str, args)])


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert data("--help") == EXIT_DONE
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in VERBS)
    assert data() == EXIT_USER_ERROR


@pytest.mark.parametrize("verb", VERBS)
def test_each_subcommand_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        data(verb, "--help")
    assert left.value.code == 0
    assert f"ccfnet-tf data {verb}" in capsys.readouterr().out


def test_an_unknown_subcommand_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert data("chek", ".") == EXIT_USER_ERROR
    assert "did you mean 'check'?" in capsys.readouterr().err


def test_check_of_a_valid_data_set(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data("check", plain) == EXIT_DONE
    assert "nothing to fix" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["stats", "show", "split", "convert"])
def test_an_image_without_a_mask_refers_to_the_check(
    verb: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plain / "masks" / "2.png").unlink()
    out = {"show": "a.png", "split": "o", "convert": "o"}.get(verb)
    more = ["--out", tmp_path / out] if out else []
    assert data(verb, plain, *more) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert "2.png: no mask" in error
    assert f"to list all problems: ccfnet-tf data check {plain}" in error


@pytest.mark.parametrize("verb", ["check", "stats", "show"])
@pytest.mark.parametrize(("name", "why"), [("none", "no such folder"), ("a.png", "is a file")])
def test_a_source_that_is_no_folder_is_asked_for_as_it_was_given(
    name: str, why: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").touch()
    assert data(verb, tmp_path / name, *(["--out", "x.png"] if verb == "show" else [])) == 2
    assert f"{name}: {why}: give the folder of the data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (["--group-by", "no.csv"], "no.csv: no such file: give a CSV file with lines IMAGE,VIDEO"),
        (["--group-by", "a("], "not a valid regular expression .*: correct it"),
        (["--group-by", "x"], "every image needs a group: change the expression, or give a CSV"),
        (["--data.lists", "none"], "none: no such folder: give the folder of the lists"),
        (["--data.label_map", "no.yaml"], "no.yaml: no such file: data.label_map must name a YAML"),
    ],
)
def test_a_message_about_an_option_says_what_to_give(
    options: list[str],
    fix: str,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert data("split", plain, "--out", tmp_path / "out", *options) == EXIT_USER_ERROR
    assert re.search(fix, capsys.readouterr().err)


def test_check_reports_all_problems_and_exits_with_1(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((36, 40), 9, np.uint8)).save(plain / "masks" / "2.png")
    (plain / "images" / "4.png").write_bytes(b"no image")
    (plain / "masks" / "5.png").unlink()
    result = tmp_path / "found.json"
    assert data("check", plain, "--json", result) == EXIT_FINDINGS
    printed = capsys.readouterr().out
    for words in ("masks/2.png: value 9", "images/4.png: not an image", "images/5.png: no mask"):
        assert words in printed
    tree = json.loads(result.read_text())
    assert sorted(f["kind"] for f in tree["findings"]) == ["missing", "unreadable", "value"]


def test_only_json_is_printed_on_request(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data("check", plain, "--json", "-") == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["ok"]
    assert data("stats", plain, "--json", "-") == EXIT_DONE
    assert json.loads(capsys.readouterr().out)


def test_stats_counts_and_plots(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "stats.png"
    assert data("stats", plain, "--plot", plot) == EXIT_DONE
    assert "8 images, 11,520 labelled pixels" in capsys.readouterr().out
    image = cv2.imread(str(plot))
    assert image is not None
    assert data("stats", plain, "--plot", plot) == EXIT_USER_ERROR
    assert "already exists" in capsys.readouterr().err


def test_split_writes_lists_that_other_subcommands_accept(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "lists"
    assert data("split", plain, "--folds", "4", "--out", lists, "--seed", "1") == EXIT_DONE
    assert "4 folds" in capsys.readouterr().out
    assert data("check", plain, "--data.lists", lists, "--data.fold", "3") == EXIT_DONE
    assert "train 6, test 2 images" in capsys.readouterr().out


LAYOUTS = {
    "sift_flow": small_copies.sift_flow,
    "camvid": small_copies.camvid,
    "voc": small_copies.voc,
    "cityscapes": small_copies.cityscapes,
    "ade20k": small_copies.ade20k,
}


def printed_commands(out: str) -> dict[str, list[str]]:
    """Returns command -> arguments, as printed by `data split` and parsed by a shell."""
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith("ccfnet-tf ")]
    return {line[1]: line[2:] for line in lines}


def assert_folds(root: Path, lists: Path, out: str, folds: int) -> None:
    """Lists the data with each printed command and checks that every image is tested once."""
    commands = printed_commands(out)
    assert commands.keys() == {"fit", "crossval"}
    for verb, args in commands.items():
        config = parse_fit(args, verb=verb).config
        assert config.data.root == str(root)
        assert config.data.lists == str(lists)
        parts = [list_set(replace(config.data, fold=fold), 0) for fold in range(folds)]
        assert all(listing.folds == folds for listing in parts)
        tested = sorted(sample.name for listing in parts for sample in listing.test)
        assert tested == sorted(s.name for s in (*parts[0].train, *parts[0].test))


@pytest.mark.parametrize("name", LAYOUTS)
def test_commands_printed_by_split_read_every_layout(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, lists = LAYOUTS[name](tmp_path / "a set's copy"), tmp_path / "its [lists]"
    assert data("split", root, "--folds", "2", "--out", lists) == EXIT_DONE
    assert_folds(root, lists, capsys.readouterr().out, 2)


def test_commands_printed_by_split_repeat_the_relevant_keys(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my map.yaml").write_text("plant: [tree]\n")
    (plain / "train.txt").write_text("".join(f"{i}\n" for i in range(8)))
    lists, preset = tmp_path / "lists", tmp_path / "mine.yaml"
    preset.write_text("data: {void_value: 9, scale: [0.5, 1.5]}\n")
    keys = ("--data.label_map", tmp_path / "my map.yaml", "--data.format", "folder")
    keys = (*keys, "--config", preset, "--data.void_value", "7", "--seed", "3")
    assert data("split", plain, "--folds", "2", "--out", lists, *keys) == EXIT_DONE
    out = capsys.readouterr().out
    assert_folds(plain, lists, out, 2)
    config = parse_fit(printed_commands(out)["fit"]).config
    assert config.data.label_map == str(tmp_path / "my map.yaml")
    assert (config.data.void_value, config.data.scale) == (7, (0.5, 1.5))


def test_commands_printed_by_split_read_shards(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, lists = tmp_path / "shards", tmp_path / "lists"
    assert data("convert", plain, "--out", shards, "--shards", "2") == EXIT_DONE
    assert data("split", shards, "--folds", "2", "--out", lists) == EXIT_DONE
    assert_folds(shards, lists, capsys.readouterr().out, 2)


@pytest.mark.slow
def test_commands_printed_by_split_read_stanford_background(
    stanford_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "lists"
    assert data("split", stanford_root, "--folds", "3", "--out", lists) == EXIT_DONE
    assert_folds(stanford_root, lists, capsys.readouterr().out, 3)


def test_scenes_format_refuses_a_folder(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for keys in (("--data.format", "scenes"), ("--config", "demo")):
        assert data("check", plain, *keys) == EXIT_USER_ERROR
        assert "the format is 'scenes'" in capsys.readouterr().err


def test_keys_of_the_configuration_are_accepted(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "map.yaml").write_text("plant: [tree]\nvoid: [sky]\n")
    assert data("stats", plain, "--data.label_map", tmp_path / "map.yaml", "--json", "-") == 0
    printed = capsys.readouterr().out
    assert "plant" in printed
    assert "sky" not in printed
    assert data("check", plain, "--data.forld", "1") == EXIT_USER_ERROR
    assert "did you mean 'data.fold'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("check",), "required: SRC"),
        (("check", "nowhere"), "nowhere: no such folder"),
        (("split", "."), "required: --out"),
        (("convert", ".", "--out", "x", "--shards", "0"), "--shards is 0"),
        (("show", ".", "--count", "0"), "--count is 0"),
        (("show", ".", "--palette", "blue"), "argument --palette: invalid choice: 'blue'"),
    ],
)
def test_invalid_usage_is_a_one_line_error(
    args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data(*args) == EXIT_USER_ERROR
    output = capsys.readouterr().err
    assert words in output
    assert output.count("\n") == 1


@pytest.mark.slow
def test_scenes_convert_and_show(tmp_path: Path) -> None:
    """In a separate process, in which TensorFlow must start without printing anything."""

    def run(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ccfnet_tf", "data", *args],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        assert "oneDNN" not in done.stderr
        return done.stdout

    size = ("--data.scene_size", "[40,48]", "--data.crop", "33")
    assert "drawn: 110 images" in run("scenes", "--count", "10", "--out", "drawn", *size)
    assert "read back and equal" in run("convert", "drawn", "--out", "shards", "--shards", "2")
    assert "3 of 9 images" in run("show", "shards", "--count", "3", "--out", "s.png", *size[2:])
    sheet = cv2.imread(str(tmp_path / "s.png"))
    assert sheet is not None
    assert sheet.std() > 10


@pytest.mark.parametrize("palette", PALETTES)
def test_show_draws_in_the_colours_of_a_palette(
    palette: PaletteName, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    options = ("--out", out, "--count", "1", "--data.crop", "33", "--palette", palette)
    assert data("show", plain, *options) == EXIT_DONE
    seen = {tuple(colour) for colour in np.asarray(Image.open(out)).reshape(-1, 3).tolist()}
    colours = {"dataset": distinct_colours(3), "accessible": accessible_colours(3)}
    for name, wanted in colours.items():
        assert (set(wanted) <= seen) == (name == palette)


@pytest.mark.parametrize("option", [["--resume"], ["--accept-changed-data"], ["--out", "x"]])
def test_options_of_fit_are_not_ignored(
    option: list[str], plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data("check", plain, *option) == EXIT_USER_ERROR
    assert f"unknown key '{option[0][2:]}'" in capsys.readouterr().err


def test_a_misspelled_option_is_compared_with_those_of_the_subcommand(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data("split", plain, "--out", "x", "--fodls", "3") == EXIT_USER_ERROR
    assert "unknown key 'fodls'; did you mean '--folds'?" in capsys.readouterr().err
    assert data("check", plain, "--zzz", "3") == EXIT_USER_ERROR
    assert "unknown key 'zzz'; see ccfnet-tf data check --help" in capsys.readouterr().err
