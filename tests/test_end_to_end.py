"""fit, kill, resume, evaluate and predict, each in a separate process."""

from __future__ import annotations

import csv
import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import export_matrix
from ccfnet_tf.runs.checkpoint_file import read_arrays

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
SMALL = [
    *("--config", "folder", "--data.crop", "65", "--model.backbone", "mobilenet_v2"),
    *("--model.backbone_weights", "none", "--model.head_channels", "8"),
    *("--train.batch", "2", "--train.epochs", "3", "--train.precision", "float32"),
    # The same number of devices on every machine.
    *("--train.strategy", "none"),
]


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "ccfnet_tf", *map(str, args)]


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, check=False)


def fit(out: Path, *more: str | Path) -> list[str | Path]:
    return ["fit", *SMALL, "--data.root", SAMPLE, "--out", out, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, never interrupted."""
    out = tmp_path_factory.mktemp("end_to_end") / "run"
    done = run(*fit(out))
    assert done.returncode == 0, done.stderr
    assert "all labels are valid" in done.stdout
    assert "building the network; the first step takes a while\n" in done.stdout
    assert "epoch 3/3" in done.stdout
    assert done.stderr == ""
    return out


def test_the_run_folder_has_the_documented_files(trained: Path) -> None:
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    expected = {
        "config.yaml",
        "classes.json",
        "environment.json",
        "metrics.csv",
        "checkpoints/last.npz",
        "checkpoints/best.npz",
        "previews/epoch_01.png",
        "previews/epoch_02.png",
    }
    assert expected <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert 0.0 <= float(rows[-1]["val_refine_mean_iou"]) <= 1.0
    sheet = cv2.imread(str(trained / "previews/epoch_02.png"))
    assert sheet is not None
    assert sheet.std() > 10


def same_run(one: Path, other: Path) -> None:
    """Asserts that weights, optimizer, random state and metrics of two runs are bit-identical."""
    mine, theirs = (read_arrays(run / "checkpoints" / "last.npz") for run in (one, other))
    assert mine.keys() == theirs.keys()
    for key in theirs:
        np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)
    rows = []
    for folder in (one, other):
        with (folder / "metrics.csv").open() as file:
            rows.append(list(csv.DictReader(file)))
    for a, b in zip(*rows, strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGTERM, 143, "received SIGTERM at step"),
        (signal.SIGINT, 130, "interrupted; continue the run"),
    ],
)
def test_a_run_stopped_by_a_signal_can_be_resumed(
    number: int, code: int, message: str, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "told"
    process = subprocess.Popen(
        command(*fit(out, "--train.checkpoint_every", "1 step")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "checkpoints" / "last.npz").is_file():
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.01)
    process.send_signal(number)
    _, output = process.communicate()
    assert process.returncode == code, output
    assert message in output
    state = json.loads(str(read_arrays(out / "checkpoints" / "last.npz")["state"]))
    assert state["epoch"] < 3
    done = run("fit", "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stdout
    same_run(out, trained)
    again = run("fit", "--out", out, "--resume")
    assert again.returncode == 0
    assert "nothing to resume" in again.stdout


def killed_after(process: subprocess.Popen[bytes], out: Path, seconds: float, early: bool) -> bool:
    """Kills a run the given number of seconds after its start, or after its first checkpoint.

    Returns:
        Whether it still ran then.
    """
    last = out / "checkpoints" / "last.npz"
    before = last.stat().st_mtime_ns if last.is_file() else 0
    while not early and process.poll() is None:
        if last.is_file() and last.stat().st_mtime_ns > before:
            break
        time.sleep(0.005)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    assert process.returncode == 0
    return False


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(
    trained: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = secrets.randbits(32)
    rng = np.random.default_rng(seed)
    kills, runs, seen = 0, 0, []
    while kills < 20 or runs == 0:
        out = tmp_path / f"killed_{runs}"
        ended = False
        while not ended and kills < 20:
            resume = ("--resume",) if (out / "config.yaml").is_file() else ()
            every = ("--train.checkpoint_every", "1 step")
            process = subprocess.Popen(
                command(*fit(out, *every, *resume)), stdout=subprocess.DEVNULL
            )
            early = kills % 4 == 0  # Mostly during training, where a kill could do harm.
            ended = not killed_after(process, out, float(rng.uniform(0, 20 if early else 1)), early)
            if not ended:
                kills += 1
                last = out / "checkpoints" / "last.npz"
                state = json.loads(str(read_arrays(last)["state"])) if last.is_file() else {}
                seen.append(state.get("step", 0))
        if not ended:
            done = run(*fit(out, "--resume"))
            assert done.returncode == 0, done.stderr
        try:
            same_run(out, trained)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, killed at steps {seen}") from error
        runs += 1
    outcome = f"{kills}, at steps {seen} of {runs} runs: every bit as if never killed"
    record_property("kills", outcome)


@pytest.mark.slow
def test_deterministic_ops_train_and_resume_bit_for_bit(tmp_path: Path) -> None:
    options = ("--train.deterministic", "true", "--train.checkpoint_every", "1 step")
    never, told = tmp_path / "never", tmp_path / "told"
    done = run(*fit(never, *options))
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(command(*fit(told, *options)), stdout=subprocess.DEVNULL)
    assert killed_after(process, told, 0.0, early=False)
    done = run("fit", "--out", told, "--resume")
    assert done.returncode == 0, done.stderr
    same_run(told, never)


def test_a_resumed_run_keeps_its_configuration(trained: Path) -> None:
    done = run("fit", "--out", trained, "--resume", "--train.learning_rate", "0.5")
    assert done.returncode == 2
    assert "train.learning_rate is 0.5 but" in done.stderr


def test_evaluate_writes_the_documented_keys(trained: Path) -> None:
    done = run("evaluate", trained)
    assert done.returncode == 0, done.stderr
    tree = json.loads((trained / "evaluation.json").read_text())
    assert (tree["split"], tree["pictures"]) == ("test", 2)
    for head in ("coarse", "fine", "refine"):
        for figure in ("pixel_accuracy", "class_accuracy", "mean_iou"):
            assert 0.0 <= tree[head][figure] <= 1.0
        assert list(tree[head]["iou"]) == (SAMPLE / "classes.txt").read_text().split("\n")[:-1]
    assert 0.0 <= tree["difficulty"]["auroc"] <= 1.0
    assert "refine" in done.stdout


def test_predict_writes_four_images_for_each_input_and_reports_bad_inputs(
    trained: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    (inputs / "sub").mkdir(parents=True)
    image = next((SAMPLE / "test" / "images").iterdir())
    shutil.copy(image, inputs / "sub" / "good.jpg")
    (inputs / "broken.jpg").write_bytes(image.read_bytes()[:500])
    out = tmp_path / "out"
    done = run("predict", trained, inputs, "--out", out)
    assert done.returncode == 1, done.stderr
    assert "broken.jpg" in done.stdout + done.stderr
    kinds = ("label", "color", "overlay", "difficulty")
    assert {p.name for p in (out / "sub").iterdir()} == {f"good.{kind}.png" for kind in kinds}
    label = cv2.imread(str(out / "sub" / "good.label.png"), cv2.IMREAD_UNCHANGED)
    assert label.shape == cv2.imread(str(image)).shape[:2]
    assert label.max() < 8


@pytest.mark.slow
def test_a_run_is_exported_and_verified(trained: Path, tmp_path: Path) -> None:
    done = run("export", trained, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "saved_model compared with Keras on" in done.stdout
    assert done.stderr == ""
    assert (tmp_path / "ccfnet" / "1" / "export.json").is_file()


@pytest.mark.slow
def test_the_formats_of_a_run_are_compared_in_a_table(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export_matrix, "KINDS", ("tflite fp16",))
    file = tmp_path / "matrix.json"
    export_matrix.main(
        [str(trained), "--out", str(tmp_path), "--size", "48x64", "--json", str(file)]
    )
    row = next(line for line in capsys.readouterr().out.splitlines() if "tflite fp16" in line)
    assert float(row.split("|")[2]) > 1
    (tree,) = json.loads(file.read_text())["runs"]
    assert tree["size"] == [48, 64]
    assert 0.01 < tree["gmac"] < 1
    assert set(tree["rows"][1]["ms"]) == {"1", "2"}


@pytest.mark.slow
def test_fine_tuning_with_other_classes_lists_the_reinitialized_layers(
    trained: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(SAMPLE, root)
    with (root / "classes.txt").open("a") as file:
        file.write("one more\n")
    for image in (root / "train").glob("*/train_00.*"):  # the trained run has seen it
        image.rename(root / "test" / image.parent.name / image.name)
    options = [*SMALL, "--data.root", root, "--out", tmp_path / "tuned", "--train.epochs", "1"]
    options += ["--data.absent_classes", "allow"]  # No mask contains the new class.
    done = run("fit", *options, "--model.init_from", trained, "--model.backbone", "resnet50")
    assert done.returncode == 2
    assert "its backbone is mobilenet_v2" in done.stderr
    done = run("fit", *options, "--model.init_from", trained)
    assert done.returncode == 0, done.stderr
    line = next(
        line for line in done.stdout.splitlines() if "initialised as in a new network" in line
    )
    assert "coarse" in line
    assert "fine" in line
    assert "backbone" not in line
    # The attention classes are the same, but its input has one more probability.
    assert "attention_classifier" not in line
    assert "earlier training has seen 1 of the 3 test images: " in done.stdout
    done = run("evaluate", tmp_path / "tuned")
    assert "has seen 1 of the 3 images to evaluate" in done.stderr


def test_a_wrong_label_is_named_before_step_1(tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(SAMPLE, root)
    bad = next((root / "train" / "masks").iterdir())
    mask = cv2.imread(str(bad), cv2.IMREAD_UNCHANGED)
    grey = np.zeros(mask.shape[:2], np.uint8)
    grey[3, 4] = 99
    cv2.imwrite(str(bad), grey)
    out = tmp_path / "run"
    done = run("fit", *SMALL, "--data.root", root, "--out", out)
    assert done.returncode == 2
    assert bad.name in done.stderr
    assert "99" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


@pytest.fixture
def small_disk(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A real file system with space for a run, but not for a second `last.npz`."""
    best, last = ((trained / "checkpoints" / f"{k}.npz").stat().st_size for k in ("best", "last"))
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={best + int(1.6 * last)}", "tmpfs", mount],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.slow
def test_a_run_can_be_resumed_after_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "run"
    done = run(*fit(out))
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert "--resume" in done.stderr
    state = json.loads(str(read_arrays(out / "checkpoints" / "last.npz")["state"]))
    assert state["epoch"] >= 1
    assert not list(out.rglob("*.tmp"))

    roomy = tmp_path / "run"
    shutil.copytree(out, roomy)
    done = run("fit", "--out", roomy, "--resume")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.slow
def test_two_virtual_cpus_train_through_the_command_line(tmp_path: Path) -> None:
    devices = ["--train.virtual_cpus", "2", "--train.strategy", "mirrored"]
    done = run(*fit(tmp_path / "run"), *devices)  # The last of two values of a key counts.
    assert done.returncode == 0, done.stderr
    tree = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(tree["starts"][0]["devices"]) == 2
