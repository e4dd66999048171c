"""The command line: exit codes, one-line errors, speed of `--help`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf.cli import data as data_verbs
from ccfnet_tf.cli import main as cli
from ccfnet_tf.cli import predict, presets
from ccfnet_tf.errors import EXIT_UNEXPECTED, EXIT_USER_ERROR

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
PHOTO = str(next((SAMPLE / "test" / "images").iterdir()))


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ccfnet_tf", *args], capture_output=True, text=True, check=False
    )


def seconds(*arguments: str) -> float:
    """Returns the processor time of a command, which other processes change least."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def test_help_is_fast_compared_to_starting_python() -> None:
    # A ratio, since the machine may be busy. Importing TensorFlow would be a factor of 50.
    bare = min(seconds("-c", "import argparse, importlib.metadata") for _ in range(3))
    helped = min(seconds("-m", "ccfnet_tf", "--help") for _ in range(3))
    assert helped < 6 * bare


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("fit", "evaluate", "predict", "benchmark", "presets"))


def test_a_missing_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == EXIT_USER_ERROR
    assert "usage" in capsys.readouterr().out


def test_version_lists_dependencies(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ccfnet-tf ")
    assert "tensorflow" in printed


def test_presets_lists_all_with_departures_from_the_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["presets"]) == 0
    printed = capsys.readouterr().out
    assert "stanford_background_paper" in printed
    assert "Departs from the paper" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "unknown command 'fitt'.*did you mean 'fit'"),
        (["fit", "--train.epoch", "3"], "did you mean 'train.epochs'"),
        (["fit", "--config", "folder"], "data.root is not set"),
        (["evaluate"], "required: run"),
        (["evaluate", "no/such/run"], "no/such/run: no such folder"),
        (["evaluate", "x", "--split", "all"], "invalid choice: 'all'"),
        (["evaluate", "x", "--shard", "5/4"], "'5/4' is not K/N"),
        (["evaluate", "x", "--shard", "1/2", "--merge", "a.json"], "not allowed with argument"),
        (["evaluate", "x", "--merge", "a.json", "--split", "val"], "--split has no effect with"),
        (["evaluate", "x", "--merge", "a.json", "--tta", "flip"], "--tta has no effect with"),
        (["predict", "no/such/run", "photo.jpg"], "no/such/run: no such folder"),
        (["predict", "run"], "required: INPUT"),
        (
            ["predict", "run", "a.jpg", "--size", "big"],
            "--size is 'big': expected the longest side",
        ),
        (
            ["predict", "run", "a.jpg", "--save", "labels"],
            "--save has 'labels'.*did you mean 'label'",
        ),
        (["predict", "r", "a.jpg", "--overwrite", "--skip-existing"], "not allowed with argument"),
        (["predict", "run", "a.jpg", "--out", "/dev/null/x"], "/dev/null: is a file, expected"),
        (["fit", "--train.class_weights", "1,2"], r"is '1,2': it must be none or auto or a list"),
        (["fit", "--train.class_weights", "autp"], "it must be none or auto.*did you mean 'auto'"),
        (["fit", "--print_shtab", "bash"], "unknown key 'print_shtab'"),
        (["fit", "--out", "/dev/null/run"], "/dev/null: is a file"),
        (["fit", "--out", "/dev/null"], "/dev/null: is a file"),
        (["data", "convert", str(SAMPLE), "--out", "/dev/null"], "/dev/null: is a file"),
        (["data", "show", "x", "--out", "sheet.txt"], "--out is sheet.txt.*ends in .png"),
        (["data", "stats", "x", "--plot", "a.jpg"], "--plot is a.jpg.*ends in .png"),
        (["data", "convert", "x", "--out", "/dev/null/y"], "/dev/null: is a file"),
        (["rank", "run", "no/such/folder"], "no/such/folder: no such folder: give a folder"),
        (["rank", "run", str(SAMPLE), "--top", "0"], "--top is 0: it must be 1 or more"),
        (["rank", "no/such/run", str(SAMPLE)], "no/such/run: no such folder"),
        (["predict", "run", "--tta", "flip", "a.jpg"], "--tta took 'a.jpg'.*put --tta after"),
        (
            ["predict", "--tta", "scales=1,2", "run", "a.jpg"],
            "--tta took 'run' as one of its views",
        ),
        (["evaluate", "--tta", "flip", "run"], "--tta took 'run' as one of its"),
        (["predict", "run", "--tta", "flip"], "required: INPUT"),
        (["data", "scenes", "--count", "3", "--out", "x"], "--count is 3: it must be"),
        (["fit", "--config", PHOTO], r"\.\w+: not a text file: give --config a preset or a YAML"),
        (["fit", "--config", str(SAMPLE)], "--config .*sample: is a folder: give a preset"),
        (["serve", "no/such"], "no/such: no such folder or file; give the folder OUT/ccfnet of"),
        (["serve", PHOTO], "not a file of a network; give the folder OUT/ccfnet of"),
        (["serve", str(SAMPLE)], "not an exported network; give the folder OUT/ccfnet of"),
        (["serve", "http://host:8501/v1/models/ccfnet"], "is the address of a server: give the"),
        (["crossval", "--data.root", str(SAMPLE), "--out", "/dev/null/x"], "/dev/null: is a file"),
        (["completion", "tcsh"], "invalid choice: 'tcsh'"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert cli.main(args) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert re.search(message, captured.err), captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "args",
    [
        ["calibrate", "RUN"],
        ["compare", "RUN", "RUN/fold_0"],
        ["evaluate", "RUN"],
        ["export", "RUN"],
        ["predict", "RUN", "photo.jpg"],
        ["rank", "RUN", str(SAMPLE)],
        ["report", "RUN"],
        ["serve", "RUN"],
        ["benchmark", "RUN"],
    ],
)
@pytest.mark.parametrize("file", ["crossval.yaml", "crossval.json"])
def test_the_folder_of_a_cross_validation_is_not_taken_for_a_run(
    args: list[str], file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folds" / "fold_0").mkdir(parents=True)
    (tmp_path / "folds" / file).touch()
    folds = str(tmp_path / "folds")
    assert cli.main([arg.replace("RUN", folds) for arg in args]) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folds}: is the folder of a cross-validation" in line
    assert f"such as {folds}/fold_0" in line


def test_debug_shows_the_traceback() -> None:
    done = run("evaluate", "no/such/run", "--debug")
    assert done.returncode == EXIT_USER_ERROR
    assert "Traceback" in done.stderr
    assert "RunError" in done.stderr


def test_an_unexpected_error_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: list[str]) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(presets, "main", fail)
    assert cli.main(["presets"]) == EXIT_UNEXPECTED
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [["presets"], ["completion", "fish"], ["data", "stats", str(SAMPLE)]]
)
@pytest.mark.parametrize("buffered", [True, False])
def test_output_into_a_full_disk_is_one_line(verb: list[str], buffered: bool) -> None:
    command = [sys.executable, "-m", "ccfnet_tf", *verb]
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
    assert done.returncode == EXIT_USER_ERROR
    *before, output = done.stderr.splitlines()
    assert "disk" in output or "space" in output
    assert "free space" in output
    assert all("Error" not in line and "Traceback" not in line for line in before)


def test_a_run_folder_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["fit", "--out", str(tmp_path)]) == EXIT_USER_ERROR
    assert "not empty; choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_existing_run_is_not_restarted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert cli.main(["fit", "--out", str(tmp_path)]) == EXIT_USER_ERROR
    assert "continue with --resume, or choose another --out" in capsys.readouterr().err


def test_nothing_to_resume_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--resume", "--out", str(tmp_path)]) == EXIT_USER_ERROR
    assert "no run to resume" in capsys.readouterr().err


def test_predict_help_describes_the_output_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["predict", "--help"])
    printed = capsys.readouterr().out
    for words in (
        "(default: predictions)",
        "STEM.frames/",
        "STEM.overlay.mp4",
        "dark = easy",
        "STEM.risk.png",
        "STEM.MAP.npy",
        "A masks/ folder next to images/",
    ):
        assert words in printed


@pytest.mark.parametrize("verb", ["fit", "crossval"])
def test_help_is_specific_to_the_command(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: ccfnet-tf {verb} ")
    assert "--data.root" in printed
    assert ("every fold" in printed) is (verb == "crossval")
    assert ("--accept-changed-data" in printed) is (verb == "fit")


DEPRECATED_OPTIONS = {
    ("data", "convert", "no/such", "--to", "out"): ("--to is deprecated", "no/such"),
    ("data", "convert", "no/such", "--to=out"): ("--to is deprecated", "no/such"),
    ("export", "no/run", "--data-root", "x"): ("--data-root is deprecated", "no/run"),
}


@pytest.mark.parametrize("args", DEPRECATED_OPTIONS)
def test_a_deprecated_option_is_accepted_with_a_note(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    note, error = DEPRECATED_OPTIONS[args]
    assert cli.main(list(args)) == EXIT_USER_ERROR
    output = capsys.readouterr().err.splitlines()
    assert len(output) == 2
    assert note in output[0]
    assert error in output[1]


@pytest.mark.parametrize("verb", ["check", "stats", "show", "split", "convert"])
def test_data_commands_accept_data_root(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"split": ["--out", str(tmp_path / "o")], "convert": ["--out", str(tmp_path / "o")]}
    for root in (["--data.root", "no/such"], ["--data.root=no/such"]):
        assert cli.main(["data", verb, *root, *more.get(verb, [])]) == EXIT_USER_ERROR
        assert "no/such" in capsys.readouterr().err


def test_quiet_prints_results_but_no_notices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ccfnet_tf.io.quiet_flag import QUIET

    assert cli.main(["data", "check", str(SAMPLE)]) == 0
    loud = capsys.readouterr()
    assert cli.main(["data", "check", str(SAMPLE), "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert "8 classes" in loud.out
    assert "8 classes" in quiet.out
    assert "folder, " in loud.err
    assert quiet.err == ""
    assert QUIET.get() is False
    assert cli.main(["predict", "no/such", "a.jpg", "--quiet"]) == EXIT_USER_ERROR
    assert "no/such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pictures", "frames", "failed", "labels", "lines"),
    [
        (1, 0, 0, 0, ["out: 1 image"]),
        (2, 1, 0, 1, ["out: 2 images and 1 frame of videos", "skipped 1 file in {}"]),
        (0, 7, 1, 3, ["out: 7 frames of videos; 1 failed, see above", "skipped 3 files in {}"]),
        (0, 0, 2, 0, []),
    ],
)
def test_predict_ends_with_a_summary(
    pictures: int, frames: int, failed: int, labels: int, lines: list[str]
) -> None:
    from ccfnet_tf.inference.predict import Failure, Outcome

    outcome = Outcome(pictures, 0, frames, (Failure("a.jpg", "damaged"),) * failed, labels)
    beside = "masks/ next to images/"
    assert predict._predicted(outcome, "out") == [line.format(beside) for line in lines]


def test_an_image_of_which_a_part_was_predicted_is_counted_once() -> None:
    from ccfnet_tf.inference.predict import Failure, Outcome

    gif = Failure("a.gif", "has 3 frames", in_part=True)
    (line,) = predict._predicted(Outcome(2, 0, 0, (gif,)), "out")
    assert line == "out: 2 images (1 of them only the first of several frames), see above"
    (line,) = predict._predicted(Outcome(2, 0, 0, (gif, Failure("b.jpg", "damaged"))), "out")
    assert line.endswith(" frames); 1 failed, see above")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {},
            (
                "; no labels were found to tell how many of these are right; on a split: ccfnet-tf "
                "evaluate RUN --abstain-above R"
            ),
        ),
        (
            {"accuracy": 0.9412, "compared": 3},
            "; 94.1 % of these labels are right in the 3 images whose labels were found",
        ),
        (
            {"accuracy": 0.9412, "compared": 2, "trained": 1},
            (
                "; 94.1 % of these labels are right in the 2 of 3 images whose labels were found; "
                "the run was trained on 1 of them, so that is too good for new images"
            ),
        ),
        (
            {"accuracy": 1.0, "compared": 3, "trained": 3},
            (
                "; 100.0 % of these labels are right in the 3 images whose labels were found; the "
                "run was trained on them, so new images are predicted less well"
            ),
        ),
        ({"compared": 1}, "; none of these pixels is labelled in the data set"),
    ],
)
def test_predict_reports_the_coverage_and_the_accuracy_where_labels_are(
    found: dict[str, Any], said: str
) -> None:
    from ccfnet_tf.inference.predict import Outcome

    _, line = predict._predicted(Outcome(3, 0, 0, (), coverage=0.875, **found), "out")
    assert line == f"87.5 % of pixels have a label; the others are void{said}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either a run folder to export, or --verify-only ARTIFACT"),
        (["x", "--verify-only", "y"], "give either"),
        (["--verify-only", "y", "--quantize", "int8"], "--quantize applies only to export"),
        (["--verify-only", "y", "--data.root", "z"], "--data.root applies only to export"),
        (["--verify-only", "y", "--format", "onnx"], "--format applies only to export"),
        (
            ["x", "--format", "onnx", "--quantize", "int8"],
            "--quantize applies only to --format tflite",
        ),
        (["x", "--format", "tflite", "--precision", "bfloat16"], "only to --format saved_model"),
        (["x", "--precision", "bf16"], "'bf16': expected float32, bfloat16; did you mean"),
        (["x", "--format", "tflite", "--size", "60000x60000"], "--size is 60000x60000: at most"),
        (["x", "--format", "tflight"], "--format is 'tflight': expected"),
    ],
)
def test_invalid_export_options_are_a_one_line_error(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", *options]) == EXIT_USER_ERROR
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.batch", "16"], "the training split has 8 images"),
        (["--train.batch", "3", "--train.strategy", "mirrored"], None),
        (
            ["--model.backbone_weights", "no/such.weights.h5"],
            "no/such.weights.h5 does not exist; expected",
        ),
    ],
)
def test_invalid_training_options_are_refused_before_the_run_folder_is_created(
    options: list[str], message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    args = ["fit", "--config", "folder", "--data.root", str(SAMPLE), "--out", str(out)]
    args += ["--model.backbone", "mobilenet_v2", "--train.epochs", "1", *options]
    if message is None:  # three images on two replicas
        message = r"train.batch is 3: it must be divisible by the 2 replicas; try 4"
        pytest.importorskip("tensorflow")
        done = run(*args, "--train.virtual_cpus", "2")
        assert (done.returncode, done.stderr.count("\n")) == (EXIT_USER_ERROR, 1)
        assert message in done.stderr
    else:
        assert cli.main(args) == EXIT_USER_ERROR
        assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("verb", ["check", "stats"])
def test_an_unwritable_json_file_is_refused_before_reading(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    given = ["data", verb, str(SAMPLE), "--json", str(tmp_path / "file" / "found.json")]
    monkeypatch.setattr(data_verbs, "_listed", None)  # Nothing may be read.
    assert cli.main(given) == EXIT_USER_ERROR
    assert f"{tmp_path / 'file'}: is a file" in capsys.readouterr().err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("args", "code"), [("presets", 0), ("fitt", EXIT_USER_ERROR)])
def test_closed_standard_streams_change_nothing_else(args: str, code: int, closed: str) -> None:
    command = f"exec {sys.executable} -m ccfnet_tf {args} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["predict", "run", "a.png", "--out", ""], "the value of --out is empty"),
        (["predict", "run", "a.png", "--out="], "the value of --out is empty"),
        (["predict", "run", ""], "an argument is empty"),
        (["fit", "--data.root", "", "--out", "x"], "the value of --data.root is empty"),
        (["data", "check", ""], "an argument is empty"),
    ],
)
def test_an_empty_argument_is_refused(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("fit", "interrupted; continue the run with --resume"),
        ("crossval", "interrupted; continue with --resume"),
        ("reproduce", "interrupted; continue with the same command"),
        ("predict", "interrupted"),
    ],
)
def test_after_ctrl_c_the_whole_says_how_it_is_continued(
    verb: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupt)
    for is_part, line in ((False, said), (True, "interrupted")):
        monkeypatch.setattr(cli, "IS_PART", is_part)
        assert cli.main([verb]) == 130
        assert capsys.readouterr().err == f"ccfnet-tf: {line}\n"
