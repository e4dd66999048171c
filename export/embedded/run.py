#!/usr/bin/env python3
"""Runs an exported network on a camera, a video or images: on the GPU where it is right there.

    python run.py ccfnet.tflite INPUT [--out FILE_OR_FOLDER] [--cpu] [--threads N] [--show]

Needs Python 3.9 or later with ai-edge-litert, NumPy and OpenCV, and nothing else of this project:
copy this file and the artifact's folder to the board.

The GPU is used when LiteRT puts the whole network there, its log names no error of validation, and
the first image's answer equals the CPU's; otherwise the CPU, and the reason is said in one line.

An image of another size than the network's: a larger one is made smaller with its proportions
kept, what is missing at the bottom and right is mirrored, and the answer is cropped there and
enlarged by the nearest pixel.
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

# OpenCV's own limit lets an image take gigabytes; it is read as OpenCV begins.
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
"""Least share of equal labels and largest difference of a probability, GPU beside CPU."""

SHOWN_CLASSES = 6
WINDOW = "ccfnet"

Answer = dict[str, Any]


class RunError(Exception):
    """A wrong input, in one line: what was found, and the fix."""


class Answered(NamedTuple):
    """What the network says about one image.

    Attributes:
        labels: Class ids [H, W] of the image's size.
        difficulty: float32 [H, W], P(the quick first answer is wrong), 0..1.
    """

    labels: Any
    difficulty: Any


class Frame(NamedTuple):
    """An image BGR uint8 [H, W, 3], its name, and frames a second where it is of a video."""

    name: str
    image: Any
    rate: float | None


class Classes(NamedTuple):
    """Names, and colours BGR uint8 [C, 3]."""

    names: list[str]
    colours: Any


class Cpu:
    """The file on the CPU (XNNPACK).

    Attributes:
        size: Height and width that the file takes.
        place: Where it runs, in words.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        # Kept: the signature's runner does not hold it.
        self._interpreter = Interpreter(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._runner = self._interpreter.get_signature_runner(SIGNATURE)
        batch, height, width, channels = self._runner.get_input_details()["images"]["shape"]
        if (batch, channels) != (1, 3):
            raise ValueError(f"takes {batch} images of {channels} channels, not 1 of 3")
        self.size = (int(height), int(width))
        self.place = f"CPU, {threads} thread" + ("s" if threads > 1 else "")

    def __call__(self, images: Any) -> Answer:
        """Answers float32 [1, H, W, 3], RGB 0..255."""
        return dict(self._runner(images=images))


class Gpu:
    """The file on the GPU, wholly; see `Cpu`.

    Raises:
        RunError: There is no GPU, or not everything runs there.
    """

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.compiled_model import CompiledModel
            from ai_edge_litert.hardware_accelerator import HardwareAccelerator
            from ai_edge_litert.options import GpuOptions, Options
        except ImportError as error:
            raise RunError(f"this ai-edge-litert has no GPU path ({error})") from error
        # The GPU alone: with the CPU beside it LiteRT would share the work in silence.
        options = Options(
            hardware_accelerators=HardwareAccelerator.GPU,
            gpu_options=GpuOptions(enforce_f32=True),
        )
        self._model = CompiledModel.from_file(str(path), options=options)
        if not self._model.is_fully_accelerated():
            raise RunError("LiteRT does not run the whole network there")
        self._outputs = self._model.get_output_tensor_details(SIGNATURE)
        self._given = {"images": self._model.create_input_buffer_by_name(SIGNATURE, "images")}
        self._taken = {
            name: self._model.create_output_buffer_by_name(SIGNATURE, name)
            for name in self._outputs
        }
        self.place = "GPU"

    def __call__(self, images: Any) -> Answer:
        """Answers float32 [1, H, W, 3], RGB 0..255."""
        self._given["images"].write(images)
        self._model.run_by_name(SIGNATURE, self._given, self._taken)
        answer = {}
        for name, each in self._outputs.items():
            values = self._taken[name].read(int(np.prod(each["shape"])), np.dtype(each["dtype"]))
            answer[name] = values.reshape(each["shape"])
        return answer


class Network:
    """Answers images of any size, on the better place.

    Args:
        path: The `.tflite` file.
        content: What is in it.
        cpu: Never try the GPU.
        threads: Of the CPU.

    Raises:
        RunError: The file cannot be used.
    """

    def __init__(self, path: Path, content: bytes, *, cpu: bool, threads: int) -> None:
        self._path, self._cpu_only = path, cpu
        try:
            with _quiet():
                self._cpu = Cpu(content, threads)
        except (KeyError, RuntimeError, ValueError) as error:
            raise RunError(f"{path}: not a file of ccfnet-tf export ({_first(error)})") from error
        self._chosen: Any = None

    @property
    def place(self) -> str:
        """GPU or CPU, once an image was answered."""
        return str(self._chosen.place)

    def choose(self, frame: Any) -> None:
        """Tries the GPU with the first image, and says what it comes to."""
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
        named = f"GPU, {adapter.group(1)}" if adapter else "GPU"
        say(f"running on the {named}: differs from the CPU by at most {difference:.1g}")
        self._chosen = gpu

    def answer(self, frame: Any) -> Answered:
        """Answers an image BGR uint8 [H, W, 3]."""
        images, used = _fitted(frame, self._cpu.size)
        found = {name: values[0] for name, values in self._chosen(images).items()}
        labels, difficulty = _maps(found)
        height, width = frame.shape[:2]
        labels, difficulty = (x[: used[0], : used[1]] for x in (labels, difficulty))
        if used != (height, width):
            labels = cv2.resize(
                labels.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST
            )
            difficulty = cv2.resize(difficulty, (width, height))
        return Answered(labels, difficulty)

    def close(self) -> None:
        """Releases the GPU, without what LiteRT says about it."""
        with _quiet():
            self._chosen = None


def read_network(path: Path) -> bytes:
    """Returns what is in the file.

    Raises:
        RunError: It cannot be read, or is of another kind.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}: give the .tflite file") from error
    if content[4:8] != b"TFL3":  # the format's own mark; LiteRT may crash on anything else
        raise RunError(f"{path}: no LiteRT file: its header is not TFL3")
    return content


def read_classes(path: Path, content: bytes) -> Classes:
    """Reads names and colours from `export.json` beside the file, and compares its checksum.

    Raises:
        RunError: It is missing, not understood, or of another file.
    """
    beside = path.with_name("export.json")
    again = "copy the artifact's folder again, whole"
    try:
        tree = json.loads(beside.read_text(encoding="utf-8"))
        names, palette = [str(each) for each in tree["classes"]], tree["palette"]
        expected = tree.get("files", {}).get(path.name)
        colours = np.array(palette, np.uint8).reshape(len(names), 3)[:, ::-1]
    except OSError as error:
        raise RunError(f"{beside}: {error.strerror}: {again}") from error
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise RunError(f"{beside}: not understood ({error}): {again}") from error
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise RunError(f"{path}: not the file that was exported (another SHA-256): {again}")
    return Classes(names, np.ascontiguousarray(colours))


def _fitted(frame: Any, size: tuple[int, int]) -> tuple[Any, tuple[int, int]]:
    """Returns float32 [1, H, W, 3] RGB of the network's size, and which part is the image."""
    height, width = frame.shape[:2]
    scale = min(1.0, size[0] / height, size[1] / width)
    if scale < 1.0:
        height, width = (max(1, int(side * scale + 1e-9)) for side in (height, width))
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    missing = ((0, size[0] - height), (0, size[1] - width), (0, 0))
    image = np.pad(frame[..., ::-1], missing, mode="symmetric")
    return np.ascontiguousarray(image[np.newaxis], np.float32), (height, width)


def _maps(found: Answer) -> tuple[Any, Any]:
    """Returns class ids and float32 P(wrong) from either kind of file."""
    if "labels" in found:
        return found["labels"], found["difficulty"].astype(np.float32) / LEVELS
    return found["probabilities"].argmax(-1), found["difficulty"]


def _difference(gpu: Answer, cpu: Answer) -> float:
    """Returns the largest difference of a probability.

    Raises:
        RunError: It is too large, or too many labels differ.
    """
    one, other = _maps(gpu), _maps(cpu)
    pairs = [(one[1], other[1])]
    if "probabilities" in cpu:
        pairs.append((gpu["probabilities"], cpu["probabilities"]))
    # NumPy's: Python's max would lose a NaN.
    gap = float(np.max([np.abs(a - b).max() for a, b in pairs]))
    equal = float((one[0] == other[0]).mean())
    limit = LARGEST_GAP + (1.0 / LEVELS if "labels" in cpu else 0.0)  # bytes were rounded
    if equal < EQUAL_LABELS or not gap <= limit:  # NaN is too large
        raise RunError(
            f"its answer differs from the CPU's by up to {gap:.2g}, {equal:.1%} equal labels"
        )
    return gap


def _refuse_bad_log(log: str) -> None:
    """LiteRT's WebGPU goes on after an error of validation, with a wrong answer."""
    if "Validation error" in log:
        raise RunError("LiteRT's log has a validation error")


def _reason(error: Exception, log: str) -> str:
    """Returns in a few words why the GPU was not used."""
    if isinstance(error, RunError):
        return str(error)
    if "No adapters found" in log:
        return "no driver of a GPU was found"
    if "code=7" in str(error):
        return "no answer within LiteRT's time limit"
    said = re.findall(r"^E(?:RROR|\d{4}).*?\] (.*)$", log, re.MULTILINE)
    return (said[0] if said else _first(error)).strip()


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Gives a function that returns what was written to stderr meanwhile; nobody else sees it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def log() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def read_frames(source: int | Path, bad: list[RunError]) -> Iterator[Frame]:
    """Yields the images of a camera, a video, a folder or a file.

    Args:
        source: Number of a camera, or a path.
        bad: Takes what is wrong with images of a folder, which goes on with the next.

    Raises:
        RunError: There is none, or the only one cannot be read.
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
    """Returns an image BGR uint8 [H, W, 3], turned upright by its EXIF."""
    try:
        _refuse_long_chunks(path)
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error
    except cv2.error as error:  # of a header that says more pixels than it reads
        raise RunError(f"{path}: not an image that OpenCV can read: too large?") from error
    if image is None:
        raise RunError(f"{path}: not an image that OpenCV can read: damaged?")
    return image


def _refuse_long_chunks(path: Path) -> None:
    """Refuses a PNG that promises more than it has, for which OpenCV would take gigabytes.

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
    """Returns the images of a folder, or the one.

    Raises:
        RunError: None is there, or two would have one result.
    """
    found = sorted(source.iterdir()) if source.is_dir() else [source]
    found = [path for path in found if is_picture(path)]
    if not found:
        raise RunError(f"{source}: no image in it: expected {' '.join(PICTURES)}")
    seen: dict[str, Path] = {}
    for path in found:
        if path.stem in seen:
            raise RunError(f"{path}: its result would be that of {seen[path.stem].name}: rename it")
        seen[path.stem] = path
    return found


def is_picture(path: Path) -> bool:
    """Whether its name says so."""
    return path.suffix.lower() in PICTURES


def _moving(source: int | Path) -> Iterator[Frame]:
    what = f"camera {source}" if isinstance(source, int) else str(source)
    # FFmpeg and V4L write many lines on what they cannot open; ours is the one that counts.
    with _quiet():
        capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    try:
        if not capture.isOpened():
            raise RunError(f"{what}: OpenCV cannot open it: not there, in use, or no video")
        sides = [capture.get(x) for x in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        if sides[0] * sides[1] > MAX_PIXELS:
            raise RunError(f"{what}: frames of more than {MAX_PIXELS} pixels: shrink the video")
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate <= 1000 else 25.0
        name = f"camera_{source}" if isinstance(source, int) else source.stem
        number = 0
        while True:
            there, image = capture.read()
            if not there:
                break
            yield Frame(name, image, rate)
            number += 1
        if not number:
            raise RunError(f"{what}: no frame can be read: damaged, or a codec that OpenCV lacks")
    finally:
        capture.release()


class Rate:
    """Frames a second over the last 30, reading and drawing included."""

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
        answered: For it.
        classes: Names and colours.
        text: The line at the top.
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
    """Draws the difficulty at the bottom right, a quarter as wide: black is easy, yellow hard."""
    height, width = (max(1, side // 4) for side in shown.shape[:2])
    grey = np.rint(np.clip(difficulty, 0.0, 1.0) * LEVELS).astype(np.uint8)
    grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    shown[-height:, -width:] = cv2.applyColorMap(grey, cv2.COLORMAP_MAGMA)
    cv2.rectangle(
        shown, (shown.shape[1] - width, shown.shape[0] - height), shown.shape[1::-1], (255,) * 3
    )


def _write(shown: Any, text: str, at: tuple[int, int], size: float) -> None:
    # A shadow, readable on any image. No thicker outline: OpenCV 5 would also make it wider.
    for offset, colour in ((1, (0, 0, 0)), (0, (255, 255, 255))):
        place = (at[0] + offset, at[1] + offset)
        cv2.putText(shown, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


class Output:
    """Where drawn images go: a file or a folder of images, or a video.

    Raises:
        RunError: It cannot be written.
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
            raise RunError(f"--out {out}: it is the input itself: give another name")

    def add(self, frame: Frame, shown: Any) -> None:
        """Writes one image BGR uint8 [H, W, 3], or adds it to the video."""
        if self._out is None:
            return
        kind = ".png" if frame.rate is None else ".mp4"
        path = self._out if self._is_file else self._out / f"{frame.name}.overlay{kind}"
        try:  # here, so that nothing is made for an input that cannot be read
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--out {self._out}: {error.strerror}: give another folder") from error
        if frame.rate is None:
            self._picture(path, shown)
            return
        # The codec takes even sides only.
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
        """Ends the video, which cannot be opened before."""
        if self._video is not None:
            self._video.release()


def run(options: argparse.Namespace) -> int:
    """Answers every image; returns how many of a folder could not be read.

    Raises:
        RunError: An input is wrong.
    """
    source = _source(options.input)
    content = read_network(options.model)
    classes = read_classes(options.model, content)
    network = Network(options.model, content, cpu=options.cpu, threads=options.threads)
    output = Output(options.out, source)
    if options.show and not _has_screen():
        raise RunError("--show: no screen here (DISPLAY is not set): use --out")
    if options.out is None and not options.show:
        say("only the speed is measured: --out keeps the drawn images, --show shows them")
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
            say(f"{done} images, {done / (time.monotonic() - began):.2f} a second")
    if bad:
        say(f"{len(bad)} of {done + len(bad)} images could not be read")
    return len(bad)


def _source(text: str) -> int | Path:
    path = Path(text)
    if path.exists():
        return path
    if text.isdecimal():
        return int(text)
    shown = re.sub(r"(:/{1,2}).*@", r"\1***@", text)  # an address may hold a password
    shown = re.sub(r"(://[^?]*\?).*", r"\1***", shown)
    raise RunError(f"{shown}: no such file or folder, and no number of a camera")


def _has_screen() -> bool:
    # Qt, which OpenCV draws windows with, ends the process where there is none.
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform != "linux" or any(os.environ.get(name) for name in names)


def _shown_till_q(shown: Any, *, wait: bool) -> bool:
    """Shows an image; a still one till a key is pressed. Returns whether the key was q."""
    try:
        cv2.imshow(WINDOW, shown)
        return bool(cv2.waitKey(0 if wait else 1) & 0xFF == ord("q"))
    except cv2.error as error:
        raise RunError("--show: this OpenCV has no windows: use --out") from error


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"run.py: {text}\n")
    sys.stdout.flush()


def complain(error: RunError) -> None:
    """Prints what is wrong with an input."""
    sys.stderr.write(f"run.py: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Runs an exported network on a camera, a video or images.",
        epilog="With --show, q ends it; Ctrl-C ends it always, and a video that was begun is kept.",
    )
    add = parser.add_argument
    add("model", type=Path, help="the .tflite file, with export.json beside it")
    add("input", help="number of a camera, a video, an image, or a folder of images")
    add("--out", type=Path, help="file or folder for the drawn images or video")
    add("--cpu", action="store_true", help="do not try the GPU")
    add("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU; default all")
    add("--show", action="store_true", help="a window with the images")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 if images of a folder could not be read, 2 for another error of input.

    130 after Ctrl-C.
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
