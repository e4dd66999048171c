"""Videos and streams, with a network that costs nothing."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.errors import DataError
from ccfnet_tf.inference.predict import Outcome, Wanted, parse_save, predict_all
from ccfnet_tf.inference.video import Video, VideoWanted, has_sound, open_video, predict_video
from tests.inference.by_brightness import ByBrightness

FFMPEG = """\
#!{python}
import sys, cv2, numpy as np
args = sys.argv[1:]
if "-encoders" in args:
    print(" V....D {encoder}   H.264")
    sys.exit()
width, height = map(int, args[args.index("-s") + 1].split("x"))
assert args[args.index("-c:v") + 1] == "{encoder}" and args[-1].startswith("file:")
writer = cv2.VideoWriter(args[-1][5:], cv2.VideoWriter.fourcc(*"mp4v"),
                         float(args[args.index("-r") + 1]), (width, height))
while frame := sys.stdin.buffer.read(3 * width * height):
    writer.write(np.frombuffer(frame, np.uint8).reshape(height, width, 3)[..., ::-1])
writer.release()
"""


def clip(path: Path, frames: int = 4, size: tuple[int, int] = (320, 240)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12, size)
    for index in range(frames):
        writer.write(np.full((size[1], size[0], 3), 50 * index, np.uint8))
    writer.release()
    return path


def predict(source: Path | str, out: Path, wanted: Wanted | None = None) -> tuple[Outcome, str]:
    console = Console(file=io.StringIO(), width=400)
    outcome = predict_all(ByBrightness(), [str(source)], out, wanted=wanted, console=console)
    return outcome, console.file.getvalue()  # type: ignore[attr-defined]


def read(path: Path) -> list[np.ndarray]:
    with open_video(path) as video:
        return list(video.frames())


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Returns a function that puts a program of that name with an encoder on the path."""

    def install(encoder: str) -> None:
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir()
        program.write_text(FFMPEG.format(python=sys.executable, encoder=encoder))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_an_overlay_that_browsers_do_not_play_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    said = predict(clip(tmp_path / "a.avi"), tmp_path / "out")[1]
    if "which browsers do not play" not in said:  # where OpenCV has an encoder of its own
        with open_video(tmp_path / "out" / "a.overlay.mp4") as video:
            code = int(video._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
        assert code.lower() in {b"h264", b"avc1"}


@pytest.mark.parametrize("encoder", ["libx264", "libopenh264"])
def test_frames_go_to_ffmpeg_where_it_writes_h264(
    encoder: str,
    ffmpeg: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ffmpeg(encoder)
    monkeypatch.setattr("ccfnet_tf.io.video_writer._OpenCV.__init__", _no_encoder)
    wanted = Wanted(kinds=(), legends=False)
    outcome, said = predict(clip(tmp_path / "a.avi", size=(322, 242)), tmp_path / "out", wanted)
    assert (outcome.videos, outcome.failures, said) == (1, (), "")
    frames = read(tmp_path / "out" / "a.overlay.mp4")
    assert [frame.shape for frame in frames] == [(242, 322, 3)] * 4
    assert len({round(frame.mean() / 4) for frame in frames}) == 4  # each is another image
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.overlay.mp4"]


def _no_encoder(self: Any, *_: object) -> None:
    self.opened, self._writer = False, cv2.VideoWriter()


def test_a_film_names_all_classes_below_its_frames(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.avi")
    for legends in (True, False):
        predict(source, tmp_path / str(legends), Wanted(kinds=(), legends=legends))
    named, bare = (read(tmp_path / str(each) / "a.overlay.mp4")[0] for each in (True, False))
    assert bare.shape == (240, 320, 3)
    assert named.shape[0] > 250
    assert named[241:].mean() > 180  # a legend on white


@pytest.mark.parametrize(
    ("save", "files"),
    [
        ("film", {"a.overlay.mp4"}),
        ("label", {"a.frames"}),
        ("label,film", {"a.frames", "a.overlay.mp4"}),
    ],
)
def test_save_chooses_what_is_written_of_a_video(
    save: str, files: set[str], tmp_path: Path
) -> None:
    kinds, film = parse_save(save)
    source, out = clip(tmp_path / "a.avi"), tmp_path / "out"
    predict(source, out, Wanted(kinds=kinds, film=film))
    assert {path.name for path in out.iterdir()} == files
    again = Wanted(kinds=kinds, film=film, skip_existing=True)
    assert predict(source, out, again)[0].skipped == 1
    if "label" in save:
        (out / "a.frames" / "frame_00003.label.png").unlink()
    if "film" in save:
        (out / "a.overlay.mp4").unlink()
    assert predict(source, out, again)[0].videos == 1


def test_a_picture_has_no_film(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    (failure,) = predict(tmp_path / "a.png", tmp_path / "out", Wanted(kinds=()))[0].failures
    assert "an image has no film" in failure.reason


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("a.mp4", b"hdlr" + 8 * b"\0" + b"soun"),
        ("a.MOV", b"hdlr\0\0\0\0mhlrsoun"),
        ("a.avi", b"strh8\0\0\0auds"),
        ("a.mkv", b"\x86\x85A_AAC"),
        ("a.webm", b"\x86\x86A_OPUS"),
        ("a.mpg", b"\0\0\1\xc0"),
        ("a.flv", b"FLV\1\5"),
        ("a.ogv", b"OpusHead"),
    ],
)
def test_sound_is_seen_in_every_container(name: str, mark: bytes, tmp_path: Path) -> None:
    silent = 500 * b"\7hdlr\7\7vide\7strh\7vids"
    (tmp_path / name).write_bytes(silent)
    assert not has_sound(tmp_path / name)
    (tmp_path / name).write_bytes(mark + silent if name == "a.flv" else silent + mark + silent)
    assert has_sound(tmp_path / name)


def test_sound_that_is_left_out_is_said(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.avi")
    assert "sound" not in predict(source, tmp_path / "1")[1]
    with source.open("ab") as file:
        file.write(b"JUNK" + b"\4\0\0\0" + b"strh\4\0\0\0auds")
    outcome, said = predict(source, tmp_path / "2")
    assert "a.avi: the audio is not copied" in said
    assert outcome.failures == ()


class Camera:
    """OpenCV's capture of a stream that Ctrl-C ends after some frames."""

    def __init__(self, frames: int) -> None:
        self.left = frames

    def get(self, _: int) -> float:
        return -1.0

    def read(self) -> tuple[bool, np.ndarray]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return True, np.full((64, 64, 3), 99, np.uint8)


def test_ctrl_c_ends_a_stream_with_its_film_whole(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_video(ByBrightness(), Video("camera:0", Camera(3)), tmp_path, "cam")
    assert len(read(tmp_path / "cam.overlay.mp4")) == 3
    assert len(list((tmp_path / "cam.frames").glob("*.label.png"))) == 3


def test_ctrl_c_leaves_no_film_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_video(ByBrightness(), Video(Path("a.mp4"), Camera(3)), tmp_path, "a")
    assert not list(tmp_path.glob("*.mp4"))
    assert not list(tmp_path.glob(".*"))


def test_a_camera_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(DataError, match="camera:9: OpenCV cannot open the camera"),
        open_video("camera:9"),
    ):
        pass


def test_many_classes_are_not_named_below_a_film(tmp_path: Path) -> None:
    wanted = VideoWanted(kinds=(), legends=True)
    narrow = clip(tmp_path / "a.avi", size=(64, 32))  # where a legend is higher than the frame
    with open_video(narrow) as video:
        predict_video(ByBrightness(), video, tmp_path, "a", wanted=wanted)
    assert read(tmp_path / "a.overlay.mp4")[0].shape == (32, 64, 3)


class CameraOfTheNet(BaseHTTPRequestHandler):
    """Five images as network cameras send them, and pages that are no stream."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        if self.path != "/live.mjpg":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for index in range(5):
            picture = np.full((96, 160, 3), 50 * index, np.uint8)
            content = cv2.imencode(".jpg", picture)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
            self.wfile.write(head.encode() + content + b"\r\n")


@pytest.fixture
def camera() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), CameraOfTheNet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_stream_of_the_net_is_labelled_and_its_end_is_said(camera: str, tmp_path: Path) -> None:
    address = f"{camera}/live.mjpg"
    outcome, said = predict(address, tmp_path)
    assert (outcome.videos, outcome.frames, len(outcome.failures)) == (0, 5, 1)
    assert f"{address}: the stream ended after 5 frames" in said
    assert len(read(tmp_path / "live.overlay.mp4")) == 5
    assert len(list((tmp_path / "live.frames").glob("*.label.png"))) == 5


def test_an_address_without_a_stream_is_one_line(camera: str, tmp_path: Path) -> None:
    outcome, said = predict(f"{camera}/gone.mjpg", tmp_path)
    (failure,) = outcome.failures
    assert failure.source == f"{camera}/gone.mjpg"
    assert "OpenCV cannot open the stream" in failure.reason
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
