"""`predict`: many pictures and videos to files; one that is bad does not stop the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Semaphore, Thread

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from ccfnet_tf.datasets.pictures import read_image
from ccfnet_tf.errors import DataError, ResourceError, printable
from ccfnet_tf.inference.atomic import refuse_links, remove_leftovers
from ccfnet_tf.inference.inputs import Failure, Job, find_jobs
from ccfnet_tf.inference.prediction import Network, PictureTooLargeError
from ccfnet_tf.inference.video import predict_video, promised_frames, video_outputs
from ccfnet_tf.inference.writers import output_paths, write_prediction
from ccfnet_tf.progress import new_progress

_GRACE = 0.5  # seconds for answers that are waited for when it is stopped


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        pictures: Pictures whose four results are written.
        videos: Videos written to their end.
        frames: Frames of videos written, those of damaged videos too.
        failures: What was not done, in the order it was noticed.
        labels: Files left out because they lie in `masks/` beside `images/`.
    """

    pictures: int
    videos: int
    frames: int
    failures: tuple[Failure, ...]
    labels: int = 0


def predict_all(
    network: Network | Callable[[], Network],
    inputs: Sequence[str],
    out: Path,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Predicts all inputs and writes `<name>.{label,color,overlay,difficulty}.png` for each.

    Pictures come first, as many at a time as the network answers; then videos, one by one.

    Args:
        network: The network, or what opens it; that is called when there is an input.
        inputs: Pictures, videos, folders and globs; see `inference.inputs`.
        out: Where results go; made when missing.
        overwrite: Replace results that are there; otherwise each is a failure.
        console: Where progress and failures are shown; nowhere if None.

    Returns:
        What was written, and one line for everything that was not.

    Raises:
        ResourceError: The disk is full or `out` cannot be written: nothing more could be done.
        CCFNetError: The network cannot be opened.
    """
    console = console or Console(quiet=True)
    if out.exists() and not out.is_dir():
        raise ResourceError(f"{out}: is a file, and results need a folder: give another --out")
    found = find_jobs(inputs, out)
    for failure in found.failures:
        _show(console, failure)
    if not found.jobs:
        return Outcome(0, 0, 0, tuple(found.failures), found.labels)
    opened = network() if callable(network) else network
    with new_progress(console) as bar:
        session = _Session(opened, out, overwrite, bar, found.failures)
        session.do_all(found.jobs)
    failures = tuple(found.failures)
    return Outcome(session.pictures, session.videos, session.frames, failures, found.labels)


class _Session:
    """Counts of one `predict_all`."""

    def __init__(
        self,
        network: Network,
        out: Path,
        overwrite: bool,
        bar: Progress,
        failures: list[Failure],
    ) -> None:
        self.network = network
        self.out = out
        self.overwrite = overwrite
        self.bar = bar
        self.failures = failures
        self.pictures = self.videos = self.frames = 0
        self.pens = Semaphore()  # one for each thread, until it is stopped
        self._counting = Lock()

    def do_all(self, jobs: Sequence[Job]) -> None:
        """Does every job, or notes why not; an error that concerns all of them ends it."""
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
            self.pens = Semaphore(workers)
            _in_threads(work, workers, stop, self.pens)
        else:
            work()
        for job in videos:
            self.do(job)
            self.bar.advance(task)

    def do(self, job: Job) -> None:
        """Does one job, or notes why not."""
        try:
            self._refuse_existing(job)
            if job.is_video:
                self._video(job)
            else:
                self._picture(job)
        except (DataError, PictureTooLargeError) as error:
            # Readers begin with the path, which the line shows anyway.
            failure = Failure(str(job.source), str(error).removeprefix(f"{job.source}: "))
            with self._counting:
                self.failures.append(failure)
                _show(self.bar.console, failure)

    def _refuse_existing(self, job: Job) -> None:
        outputs = video_outputs if job.is_video else output_paths
        for path in outputs(self.out, job.name):
            refuse_links(self.out, path)
        there = [path for path in outputs(self.out, job.name) if path.exists()]
        if there and not self.overwrite:
            raise DataError(f"{there[0]} is there already: add --overwrite, or change --out")

    def _picture(self, job: Job) -> None:
        image = read_image(job.source)
        prediction = self.network.predict(image)
        if not self.pens.acquire(blocking=False):
            return  # it was stopped, and nobody waits for this answer any more
        try:
            write_prediction(prediction, image, self.out, job.name, self.network.taxonomy)
        finally:
            self.pens.release()
        with self._counting:
            self.pictures += 1

    def _video(self, job: Job) -> None:
        task = self.bar.add_task(printable(job.source.name), total=promised_frames(job.source))

        def advance() -> None:
            self.frames += 1
            self.bar.advance(task)

        try:
            predict_video(self.network, job.source, self.out, job.name, advance=advance)
            self.videos += 1
        finally:
            self.bar.remove_task(task)


def _in_threads(work: Callable[[], None], count: int, stop: Event, pens: Semaphore) -> None:
    """Runs `work` in threads until all end, or one fails and the others see `stop`.

    After a failure, Ctrl-C too, a picture that is being written is written whole; an answer that
    is still waited for is left to its thread, which finds no pen.
    """
    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)

    # Daemons: a server may let them wait for minutes, and the process need not.
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
            pens.acquire()
        raise


def _show(console: Console, failure: Failure) -> None:
    # Text: a path may hold [brackets], which rich would take for a style.
    line = Text(printable(f"{failure.source}: {failure.reason}"), style="red")
    console.print(line, soft_wrap=True)
