from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, RunError
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runs.calibration_file import CALIBRATION, calibration_text
from ccfnet_tf.runs.run_folder import load_run, read_run
from tests.inference.conftest import CONFIG, TAXONOMY, arrays_of, write_picture

MakeRun = Callable[..., Path]


def test_reads_config_and_classes(make_run: MakeRun) -> None:
    run = read_run(make_run("last", "best"))
    assert run.config == CONFIG
    assert run.taxonomy == TAXONOMY
    assert run.checkpoints == ("best", "last")
    assert run.checkpoint().name == "best.npz"
    assert run.checkpoint("last").name == "last.npz"


@pytest.mark.slow
def test_a_loaded_run_gives_the_predictions_of_the_saved_model(
    make_run: MakeRun, model: Any, predictor: KerasNetwork, picture: np.ndarray
) -> None:
    folder = make_run("last")
    weights = arrays_of(load_run(folder))
    for key, value in arrays_of(model).items():
        np.testing.assert_array_equal(weights[key], value)
    ours, theirs = KerasNetwork(str(folder)), predictor
    assert ours.taxonomy == TAXONOMY
    for mine, expected in zip(ours.predict(picture), theirs.predict(picture), strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_kernels_are_rounded_as_in_training(make_run: MakeRun, model: Any, precision: str) -> None:
    """Mixed precision trains the network with rounded kernels, so that network is loaded."""
    folder = make_run("last")
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "precision: auto" in text
    config.write_text(text.replace("precision: auto", f"precision: {precision}"))
    loaded = arrays_of(load_run(folder))
    for key, value in arrays_of(model).items():
        expected = value
        if key.endswith("/kernel"):
            expected = tf.cast(tf.cast(value, precision), tf.float32).numpy()
            assert (expected != value).any(), key
        np.testing.assert_array_equal(loaded[key], expected, err_msg=key)


def one_line(folder: Path | str, **options: Any) -> str:
    with pytest.raises(RunError) as caught:
        load_run(folder, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def test_no_such_folder(tmp_path: Path) -> None:
    assert "no such folder" in one_line(tmp_path / "nowhere")


def test_a_file_instead_of_the_folder(make_run: MakeRun) -> None:
    assert "give the run folder" in one_line(make_run("last") / "checkpoints" / "last.npz")


def test_not_a_run_folder(tmp_path: Path) -> None:
    text = one_line(tmp_path)
    assert "not a run folder: config.yaml and classes.json missing" in text


def test_no_checkpoint_yet(make_run: MakeRun) -> None:
    assert "no checkpoint yet" in one_line(make_run())


def test_the_checkpoint_asked_for_is_missing(make_run: MakeRun) -> None:
    assert "no best.npz; there is last.npz" in one_line(make_run("last"), checkpoint="best")


def test_damaged_checkpoint(make_run: MakeRun) -> None:
    folder = make_run("last")
    path = folder / "checkpoints" / "last.npz"
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged checkpoint" in one_line(folder)


def test_a_network_that_is_not_finite_is_not_loaded(make_run: MakeRun, model: Any) -> None:
    folder = make_run("last")
    arrays = arrays_of(model)
    key = next(key for key in arrays if key.endswith("kernel"))
    arrays[key] = np.full_like(arrays[key], np.nan)
    np.savez(folder / "checkpoints" / "last.npz", **arrays)  # type: ignore[arg-type]
    assert f"last.npz: '{key}' has nan" in one_line(folder)


def test_best_comes_before_last_unless_asked(make_run: MakeRun) -> None:
    folder = make_run("best", "last")
    for name in ("best", "last"):
        (folder / "checkpoints" / f"{name}.npz").write_bytes(b"broken")
    assert "best.npz: damaged" in one_line(folder)
    assert "last.npz: damaged" in one_line(folder, checkpoint="last")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("classes.json", "{", "not a list of classes"),
        ("classes.json", '{"names": ["a"], "palette": []}', "1 class names but 0 colours"),
        ("classes.json", '{"names": ["a"], "palette": [[1, 2]]}', "not a list of classes"),
        ("classes.json", '["a", "b"]', "classes (expected an object with keys, not list): expect"),
        ("classes.json", '{"names": ["a"]}', "'palette' is not a list of colours"),
        ("classes.json", '{"names": ["a"], "palette": [7]}', "'palette' is not a list of colours"),
        ("classes.json", '{"names": "a", "palette": [[1, 2, 3]]}', "'names' is not a list of str"),
        ("classes.json", '{"names": [], "palette": []}', "contains no classes"),
        ("config.yaml", "model: {backbone: [", "not a run's configuration"),
        ("config.yaml", "model: {bakbone: resnet50}", "did you mean 'model.backbone'?"),
        ("config.yaml", "model: {head_channels: many}", "not a run's configuration"),
        ("config.yaml", b"\xff\xfe\x00", "not a UTF-8 text file"),
    ],
)
def test_invalid_files_are_refused(
    make_run: MakeRun, name: str, content: str | bytes, says: str
) -> None:
    folder = make_run("last")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    text = one_line(folder)
    assert text.count(name) == 1
    assert says in text


def test_a_damaged_configuration_is_named_once_with_its_line(make_run: MakeRun) -> None:
    folder = make_run("last")
    (folder / "config.yaml").write_text("data:\n  crop: 65\n  fold: a: b\nseed: 1\n")
    text = one_line(folder)
    assert text.count(str(folder)) == 1
    assert "config.yaml: not a run's configuration: line 3 is not YAML (mapping values" in text


def test_checkpoint_of_another_number_of_classes(make_run: MakeRun) -> None:
    folder = make_run("last")
    (folder / "classes.json").write_text(
        '{"names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]}', encoding="utf-8"
    )
    assert "the number of classes" in one_line(folder)


def test_a_calibration_of_a_checkpoint_that_is_missing_is_refused(
    make_run: MakeRun, picture: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("best", "last")
    best, calibration = run / "checkpoints" / "best.npz", Calibration((0.3,))
    (run / CALIBRATION).write_text(calibration_text(best, calibration, {}))
    assert read_run(run).calibration() == read_run(run).calibration("best") == calibration
    assert read_run(run).calibration("last") == UNCALIBRATED
    best.unlink()
    image = write_picture(run / "a.png", picture)
    words = ["predict", str(run), str(image), "--out", str(run / "predictions")]
    assert main(words) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "calibration.json: is of best.npz, but the weights of the run are now those of" in line
    network = KerasNetwork(run, checkpoint="last")  # requested by name, so not a surprise
    assert network.calibration == UNCALIBRATED
    (run / CALIBRATION).unlink()
    assert main(words) == EXIT_DONE
