#!/usr/bin/env python3
"""Runs an exported network on a camera, a video or images, on the GPU if its outputs are correct.

    python run.py ccfnet.tflite INPUT [--out FILE_OR_FOLDER] [--cpu] [--threads N] [--show]

Needs only Python 3.9 or later with ai-edge-litert, NumPy and OpenCV: copy this file and the
artifact's folder to the board.

The GPU is used if LiteRT runs the complete network on it, its log contains no validation error, and
the outputs for the first image equal the CPU's. Otherwise the CPU is used, and a line states why.

Images are resized to the network's size: larger ones are shrunk with their aspect ratio kept and
padded at the bottom and right by mirroring. The outputs are cropped and enlarged by the nearest
pixel.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# OpenCV's default limit allows images of gigabytes; the variable is read when OpenCV is imported.
MAX_PIXELS = 80_000_000
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

try:
    import cv2
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
except ImportError as missing:
    sys.stderr.write(f"run.py: {missing}: pip install ai-edge-litert numpy opencv-python\n")
    sys.exit(2)

SIGNATURE = "serving_default"
PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".mkv", ".mov", ".mp4")
PNG = b"\x89PNG\r\n\x1a\n"
LEVELS = 255.0

EQUAL_LABELS = 0.99
LARGEST_GAP = 1e-2
"""Smallest share of equal pixels and largest difference of a probability between GPU and CPU."""

MAPS = ("attention", "difficulty", "risk")

SHOWN_CLASSES = 6
WINDOW = "ccfnet"

Answer = dict[str, Any]


class RunError(Exception):
    """A wrong input; the message is one line with the value found and the fix."""


class Answered(NamedTuple):
    """Outputs for one image, at the image's size.

    Attributes:
        labels: Class ids [H, W].
        attention: float32 [H, W], P(the coarse label is wrong) as the attention head sees it.
        difficulty: float32 [H, W], P(the coarse label is wrong): 1 - its probability.
        risk: float32 [H, W], P(the label is wrong): 1 - its probability.
    """

    labels: Any
    attention: Any
    difficulty: Any
    risk: Any


class Frame(NamedTuple):
    """An image BGR uint8 [H, W, 3], its name, and for videos the frames per second."""

    name: str
    image: Any
    rate: float | None


class Classes(NamedTuple):
    """Class names, and colours BGR uint8 [C, 3]."""

    names: list[str]
    colours: Any


class Cpu:
    """Runs the file on the CPU (XNNPACK).

    Attributes:
        size: Height and width of the file's input.
        place: Description of the device.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        # Stored because the runner does not keep the interpreter alive.
        self._interpreter = Interpreter(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._runner = self._interpreter.get_signature_runner(SIGNATURE)
        batch, height, width, channels = self._runner.get_input_details()["images"]["shape"]
        if (batch, channels) != (1, 3):
            raise ValueError(f"input has {batch} images of {channels} channels: expected 1 of 3")
        self.size = (int(height), int(width))
        self.place = f"CPU, {threads} thread" + ("s" if threads > 1 else "")

    def __call__(self, images: Any) -> Answer:
        """Returns the outputs for float32 [1, H, W, 3], RGB 0..255."""
        return dict(self._runner(images=images))


class Gpu:
    """Runs the complete file on the GPU; see `Cpu`.

    Raises:
        RunError: There is no GPU, or it cannot run the complete file.
    """

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.compiled_model import CompiledModel
            from ai_edge_litert.hardware_accelerator import HardwareAccelerator
            from ai_edge_litert.options import GpuOptions, Options
        except ImportError as error:
            raise RunError(f"this ai-edge-litert does not support GPUs ({error})") from error
        # Only the GPU: with both, LiteRT would silently divide the work between them.
        options = Options(
            hardware_accelerators=HardwareAccelerator.GPU,
            gpu_options=GpuOptions(enforce_f32=True),
        )
        self._model = CompiledModel.from_file(str(path), options=options)
        if not self._model.is_fully_accelerated():
            raise RunError("LiteRT does not run the complete network on it")
        self._outputs = self._model.get_output_tensor_details(SIGNATURE)
        self._input_buffers = {
            "images": self._model.create_input_buffer_by_name(SIGNATURE, "images")
        }
        self._output_buffers = {
            name: self._model.create_output_buffer_by_name(SIGNATURE, name)
            for name in self._outputs
        }
        self.place = "GPU"

    def __call__(self, images: Any) -> Answer:
        """Returns the outputs for float32 [1, H, W, 3], RGB 0..255."""
        self._input_buffers["images"].write(images)
        self._model.run_by_name(SIGNATURE, self._input_buffers, self._output_buffers)
        answer = {}
        for name, each in self._outputs.items():
            values = self._output_buffers[name].read(
                int(np.prod(each["shape"])), np.dtype(each["dtype"])
            )
            answer[name] = values.reshape(each["shape"])
        return answer


class Network:
    """Segments images of any size, on the GPU or the CPU.

    Args:
        path: The `.tflite` file.
        content: The file's content.
        cpu: Do not try the GPU.
        threads: Number of CPU threads.

    Raises:
        RunError: The file cannot be used.
    """

    def __init__(self, path: Path, content: bytes, *, cpu: bool, threads: int) -> None:
        self._path, self._cpu_only = path, cpu
        try:
            with _quiet():
                self._cpu = Cpu(content, threads)
        except (KeyError, RuntimeError, ValueError) as error:
            raise RunError(
                f"{path}: not a file that ccfnet-tf export wrote ({_first(error)})"
            ) from error
        self._chosen: Any = None

    @property
    def place(self) -> str:
        """Description of the device; available after `choose`."""
        return str(self._chosen.place)

    def choose(self, frame: Any) -> None:
        """Tries the GPU with the first image, selects a device and prints the choice."""
        self._chosen = self._cpu
        if self._cpu_only:
            say(f"running on the {self._cpu.place}")
            return
        images = _fitted(frame, self._cpu.size)[0]
        with _quiet() as log:
            try:
                gpu = Gpu(self._path)
                difference = _difference(gpu(images), self._cpu(images))
                _refuse_bad_log(log())
            except (RunError, RuntimeError, ValueError) as error:
                say(f"GPU not used: {_reason(error, log())}; running on the {self._cpu.place}")
                return
            adapter = re.search(r"Selected adapter: (.*?)(?:, arch=|$)", log(), re.MULTILINE)
        device = f"GPU, {adapter.group(1)}" if adapter else "GPU"
        say(f"running on the {device}: differs from the CPU by at most {difference:.1g}")
        self._chosen = gpu

    def answer(self, frame: Any) -> Answered:
        """Segments an image BGR uint8 [H, W, 3]."""
        images, used = _fitted(frame, self._cpu.size)
        answered = _answered(self._chosen(images))
        labels, *maps = (values[0, : used[0], : used[1]] for values in answered)
        height, width = frame.shape[:2]
        if used != (height, width):
            labels = cv2.resize(
                labels.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST
            )
            maps = [cv2.resize(each, (width, height)) for each in maps]
        return Answered(labels, *maps)

    def close(self) -> None:
        """Releases the GPU; LiteRT's output is hidden."""
        with _quiet():
            self._chosen = None


def read_network(path: Path) -> bytes:
    """Reads the `.tflite` file.

    Raises:
        RunError: The file cannot be read, or is not a LiteRT file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}: give the .tflite file") from error
    if content[4:8] != b"TFL3":  # the format's magic number; LiteRT may crash on other files
        raise RunError(f"{path}: not a LiteRT file: its identifier is not TFL3")
    return content


def read_classes(path: Path, content: bytes) -> Classes:
    """Reads class names and colours from `export.json`, and verifies the file's checksum.

    Raises:
        RunError: `export.json` is missing, invalid or too old, or the file's checksum differs.
    """
    manifest = path.with_name("export.json")
    again = "copy the artifact's complete folder again"
    try:
        tree = json.loads(manifest.read_text(encoding="utf-8"))
        names, palette = [str(each) for each in tree["classes"]], tree["palette"]
        expected = tree.get("files", {}).get(path.name)
        is_old = "calibration" not in tree
        colours = np.array(palette, np.uint8).reshape(len(names), 3)[:, ::-1]
    except OSError as error:
        raise RunError(f"{manifest}: {error.strerror}: {again}") from error
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise RunError(f"{manifest}: not valid ({error}): {again}") from error
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise RunError(f"{path}: changed since the export (its SHA-256 differs): {again}")
    if is_old:
        raise RunError(
            f"{manifest}: written by an older version, whose `difficulty` was today's `attention`: "
            "export the run again"
        )
    return Classes(names, np.ascontiguousarray(colours))


def _fitted(frame: Any, size: tuple[int, int]) -> tuple[Any, tuple[int, int]]:
    """Returns float32 [1, H, W, 3] RGB of the network's size, and the image's size in it."""
    height, width = frame.shape[:2]
    scale = min(1.0, size[0] / height, size[1] / width)
    if scale < 1.0:
        height, width = (max(1, int(side * scale + 1e-9)) for side in (height, width))
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    missing = ((0, size[0] - height), (0, size[1] - width), (0, 0))
    image = np.pad(frame[..., ::-1], missing, mode="symmetric")
    return np.ascontiguousarray(image[np.newaxis], np.float32), (height, width)


def _answered(found: Answer) -> Answered:
    """Returns the outputs of a batch [1, H, W]; maps stored in bytes become float32."""
    maps = (found[name] for name in MAPS)
    maps = (each / np.float32(LEVELS) if each.dtype == np.uint8 else each for each in maps)
    return Answered(found["labels"], *maps)


def _difference(gpu: Answer, cpu: Answer) -> float:
    """Returns the largest difference of a probability, of attention and of risk.

    Difficulty depends on the coarse label and jumps where two classes nearly tie. Like the labels,
    it must be equal for almost all pixels. One pixel in 1000 may differ more in risk and
    probabilities, which jump with a hard blend where attention is at the threshold.

    Raises:
        RunError: The difference is too large, or too many pixels differ.
    """
    one, other = _answered(gpu), _answered(cpu)
    gaps = [np.abs(one.risk - other.risk)]
    if "probabilities" in cpu:
        gaps.append(np.abs(gpu["probabilities"] - cpu["probabilities"]).max(-1))
    largest = [np.abs(one.attention - other.attention).max()]
    largest += [np.quantile(each, 0.999, method="higher") for each in gaps]
    gap = float(np.max(largest))  # NumPy's max, because Python's may drop a NaN
    limit = LARGEST_GAP + (0.0 if "probabilities" in cpu else 1.0 / LEVELS)  # rounding to bytes
    same_label = one.labels == other.labels
    same_difficulty = np.abs(one.difficulty - other.difficulty) <= limit
    equal = float(min(same_label.mean(), same_difficulty.mean()))
    if equal < EQUAL_LABELS or not gap <= limit:  # also true for NaN
        raise RunError(
            f"its outputs differ from the CPU's by up to {gap:.2g}, {equal:.1%} equal pixels"
        )
    return gap


def _refuse_bad_log(log: str) -> None:
    """Raises RunError for validation errors, after which LiteRT returns wrong outputs."""
    if "Validation error" in log:
        raise RunError("LiteRT's log has a validation error")


def _reason(error: Exception, log: str) -> str:
    """Returns a short reason for not using the GPU."""
    if isinstance(error, RunError):
        return str(error)
    if "No adapters found" in log:
        return "no GPU driver was found"
    if "code=7" in str(error):
        return "no result within LiteRT's time limit"
    messages = re.findall(r"^E(?:RROR|\d{4}).*?\] (.*)$", log, re.MULTILINE)
    return (messages[0] if messages else _first(error)).strip()


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Captures stderr; yields a function that returns the captured text."""
    sys.stderr.flush()
    saved_fd = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def log() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(saved_fd, 2)
            os.close(saved_fd)


def read_frames(source: int | Path, bad: list[RunError]) -> Iterator[Frame]:
    """Yields the images of a camera, a video, a folder or a file.

    Args:
        source: Number of a camera, or a path.
        bad: Collects the errors of unreadable images in a folder, which are skipped.

    Raises:
        RunError: There are no images, or the only one cannot be read.
    """
    if isinstance(source, int) or not (source.is_dir() or is_picture(source)):
        yield from _moving(source)
        return
    for path in pictures(source):
        try:
            yield Frame(path.stem, _read(path), None)
        except RunError as error:
            if path == source:
                raise
            bad.append(error)
            complain(error)


def _read(path: Path) -> Any:
    """Reads an image BGR uint8 [H, W, 3], rotated by its EXIF orientation."""
    try:
        _refuse_long_chunks(path)
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error
    except cv2.error as error:  # the header exceeds OpenCV's limit of pixels
        raise RunError(f"{path}: not an image that OpenCV can read: too large?") from error
    if image is None:
        raise RunError(f"{path}: not an image that OpenCV can read: damaged?")
    return image


def _refuse_long_chunks(path: Path) -> None:
    """Rejects a PNG with a chunk longer than the file, for which OpenCV could allocate gigabytes.

    Raises:
        RunError: A chunk is longer than the file.
    """
    content = path.read_bytes()
    at = len(PNG)
    while content.startswith(PNG) and at + 4 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if length > len(content):
            raise RunError(f"{path}: not an image that OpenCV can read: damaged?")
        at += length + 12


def pictures(source: Path) -> list[Path]:
    """Returns the images of a folder, or the single image.

    Raises:
        RunError: There are no images, or two have the same result file.
    """
    found = sorted(source.iterdir()) if source.is_dir() else [source]
    found = [path for path in found if is_picture(path)]
    if not found:
        raise RunError(f"{source}: contains no images: expected {' '.join(PICTURES)}")
    seen: dict[str, Path] = {}
    for path in found:
        if path.stem in seen:
            raise RunError(f"{path}: same result file as {seen[path.stem].name}: rename one")
        seen[path.stem] = path
    return found


def is_picture(path: Path) -> bool:
    """Returns whether a path has the suffix of an image."""
    return path.suffix.lower() in PICTURES


def _moving(source: int | Path) -> Iterator[Frame]:
    what = f"camera {source}" if isinstance(source, int) else str(source)
    # FFmpeg and V4L print many lines about inputs that they cannot open.
    with _quiet():
        capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    try:
        if not capture.isOpened():
            raise RunError(f"{what}: OpenCV cannot open it: missing, in use, or not a video")
        sides = [capture.get(x) for x in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        if sides[0] * sides[1] > MAX_PIXELS:
            raise RunError(f"{what}: frames of more than {MAX_PIXELS} pixels: shrink the video")
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate <= 1000 else 25.0
        name = f"camera_{source}" if isinstance(source, int) else source.stem
        number = 0
        while True:
            ok, image = capture.read()
            if not ok:
                break
            yield Frame(name, image, rate)
            number += 1
        if not number:
            raise RunError(f"{what}: no frame can be read: damaged, or an unsupported codec")
    finally:
        capture.release()


class Rate:
    """Frames per second over the last 30 frames, including reading and drawing."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque([time.monotonic()], maxlen=31)

    def next(self) -> float:
        """Counts a frame."""
        self._ends.append(time.monotonic())
        return (len(self._ends) - 1) / max(self._ends[-1] - self._ends[0], 1e-9)


def draw(frame: Any, answered: Answered, classes: Classes, text: str) -> Any:
    """Returns the image tinted by class, with lines between classes, legend, text and difficulty.

    Args:
        frame: BGR uint8 [H, W, 3].
        answered: Outputs for the image.
        classes: Names and colours.
        text: Text of the line at the top.
    """
    labels = answered.labels
    shown = cv2.addWeighted(frame, 0.6, classes.colours[labels], 0.4, 0)
    border = np.zeros(labels.shape, bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    shown[border] = shown[border] // 2 + 127
    _inset(shown, answered.difficulty)
    size = max(0.35, min(shown.shape[:2]) / 900)
    step = max(12, round(36 * size))
    _write(shown, text, (step // 3, step), size)
    counts = np.bincount(labels.ravel(), minlength=len(classes.names))
    for row, each in enumerate(np.argsort(-counts, kind="stable")[:SHOWN_CLASSES]):
        if counts[each]:
            colour = tuple(int(value) for value in classes.colours[each])
            top = (row + 2) * step
            cv2.rectangle(shown, (step // 3, top - step // 2), (step, top), colour, -1)
            _write(shown, classes.names[each], (step + step // 3, top), size)
    return shown


def _inset(shown: Any, difficulty: Any) -> None:
    """Draws the difficulty at the bottom right at a quarter size: black is easy, yellow hard."""
    height, width = (max(1, side // 4) for side in shown.shape[:2])
    grey = np.rint(np.clip(difficulty, 0.0, 1.0) * LEVELS).astype(np.uint8)
    grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    shown[-height:, -width:] = cv2.applyColorMap(grey, cv2.COLORMAP_MAGMA)
    cv2.rectangle(
        shown, (shown.shape[1] - width, shown.shape[0] - height), shown.shape[1::-1], (255,) * 3
    )


def _write(shown: Any, text: str, at: tuple[int, int], size: float) -> None:
    # A shadow keeps text readable on any image; OpenCV 5 would also widen a thicker outline.
    for offset, colour in ((1, (0, 0, 0)), (0, (255, 255, 255))):
        place = (at[0] + offset, at[1] + offset)
        cv2.putText(shown, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


class Output:
    """Writes drawn images to a file, a folder or a video.

    Raises:
        RunError: The output cannot be written.
    """

    def __init__(self, out: Path | None, source: int | Path) -> None:
        self._out = out
        self._video: Any = None
        if out is None:
            return
        suffix = out.suffix.lower()
        is_folder = isinstance(source, Path) and source.is_dir()
        wanted = PICTURES if isinstance(source, Path) and is_picture(source) else VIDEOS
        self._is_file = suffix in (*PICTURES, *VIDEOS) and not out.is_dir()
        if self._is_file and (is_folder or suffix not in wanted):
            kind = "a folder" if is_folder else f"a folder or {' '.join(wanted)}"
            raise RunError(f"--out {out}: expected {kind} for {source}")
        if isinstance(source, Path) and out.exists() and out.samefile(source) and self._is_file:
            raise RunError(f"--out {out}: is the input file: give another name")

    def add(self, frame: Frame, shown: Any) -> None:
        """Writes one image BGR uint8 [H, W, 3], or adds it to the video."""
        if self._out is None:
            return
        kind = ".png" if frame.rate is None else ".mp4"
        path = self._out if self._is_file else self._out / f"{frame.name}.overlay{kind}"
        try:  # not earlier, so that nothing is created for unreadable inputs
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--out {self._out}: {error.strerror}: give another folder") from error
        if frame.rate is None:
            self._picture(path, shown)
            return
        # The codec requires even sides.
        even = np.pad(shown, [*((0, side % 2) for side in shown.shape[:2]), (0, 0)], "edge")
        if self._video is None:
            code = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix.lower() == ".avi" else "mp4v"))
            self._video = cv2.VideoWriter(str(path), code, frame.rate, even.shape[1::-1])
            if not self._video.isOpened():
                raise RunError(f"--out {path}: cannot be written: give another folder")
        self._video.write(even)

    def _picture(self, path: Path, shown: Any) -> None:
        try:
            path.write_bytes(cv2.imencode(path.suffix, shown)[1].tobytes())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise RunError(f"--out {path}: {error.strerror}") from error

    def close(self) -> None:
        """Completes the video; it cannot be played before."""
        if self._video is not None:
            self._video.release()


def run(options: argparse.Namespace) -> int:
    """Segments every image; returns the number of unreadable images of a folder.

    Raises:
        RunError: An input is wrong.
    """
    source = _source(options.input)
    content = read_network(options.model)
    classes = read_classes(options.model, content)
    network = Network(options.model, content, cpu=options.cpu, threads=options.threads)
    output = Output(options.out, source)
    if options.show and not _has_screen():
        raise RunError("--show: no display (DISPLAY is not set): use --out")
    if options.out is None and not options.show:
        say("only measuring the speed: --out saves the drawn images, --show displays them")
    bad: list[RunError] = []
    rate, done = None, 0
    began = time.monotonic()
    try:
        for frame in read_frames(source, bad):
            if rate is None:
                network.choose(frame.image)
                rate, began = Rate(), time.monotonic()
            answered = network.answer(frame.image)
            text = f"{rate.next():.1f} frames/s, {network.place}"
            shown = draw(frame.image, answered, classes, text)
            output.add(frame, shown)
            done += 1
            if options.show and _shown_till_q(shown, wait=frame.rate is None):
                break
    finally:
        output.close()
        network.close()
        if done:
            say(f"{done} images, {done / (time.monotonic() - began):.2f} per second")
    if bad:
        say(f"{len(bad)} of {done + len(bad)} images could not be read")
    return len(bad)


def _source(text: str) -> int | Path:
    path = Path(text)
    if path.exists():
        return path
    if text.isdecimal():
        return int(text)
    shown = re.sub(r"(:/{1,2}).*@", r"\1***@", text)  # an address may contain a password
    shown = re.sub(r"(://[^?]*\?).*", r"\1***", shown)
    raise RunError(f"{shown}: no such file or folder, and not the number of a camera")


def _has_screen() -> bool:
    # Qt, which OpenCV uses for windows, ends the process if there is no display.
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform != "linux" or any(os.environ.get(name) for name in names)


def _shown_till_q(shown: Any, *, wait: bool) -> bool:
    """Displays an image; `wait` waits for a key. Returns whether the key was q."""
    try:
        cv2.imshow(WINDOW, shown)
        return bool(cv2.waitKey(0 if wait else 1) & 0xFF == ord("q"))
    except cv2.error as error:
        raise RunError("--show: this OpenCV build does not support windows: use --out") from error


def say(text: str) -> None:
    """Prints a line and flushes it."""
    sys.stdout.write(f"run.py: {text}\n")
    sys.stdout.flush()


def complain(error: RunError) -> None:
    """Prints an error to stderr."""
    sys.stderr.write(f"run.py: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Runs an exported network on a camera, a video or images.",
        epilog="With --show, q quits; Ctrl-C always quits. A partly written video is completed.",
    )
    add = parser.add_argument
    add("model", type=Path, help="the .tflite file; export.json must be in the same folder")
    add("input", help="number of a camera, a video, an image, or a folder of images")
    add("--out", type=Path, help="file or folder for the drawn images or video")
    add("--cpu", action="store_true", help="do not try the GPU")
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="CPU threads; default: one per core",
    )
    add("--show", action="store_true", help="display the images in a window")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0; 1 if images of a folder could not be read; 2 for other wrong inputs; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.threads < 1:
            raise RunError(f"--threads is {options.threads}: it must be 1 or more")
        return 1 if run(options) else 0
    except RunError as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
