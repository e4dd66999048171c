"""`ccfnet-tf data ...` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ccfnet_tf import cli
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_USER_ERROR

VERBS = ("check", "stats", "show", "split", "convert", "scenes")


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


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert data("--help") == EXIT_DONE
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in VERBS)
    assert data() == EXIT_USER_ERROR


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        data(verb, "--help")
    assert left.value.code == 0
    assert f"ccfnet-tf data {verb}" in capsys.readouterr().out


def test_an_unknown_verb_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert data("chek", ".") == EXIT_USER_ERROR
    assert "did you mean 'check'?" in capsys.readouterr().err


def test_check_of_a_sound_set(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data("check", plain) == EXIT_DONE
    assert "nothing to mend" in capsys.readouterr().out


def test_check_names_everything_and_ends_with_1(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((36, 40), 9, np.uint8)).save(plain / "masks" / "2.png")
    (plain / "images" / "4.png").write_bytes(b"no picture")
    (plain / "masks" / "5.png").unlink()
    found = tmp_path / "found.json"
    assert data("check", plain, "--json", found) == EXIT_FINDINGS
    printed = capsys.readouterr().out
    for words in ("masks/2.png: value 9", "images/4.png: not a picture", "images/5.png: no mask"):
        assert words in printed
    tree = json.loads(found.read_text())
    assert sorted(f["kind"] for f in tree["findings"]) == ["missing", "unreadable", "value"]


def test_json_alone_goes_to_the_screen_when_asked(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data("check", plain, "--json", "-") == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["ok"]
    assert data("stats", plain, "--json", "-") == EXIT_DONE
    assert json.loads(capsys.readouterr().out)


def test_stats_counts_and_draws(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "stats.png"
    assert data("stats", plain, "--plot", plot) == EXIT_DONE
    assert "8 pictures, 11,520 labelled pixels" in capsys.readouterr().out
    picture = cv2.imread(str(plot))
    assert picture is not None
    assert data("stats", plain, "--plot", plot) == EXIT_USER_ERROR
    assert "already there" in capsys.readouterr().err


def test_split_writes_lists_that_the_other_verbs_take(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "lists"
    assert data("split", plain, "--folds", "4", "--out", lists, "--seed", "1") == EXIT_DONE
    assert "4 folds" in capsys.readouterr().out
    assert data("check", plain, "--data.lists", lists, "--data.fold", "3") == EXIT_DONE
    assert "train 6, test 2 pictures" in capsys.readouterr().out


def test_keys_of_the_configuration_work(
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
        (("convert", ".", "--to", "x", "--shards", "0"), "--shards is 0"),
        (("show", ".", "--count", "0"), "--count is 0"),
    ],
)
def test_wrong_use_is_one_line(
    args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data(*args) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_scenes_convert_and_show(tmp_path: Path) -> None:
    """In a process of its own, where TensorFlow starts as it does for a user: without a word."""

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
    assert "drawn: 110 pictures" in run("scenes", "--count", "10", "--out", "drawn", *size)
    assert "read back and equal" in run("convert", "drawn", "--to", "shards", "--shards", "2")
    assert "3 of 9 pictures" in run("show", "shards", "--count", "3", "--out", "s.png", *size[2:])
    sheet = cv2.imread(str(tmp_path / "s.png"))
    assert sheet is not None
    assert sheet.std() > 10
