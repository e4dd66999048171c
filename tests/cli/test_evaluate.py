"""`evaluate` on a toy network: its files, parts that add up, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf.cli import calibrate as calibrate_verb
from ccfnet_tf.cli import evaluate as evaluate_verb
from ccfnet_tf.cli import main as cli
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.labels import Sample
from ccfnet_tf.network.calibration_parameters import Calibration
from ccfnet_tf.runs.calibration_file import calibration_text
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.training.data_digest import Row, write_digest
from tests.cli.conftest import COUNT, write_weights

FILES = ("evaluation.json", "images.csv", "images.npz")


def evaluate(run: Path, *options: str | Path) -> None:
    assert cli.main(["evaluate", str(run), *map(str, options)]) == 0


def contents(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in FILES]


def test_parts_give_the_bytes_of_the_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run)
    whole = contents(run)
    printed = capsys.readouterr().out
    assert "test: 5 images" in printed
    assert all(name in printed for name in FILES)
    tree = json.loads(whole[0])
    assert (tree["split"], tree["pictures"], tree["pixels"]) == ("test", 5, 400 * (4 * 5 + 10))
    with (run / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == COUNT

    evaluate(run, "--abstain-above", "0.5")  # a second time, from the files on
    abstaining, *others = contents(run)
    assert others == whole[1:]
    abstained = json.loads(abstaining)
    kept = abstained.pop("abstain")
    assert abstained == tree
    line = (
        f"coverage {100 * kept['coverage']:.2f} %, "
        f"pixel accuracy {100 * kept['pixel_accuracy']:.2f} %"
    )
    line = f"without pixels whose risk is above 0.5: {line}"
    assert line in " ".join(capsys.readouterr().out.split())
    images = run.parent / "data" / "test" / "images"
    out = ("--out", str(run.parent / "out"), "--abstain-above", "0.5", "--save", "label")
    assert cli.main(["predict", str(run), str(images), *out]) == 0
    assert f"{100 * kept['coverage']:.1f} % of pixels have a label" in capsys.readouterr().out

    for name in FILES:
        (run / name).unlink()
    for part in ("1/2", "2/2"):
        evaluate(run, "--shard", part)
        assert not any((run / name).exists() for name in FILES)
    merge = f"ccfnet-tf evaluate {run} --merge {run}/evaluation.*-of-2.json"
    assert merge in " ".join(capsys.readouterr().out.split())
    parts = [run / f"evaluation.{k}-of-2.json" for k in (2, 1)]
    evaluate(run, "--merge", *parts, "--abstain-above", "0.5")
    assert contents(run) == [abstaining, *others]
    evaluate(run, "--merge", *parts)
    assert contents(run) == whole
    assert cli.main(["evaluate", str(run), "--shard", "1/2", "--abstain-above", "0.5"]) == 2
    assert "--abstain-above has no effect with --shard" in capsys.readouterr().err


def test_views_and_tiles_are_measured_and_recorded(run: Path) -> None:
    evaluate(run)
    plain = json.loads((run / "evaluation.json").read_text())
    evaluate(run, "--tile", "32", "--tta", "scales=1,1.5", "flip")
    tree = json.loads((run / "evaluation.json").read_text())
    assert "wrapping" not in plain
    assert tree["wrapping"] == "--tta scales=1,1.5 flip --tile 32 --overlap 0.5"
    assert tree["pixels"] == plain["pixels"]
    assert tree["scores"] != plain["scores"]
    evaluate(run, "--tile", "500")  # larger than every image
    assert json.loads((run / "evaluation.json").read_text())["scores"] == plain["scores"]


def test_parts_of_other_weights_are_refused(
    run: Path, toy: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run, "--shard", "1/1")
    write_weights(run, toy(3), seed=2)
    assert cli.main(["evaluate", str(run), "--merge", str(run / "evaluation.1-of-1.json")]) == 2
    assert (
        "is of another run, or of other weights or another calibration" in capsys.readouterr().err
    )
    assert not (run / "evaluation.json").exists()


def test_an_evaluation_names_its_weights(run: Path, toy: Callable[..., Any]) -> None:
    evaluate(run)
    one = json.loads((run / "evaluation.json").read_text())["weights"]
    evaluate(run, "--split", "val")
    assert json.loads((run / "evaluation.json").read_text())["weights"] == one
    write_weights(run, toy(3), seed=2)
    evaluate(run)
    assert json.loads((run / "evaluation.json").read_text())["weights"] != one


def test_a_part_of_a_study_leaves_tables_and_next_steps_to_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for is_part in (False, True):
        monkeypatch.setattr(evaluate_verb, "IS_PART", is_part)
        monkeypatch.setattr(calibrate_verb, "IS_PART", is_part)
        assert cli.main(["calibrate", str(run)]) == 0
        evaluate(run)
        printed = capsys.readouterr().out
        assert ("mean IoU" in printed) is not is_part
        assert ("measure it on the test split" in printed) is not is_part
        assert f"written to {run}: evaluation.json" in printed


@pytest.mark.parametrize("option", [(), ("--shard", "1/1")], ids=["whole", "merged"])
def test_an_evaluation_says_whether_the_run_is_calibrated(
    run: Path, option: tuple[str, ...]
) -> None:
    for calibrated in (False, True):
        if calibrated:
            text = calibration_text(read_run(run).checkpoint(), Calibration((2.0,)), {})
            (run / "calibration.json").write_text(text)
        evaluate(run, *option)
        if option:
            evaluate(run, "--merge", str(run / "evaluation.1-of-1.json"))
        assert json.loads((run / "evaluation.json").read_text())["calibrated"] is calibrated


def test_batch_has_no_effect_any_more(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run, "--batch", "4", "--split", "train")
    assert "note: --batch is deprecated" in capsys.readouterr().err
    assert json.loads((run / "evaluation.json").read_text())["split"] == "train"


def test_a_run_that_is_not_calibrated_says_how_to(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = f"not calibrated, so risk may be too high or too low: ccfnet-tf calibrate {run}"
    evaluate(run)
    assert f"{hint}, then" in capsys.readouterr().out
    root = run.parent / "data"
    evaluate(run, "--data.root", root)
    assert f"{hint} --data.root {root}, then" in capsys.readouterr().out
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("best_by: refine", "best_by: coarse"))
    evaluate(run)  # what else it gives was not trained
    assert hint not in capsys.readouterr().out
    (run / "config.yaml").write_text(config)
    evaluate(run, "--split", "val")  # which would be calibrated on what is evaluated
    assert hint not in capsys.readouterr().out
    assert cli.main(["calibrate", str(run)]) == 0
    evaluate(run)
    assert hint not in capsys.readouterr().out


def test_training_images_in_another_split_are_warned_of(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = run.parent / "data" / "test" / "images" / "0.png"
    write_digest(run, {"train": [Row("test/0", "another image of this name", "")], "val": []})
    evaluate(run)
    assert "warning" not in capsys.readouterr().err
    row = Row("train/9", fingerprint(Sample("", str(image), "")), "")
    write_digest(run, {"train": [row], "val": []})
    evaluate(run)
    assert (
        f"warning: {run} was trained on 1 of the 5 images to evaluate ({image}): the figures are "
        "too good for new images; use the splits of the training"
    ) in capsys.readouterr().err
    write_digest(run, {"train": [], "val": [], "earlier": [row]})
    evaluate(run)
    assert (
        f"warning: training before {run} (model.init_from, or data that have changed since) has "
        f"seen 1 of the 5 images to evaluate ({image}): the figures are too good for new images\n"
    ) in capsys.readouterr().err
