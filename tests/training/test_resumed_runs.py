"""A run is resumed, or a one-line error tells why not; uses the code of the command line.

A graph of five layers is trained in place of the network.
"""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ccfnet_tf.cli import main as cli
from ccfnet_tf.runs.checkpoint_file import read_arrays
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.training import build_network
from ccfnet_tf.training.callbacks.epoch_end import Validation

KEYS = [
    *("--data.crop", "33", "--data.val_share", "0.25", "--model.backbone", "mobilenet_v2"),
    *("--model.backbone_weights", "none", "--train.batch", "2", "--train.epochs", "2"),
    *("--train.precision", "float32", "--train.strategy", "none"),
    *("--train.batch_norm", "trainable"),
]


@pytest.fixture(autouse=True)
def toy_network(toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_network, "build_ccfnet", lambda classes, **_: toy(classes))


def pictures(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for i in range(8):
        image, mask = rng.integers(0, 255, (36, 40, 3), np.uint8), rng.integers(0, 3, (36, 40))
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    return root


def fit(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["fit", *map(str, args)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def trained(toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set, and a run of two epochs."""
    place = tmp_path_factory.mktemp("going_on")
    root = pictures(place / "set")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build_network, "build_ccfnet", lambda classes, **_: toy(classes))
        out = place / "run"
        assert cli.main(["fit", *KEYS, "--data.root", str(root), "--out", str(out)]) == 0
    return root, out


@pytest.fixture
def begun(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of both, with the run in its state after the first epoch."""
    root, run = (Path(shutil.copytree(each, tmp_path / each.name)) for each in trained)
    (run / "checkpoints" / "previous.npz").replace(run / "checkpoints" / "last.npz")
    return root, run


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same(one: Path, other: Path) -> None:
    """Asserts that two runs are equal up to rounding, which varies on a busy machine.

    A step of the optimizer moves a weight by 1e-3.
    """
    mine, theirs = (read_arrays(run / "checkpoints" / "last.npz") for run in (one, other))
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(mine[key], value, rtol=1e-4, atol=1e-4, err_msg=key)
        elif key != "state":
            np.testing.assert_array_equal(mine[key], value, err_msg=key)
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds"}:
            assert float(a[key]) == pytest.approx(float(b[key]), abs=1e-2), key


def test_changed_data_must_be_accepted_to_resume_a_run(
    begun: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = begun
    args = ("--out", run, "--data.root", root, "--resume")
    before = (run / "data_digest.json").read_bytes()
    first = json.loads(before)
    name = first["train"][0][0]
    mask = root / "masks" / f"{name}.png"
    Image.fromarray(np.zeros((36, 40), np.uint8)).save(mask)
    image = root / "images" / f"{name}.png"
    Image.fromarray(np.zeros((36, 40, 3), np.uint8)).save(image)
    code, out, err = fit(capsys, *args)
    assert (code, err.count("\n")) == (2, 1)
    assert f"changed: {image} (and 1 more): restore" in err
    assert "building the network" not in out
    assert (run / "data_digest.json").read_bytes() == before
    code, out, err = fit(capsys, *args, "--accept-changed-data")
    assert (code, err) == (0, "")
    assert f"changed: {image} (and 1 more): accepted" in out
    after = json.loads((run / "data_digest.json").read_text())
    assert after["earlier"] == [first["train"][0]]
    code, out, err = fit(capsys, *args)
    assert code == 0
    assert "nothing to resume" in out


def test_changed_class_names_must_be_accepted_to_resume_a_run(
    begun: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = begun
    (root / "classes.txt").write_text("sky\nbush\nroad\n")
    args = ("--out", run, "--data.root", root, "--resume")
    code, _, err = fit(capsys, *args)
    assert (code, err.count("\n")) == (2, 1)
    assert "class 1 is 'tree' in the run and 'bush' in the data: restore" in err
    assert "tree" in (run / "classes.json").read_text()
    code, out, err = fit(capsys, *args, "--accept-changed-data")
    assert (code, err) == (0, "")
    assert "class 1 is 'tree' in the run and 'bush' in the data: accepted" in out
    assert read_run(run).taxonomy.names == ("sky", "bush", "road")
    assert fit(capsys, *args)[0] == 0


def test_another_number_of_classes_is_never_accepted(
    begun: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = begun
    (root / "classes.txt").write_text("sky\ntree\nroad\nlake\n")
    args = ("--out", run, "--data.root", root, "--resume", "--accept-changed-data")
    args = (*args, "--data.absent_classes", "allow")
    code, _, err = fit(capsys, *args)
    assert (code, err.count("\n")) == (2, 1)
    assert "class 3 is missing in the run and 'lake' in the data" in err
    assert "has 3 classes and the data have 4" in err


def test_damaged_files_next_to_a_valid_checkpoint_do_not_prevent_resuming(
    begun: tuple[Path, Path], trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = begun
    (run / "environment.json").write_bytes((run / "environment.json").read_bytes()[:100])
    with (run / "metrics.csv").open("ab") as file:
        file.write(b"\x00\xff,,")
    (run / "data_digest.json").unlink()
    code, out, err = fit(capsys, "--out", run, "--data.root", root, "--resume")
    assert (code, err) == (0, "")
    assert "environment.json: damaged: kept as environment.json.damaged" in out
    assert "metrics.csv: damaged: kept as metrics.csv.damaged; its valid rows are kept" in out
    assert "has no data_digest.json" in out
    assert (run / "data_digest.json").is_file()
    assert_same(run, trained[1])


def test_a_run_whose_table_lacks_a_column_is_resumed(
    begun: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run of an earlier version, which did not measure the calibration error."""
    root, run = begun
    old = [{key: row[key] for key in row if key != "val_risk_ece"} for row in rows(run)[:1]]
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(old[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(old)
    code, out, err = fit(capsys, "--out", run, "--data.root", root, "--resume")
    assert (code, err) == (0, "")
    assert "damaged" not in out
    first, second = rows(run)
    assert first == {**old[0], "val_risk_ece": ""}
    assert 0.0 <= float(second["val_risk_ece"]) <= 1.0


def test_a_damaged_last_checkpoint_does_not_change_the_result(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = trained[0], Path(shutil.copytree(trained[1], tmp_path / "run"))
    last = run / "checkpoints" / "last.npz"
    arrays = read_arrays(last)
    key = next(key for key in arrays if key.endswith("kernel"))
    arrays[key] = np.full_like(arrays[key], np.nan)
    np.savez(last, **arrays)  # type: ignore[arg-type]
    code, out, err = fit(capsys, "--out", run, "--data.root", root, "--resume")
    assert (code, err) == (0, "")
    assert f"last.npz: '{key}' has nan" in out
    assert "resuming from previous.npz, saved after epoch 1" in out
    assert_same(run, trained[1])


def test_a_run_can_be_finished_from_the_best_weights_alone(
    begun: tuple[Path, Path], trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = begun
    last, best = (run / "checkpoints" / f"{name}.npz" for name in ("last", "best"))
    arrays = read_arrays(last)  # the first epoch's, whichever was best
    kept = {key: value for key, value in arrays.items() if key.startswith(("model/", "state"))}
    np.savez(best, **kept)  # type: ignore[arg-type]
    last.unlink()
    code, out, err = fit(capsys, "--out", run, "--data.root", root, "--resume")
    assert (code, err) == (0, "")
    assert (
        "last.npz: missing; resuming from best.npz, saved after epoch 1, with a new optimizer"
        in out
    )
    whole = rows(trained[1])
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert [row["learning_rate"] for row in rows(run)] == [row["learning_rate"] for row in whole]
    state = json.loads(str(read_arrays(last)["state"]))
    assert (state["step"], state["optimizer_begun"]) == (6, 3)


def test_a_value_that_is_not_finite_leaves_every_checkpoint_as_it_was(
    trained: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Simulates a silent error of a step, which neither losses nor validation show."""
    run = tmp_path / "run"
    validate, seen = Validation.run, dict[str, bytes]()

    def poison(self: Validation, model: Any, advance: Callable[[], None]) -> Any:
        if (run / "checkpoints" / "last.npz").is_file():  # in the second epoch
            seen.update({f.name: f.read_bytes() for f in (run / "checkpoints").iterdir()})
            moment = model.optimizer.variables[-1]
            moment.assign(np.full(moment.shape, np.nan, np.float32))
        return validate(self, model, advance)

    root = trained[0]
    with monkeypatch.context() as patched:
        patched.setattr(Validation, "run", poison)
        code, _, err = fit(capsys, *KEYS, "--data.root", root, "--out", run)
    assert code == 2
    assert err.count("\n") == 1
    assert "not written at step 6" in err
    assert "'optimizer/00" in err
    assert seen.keys() == {"last.npz", "best.npz"}
    assert {f.name: f.read_bytes() for f in (run / "checkpoints").iterdir()} == seen
    code, _, err = fit(capsys, "--out", run, "--resume")
    assert (code, err) == (0, "")
    assert_same(run, trained[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data: [1",
        "data: {format: nonsense, root: x}",
        "train: {epochs: x}",
        "data: {root: x, scale: [1]}",
        "data: {root: x, scale: {}}",
        "train: {class_weights: 3}",
        "train: {checkpoint_every: 3}",
        "seed: [1]",
        "\x00",
        "[" * 5000,
        "data: {root: x, fold: 1.5}",
        "model: {backbone: [resnet50]}",
    ],
)
def test_an_unreadable_configuration_is_refused_in_one_line(
    text: str, begun: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = begun
    (run / "config.yaml").write_text(text)
    for verb in ("fit", "evaluate"):
        args = ["fit", "--out", str(run), "--resume"] if verb == "fit" else ["evaluate", str(run)]
        assert cli.main(args) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert any(place in err for place in ("config.yaml", "data.", "train.", "model.", "seed"))


def test_the_command_printed_by_split_can_be_run(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(trained[0], tmp_path / "a set of [mine]"))
    lists = tmp_path / "its lists"
    capsys.readouterr()
    assert cli.main(["data", "split", str(root), "--folds", "4", "--out", str(lists)]) == 0
    printed = capsys.readouterr().out.splitlines()
    (line,) = (line for line in printed if line.startswith("ccfnet-tf fit "))
    code, out, err = fit(capsys, *shlex.split(line)[2:], *KEYS, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "folder: 4 training images, 2 validation, 2 test, 3 classes" in out


@pytest.fixture(scope="module")
def started(
    toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The folder that a run with lists and a label map was started in, and its options."""
    base = tmp_path_factory.mktemp("lists")
    pictures(base / "data")
    (base / "map.yaml").write_text("sky: [sky, tree]\n")
    options = [
        *KEYS,
        "--data.root",
        "data",
        "--data.lists",
        "splits",
        "--data.label_map",
        "map.yaml",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_network, "build_ccfnet", lambda classes, **_: toy(classes))
        patch.chdir(base)
        assert cli.main(["data", "split", "data", "--folds", "4", "--out", "splits"]) == 0
        assert cli.main(["fit", "--config", "folder", *options, "--out", "runs/a"]) == 0
    return base, options


@pytest.fixture
def with_lists(
    started: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """The same in another place, which is the current folder; the original paths do not lead."""
    base = Path(shutil.copytree(started[0], tmp_path / "base"))
    monkeypatch.chdir(base)
    return base, started[1]


@pytest.mark.parametrize(
    ("start", "given"),
    [
        *product(
            ("the same folder", "another folder", "a moved run"), ("--out", "all", "the copies")
        )
    ],
)
def test_a_run_with_lists_is_resumed_from_any_folder(
    start: str,
    given: str,
    with_lists: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, options = with_lists
    monkeypatch.chdir(base if start == "the same folder" else base / "runs")
    out = "runs/a" if start == "the same folder" else "a"
    if start == "a moved run":
        shutil.move("a", "b")
        out = "b"
    back = "" if start == "the same folder" else "../"
    root = ["--data.root", f"{back}data"]
    more = {
        "--out": root,
        "all": [f"{back}{value}" if key in PLACES else value for key, value in pairs(options)],
        "the copies": [*root, "--data.lists", f"{out}/lists"],
    }[given]
    code, printed, err = fit(capsys, "--out", out, "--resume", *more)
    assert (code, err) == (0, "")
    assert "epoch 2 of 2 is finished; nothing to resume" in printed


PLACES = ("--data.root", "--data.lists", "--data.label_map")


def pairs(options: list[str]) -> list[tuple[str, str]]:
    """Returns each argument with the one before it."""
    return list(zip(["", *options], options, strict=False))


def test_lists_copied_before_a_run_was_killed_are_not_used(
    with_lists: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, options = with_lists
    copied = base / "runs" / "b" / "lists" / "fold_0"
    copied.mkdir(parents=True)
    shutil.copy(base / "splits" / "fold_0" / "train.txt", copied)
    (base / "runs" / "b" / "config.yaml").touch()
    started = ("--config", "folder", "--out", "runs/b", "--resume", *options)
    code, printed, err = fit(capsys, *started)
    assert (code, err) == (0, "")
    assert "2 test" in printed  # the list of the test split had not been copied yet


def test_notes_beside_the_lists_do_not_matter(
    with_lists: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, options = with_lists
    (base / "splits" / "notes.txt").write_text("mine\n")
    assert fit(capsys, "--out", "runs/a", "--resume", *options)[0] == 0


@pytest.mark.parametrize("key", ["lists", "label_map"])
def test_other_lists_than_those_of_the_run_are_refused(
    key: str,
    with_lists: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, options = with_lists
    if key == "lists":
        changed = base / "splits" / "fold_0" / "train.txt"
        changed.write_text("\n".join(changed.read_text().splitlines()[1:]) + "\n")
    else:
        (base / "map.yaml").write_text("sky: [sky, road]\n")
    code, _, err = fit(capsys, "--out", "runs/a", "--resume", *options)
    assert code == 2
    assert f"data.{key} is " in err
    assert "a resumed run keeps its configuration" in err


def test_a_run_whose_configuration_names_relative_copies_is_resumed(
    with_lists: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, _ = with_lists
    config = base / "runs" / "a" / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["data"] |= {
        "lists": "runs/a/lists",
        "label_map": "runs/a/label_map.yaml",
    }  # as older versions wrote
    config.write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(base / "runs")
    code, _, err = fit(capsys, "--out", "a", "--resume", "--data.root", "../data")
    assert (code, err) == (0, "")
