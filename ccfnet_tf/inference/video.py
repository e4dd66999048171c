"""Predicts videos and streams frame by frame; memory does not grow with their length.

The results of `clip.mp4` are a folder `clip.frames/` with the files of every frame
(`frame_00000.label.png`, ...), and `clip.overlay.mp4`, which has the source's frame rate and no
audio. A stream is a camera (`camera:0`) or an address that OpenCV opens (`rtsp://...`).
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.inference.segmenter_protocol import Segmenter
from ccfnet_tf.inference.writers import (
    ENDINGS,
    KINDS,
    Kind,
    output_paths,
    overlay_image,
    with_legend,
    write_prediction,
)
from ccfnet_tf.io.read_images import MAX_PIXELS
from ccfnet_tf.io.video_writer import quiet_video, video_writer
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.palettes import PaletteName, with_palette

FRAMES = ".frames"
OVERLAY = ".overlay.mp4"
CAMERA = "camera:"

OPEN_SECONDS = 20.0
"""Timeout for opening a stream."""

READ_SECONDS = 10.0
"""Timeout for the next frame of a stream. FFmpeg waits up to three times as long for RTSP."""

_USUAL_RATE = 25.0
_SOUND = {  # marks of an audio track in the containers of these suffixes
    (".mp4", ".mov", ".m4v", ".3gp"): rb"hdlr.{8}soun",
    (".avi",): rb"strh.{4}auds",
    (".mkv", ".webm"): rb"\x86[\x80-\xff]A_[A-Z]",
    (".wmv",): rb"\x40\x9e\x69\xf8\x4d\x5b\xcf\x11\xa8\xfd\x00\x80\x5f\x5c\x44\x2b",
    (".mpg", ".mpeg"): rb"\x00\x00\x01[\xc0-\xdf\xbd]",
    (".flv",): rb"FLV\x01[\x04\x05]",
    (".ogv",): rb"\x01vorbis|OpusHead|Speex   |\x7fFLAC",
    (".mts", ".m2ts"): rb"",  # camcorders record audio: assumed
}


@dataclass(frozen=True)
class VideoWanted:
    """Which files are written for a video.

    Attributes:
        kinds: Files of each frame.
        film: Whether the overlays are also written as a video.
        legends: Whether overlays and coloured maps have a legend.
        palette: Colours of the classes.
    """

    kinds: Sequence[Kind] = KINDS
    film: bool = True
    legends: bool = True
    palette: PaletteName = "dataset"


def video_outputs(folder: Path, name: str) -> tuple[Path, Path]:
    """Returns the folder of frames and the overlay's video of the video `name`."""
    return folder / f"{name}{FRAMES}", folder / f"{name}{OVERLAY}"


def frame_name(number: int) -> str:
    """Returns the name of a frame's files in the folder of frames; the first is 0."""
    return f"frame_{number:05d}"


class Video:
    """A video or a stream opened by OpenCV.

    Attributes:
        source: A path, or the string that identifies a stream.
        promised: Number of frames according to the header, or None.
        rate: Frames per second.
    """

    def __init__(self, source: Path | str, capture: Any) -> None:
        self.source = source
        self._capture = capture
        count, rate = (capture.get(each) for each in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        self.promised = int(count) if math.isfinite(count) and count > 0 else None
        self.rate = float(rate) if math.isfinite(rate) and 0 < rate <= 1000 else _USUAL_RATE

    @property
    def is_stream(self) -> bool:
        """Whether the source is a camera or an address."""
        return isinstance(self.source, str)

    def frames(self) -> Iterator[np.ndarray]:
        """Yields the remaining frames, uint8 [H, W, 3] RGB, upright, all of the same size.

        Raises:
            DataError: The size of a frame differs from that of the first.
        """
        first: tuple[int, ...] | None = None
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            first = first or frame.shape
            if frame.shape != first:
                raise DataError(
                    f"{self.source}: a frame changes its size from {first} to {frame.shape}"
                )
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _why_not_opened(source: Path | str) -> str:
    if isinstance(source, Path):
        return "not a video that OpenCV can open: damaged, or an unsupported format"
    if source.startswith(CAMERA):
        return (
            "OpenCV cannot open the camera: check that it exists and that no other program uses it"
        )
    return "OpenCV cannot open the stream: check the address, and that this machine can reach it"


@contextmanager
def open_video(source: Path | str) -> Iterator[Video]:
    """Opens a video file, or a stream if `source` is a string.

    Raises:
        DataError: OpenCV cannot open the source, or its frames exceed `MAX_PIXELS`.
    """
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{source}: no such file")
    quiet_video()
    camera = isinstance(source, str) and source.startswith(CAMERA)
    address: Any = int(str(source).removeprefix(CAMERA)) if camera else str(source)
    timeouts = [] if camera or isinstance(source, Path) else _timeouts()
    capture = cv2.VideoCapture(address, cv2.CAP_ANY if camera else _reader(), timeouts)
    try:
        if not capture.isOpened():
            raise DataError(f"{source}: {_why_not_opened(source)}")
        _refuse_huge(source, capture)
        yield Video(source, capture)
    finally:
        capture.release()


def _refuse_huge(source: Path | str, capture: Any) -> None:
    """Refuses frames that would need gigabytes, before the first is decoded."""
    sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    width, height = (capture.get(side) for side in sides)
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{source}: frames of {width:.0f}x{height:.0f} pixels: at most "
            f"{MAX_PIXELS // 1_000_000} million are supported; shrink the video"
        )


def _reader() -> int:
    """Returns the FFmpeg backend if OpenCV has it; other backends print messages of their own."""
    there = cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG)
    return cv2.CAP_FFMPEG if there else cv2.CAP_ANY


def _timeouts() -> list[int]:
    seconds = {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: OPEN_SECONDS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: READ_SECONDS,
    }
    return [number for key, each in seconds.items() for number in (key, round(1000 * each))]


def has_sound(path: Path) -> bool:
    """Returns whether a video file has audio, judging by the marks of its container."""
    marks = [mark for suffixes, mark in _SOUND.items() if path.suffix.lower() in suffixes]
    if not marks or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return re.search(marks[0], content, re.DOTALL) is not None


def predict_video(
    network: Segmenter,
    video: Video,
    out: Path,
    name: str,
    *,
    wanted: VideoWanted | None = None,
    advance: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Predicts every frame and writes frames and overlay.

    Args:
        network: Any network.
        video: An open video. Ctrl-C ends a stream like its end, and is raised again afterwards.
        out: Folder of the results.
        name: Relative path of the results, without suffix.
        wanted: Which files are written.
        advance: Called after each frame.
        say: Called with a message about the encoding of the overlay.

    Returns:
        The number of frames written.

    Raises:
        DataError: The video cannot be read or is shorter than its header states, or a live stream
            ended. The frames before that are written; the message contains their number.
        ResourceError: Memory or disk space is exhausted.
    """
    wanted = wanted or VideoWanted()
    taxonomy = with_palette(network.taxonomy, wanted.palette)
    frames, overlay = video_outputs(out, name)
    done, stopped = 0, None
    film = video_writer(overlay, video.rate, say) if wanted.film else nullcontext(_nothing)
    with film as add:
        try:
            for image in video.frames():
                prediction = network.predict(image)
                write_prediction(
                    prediction,
                    image,
                    frames,
                    frame_name(done),
                    taxonomy,
                    kinds=wanted.kinds,
                    legends=wanted.legends,
                )
                if wanted.film:
                    add(_film_frame(prediction.labels, image, taxonomy, wanted.legends))
                done += 1
                advance()
        except KeyboardInterrupt as error:
            if not video.is_stream:
                raise
            stopped = error
        if not done and not stopped:
            raise DataError(
                f"{video.source}: no frame can be read: damaged, or a codec that OpenCV lacks"
            )
    _remove_older_frames(frames, done)
    if stopped:
        raise stopped
    # Some headers round the number of frames: 1 % less is not damage.
    if video.promised is not None and done < video.promised - max(1, video.promised // 100):
        raise DataError(
            f"{video.source}: ends after {done} of {video.promised} frames: truncated or damaged; "
            f"those {done} were written"
        )
    if video.is_stream and video.promised is None:  # a lost server looks like an end
        raise DataError(
            f"{video.source}: the stream ended after {done} frames, or its server is gone or "
            f"silent; those {done} were written"
        )
    return done


def _nothing(_: np.ndarray) -> None:
    pass


def _film_frame(
    labels: np.ndarray, image: np.ndarray, taxonomy: Taxonomy, legends: bool
) -> np.ndarray:
    """Returns a frame of the overlay video, with a legend of all classes.

    All frames have the same size, so the legend does not depend on the frame. It is left out if it
    would be higher than half of the image.
    """
    drawn = overlay_image(labels, image, taxonomy)
    if not legends:
        return drawn
    ids = range(len(taxonomy.names))
    named = with_legend(drawn, ids, taxonomy)
    return named if len(named) <= 1.5 * len(drawn) else drawn


def _remove_older_frames(folder: Path, done: int) -> None:
    """Removes the remaining frames of an earlier, longer video of the same name."""
    number = done
    every = tuple(ENDINGS)
    while any(path.exists() for path in output_paths(folder, frame_name(number), every)):
        for path in output_paths(folder, frame_name(number), every):
            path.unlink(missing_ok=True)
        number += 1
