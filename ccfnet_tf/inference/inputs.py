"""What `predict` is asked for: files, folders, globs and videos become a list of jobs.

Where results go keeps relative paths: a folder's pictures keep their path below it, a glob's the
path below its fixed part (`photos/*/a.jpg`: below `photos`), and a single file is its name alone.

Below a folder that is searched, `masks/` beside `images/` holds labels and is left out; given
itself, it is a folder as any other.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ccfnet_tf.inference.video import FRAMES, OVERLAY
from ccfnet_tf.inference.writers import KINDS

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")

PICTURES_SIDE, LABELS_SIDE = "images", "masks"  # of a training set


@dataclass(frozen=True)
class Job:
    """One file to predict.

    Attributes:
        source: The picture or video.
        name: Relative path of its results, without suffix.
    """

    source: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether its suffix is a video's."""
        return self.source.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Failure:
    """Something that was asked for and not done.

    Attributes:
        source: What was asked for, as the user would find it again.
        reason: One line: why, and the mend.
    """

    source: str
    reason: str


@dataclass
class Found:
    """What the inputs were found to be.

    Attributes:
        jobs: Each file once, in the order asked for, folders sorted by name.
        failures: What cannot be a job: inputs that are not there or hold nothing, and files whose
            results would overwrite another's.
        labels: How many files were left out because they lie in `masks/` beside `images/`.
    """

    jobs: list[Job] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    labels: int = 0


def find_jobs(inputs: Sequence[str], out: Path) -> Found:
    """Lists what to do, each file once.

    Args:
        inputs: Pictures, videos, folders (searched to the bottom) and globs (`**` too).
        out: Where results go; results of an earlier call that lie in it are no inputs.
    """
    found = Found()
    failures = found.failures
    taken: dict[tuple[str, bool], Job] = {}
    for text in inputs:
        jobs = [job for job in _expand(text, found) if not _is_result(job.source, out)]
        if not jobs and not (failures and failures[-1].source == text):
            failures.append(Failure(text, f"holds no picture or video ({_known()})"))
        for job in jobs:
            first = taken.setdefault((job.name, job.is_video), job)
            if first.source.resolve() != job.source.resolve():
                reason = (
                    f"its results would overwrite those of {first.source} (both are "
                    f"'{job.name}'): rename one, or predict it into another --out"
                )
                failures.append(Failure(str(job.source), reason))
    found.jobs.extend(taken.values())
    return found


def _expand(text: str, found: Found) -> list[Job]:
    path = Path(text).expanduser()
    if path.is_dir():
        return list(_below(path, path, found))
    if path.exists():
        return [Job(path, path.stem)]
    if not glob.has_magic(text):
        found.failures.append(Failure(text, "no such file or folder"))
        return []
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    if not matches:
        found.failures.append(Failure(text, "matches no file"))
    fixed = _fixed_part(path)
    jobs: list[Job] = []
    for match in matches:
        if match.is_dir():
            jobs.extend(_below(match, fixed, found))
        elif _is_wanted(match):
            jobs.append(_job(match, fixed))
    return jobs


def _below(folder: Path, root: Path, found: Found) -> Iterator[Job]:
    def unreadable(error: OSError) -> None:
        found.failures.append(Failure(str(error.filename), f"cannot be read ({error.strerror})"))

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if PICTURES_SIDE in folders and LABELS_SIDE in folders:
            folders.remove(LABELS_SIDE)
            labels = Path(parent, LABELS_SIDE).rglob("*")
            found.labels += sum(path.is_file() and _is_wanted(path) for path in labels)
        for name in sorted(files):
            path = Path(parent, name)
            if _is_wanted(path):
                yield _job(path, root)


def _job(path: Path, root: Path) -> Job:
    return Job(path, PurePosixPath(path.relative_to(root).with_suffix("")).as_posix())


def _is_wanted(path: Path) -> bool:
    # Hidden files are a system's own, such as macOS's ._photo.jpg.
    return not path.name.startswith(".") and path.suffix.lower() in (*PICTURES, *VIDEOS)


def _is_result(path: Path, out: Path) -> bool:
    """Whether an earlier call wrote `path`, so that a second call does not predict predictions."""
    try:
        below = path.resolve().relative_to(out.resolve())
    except ValueError:
        return False
    endings = (*(f".{kind}.png" for kind in KINDS), OVERLAY)
    return path.name.endswith(endings) or any(part.endswith(FRAMES) for part in below.parts)


def _fixed_part(path: Path) -> Path:
    """Returns the folders of a glob before its first wildcard."""
    fixed = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _known() -> str:
    return " ".join((*PICTURES, *VIDEOS))
