"""Writes MP4 videos, as H.264 if an encoder is available, since browsers play it.

OpenCV from PyPI includes no H.264 encoder, but may use one of the system; the program `ffmpeg`
often has one. Without an encoder the video is MPEG-4 Part 2, which players support and browsers do
not.
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
    "written as MPEG-4 part 2, which browsers do not play: neither OpenCV nor ffmpeg can write "
    "H.264 on this machine; install ffmpeg"
)

_ENCODERS = ("libx264", "libopenh264")  # Software encoders of ffmpeg.


class _Encoder(Protocol):
    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, uint8 [H, W, 3] RGB, with even H and W."""

    def close(self) -> None:
        """Finishes the file."""


def quiet_video() -> None:
    """Silences OpenCV and FFmpeg, which log hundreds of lines for a damaged file."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def video_writer(
    path: Path, rate: float, warn: Callable[[str], None]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that adds a frame, uint8 [H, W, 3] RGB; the file is created on success.

    Args:
        path: Path of the .mp4 file.
        rate: Frames per second.
        warn: Called with a message if the video is not H.264.

    Raises:
        ResourceError: The video cannot be written.
    """
    with _writable_folder(path) as folder:
        temporary = folder / "overlay.mp4"  # The suffix selects the container.
        encoder: _Encoder | None = None

        def add(image: np.ndarray) -> None:
            nonlocal encoder
            # Codecs support only even sizes and would crop odd ones.
            even = np.pad(image, [*((0, side % 2) for side in image.shape[:2]), (0, 0)], "edge")
            if encoder is None:
                encoder = _h264(temporary, rate, even) or _mpeg4(temporary, rate, even, path, warn)
            encoder.write(even)

        try:
            yield add
            if encoder is not None:
                encoder.close()
                # Encoders do not report a full disk, but a truncated file cannot be opened.
                if not _can_be_opened(temporary):
                    started = temporary.is_file()
                    fix = "free space" if started else "give a writable folder"
                    raise ResourceError(f"{path}: cannot be written: {fix}")
                temporary.replace(path)
        finally:
            if encoder is not None:
                encoder.close()


@contextmanager
def _writable_folder(path: Path) -> Iterator[Path]:
    """Yields a private folder next to `path` for the encoders, which would follow links."""
    try:
        with private_folder(path.parent) as folder:
            yield folder
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(
            f"{path}: cannot be written ({reason}): give a writable folder"
        ) from error


class _OpenCV:
    """Encodes frames with OpenCV."""

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
    """Encodes frames with the program ffmpeg through a pipe."""

    def __init__(
        self, program: str, encoder: str, path: Path, rate: float, frame: np.ndarray
    ) -> None:
        height, width = frame.shape[:2]
        frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        video = ["-an", "-c:v", encoder, "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
        # The prefix file: keeps ffmpeg from parsing a name such as a:b.mp4 as a protocol.
        command = [program, "-v", "quiet", "-y", *frames, "-r", f"{rate:g}", "-i", "-", *video]
        self._process = subprocess.Popen(
            [*command, f"file:{path}"], stdin=subprocess.PIPE, start_new_session=True
        )  # In its own session, so that Ctrl-C does not kill it.

    def write(self, frame: np.ndarray) -> None:
        if self._process.stdin is not None and self._process.poll() is None:
            try:
                self._process.stdin.write(frame.tobytes())
            except BrokenPipeError:  # ffmpeg exited; the incomplete file is detected later.
                self._process.wait()

    def close(self) -> None:
        self._process.communicate()


def _h264(path: Path, rate: float, frame: np.ndarray) -> _Encoder | None:
    """Returns an H.264 encoder if one is available."""
    own = _OpenCV(path, "avc1", rate, frame)
    if own.opened:
        return own
    own.close()
    program = shutil.which("ffmpeg")
    encoder = _encoder_of(program) if program else None
    return _FFmpeg(program, encoder, path, rate, frame) if program and encoder else None


def _encoder_of(program: str) -> str | None:
    """Returns the name of an H.264 encoder of the given ffmpeg, if it has one."""
    command = [program, "-v", "quiet", "-encoders"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return next((name for name in _ENCODERS if re.search(rf"\b{name}\b", output)), None)


def _mpeg4(
    temporary: Path, rate: float, frame: np.ndarray, path: Path, warn: Callable[[str], None]
) -> _Encoder:
    warn(f"{path.name}: {NO_H264}")
    return _OpenCV(temporary, "mp4v", rate, frame)


def _can_be_opened(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path))
    try:
        return bool(capture.isOpened())
    finally:
        capture.release()
