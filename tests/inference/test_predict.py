from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Barrier

import cv2
import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import EXIT_USER_ERROR, DataError, ResourceError
from ccfnet_tf.inference.find_inputs import Failure
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.predict import Outcome, Wanted, predict_all
from ccfnet_tf.inference.segmenter_protocol import ImageTooLargeError, Maps, Prediction, Segmenter
from ccfnet_tf.inference.writers import KINDS
from tests.inference.conftest import TAXONOMY, write_picture

SMALL = np.full((32, 40, 3), 90, np.uint8)


def files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def results(*names: str) -> list[str]:
    return sorted(f"{name}.{kind}.png" for name in names for kind in KINDS)


def reasons(outcome: Outcome) -> dict[str, str]:
    return {Path(failure.source).name: failure.reason for failure in outcome.failures}


def write_video(path: Path, frames: int, *, size: tuple[int, int] = (40, 32)) -> Path:
    codec = "mp4v" if path.suffix == ".mp4" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 12, size)
    for index in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 * index % 256, np.uint8))
    writer.release()
    return path


def test_files_folders_and_globs_keep_their_paths(predictor: KerasNetwork, tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    for name in ("deep/one.png", "folder/two.v2.jpg", "folder/sub/three.PNG", "many/x/four.bmp"):
        write_picture(given / name, SMALL)
    write_picture(given / "many/y/five.png", SMALL)
    write_picture(given / "folder/.hidden.png", SMALL)
    (given / "folder" / "notes.txt").write_text("no image")

    inputs = [given / "deep/one.png", given / "folder", given / "many/*/*"]
    outcome = predict_all(predictor, [str(path) for path in inputs], out)

    others = Counter({".txt": 1})
    assert outcome == Outcome(pictures=5, videos=0, frames=0, failures=(), others=others)
    assert files(out) == results("one", "two.v2", "sub/three", "x/four", "y/five")


def test_written_labels_are_the_predicted_ones(
    predictor: KerasNetwork, picture: np.ndarray, tmp_path: Path
) -> None:
    path = write_picture(tmp_path / "a.png", picture)
    predict_all(predictor, [str(path)], tmp_path / "out")
    written = cv2.imread(str(tmp_path / "out" / "a.label.png"), cv2.IMREAD_UNCHANGED)
    expected = predictor.predict(picture).labels
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(written, expected)


def test_bad_files_are_reported_and_the_rest_go_on(predictor: KerasNetwork, tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.jpg", "c.png", "z.png"):
        write_picture(given / name, SMALL)
    (given / "b.png").write_text("a text")
    whole = (given / "a.jpg").read_bytes()
    (given / "d[red].jpg").write_bytes(whole[: len(whole) // 2])
    (given / "e.mp4").write_bytes(b"no video")
    console = Console(width=60, file=io.StringIO(), record=True)

    outcome = predict_all(
        predictor,
        [str(given), str(given / "gone.png"), str(given / "*.xyz"), str(given / "b.p*")],
        out,
        console=console,
    )

    assert outcome.pictures == 3
    assert files(out) == results("a", "c", "z")
    said = reasons(outcome)
    assert set(said) == {"b.png", "d[red].jpg", "e.mp4", "gone.png", "*.xyz"}
    assert said["gone.png"] == "no such file or folder"
    assert said["*.xyz"] == "matches no file"
    assert "not a video" in said["e.mp4"]
    lines = console.export_text().splitlines()
    for failure in outcome.failures:
        assert f"{failure.source}: {failure.reason}" in lines  # whole, in one line


def test_an_empty_folder_is_a_failure(predictor: KerasNetwork, tmp_path: Path) -> None:
    outcome = predict_all(predictor, [str(tmp_path)], tmp_path / "out")
    assert "contains no image or video" in outcome.failures[0].reason
    assert not (tmp_path / "out").exists()


def test_one_name_for_two_pictures_is_a_failure(predictor: KerasNetwork, tmp_path: Path) -> None:
    given = tmp_path / "in"
    bright = write_picture(given / "a.png", np.full((32, 32, 3), 255, np.uint8))
    write_picture(given / "b" / "a.jpg", SMALL)
    outcome = predict_all(
        predictor,
        [str(bright), str(given / "b" / "a.jpg"), str(bright)],
        tmp_path / "out",
        wanted=Wanted(overwrite=True),
    )
    assert outcome.pictures == 1
    (failure,) = outcome.failures
    assert failure.source == str(given / "b" / "a.jpg")
    assert f"overwrite those of {bright}" in failure.reason
    written = cv2.imread(str(tmp_path / "out" / "a.label.png"), cv2.IMREAD_UNCHANGED)
    assert written.shape == (32, 32)  # the first one's


def test_results_that_exist_stay_unless_asked(predictor: KerasNetwork, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", SMALL)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.overlay.png").write_text("older")
    outcome = predict_all(predictor, [str(path)], out)
    assert (
        "a.overlay.png exists already: add --skip-existing or --overwrite"
        in reasons(outcome)["a.png"]
    )
    assert files(out) == ["a.overlay.png"]
    assert (out / "a.overlay.png").read_text() == "older"

    assert predict_all(predictor, [str(path)], out, wanted=Wanted(overwrite=True)).failures == ()
    assert files(out) == results("a")


def test_results_among_the_inputs_are_no_inputs(predictor: KerasNetwork, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", SMALL)
    write_video(tmp_path / "b.mp4", 2)
    for _ in range(2):
        outcome = predict_all(predictor, [str(tmp_path)], tmp_path, wanted=Wanted(overwrite=True))
        assert (outcome.pictures, outcome.videos, outcome.failures) == (1, 1, ())
    # Somewhere else the same names are images like any other.
    outcome = predict_all(predictor, [str(tmp_path / "a.label.png")], tmp_path / "elsewhere")
    assert files(tmp_path / "elsewhere") == results("a.label")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
@pytest.mark.parametrize("size", [(40, 32), (42, 34)])
def test_video(predictor: KerasNetwork, tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / name, 5, size=size)
    out = tmp_path / "out"
    outcome = predict_all(predictor, [str(tmp_path / "in")], out)
    assert outcome == Outcome(pictures=0, videos=1, frames=5, failures=())
    frames = [f"clip.frames/frame_{index:05d}" for index in range(5)]
    assert files(out) == sorted([*results(*frames), "clip.overlay.mp4"])

    capture = cv2.VideoCapture(str(out / "clip.overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    there, frame = capture.read()
    assert there
    assert frame.shape == (size[1], size[0], 3)
    capture.release()


def test_a_shorter_video_leaves_no_older_frames(predictor: KerasNetwork, tmp_path: Path) -> None:
    for frames in (4, 2):
        path = write_video(tmp_path / "clip.mp4", frames)
        outcome = predict_all(
            predictor, [str(path)], tmp_path / "out", wanted=Wanted(overwrite=True)
        )
        assert outcome.failures == ()
    assert len(files(tmp_path / "out" / "clip.frames")) == 2 * len(KINDS)


def test_a_truncated_video_says_how_far_it_came(predictor: KerasNetwork, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", 40, size=(64, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    outcome = predict_all(predictor, [str(path)], tmp_path / "out")
    assert outcome.videos == 0
    assert 0 < outcome.frames < 40
    assert len(files(tmp_path / "out" / "clip.frames")) == outcome.frames * len(KINDS)
    (failure,) = outcome.failures
    assert f"ends after {outcome.frames} of 40 frames" in failure.reason


class TooLarge(KerasNetwork):
    def __init__(self, error: Exception, other: KerasNetwork) -> None:
        self.taxonomy = other.taxonomy
        self.error = error
        self.other = other

    def predict(self, image: str | Path | np.ndarray) -> Prediction:
        if isinstance(image, np.ndarray) and image.shape[0] > 40:
            raise self.error
        return self.other.predict(image)


def test_memory_stops_one_picture_and_a_full_disk_stops_all(
    predictor: KerasNetwork, tmp_path: Path
) -> None:
    write_picture(tmp_path / "in" / "a.png", np.zeros((64, 64, 3), np.uint8))
    write_picture(tmp_path / "in" / "b.png", SMALL)
    source = [str(tmp_path / "in")]
    memory = TooLarge(ImageTooLargeError("memory ran out"), predictor)
    outcome = predict_all(memory, source, tmp_path / "out")
    assert reasons(outcome) == {"a.png": "memory ran out"}
    assert outcome.pictures == 1
    disk = TooLarge(ResourceError("disk full"), predictor)
    with pytest.raises(ResourceError, match="disk full"):
        predict_all(disk, source, tmp_path / "other")


def test_out_that_cannot_be_written(predictor: KerasNetwork, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", SMALL)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ResourceError, match="out: is a file, expected a folder"):
        predict_all(predictor, [str(path)], tmp_path / "out")


def test_without_an_input_no_network_is_opened(tmp_path: Path) -> None:
    def never() -> Segmenter:
        raise AssertionError

    console = Console(file=io.StringIO(), width=400, force_terminal=True, no_color=True)
    outcome = predict_all(never, ["no/such.jpg"], tmp_path / "out", console=console)
    assert outcome == Outcome(0, 0, 0, (Failure("no/such.jpg", "no such file or folder"),))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("\n") == 1  # no bar of 0/0


def test_a_run_without_a_checkpoint_is_refused_before_its_inputs_are_sought(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(make_run()), "no/such.jpg"]) == EXIT_USER_ERROR
    assert "no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["good.png"], 0),
        (["good.png", "gone.jpg"], 1),
        (["gone.jpg"], 2),
        (["damaged.png"], 2),
        (["text.txt"], 2),
        (["*.bmp"], 2),
        (["empty"], 2),
    ],
)
def test_the_exit_code_is_2_if_nothing_was_predicted(
    given: list[str],
    code: int,
    make_run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, folder = make_run("best"), tmp_path / "in"
    good = write_picture(folder / "good.png", SMALL)
    (folder / "damaged.png").write_bytes(good.read_bytes()[:60])
    (folder / "text.txt").write_text("a text")
    (folder / "empty").mkdir()
    inputs = [str(folder / name) for name in given]
    assert main(["predict", str(run), *inputs, "--out", str(tmp_path / "out")]) == code
    printed, errors = capsys.readouterr()
    assert (given[-1] in errors) == (code > 0)
    assert ("1 image" in printed) == (code < 2)
    assert str(folder / given[-1]) not in printed


class Several:
    """Answers an image with a label that is its first pixel's red, several at a time.

    The first `at_once` of a call wait for each other, which fails where they come one by one.
    """

    taxonomy = TAXONOMY
    at_once = 4

    def __init__(self, errors: dict[int, Exception] | None = None) -> None:
        self.errors = errors or {}
        self.meeting = Barrier(self.at_once)
        self.asked: list[int] = []

    def predict(self, image: np.ndarray) -> Maps:
        number = int(image[0, 0, 0])
        self.asked.append(number)
        if number < self.at_once:
            self.meeting.wait(timeout=60)
        if number in self.errors:
            raise self.errors[number]
        labels = np.full(image.shape[:2], number % 3, np.int32)
        return Maps(labels, *[np.full(image.shape[:2], number / 255, np.float32)] * 3)


def write_numbered(folder: Path, count: int) -> None:
    for number in range(count):
        write_picture(folder / f"{number:02}.png", np.full((32, 40, 3), number, np.uint8))


def test_pictures_are_answered_at_once_and_none_is_swapped(tmp_path: Path) -> None:
    write_numbered(tmp_path / "in", 24)
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    errors: dict[int, Exception] = {2: DataError("refused"), 9: ImageTooLargeError("too large")}
    network = Several(errors)
    outcome = predict_all(network, [str(tmp_path / "in")], tmp_path / "out")
    assert outcome.pictures == 22
    assert set(reasons(outcome)) == {"02.png", "09.png", "bad.jpg"}
    assert sorted(network.asked) == list(range(24))
    for number in set(range(24)) - {2, 9}:
        name = f"{number:02}.label.png"
        labels = cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED)
        assert (labels == number % 3).all()


@pytest.mark.parametrize("error", [ResourceError("disk full"), KeyboardInterrupt()])
def test_what_concerns_all_stops_all_threads(error: BaseException, tmp_path: Path) -> None:
    write_numbered(tmp_path / "in", 24)
    network = Several({2: error})  # type: ignore[dict-item]
    with pytest.raises(type(error)):
        predict_all(network, [str(tmp_path / "in")], tmp_path / "out")
    assert len(network.asked) < 24


def test_ctrl_c_ends_with_whole_pictures(tmp_path: Path) -> None:
    write_numbered(tmp_path / "in", 24)
    network = Several()
    real = network.predict

    def predict(image: np.ndarray) -> Maps:
        found = real(image)
        if int(image[0, 0, 0]) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return found

    network.predict = predict  # type: ignore[method-assign]
    # A shell lets what it starts in the background ignore Ctrl-C; then Python does too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            predict_all(network, [str(tmp_path / "in")], tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(network.asked) < 24
    written = {name.split(".")[0] for name in files(tmp_path / "out")}
    assert files(tmp_path / "out") == results(*written)
    assert written <= {f"{number:02}" for number in network.asked}


ASKS_FOR_EVER = """
import signal, sys, threading, time
import numpy as np
from ccfnet_tf.inference import predict, writers
from ccfnet_tf.inference.segmenter_protocol import Maps
from ccfnet_tf.labels import Taxonomy

class Hanging:
    taxonomy = Taxonomy(("a", "b"), ((0, 0, 0), (9, 9, 9)))
    at_once = 4

    def predict(self, image):
        if image[0, 0, 0]:
            threading.Event().wait()
        zeros = np.zeros(image.shape[:2], np.float32)
        return Maps(zeros.astype(np.int32), zeros, zeros, zeros)

real = writers._write

def slowly(*args):
    print("writes", flush=True)
    time.sleep(0.5)
    real(*args)

writers._write = slowly
# A shell lets what it starts in the background ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    predict.predict_all(Hanging(), sys.argv[1:2], predict.Path(sys.argv[2]))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_waits_for_files_and_not_for_answers(tmp_path: Path) -> None:
    write_numbered(tmp_path / "in", 24)
    command = [sys.executable, "-c", ASKS_FOR_EVER, str(tmp_path / "in"), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # one is written, and three wait for an answer
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
    assert files(tmp_path / "out") == results("00")


def test_masks_beside_images_are_counted(predictor: KerasNetwork, tmp_path: Path) -> None:
    for side in ("images", "masks"):
        write_picture(tmp_path / "in" / side / "a.png", SMALL)
    outcome = predict_all(predictor, [str(tmp_path / "in")], tmp_path / "out")
    assert (outcome.pictures, outcome.labels) == (1, 1)
    assert files(tmp_path / "out") == results("images/a")


def test_an_overlay_that_cannot_be_made_names_the_folder(
    predictor: KerasNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 1)
    monkeypatch.setenv("PATH", "")  # no ffmpeg, which would write it
    real = cv2.VideoWriter
    monkeypatch.setattr(cv2, "VideoWriter", lambda _, *more: real("/no/such/folder.mp4", *more))
    monkeypatch.setattr(cv2.VideoWriter, "fourcc", real.fourcc, raising=False)
    with pytest.raises(ResourceError, match=r"cannot be written: give a writable folder"):
        predict_all(predictor, [str(path)], tmp_path / "out")


def test_relative_inputs(
    predictor: KerasNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "in" / "x" / "a.png", SMALL)
    monkeypatch.chdir(tmp_path)
    predict_all(predictor, ["in/**/*.png"], Path("out"))
    assert files(tmp_path / "out") == results("x/a")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
