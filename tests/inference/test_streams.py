"""Servers of streams that are killed or fall silent, as a network and a power cut leave them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.errors import DataError
from ccfnet_tf.inference import video
from ccfnet_tf.inference.predict import predict_all
from ccfnet_tf.inference.segmenter_protocol import Prediction
from ccfnet_tf.io.video_writer import quiet_video
from tests.inference.by_brightness import ByBrightness

HERE = Path(__file__).parent
SECRET = "user:se%63ret"


class Ending(ByBrightness):
    """A network that does something to a process once it has answered a tenth frame."""

    def __init__(self, process: subprocess.Popen[str], how: signal.Signals) -> None:
        super().__init__()
        self._process, self._how, self._left = process, how, 10

    def predict(self, image: np.ndarray, /) -> Prediction:
        self._left -= 1
        if not self._left:
            os.kill(self._process.pid, self._how)
        return super().predict(image)


def transport_stream(path: Path) -> Path:
    quiet_video()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mpg1"), 25, (160, 96))
    noise = np.random.default_rng(0)
    for _ in range(50):
        writer.write(noise.integers(0, 255, (96, 160, 3)).astype(np.uint8))
    writer.release()
    return path


@pytest.fixture(params=["http", pytest.param("rtsp", marks=pytest.mark.slow)])
def camera(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, str(HERE / f"{request.param}_camera.py")]
    if request.param == "rtsp":
        command.append(str(transport_stream(tmp_path / "a.ts")))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        port = int(started.stdout.readline())
        try:
            yield f"{request.param}://{SECRET}@127.0.0.1:{port}/live?key=hush", started
        finally:
            started.kill()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "READ_SECONDS", 1.0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_what_came_is_kept_and_the_end_is_said(
    how: signal.Signals,
    camera: tuple[str, subprocess.Popen[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    address, process = camera
    out, console = tmp_path / "out", Console(file=io.StringIO(), width=400)
    outcome = predict_all(Ending(process, how), [address], out, console=console)
    (failure,) = outcome.failures
    assert f"the stream ended after {outcome.frames} frames, or its server is gone" in (
        failure.reason
    )
    assert f"those {outcome.frames} were written" in failure.reason
    assert outcome.frames >= 10
    assert len(list((out / "live.frames").glob("*.label.png"))) == outcome.frames
    with video.open_video(out / "live.overlay.mp4") as film:
        assert len(list(film.frames())) == outcome.frames
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "://***@127.0.0.1" in said
    shown = " ".join([said, str(outcome), *capfd.readouterr(), *map(str, out.rglob("*"))])
    for secret in ("user", "se%63ret", "secret", "hush"):
        assert secret not in shown


class Closed:
    """OpenCV's capture of what it cannot open."""

    def isOpened(self) -> bool:  # noqa: N802
        return False

    def release(self) -> None:
        pass


@pytest.mark.parametrize(
    ("source", "waits"),
    [
        (
            "rtsp://h/live",
            [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 20_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1_000],
        ),
        ("camera:0", []),  # which would not open with them
    ],
)
def test_opencv_is_told_how_long_to_wait(
    source: str, waits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def capture(_address: object, _reader: int, options: list[int]) -> Closed:
        asked.append(options)
        return Closed()

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    with pytest.raises(DataError), video.open_video(source):
        pass
    assert asked == [waits]


def test_a_server_that_is_silent_from_the_start(
    camera: tuple[str, subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "OPEN_SECONDS", 1.0)
    address, process = camera
    os.kill(process.pid, signal.SIGSTOP)
    (failure,) = predict_all(ByBrightness(), [address], tmp_path / "out").failures
    assert "OpenCV cannot open the stream: check the address" in failure.reason
    assert "se%63ret" not in f"{failure}"
