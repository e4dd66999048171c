"""Predicts many images and videos and writes the results; bad files do not stop the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Semaphore, Thread

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from ccfnet_tf.errors import ConfigError, DataError, nearest, printable
from ccfnet_tf.inference.abstain import Abstaining
from ccfnet_tf.inference.downscale import Box, SmallerImages, shrunk
from ccfnet_tf.inference.find_inputs import Failure, Job, find_jobs
from ccfnet_tf.inference.labels_of_inputs import Known, LabelsOfInputs
from ccfnet_tf.inference.segmenter_protocol import ImageTooLargeError, Segmenter
from ccfnet_tf.inference.tiles import Tile
from ccfnet_tf.inference.video import (
    VideoWanted,
    frame_name,
    has_sound,
    open_video,
    predict_video,
    video_outputs,
)
from ccfnet_tf.inference.wrap_segmenter import UNWRAPPED, Wrapping, wrap
from ccfnet_tf.inference.writers import ENDINGS, KINDS, Kind, output_paths, write_prediction
from ccfnet_tf.io.atomic_file import refuse_links, remove_leftovers
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.io.new_folder import refuse_unwritable
from ccfnet_tf.io.read_images import count_frames, read_image
from ccfnet_tf.palettes import PaletteName, with_palette

FILM = "film"
"""Name in `--save` of the video of a video's overlays."""

FAR_LARGER = 2
"""An image more than this many times as large as the training images triggers a warning."""

_GRACE = 0.5  # seconds that running predictions are waited for after a stop


@dataclass(frozen=True)
class Wanted:
    """How images are predicted, and which files are written.

    Attributes:
        kinds: Files of an image, or of a frame of a video.
        film: Whether the overlays of a video are also written as a video.
        legends: Whether overlays and coloured maps have a legend below the image.
        overwrite: Whether existing results are replaced.
        skip_existing: Whether inputs are skipped whose results all exist.
        box: Largest height and width of the network's input; results keep the image's size.
        wrapping: Test-time augmentation and tiles; applied to the shrunk images.
        abstain_above: Risk above which a pixel gets no label; None labels every pixel.
        palette: Colours of the classes.
    """

    kinds: tuple[Kind, ...] = KINDS
    film: bool = True
    legends: bool = True
    overwrite: bool = False
    skip_existing: bool = False
    box: Box | None = None
    wrapping: Wrapping = UNWRAPPED
    abstain_above: float | None = None
    palette: PaletteName = "dataset"


def parse_save(text: str) -> tuple[tuple[Kind, ...], bool]:
    """Parses `--save label,overlay`: the files of an image, and whether videos get a film.

    Raises:
        ConfigError: An unknown name, or no name.
    """
    known = (*ENDINGS, FILM)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--save has '{name}': expected some of {', '.join(known)}, with commas between"
                + nearest(name, known)
            )
    if not names:
        raise ConfigError(f"--save is empty: expected some of {', '.join(known)}")
    return tuple(kind for kind in ENDINGS if kind in names), FILM in names


@dataclass(frozen=True)
class Outcome:
    """Counts of one call of `predict_all`.

    Attributes:
        pictures: Images whose results were written.
        videos: Videos written to their end.
        frames: Frames of videos written, including those of damaged videos.
        failures: Inputs that were not predicted, in the order of detection.
        labels: Files skipped because they are in `masks/` next to `images/`.
        skipped: Inputs skipped because their results exist.
        others: Files in searched folders that are neither image nor video, by suffix.
        coverage: Share of pixels with a label, 0..1, if some were left without one by their risk.
        accuracy: Share of these labels that are right, 0..1, in images of a labelled data set.
        compared: Number of these images.
        trained: How many of these images the network was trained on.
    """

    pictures: int
    videos: int
    frames: int
    failures: tuple[Failure, ...]
    labels: int = 0
    skipped: int = 0
    others: Counter[str] = field(default_factory=Counter)
    coverage: float | None = None
    accuracy: float | None = None
    compared: int = 0
    trained: int = 0


def predict_all(
    network: Segmenter | Callable[[], Segmenter],
    inputs: Sequence[str],
    out: Path,
    *,
    wanted: Wanted | None = None,
    trained: Box | None = None,
    known: Known | None = None,
    console: Console | None = None,
    errors: Console | None = None,
) -> Outcome:
    """Predicts all inputs and writes `<name>.label.png` and the other files of each.

    Images are predicted first, `network.at_once` concurrently; then videos, one after the other.

    Args:
        network: The network, or a function that opens it, called only if there are inputs.
        inputs: Images, videos, folders, globs and streams; see `inference.find_inputs`.
        out: Output folder; created if missing.
        wanted: Which files are written, and how existing results are handled. By default an
            existing result is a failure.
        trained: Height and width of the largest training image.
        known: What is known of the training, for the labels of images that belong to a data set;
            labels are read if `wanted.abstain_above` is set.
        console: Shows progress; None for no output.
        errors: Shows failures and warnings; `console` if None.

    Returns:
        Counts of what was written, and one line for everything that was not.

    Raises:
        ResourceError: The disk is full or `out` is not writable, so that nothing more can be done.
        CCFNetError: The network cannot be opened.
    """
    console = console or Console(quiet=True)
    errors = errors or console
    wanted = wanted or Wanted()
    refuse_unwritable(out)
    found = find_jobs(inputs, out)
    for failure in found.failures:
        _show(errors, failure)
    if not found.jobs:
        return Outcome(0, 0, 0, tuple(found.failures), found.labels, others=found.others)
    opened = network() if callable(network) else network
    with new_progress(console) as bar:
        opened = wrap(opened, wanted.wrapping, lambda tiles: _tracked(tiles, bar))
        if wanted.box:
            opened = SmallerImages(opened, wanted.box)
        abstaining = None
        if wanted.abstain_above is not None:
            opened = abstaining = Abstaining(opened, wanted.abstain_above)
        failures = found.failures
        session = _Session(
            opened, out, wanted, trained=trained, bar=bar, errors=errors, failures=failures
        )
        if abstaining:
            session.read_labels(found.jobs, known)
        session.do_all(found.jobs)
        session.say_problems_of_labels()
    labels = session.labels
    return Outcome(
        session.pictures,
        session.videos,
        session.frames,
        tuple(found.failures),
        found.labels,
        session.skipped,
        found.others,
        abstaining.kept / abstaining.pixels if abstaining and abstaining.pixels else None,
        labels.accuracy if labels else None,
        labels.images if labels else 0,
        labels.trained if labels else 0,
    )


def _tracked(tiles: Sequence[Tile], bar: Progress) -> Iterator[Tile]:
    """Yields the tiles of an image and shows progress."""
    task = bar.add_task("tiles", total=len(tiles))
    try:
        for tile in tiles:
            yield tile
            bar.advance(task)
    finally:
        bar.remove_task(task)


class _Session:
    """State of one call of `predict_all`."""

    def __init__(
        self,
        network: Segmenter,
        out: Path,
        wanted: Wanted,
        *,
        trained: Box | None,
        bar: Progress,
        errors: Console,
        failures: list[Failure],
    ) -> None:
        self.network = network
        self.taxonomy = with_palette(network.taxonomy, wanted.palette)
        self.out = out
        self.wanted = wanted
        self.trained = trained
        self.bar = bar
        self.errors = errors
        self.failures = failures
        self.pictures = self.videos = self.frames = self.skipped = 0
        self.labels: LabelsOfInputs | None = None
        self.write_permits = Semaphore()  # one per thread; withdrawn after a stop
        self._counting = Lock()
        self._shown: set[str] = set()

    def read_labels(self, jobs: Sequence[Job], known: Known | None) -> None:
        """Finds the labels that predictions are compared with."""
        images = [Path(job.source) for job in jobs if not job.is_video]
        self.labels = LabelsOfInputs(images, self.network.taxonomy, known)

    def say_problems_of_labels(self) -> None:
        """Shows why labels were not compared: the first reason, and how many others there are."""
        if self.labels is None or not self.labels.problems:
            return
        first, others = self.labels.problems[0], len(self.labels.problems) - 1
        more = f" (and {others} more such notes)" if others else ""
        self._say(printable(f"note: {first}{more}"), console=self.errors)

    def do_all(self, jobs: Sequence[Job]) -> None:
        """Runs all jobs and records failures; errors that concern all jobs are raised."""
        for folder in {(self.out / job.name).parent for job in jobs}:
            remove_leftovers(folder)
        task = self.bar.add_task("files", total=len(jobs))
        pictures: SimpleQueue[Job] = SimpleQueue()
        videos = [job for job in jobs if job.is_video]
        for job in jobs:
            if not job.is_video:
                pictures.put(job)
        stop = Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    job = pictures.get_nowait()
                except Empty:
                    return
                self.do(job)
                self.bar.advance(task)

        workers = min(self.network.at_once, pictures.qsize())
        if workers > 1:
            self.write_permits = Semaphore(workers)
            _in_threads(work, workers, stop, self.write_permits)
        else:
            work()
        for job in videos:
            self.do(job)
            self.bar.advance(task)

    def do(self, job: Job) -> None:
        """Runs one job, or records why it failed."""
        try:
            self._refuse_links(job)
            if self._is_done(job):
                with self._counting:
                    self.skipped += 1
            elif job.is_video:
                self._video(job)
            else:
                self._picture(job, Path(job.source))
        except (DataError, ImageTooLargeError) as error:
            self._fail(job, str(error))

    def _refuse_links(self, job: Job) -> None:
        """Refuses results that a link would redirect to another folder."""
        outputs: Sequence[Path] = output_paths(self.out, job.name, self.wanted.kinds)
        if job.is_video:
            outputs = video_outputs(self.out, job.name)
        for path in outputs:
            refuse_links(self.out, path)

    def _fail(self, job: Job, reason: str, *, in_part: bool = False) -> None:
        # Messages of readers begin with the path, which the line shows anyway.
        failure = Failure(job.shown, reason.removeprefix(f"{job.shown}: "), in_part)
        with self._counting:
            self.failures.append(failure)
            _show(self.errors, failure)

    def _say(self, line: str, *, once: str = "", console: Console | None = None) -> None:
        """Shows a line; only the first of those with the same `once`."""
        with self._counting:
            if once in self._shown:
                return
            self._shown |= {once} if once else set()
            (console or self.bar.console).print(Text(line), soft_wrap=True)

    def _is_done(self, job: Job) -> bool:
        """Whether results exist that are to be kept.

        Raises:
            DataError: Results exist, and neither skipping nor replacing was requested.
        """
        wanted = self.wanted
        if wanted.overwrite or isinstance(job.source, str):
            return False
        outputs = self._outputs(job)
        there = [path for path in outputs if path.exists()]
        if wanted.skip_existing:
            return bool(outputs) and len(there) == len(outputs)
        if there:
            raise DataError(
                f"{there[0]} exists already: add --skip-existing or --overwrite, or change --out"
            )
        return False

    def _outputs(self, job: Job) -> list[Path]:
        """Returns the files that exist once a job is done; for a video, the last to be written."""
        if not job.is_video:
            return output_paths(self.out, job.name, self.wanted.kinds)
        frames, film = video_outputs(self.out, job.name)
        if self.wanted.film:
            return [film]
        with open_video(job.source) as video:
            last = max(0, (video.promised or 1) - 1)
        return output_paths(frames, frame_name(last), self.wanted.kinds)

    def _picture(self, job: Job, source: Path) -> None:
        if not self.wanted.kinds:
            raise DataError(f"an image has no {FILM}: name other files in --save")
        image = read_image(source)
        self._comment_on_size(source.name, image)
        prediction = self.network.predict(image)
        if not self.write_permits.acquire(blocking=False):
            return  # stopped: nothing is written any more
        try:
            write_prediction(
                prediction,
                image,
                self.out,
                job.name,
                self.taxonomy,
                kinds=self.wanted.kinds,
                legends=self.wanted.legends,
            )
        finally:
            self.write_permits.release()
        if self.labels:
            self.labels.count(source, prediction.labels)
        with self._counting:
            self.pictures += 1
        if (frames := count_frames(source)) > 1:
            self._fail(
                job,
                f"has {frames} frames or pages, and only the first was labelled: save the others "
                "as images or as a video",
                in_part=True,
            )

    def _comment_on_size(self, name: str, image: np.ndarray) -> None:
        """Says once that `--size` changes nothing, or that images are far larger than in training.

        Who gives `--size` has chosen how large the network's input is, and is not warned of it.
        """
        (height, width), box = image.shape[:2], self.wanted.box
        if box is not None and shrunk(image, box) is image:
            self._say(
                f"note: --size has no effect on {name}: its {width}x{height} pixels fit into "
                f"{box[1]}x{box[0]} already, and images are never enlarged",
                once="size",
                console=self.errors,
            )
        if box is not None or self.trained is None:
            return
        high, wide = self.trained
        tiling = self.wanted.wrapping.tiling
        longest = min(max(height, width), tiling.side) if tiling else max(height, width)
        if longest > FAR_LARGER * max(high, wide):
            self._say(
                f"warning: {name}: {width}x{height} pixels, but the network was trained on images "
                f"of at most {wide}x{high}: prediction is slow, and labels may be fragmented; "
                f"--size {max(high, wide)} shrinks the network's input, and results keep the size "
                "of the image",
                once="large",
                console=self.errors,
            )

    def _video(self, job: Job) -> None:
        wanted = self.wanted
        with open_video(job.source) as video:
            title = printable(job.name.rsplit("/", 1)[-1])
            task = self.bar.add_task(title, total=video.promised)

            def advance() -> None:
                self.frames += 1
                self.bar.advance(task)

            if wanted.film and isinstance(job.source, Path) and has_sound(job.source):
                self._say(f"{job.source}: the audio is not copied to the overlay video")
            try:
                predict_video(
                    self.network,
                    video,
                    self.out,
                    job.name,
                    wanted=VideoWanted(wanted.kinds, wanted.film, wanted.legends, wanted.palette),
                    advance=advance,
                    say=lambda line: self._say(line, once="H.264"),
                )
                self.videos += 1
            finally:
                self.bar.remove_task(task)


def _in_threads(work: Callable[[], None], count: int, stop: Event, permits: Semaphore) -> None:
    """Runs `work` in threads until all end, or one fails and the others see `stop`.

    After a failure or Ctrl-C, files that are being written are completed. A thread that still
    waits for a prediction gets no permit to write it.
    """
    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)

    # Daemons: they may wait minutes for a server, and the process must not.
    threads = [Thread(target=run, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            if error := ends.get():
                raise error
    except BaseException:
        stop.set()
        until = time.monotonic() + _GRACE
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        for _ in range(count):
            permits.acquire()
        raise


def _show(console: Console, failure: Failure) -> None:
    # Text: rich would parse [brackets] in a path as a style.
    line = Text(printable(f"{failure.source}: {failure.reason}"), style="red")
    console.print(line, soft_wrap=True)
