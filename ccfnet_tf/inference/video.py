"""Videos, a frame at a time: memory does not grow with their length.

Results of `clip.mp4`: a folder `clip.frames/` with `frame_00000.{label,color,overlay,
difficulty}.png` and so on, and `clip.overlay.mp4` (MPEG-4 part 2, the source's frame rate).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccfnet_tf.errors import DataError, ResourceError
from ccfnet_tf.inference.atomic import private_folder
from ccfnet_tf.inference.prediction import Network
from ccfnet_tf.inference.writers import output_paths, overlay_picture, write_prediction

FRAMES = ".frames"
OVERLAY = ".overlay.mp4"

_USUAL_RATE = 25.0


def video_outputs(folder: Path, name: str) -> tuple[Path, Path]:
    """Returns the folder of frames and the overlay's video of the video `name`."""
    return folder / f"{name}{FRAMES}", folder / f"{name}{OVERLAY}"


def promised_frames(path: Path) -> int | None:
    """Returns how many frames the header promises; None where it does not say.

    Raises:
        DataError: It is no video that OpenCV can open.
    """
    with _opened(path) as capture:
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if math.isfinite(count) and count > 0 else None


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Yields the frames, uint8 [H, W, 3] RGB, upright, all of one size.

    Raises:
        DataError: It cannot be opened, or a frame has another size than the first.
    """
    with _opened(path) as capture:
        first: tuple[int, ...] | None = None
        while True:
            there, frame = capture.read()
            if not there:
                return
            first = first or frame.shape
            if frame.shape != first:
                raise DataError(f"{path}: a frame changes its size from {first} to {frame.shape}")
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def predict_video(
    predictor: Network,
    path: Path,
    out: Path,
    name: str,
    *,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Predicts every frame and writes frames and overlay.

    Args:
        predictor: The network.
        path: The video.
        out: Where results go.
        name: Relative path of its results, without suffix.
        advance: Called after each frame.

    Returns:
        How many frames were written.

    Raises:
        DataError: It cannot be read, or ends before the header says; frames read till then are
            written, and the text says how many.
        ResourceError: Memory or disk runs out.
    """
    promised = promised_frames(path)
    frames, overlay = video_outputs(out, name)
    done = 0
    with _overlay_writer(overlay, _frame_rate(path)) as add:
        for image in read_frames(path):
            prediction = predictor.predict(image)
            write_prediction(prediction, image, frames, f"frame_{done:05d}", predictor.taxonomy)
            add(overlay_picture(prediction.labels, image, predictor.taxonomy))
            done += 1
            advance()
        if not done:
            raise DataError(f"{path}: no frame can be read: damaged, or a codec OpenCV lacks")
    _remove_older_frames(frames, done)
    # Some headers round the count; a hundredth less is no damage.
    if promised is not None and done < promised - max(1, promised // 100):
        raise DataError(
            f"{path}: ends after {done} of {promised} frames: truncated or damaged; those {done} "
            "were written"
        )
    return done


def _remove_older_frames(folder: Path, done: int) -> None:
    """Removes frames that an earlier, longer video left under the same name."""
    number = done
    while any(path.exists() for path in output_paths(folder, f"frame_{number:05d}")):
        for path in output_paths(folder, f"frame_{number:05d}"):
            path.unlink(missing_ok=True)
        number += 1


def _frame_rate(path: Path) -> float:
    with _opened(path) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS)
    return float(rate) if math.isfinite(rate) and 0 < rate <= 1000 else _USUAL_RATE


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    # FFmpeg writes hundreds of lines on a damaged file; ours is the one that counts.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: not a video that OpenCV can open: damaged or another format")
        yield capture
    finally:
        capture.release()


@contextmanager
def _overlay_writer(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that adds a frame, uint8 [H, W, 3] RGB; the file appears when all is done.

    Raises:
        ResourceError: The video cannot be written.
    """
    with _writable_folder(path) as folder:
        temporary = folder / "overlay.mp4"  # OpenCV chooses the container by suffix
        writer: Any = None

        def add(picture: np.ndarray) -> None:
            nonlocal writer
            # The codec takes even sides only and would cut an odd one.
            even = np.pad(picture, [*((0, side % 2) for side in picture.shape[:2]), (0, 0)], "edge")
            if writer is None:
                size = (even.shape[1], even.shape[0])
                codec = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(temporary), codec, rate, size)
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

        try:
            yield add
            if writer is not None:
                writer.release()
                # OpenCV tells nobody when a disk is full; a file without its end cannot be opened.
                if not _can_be_opened(temporary):
                    began = temporary.is_file()
                    cure = "free space" if began else "give a folder that can be written"
                    raise ResourceError(f"{path}: cannot be written: {cure}")
                temporary.replace(path)
        finally:
            if writer is not None:
                writer.release()


@contextmanager
def _writable_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, which OpenCV may write into: it follows any link."""
    try:
        with private_folder(path.parent) as folder:
            yield folder
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(
            f"{path}: cannot be written ({reason}): give a folder that can be written"
        ) from error


def _can_be_opened(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path))
    try:
        return bool(capture.isOpened())
    finally:
        capture.release()
