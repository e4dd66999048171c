"""`ccfnet-tf data suspects` with a network whose log odds are .05 per grey level from 128."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.cli import main as cli
from ccfnet_tf.cli.suspects import _without_damage
from ccfnet_tf.config import DataConfig, RunConfig, to_yaml
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, DamagedRecordError
from ccfnet_tf.labels import VOID, Sample
from ccfnet_tf.network import ccfnet
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.network.calibration_parameters import Calibration
from ccfnet_tf.palettes import PALETTES, PaletteName, accessible_colours
from ccfnet_tf.runs.calibration_file import CALIBRATION, calibration_text
from ccfnet_tf.runs.checkpoint_file import write_arrays
from ccfnet_tf.training.data_digest import Row, write_digest

BRIGHT, DARK, SLOPE = 228, 28, 0.05
NAMES = [str(number) for number in range(6)]


def suspects(*args: str | Path) -> int:
    return cli.main(["data", "suspects", *map(str, args)])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "suspects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def arrays(toy: Callable[..., Any]) -> dict[str, np.ndarray]:
    """Weights with which coarse and fine both see `SLOPE` x (grey - 128) as logit of class 1."""
    model, values = toy(2), {}
    for key, variable in named_variables(model).items():
        value = np.zeros(variable.shape, np.float32)
        if key.endswith(("gamma", "variance")):
            value[:] = 1 - 1e-3 * key.endswith(
                "variance"
            )  # Epsilon is .001: the layer is identity.
        elif key.endswith("kernel") and value.shape[:2] == (3, 3):
            value[1, 1, 0, -1 if "fine" in key else 0] = SLOPE if "fine" in key else 1
        elif "coarse" in key and key.endswith("kernel"):
            value[0, 0, 0, 1] = SLOPE
        if ("coarse" in key or "fine" in key) and key.endswith("bias"):
            value[1] = -128 * SLOPE
        values[f"model/{key}"] = value
    return values


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images of different sizes: dark left, bright right, labelled so except in two places."""
    folder = tmp_path / "set"
    for side in ("images", "masks"):
        (folder / side).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        mask = np.zeros((40, 50 + 4 * number), np.uint8)
        mask[:, 30:] = 1
        grey = np.where(mask == 1, BRIGHT, DARK).astype(np.uint8)
        if name == "0":  # 10 x 12 pixels are labelled as 0 and look like 1.
            grey[5:15, 8:20] = BRIGHT
        if name == "3":  # The same with 168 grey levels, so lower log odds; void is left out.
            grey[20:36, 4:20] = 168
            mask[20:28, 4:20] = 255
        Image.fromarray(np.stack([grey] * 3, axis=-1)).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    (folder / "classes.txt").write_text("sea\nland\n")
    return folder


@pytest.fixture
def make_run(
    arrays: dict[str, np.ndarray],
    toy: Callable[..., Any],
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Returns a function that writes lists, and a run that uses them."""
    monkeypatch.setattr(ccfnet, "build_ccfnet", lambda classes, **_: toy(classes))

    def make(run: Path, **splits: list[str]) -> Path:
        lists = run / "lists"
        lists.mkdir(parents=True)
        for split, names in splits.items():
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        data = DataConfig(root=str(root), lists=str(lists), val_share=0.0)
        (run / "config.yaml").write_text(to_yaml(RunConfig(data=data)))
        classes = {"names": ["sea", "land"], "palette": [[0, 0, 200], [0, 200, 0]]}
        (run / "classes.json").write_text(json.dumps(classes))
        write_arrays(run / "checkpoints" / "best.npz", arrays)
        write_digest(run, {"train": [Row(n, "", "") for n in splits["train"]], "val": []})
        return run

    return make


def test_a_run_lists_the_wrong_labels_of_its_test_and_validation_images(
    make_run: Callable[..., Path], tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", train=["1", "2"], val=["3"], test=["0", "4", "5"])
    out = tmp_path / "out"
    assert suspects(run, "--out", out, "--top", "1") == EXIT_DONE
    first, second = rows_of(out)
    box = [first[key] for key in ("left", "top", "width", "height", "area")]
    assert box == ["8", "5", "12", "10", "120"]
    assert first["rank"] == "1"
    assert (first["image"], first["label_file"]) == (
        str(root / "images" / "0.png"),
        str(root / "masks" / "0.png"),
    )
    assert (first["given"], first["predicted"]) == ("sea", "land")
    assert float(first["mean_log_odds"]) == pytest.approx(100 * SLOPE, abs=2e-3)
    assert float(first["score"]) == pytest.approx(120 * 100 * SLOPE, abs=0.2)
    assert first["image_score"] == first["score"]
    box = [second[key] for key in ("left", "top", "width", "height", "area")]
    assert box == ["4", "28", "16", "8", "128"]
    assert float(second["mean_log_odds"]) == pytest.approx(40 * SLOPE, abs=2e-3)
    sheet = cv2.imread(str(out / "contact_sheet.png"))
    assert 240 < sheet.shape[0] < 400  # one panel
    printed = capsys.readouterr().out
    assert "3 test and 1 val images; training images are left out" in printed
    assert "2 regions" in printed

    half = calibration_text(run / "checkpoints" / "best.npz", Calibration(scale=(0.5,)), {})
    (run / CALIBRATION).write_text(half)
    assert suspects(run, "--out", tmp_path / "calibrated") == EXIT_DONE
    halves = [float(row["score"]) for row in rows_of(tmp_path / "calibrated")]
    assert halves == pytest.approx(
        [float(first["score"]) / 2, float(second["score"]) / 2], rel=1e-3
    )

    favours_land = Calibration(scale=(1.0, 1.0), bias=(0.0, 100.0))  # but changes no label
    (run / CALIBRATION).write_text(
        calibration_text(run / "checkpoints" / "best.npz", favours_land, {})
    )
    assert suspects(run, "--out", tmp_path / "vector") == EXIT_DONE
    assert [row["area"] for row in rows_of(tmp_path / "vector")] == ["128", "120"]

    before = (out / "suspects.csv").read_bytes()
    assert suspects(run, "--out", out) == EXIT_USER_ERROR
    assert "already exists" in capsys.readouterr().err
    assert suspects(tmp_path / "gone", "--out", out) == EXIT_USER_ERROR
    assert "gone: no such folder" in capsys.readouterr().err
    assert (out / "suspects.csv").read_bytes() == before


@pytest.mark.parametrize("palette", PALETTES)
def test_the_sheet_has_the_colours_of_a_palette(
    palette: PaletteName, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", train=["1", "2"], test=["0"])
    assert suspects(run, "--out", tmp_path / "out", "--palette", palette) == EXIT_DONE
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png"))
    seen = {tuple(colour) for colour in sheet.reshape(-1, 3).tolist()}
    colours = {"dataset": ((0, 0, 200), (0, 200, 0)), "accessible": accessible_colours(2)}
    for name, wanted in colours.items():
        assert (seen >= set(wanted)) == (name == palette)
    drawn = sheet[: sheet.shape[0] // 2].reshape(-1, 3).tolist()  # the panel, not the legend
    assert set(colours[palette]) <= {tuple(colour) for colour in drawn}


def test_no_region_leaves_an_empty_table(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", train=["2", "3"], test=["0", "1"])
    out = tmp_path / "out"
    assert suspects(run, "--out", out, "--min-area", "121") == EXIT_DONE
    assert rows_of(out) == []
    assert not (out / "contact_sheet.png").exists()
    assert "no region of 121 pixels" in capsys.readouterr().out


def test_images_that_moved_from_training_to_another_split_are_refused(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", train=["2", "3"], test=["0", "1"])
    write_digest(run, {"train": [Row(name, "", "") for name in "01"], "val": []})
    assert suspects(run, "--out", tmp_path / "out") == EXIT_USER_ERROR
    assert "trained on '0' (and 1 more), which the data now have in another" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["train", "earlier"])
def test_images_that_are_the_same_as_training_images_are_left_out(
    make_run: Callable[..., Path],
    tmp_path: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
) -> None:
    run, out = make_run(tmp_path / "run", train=["2"], test=["0", "3"]), tmp_path / "out"
    images = root / "images"
    rows = [Row("old/name", fingerprint(Sample("", str(images / "0.png"), "")), "")]
    write_digest(run, {"train": [], "val": []} | {part: rows})
    assert suspects(run, "--out", out) == EXIT_DONE
    printed = capsys.readouterr().out
    assert "1 test images;" in printed
    assert (
        f"left out: 1 image is the same as one that {run} was trained on: {images}/0.png" in printed
    )
    assert {row["image"] for row in rows_of(out)} == {str(images / "3.png")}

    both = [Row(n, fingerprint(Sample("", str(images / f"{n}.png"), "")), "") for n in "03"]
    write_digest(run, {"train": [row._replace(name=f"x{row.name}") for row in both], "val": []})
    assert suspects(run, "--out", tmp_path / "none") == EXIT_USER_ERROR
    assert "trained on every image of test" in capsys.readouterr().err


def test_crossval_predicts_each_image_by_the_run_of_its_fold(
    make_run: Callable[..., Path], tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "out", tmp_path / "crossval"
    for fold, (train, test) in enumerate([(NAMES[3:], NAMES[:3]), (NAMES[:3], NAMES[3:])]):
        make_run(folder / f"fold_{fold}", train=train, test=test)
    (folder / "crossval.yaml").write_text("")
    assert suspects(folder, "--out", out) == EXIT_USER_ERROR
    assert "no crossval.json: not all folds are trained" in capsys.readouterr().err
    (folder / "crossval.json").write_text('{"folds": [{}, {}]}')
    moved = root.rename(root.with_name("moved"))
    assert suspects(folder, "--out", out) == EXIT_USER_ERROR
    fix = "no such folder: give the folder of the data set (--data.root)"
    assert fix in capsys.readouterr().err
    assert suspects(folder, "--out", out, "--data.root", moved) == EXIT_DONE
    printed = capsys.readouterr().out
    assert "6 images: the test splits of 2 folds" in printed
    assert "2 of 2 runs are not calibrated" in printed
    images = [row["image"] for row in rows_of(out)]
    assert images == [str(moved / "images" / f"{name}.png") for name in ("0", "3")]

    shutil.rmtree(folder / "fold_0")
    assert suspects(folder, "--out", tmp_path / "other") == EXIT_USER_ERROR
    assert "fold_0 of 2 folds missing" in capsys.readouterr().err
    (folder / "crossval.json").write_text('{"folds": 3}')
    assert suspects(folder, "--out", tmp_path / "other") == EXIT_USER_ERROR
    assert "crossval.json: damaged" in capsys.readouterr().err


def test_a_run_without_held_out_images_is_refused(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", train=NAMES)
    assert suspects(run, "--out", tmp_path / "out") == EXIT_USER_ERROR
    printed = capsys.readouterr().err
    assert "no test or val split" in printed
    assert len(printed.splitlines()) == 1


def test_weights_that_overflow_are_named(
    make_run: Callable[..., Path],
    arrays: dict[str, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", train=["1"], test=["0"])
    damaged = {key: value * np.float32(1e30) for key, value in arrays.items()}
    write_arrays(run / "checkpoints" / "best.npz", damaged)
    assert suspects(run, "--out", tmp_path / "out") != EXIT_DONE
    assert "predicts NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_records_are_named_and_void() -> None:
    def broken(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        raise DamagedRecordError(f"{sample.image}: damaged", size=(4, 5))

    console = Console(file=io.StringIO())
    _, label = _without_damage(broken, console)(Sample("a", "a.png", "a.png"))
    np.testing.assert_array_equal(label, np.full((4, 5), VOID))
    assert "skipped: a.png: damaged" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [("--top", "0", "1 to 500"), ("--top", "501", "1 to 500"), ("--min-area", "0", "1 or more")],
)
def test_options_out_of_range_are_refused(
    option: str, value: str, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suspects(tmp_path, option, value) == EXIT_USER_ERROR
    assert f"{option} is {value}: it must be {rule}" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suspects(tmp_path, "--out", tmp_path / "out") == EXIT_USER_ERROR
    assert "not a run folder" in capsys.readouterr().err
