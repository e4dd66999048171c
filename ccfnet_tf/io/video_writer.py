"""Writes videos that browsers play: H.264 where the machine can write it.

pip's OpenCV brings no encoder of H.264, but may find the system's; the program `ffmpeg` often has
one. Where neither has, the video is MPEG-4 part 2, which players take and browsers do not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from ccfnet_tf.errors import ResourceError
from ccfnet_tf.io.atomic_file import private_folder

NO_H264 = (
    "written as MPEG-4 part 2, which browsers do not play: neither OpenCV nor ffmpeg writes H.264 "
    "here; install ffmpeg for it"
)

_ENCODERS = ("libx264", "libopenh264")  # of ffmpeg's, those that need no device


class _Encoder(Protocol):
    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, uint8 [H, W, 3] RGB, of even sides."""

    def close(self) -> None:
        """Ends the file."""


def quiet_video() -> None:
    """Silences OpenCV and FFmpeg, which write hundreds of lines on a damaged file."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def video_writer(
    path: Path, rate: float, say: Callable[[str], None]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that adds a frame, uint8 [H, W, 3] RGB; the file appears when all is done.

    Args:
        path: The file, .mp4.
        rate: Frames a second.
        say: Called with a line where the video is not H.264.

    Raises:
        ResourceError: The video cannot be written.
    """
    with _writable_folder(path) as folder:
        temporary = folder / "overlay.mp4"  # the container is chosen by suffix
        encoder: _Encoder | None = None

        def add(picture: np.ndarray) -> None:
            nonlocal encoder
            # Codecs take even sides only and would cut an odd one.
            even = np.pad(picture, [*((0, side % 2) for side in picture.shape[:2]), (0, 0)], "edge")
            if encoder is None:
                encoder = _h264(temporary, rate, even) or _mpeg4(temporary, rate, even, path, say)
            encoder.write(even)

        try:
            yield add
            if encoder is not None:
                encoder.close()
                # Nobody says when a disk is full; a file without its end cannot be opened.
                if not _can_be_opened(temporary):
                    began = temporary.is_file()
                    cure = "free space" if began else "give a folder that can be written"
                    raise ResourceError(f"{path}: cannot be written: {cure}")
                temporary.replace(path)
        finally:
            if encoder is not None:
                encoder.close()


@contextmanager
def _writable_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, which encoders may write into: they follow any link."""
    try:
        with private_folder(path.parent) as folder:
            yield folder
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(
            f"{path}: cannot be written ({reason}): give a folder that can be written"
        ) from error


class _OpenCV:
    """Frames by OpenCV's own encoders."""

    def __init__(self, path: Path, code: str, rate: float, frame: np.ndarray) -> None:
        quiet_video()
        size = (frame.shape[1], frame.shape[0])
        self._writer: Any = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, size)
        self.opened = bool(self._writer.isOpened())

    def write(self, frame: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()


class _FFmpeg:
    """Frames to the program ffmpeg, by a pipe."""

    def __init__(
        self, program: str, encoder: str, path: Path, rate: float, frame: np.ndarray
    ) -> None:
        height, width = frame.shape[:2]
        frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        video = ["-an", "-c:v", encoder, "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
        # file: keeps a name such as a:b.mp4 from being taken for a protocol.
        command = [program, "-v", "quiet", "-y", *frames, "-r", f"{rate:g}", "-i", "-", *video]
        self._process = subprocess.Popen(
            [*command, f"file:{path}"], stdin=subprocess.PIPE, start_new_session=True
        )  # in a session of its own: Ctrl-C is ours to answer

    def write(self, frame: np.ndarray) -> None:
        if self._process.stdin is not None and self._process.poll() is None:
            try:
                self._process.stdin.write(frame.tobytes())
            except BrokenPipeError:  # it ended; the file that it left shows why
                self._process.wait()

    def close(self) -> None:
        self._process.communicate()


def _h264(path: Path, rate: float, frame: np.ndarray) -> _Encoder | None:
    """Returns an encoder of H.264, if there is one."""
    own = _OpenCV(path, "avc1", rate, frame)
    if own.opened:
        return own
    own.close()
    program = shutil.which("ffmpeg")
    encoder = _encoder_of(program) if program else None
    return _FFmpeg(program, encoder, path, rate, frame) if program and encoder else None


def _encoder_of(program: str) -> str | None:
    """Returns which of its encoders of H.264 an ffmpeg has."""
    asked = [program, "-v", "quiet", "-encoders"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return next((name for name in _ENCODERS if re.search(rf"\b{name}\b", listed)), None)


def _mpeg4(
    temporary: Path, rate: float, frame: np.ndarray, path: Path, say: Callable[[str], None]
) -> _Encoder:
    say(f"{path.name}: {NO_H264}")
    return _OpenCV(temporary, "mp4v", rate, frame)


def _can_be_opened(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path))
    try:
        return bool(capture.isOpened())
    finally:
        capture.release()
