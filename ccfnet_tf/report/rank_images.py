"""Ranks the images of a folder: predicts all, chooses some, and writes the files of the ranking.

Images are read and predicted one at a time; only the figures of a `Candidate` are kept of each. The
chosen images are predicted a second time when they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ccfnet_tf.datasets.samples import bytes_fingerprint, fingerprint
from ccfnet_tf.errors import DataError
from ccfnet_tf.inference.choose_images_to_label import Candidate, candidate, choose
from ccfnet_tf.inference.feature_network import FeatureNetwork
from ccfnet_tf.inference.find_inputs import IMAGE_SUFFIXES, Failure, find_below
from ccfnet_tf.inference.segmenter_protocol import ImageTooLargeError
from ccfnet_tf.inference.writers import write_png
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.io.draw_sheet import shown_ids
from ccfnet_tf.io.new_folder import new_folder
from ccfnet_tf.io.read_images import read_image
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.report import ranking_files
from ccfnet_tf.report.ranking_files import Ranked


@dataclass(frozen=True)
class Ranking:
    """The chosen images of a folder.

    Attributes:
        folder: The folder.
        chosen: The images, the most useful first.
        images: Number of images that were ranked.
        labelled: Number of images left out because the run was trained or validated on them.
        failures: Files that cannot be ranked.
    """

    folder: Path
    chosen: tuple[Ranked, ...]
    images: int
    labelled: int
    failures: tuple[Failure, ...]


def rank_folder(
    folder: Path,
    network: Callable[[], FeatureNetwork],
    taxonomy: Taxonomy,
    *,
    top: int,
    known: Collection[str],
    out: Path,
    console: Console,
    errors: Console | None = None,
) -> Ranking:
    """Chooses up to `top` images of a folder.

    Args:
        folder: Searched to the bottom.
        network: Opens the network; called if there is an image.
        taxonomy: Classes of the network.
        top: Largest number of images.
        known: Digests of labelled images, which are left out, as in `data_digest.json`.
        out: Folder of the results, which is not searched.
        console: Where progress is shown.
        errors: Where failures are shown; `console` if None.

    Raises:
        CCFNetError: The network cannot be opened.
        DataError: No image is left to rank.
    """
    failures: list[Failure] = []

    def fail(failure: Failure) -> None:
        failures.append(failure)
        (errors or console).print(f"left out {failure.source}: {failure.reason}")

    paths = _image_paths(folder, out, fail)
    if not paths:
        known_suffixes = " ".join(IMAGE_SUFFIXES)
        raise DataError(
            f"{folder}: contains no image ({known_suffixes}): give a folder with images"
        )
    new = _unlabelled(paths, known, console) if known else paths
    images = _predict(new, network, len(taxonomy.names), console, fail)
    if not images:
        raise DataError(
            f"{folder}: no image to rank: {len(paths)} found, {len(paths) - len(new)} of them "
            f"labelled already, {len(failures)} left out: give a folder with new images"
        )
    names = [path.relative_to(folder).as_posix() for path in images]
    candidates = list(images.values())
    chosen = [
        Ranked(
            names[choice.index],
            choice.score,
            candidates[choice.index].wrong,
            candidates[choice.index].share_at_risk,
            tuple(names[index] for index in choice.near_duplicates),
        )
        for choice in choose(candidates, top)
    ]
    return Ranking(folder, tuple(chosen), len(images), len(paths) - len(new), tuple(failures))


def write_ranking(
    ranking: Ranking,
    network: FeatureNetwork,
    taxonomy: Taxonomy,
    out: Path,
    *,
    model: str,
    prefix: str,
    console: Console,
) -> None:
    """Writes the files of `ranking_files` to a new folder.

    Args:
        ranking: What was chosen.
        network: The network that ranked them.
        taxonomy: Its classes.
        out: The folder; nothing is kept if writing fails.
        model: Name of the model for Label Studio.
        prefix: Beginning of the images' URLs for Label Studio.
        console: Where progress is shown.

    Raises:
        ConfigError: The folder exists and is not empty.
        DataError: An image has become unreadable.
        ResourceError: The disk is full or not writable.
    """
    cells, ids = [], set[int]()
    with new_folder(out) as unfinished, new_progress(console) as bar:
        progress = bar.add_task("writing", total=len(ranking.chosen))
        with (unfinished / ranking_files.TASKS).open("w", encoding="utf-8") as tasks:
            for rank, ranked in enumerate(ranking.chosen, start=1):
                image = read_image(ranking.folder / ranked.path)
                labels, risk, _ = network.view(image)
                task = ranking_files.task(
                    ranked, labels, taxonomy, prefix=prefix, rank=rank, model=model
                )
                tasks.write(("[\n" if rank == 1 else ",\n") + ranking_files.task_line(task))
                if rank <= ranking_files.MOST_ON_SHEET:
                    cells.append(ranking_files.sheet_cells(image, labels, risk, taxonomy))
                    ids.update(shown_ids([labels]))
                bar.advance(progress)
            tasks.write("\n]\n")
        sheet = ranking_files.sheet(ranking.chosen, cells, sorted(ids), taxonomy)
        write_png(unfinished / ranking_files.SHEET, sheet)
        texts = {
            ranking_files.TABLE: ranking_files.table(ranking.chosen, taxonomy),
            ranking_files.CONFIGURATION: ranking_files.configuration(taxonomy),
        }
        for name, text in texts.items():
            (unfinished / name).write_text(text, encoding="utf-8")


def _image_paths(folder: Path, out: Path, fail: Callable[[Failure], None]) -> list[Path]:
    found = find_below(folder, out)
    for failure in found.failures:
        fail(failure)
    paths = []
    for job in found.jobs:
        if job.is_video:
            reason = "is a video: save its frames as images, then rank their folder"
            fail(Failure(job.shown, reason))
        else:
            paths.append(Path(job.source))
    return paths


def _unlabelled(paths: list[Path], known: Collection[str], console: Console) -> list[Path]:
    """Returns the images whose digests are not known."""
    with new_progress(console) as bar:
        found = bar.track(paths, description="comparing with labelled images")
        return [path for path in found if _digests(path).isdisjoint(known)]


def _predict(
    paths: list[Path],
    network: Callable[[], FeatureNetwork],
    classes: int,
    console: Console,
    fail: Callable[[Failure], None],
) -> dict[Path, Candidate]:
    """Predicts images one at a time; leaves out those that cannot be used."""
    images: dict[Path, Candidate] = {}
    if not paths:
        return images
    opened = network()
    wrong, pixels = 0.0, 0
    with new_progress(console, figures=True) as bar:
        progress = bar.add_task("predicting", total=len(paths), figures="")
        for path in paths:
            try:
                image = read_image(path)
                view = opened.view(image)
            except (DataError, ImageTooLargeError) as error:
                fail(Failure(str(path), str(error).removeprefix(f"{path}: ")))
            else:
                images[path] = candidate(image, *view, classes=classes)
                wrong, pixels = wrong + float(view.risk.sum()), pixels + view.risk.size
                bar.update(progress, figures=f"expected error {wrong / pixels:.1%}")
            bar.advance(progress)
    return images


def _digests(path: Path) -> set[str]:
    """Returns the digests under which data sets may record an image file.

    One is that of layouts of files, the other that of images stored in shards or in JSON.
    """
    try:
        return {fingerprint(Sample("", str(path), "")), bytes_fingerprint(path.read_bytes())}
    except (DataError, OSError):
        return set()  # reading the image reports the reason
