"""What `predict` is asked for: files, folders, globs, videos, streams become a list of jobs.

Where results go keeps relative paths: a folder's images keep their path below it, a glob's the
path below its fixed part (`photos/*/a.jpg`: below `photos`), and a single file is its name alone.

Below a folder that is searched, `masks/` beside `images/` holds labels and is left out; given
itself, it is a folder as any other. Nothing is left out in silence: images and videos of kinds
that are not read are failures, other files are counted.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ccfnet_tf.errors import without_secrets
from ccfnet_tf.inference.video import CAMERA, FRAMES, OVERLAY
from ccfnet_tf.inference.writers import ENDINGS

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".avif",
    ".gif",
    ".jp2",
    ".tga",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
VIDEO_SUFFIXES = (
    ".mp4",
    ".avi",
    ".mov",
    ".mkv",
    ".webm",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".3gp",
    ".flv",
    ".mts",
    ".m2ts",
    ".ogv",
)
STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://", "srt://")

PICTURES_SIDE, LABELS_SIDE = "images", "masks"  # of a training set

_HEIF = (".heic", ".heif", ".hif")
_RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw")
_OTHER = (".jxl", ".psd", ".svg", ".eps", ".pdf", ".exr", ".hdr", ".dcm", ".ico", ".xcf", ".ai")
_NOT_READ = {
    **dict.fromkeys(_HEIF, "HEIC is not read: save it as JPEG or PNG, then predict that"),
    **dict.fromkeys(_RAW, "a camera's raw file is not read: develop it to JPEG, PNG or TIFF"),
    **dict.fromkeys(_OTHER, "this kind of image is not read: save it as JPEG or PNG"),
}
"""Images by their suffix that cannot be read, and what to do."""

_DEVICE = re.compile(r"(/dev/video)?(?P<number>[0-9]{1,3})")
"""How other programs name a camera."""

_SIGNATURES = {  # what files begin with
    rb"\xff\xd8\xff": "a JPEG image",
    rb"\x89PNG\r\n": "a PNG image",
    rb"GIF8[79]a": "a GIF image",
    rb"(II\*\x00|MM\x00\*)": "a TIFF image",
    rb"RIFF.{4}WEBP": "a WebP image",
    rb"RIFF.{4}AVI ": "an AVI video",
    rb".{4}ftyp(heic|heix|mif1|msf1)": "a HEIC image",
    rb".{4}ftypavi[fs]": "an AVIF image",
    rb".{4}ftyp": "an MP4 video",
    rb"\x1aE\xdf\xa3": "a Matroska or WebM video",
}


@dataclass(frozen=True)
class Job:
    """One file or stream to predict.

    Attributes:
        source: The image or video; a text where it is a stream.
        name: Relative path of its results, without suffix.
    """

    source: Path | str
    name: str

    @property
    def shown(self) -> str:
        """What messages call the source: an address without its secrets."""
        return without_secrets(str(self.source))

    @property
    def is_video(self) -> bool:
        """Whether its suffix is a video's, or it is a stream."""
        return isinstance(self.source, str) or self.source.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Failure:
    """Something that was asked for and not done.

    Attributes:
        source: What was asked for, as the user would find it again; an address without its
            secrets.
        reason: One line: why, and what to do.
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
        others: How many files of searched folders are neither image nor video, by suffix.
    """

    jobs: list[Job] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    labels: int = 0
    others: Counter[str] = field(default_factory=Counter)


def find_jobs(inputs: Sequence[str], out: Path) -> Found:
    """Lists what to do, each file once.

    Args:
        inputs: Images, videos, folders (searched to the bottom), globs (`**` too), `camera:0`
            and addresses of streams.
        out: Where results go; results of an earlier call that lie in it are no inputs.
    """
    found = Found()
    failures = found.failures
    taken: dict[tuple[str, bool], Job] = {}
    for text in inputs:
        before = len(failures)
        jobs = [job for job in _expand(text, found) if not _is_result(job.source, out)]
        if not jobs and len(failures) == before:
            reason = f"holds no image or video ({_known()})"
            failures.append(Failure(without_secrets(text), reason))
        for job in jobs:
            first = taken.setdefault((job.name, job.is_video), job)
            if _whole(first.source) != _whole(job.source):
                reason = (
                    f"its results would overwrite those of {first.shown} (both are "
                    f"'{job.name}'): rename one, or predict it into another --out"
                )
                failures.append(Failure(job.shown, reason))
    found.jobs.extend(taken.values())
    return found


def _expand(text: str, found: Found) -> list[Job]:
    if "://" in text or text.startswith(CAMERA):
        return _stream(text, found)
    path = Path(text).expanduser()
    if (device := _DEVICE.fullmatch(text)) and not path.is_file() and not path.is_dir():
        reason = f"a camera is given by its number: {CAMERA}{device['number']}"
        found.failures.append(Failure(text, reason))
        return []
    if path.is_dir():
        return list(_below(path, path, found))
    if path.exists():
        return [Job(path, path.stem)] if _can_be_read(path, found) else []
    if not glob.has_magic(text):
        found.failures.append(Failure(without_secrets(text), "no such file or folder"))
        return []
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    if not matches:
        found.failures.append(Failure(without_secrets(text), "matches no file"))
    fixed = _fixed_part(path)
    jobs: list[Job] = []
    for match in matches:
        if match.is_dir():
            jobs.extend(_below(match, fixed, found))
        elif _is_wanted(match, found):
            jobs.append(_job(match, fixed))
    return jobs


def _stream(text: str, found: Found) -> list[Job]:
    number, shown = text.removeprefix(CAMERA), without_secrets(text)
    if text.startswith(CAMERA) and not (number.isascii() and number.isdecimal()):
        found.failures.append(Failure(shown, f"expected a camera's number, such as {CAMERA}0"))
    elif not text.startswith((CAMERA, *STREAMS)):
        found.failures.append(Failure(shown, f"no stream: expected {' '.join(STREAMS)}"))
    else:
        place = re.split(r"[?#]", shown.partition("://")[2] or text)[0].rstrip("/")
        host, _, path = place.removeprefix("***@").partition("/")
        last = PurePosixPath(path).stem or host  # a host has no suffix: 10.0.0.7 is not 10.0.0
        return [Job(text, re.sub(r"[^\w.-]+", "_", last) or "stream")]
    return []


def _below(folder: Path, root: Path, found: Found) -> Iterator[Job]:
    def unreadable(error: OSError) -> None:
        found.failures.append(Failure(str(error.filename), f"cannot be read ({error.strerror})"))

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if PICTURES_SIDE in folders and LABELS_SIDE in folders:
            folders.remove(LABELS_SIDE)
            labels = Path(parent, LABELS_SIDE).rglob("*")
            found.labels += sum(path.is_file() and _is_known(path) for path in labels)
        for link in (Path(parent, name) for name in folders):
            if link.is_symlink():  # which may lead in a circle
                reason = "is a link to a folder, which is not followed: give that folder itself"
                found.failures.append(Failure(str(link), reason))
        for name in sorted(files):
            path = Path(parent, name)
            if _is_wanted(path, found):
                yield _job(path, root)


def _job(path: Path, root: Path) -> Job:
    return Job(path, PurePosixPath(path.relative_to(root).with_suffix("")).as_posix())


def _is_wanted(path: Path, found: Found) -> bool:
    """Whether a file of a folder or a glob is a job; says or counts what is none."""
    # Hidden files are a system's own, such as macOS's ._photo.jpg.
    if path.name.startswith("."):
        return False
    if _is_known(path):
        return True
    if not _can_be_read(path, found):
        return False
    kind = _looks_like(path)
    if kind:
        reason = f"is {kind} by its content, but its name does not say so: rename it"
        found.failures.append(Failure(str(path), reason))
    else:
        found.others[path.suffix.lower() or "no suffix"] += 1
    return False


def _is_known(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in (
        *IMAGE_SUFFIXES,
        *VIDEO_SUFFIXES,
    )


def _can_be_read(path: Path, found: Found) -> bool:
    """Whether a suffix is none of an image that cannot be read; that is a failure."""
    reason = _NOT_READ.get(path.suffix.lower())
    if reason:
        found.failures.append(Failure(str(path), reason))
    return reason is None


def _looks_like(path: Path) -> str:
    """Returns what kind of image or video a file begins like; empty where it does not."""
    try:
        if not path.is_file():  # a pipe would let us wait
            return ""
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:  # then it is counted with the rest
        return ""
    kinds = (kind for mark, kind in _SIGNATURES.items() if re.match(mark, head, re.DOTALL))
    return next(kinds, "")


def _whole(source: Path | str) -> Path | str:
    return source.resolve() if isinstance(source, Path) else source


def _is_result(path: Path | str, out: Path) -> bool:
    """Whether an earlier call wrote `path`, so that a second call does not predict predictions."""
    if isinstance(path, str):
        return False
    try:
        below = path.resolve().relative_to(out.resolve())
    except ValueError:
        return False
    endings = (*ENDINGS.values(), OVERLAY)
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
    return " ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
