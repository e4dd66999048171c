"""Resolves the inputs of `predict` (files, folders, globs, videos, streams) to a list of jobs.

Results keep relative paths: images of a folder keep their path below it, matches of a glob the path
below its fixed part (`photos/*/a.jpg`: below `photos`), and a single file keeps its name only.

When a folder is searched, a `masks/` folder next to `images/` contains labels and is skipped; if
given explicitly, it is treated like any other folder. Everything skipped is reported: images and
videos of unsupported kinds are failures, other files are counted.
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
from ccfnet_tf.io.home_folder import expanded

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

CONTACT_SHEET, TABLES = "contact_sheet.png", ("ranking.csv", "suspects.csv")
"""Files of `rank` and `data suspects`, wherever their folder is."""

IMAGES_SIDE, LABELS_SIDE = "images", "masks"  # of a training set

_HEIF = (".heic", ".heif", ".hif")
_RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw")
_OTHER = (".jxl", ".psd", ".svg", ".eps", ".pdf", ".exr", ".hdr", ".dcm", ".ico", ".xcf", ".ai")
_NOT_READ = {
    **dict.fromkeys(_HEIF, "HEIC is not supported: save it as JPEG or PNG"),
    **dict.fromkeys(_RAW, "camera raw files are not supported: convert it to JPEG, PNG or TIFF"),
    **dict.fromkeys(_OTHER, "this image format is not supported: save it as JPEG or PNG"),
}
"""Suffixes of unsupported image formats, and what to do."""

_DEVICE = re.compile(r"(/dev/video)?(?P<number>[0-9]{1,3})")
"""Names of cameras in other programs."""

_SIGNATURES = {  # first bytes of files
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
        source: Path of the image or video; a string for a stream.
        name: Relative path of its results, without suffix.
    """

    source: Path | str
    name: str

    @property
    def shown(self) -> str:
        """The source as messages show it: an address without credentials."""
        return without_secrets(str(self.source))

    @property
    def is_video(self) -> bool:
        """Whether the source is a stream, or has the suffix of a video."""
        return isinstance(self.source, str) or self.source.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Failure:
    """An input that was not predicted.

    Attributes:
        source: The input as the user gave it or can find it; an address without credentials.
        reason: One line: the cause and the fix.
        in_part: Whether a part of the input was predicted: the first frame of a GIF.
    """

    source: str
    reason: str
    in_part: bool = False


@dataclass
class Found:
    """The result of resolving the inputs.

    Attributes:
        jobs: Each file once, in the order of the inputs; folders are sorted by name.
        failures: Inputs that do not exist or are empty, and files whose results would overwrite
            those of another file.
        labels: Number of files skipped because they are in `masks/` next to `images/`.
        others: Number of files in searched folders that are neither image nor video, by suffix.
    """

    jobs: list[Job] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    labels: int = 0
    others: Counter[str] = field(default_factory=Counter)


def find_jobs(inputs: Sequence[str], out: Path) -> Found:
    """Resolves inputs to jobs, each file once.

    Args:
        inputs: Images, videos, folders (searched recursively), globs (including `**`), `camera:0`
            and addresses of streams.
        out: Folder of the results. Results of an earlier call in it are not used as inputs.
    """
    found = Found()
    failures = found.failures
    taken: dict[tuple[str, bool], Job] = {}
    for text in inputs:
        before = len(failures)
        jobs = _jobs(text, out, found)
        if not jobs and len(failures) == before:
            reason = f"contains no image or video ({_known()})"
            failures.append(Failure(without_secrets(text), reason))
        for job in jobs:
            first = taken.setdefault((job.name, job.is_video), job)
            if _resolved(first.source) != _resolved(job.source):
                reason = (
                    f"its results would overwrite those of {first.shown} (both are "
                    f"'{job.name}'): rename one, or predict it with another --out"
                )
                failures.append(Failure(job.shown, reason))
    found.jobs.extend(taken.values())
    return found


def find_below(folder: Path, out: Path) -> Found:
    """Lists the images and videos below a folder, also those whose results have the same names.

    Args:
        folder: Searched to the bottom.
        out: Folder of results. Results of an earlier call in it are left out.
    """
    found = Found()
    found.jobs.extend(_jobs(str(folder), out, found))
    return found


def _jobs(text: str, out: Path, found: Found) -> list[Job]:
    return [job for job in _expand(text, found) if not _is_result(job.source, out)]


def _expand(text: str, found: Found) -> list[Job]:
    if "://" in text or text.startswith(CAMERA):
        return _stream(text, found)
    path = expanded(text)
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
        found.failures.append(Failure(shown, f"not a stream: expected {' '.join(STREAMS)}"))
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
        if IMAGES_SIDE in folders and LABELS_SIDE in folders:
            folders.remove(LABELS_SIDE)
            labels = Path(parent, LABELS_SIDE).rglob("*")
            found.labels += sum(path.is_file() and _is_known(path) for path in labels)
        for link in (Path(parent, name) for name in folders):
            if link.is_symlink():  # may be a cycle
                reason = "is a link to a folder, which is not followed: give the folder itself"
                found.failures.append(Failure(str(link), reason))
        for name in sorted(files):
            path = Path(parent, name)
            if name == CONTACT_SHEET and not {*TABLES}.isdisjoint(files):
                continue
            if _is_wanted(path, found):
                yield _job(path, root)


def _job(path: Path, root: Path) -> Job:
    return Job(path, PurePosixPath(path.relative_to(root).with_suffix("")).as_posix())


def _is_wanted(path: Path, found: Found) -> bool:
    """Whether a file of a folder or a glob is a job; others are reported or counted."""
    # Hidden files belong to the system, such as ._photo.jpg of macOS.
    if path.name.startswith("."):
        return False
    if _is_known(path):
        return True
    if not _can_be_read(path, found):
        return False
    kind = _looks_like(path)
    if kind:
        reason = f"is {kind} by its content, but has another suffix: rename it"
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
    """Whether the format is supported as far as the suffix shows; if not, adds a failure."""
    reason = _NOT_READ.get(path.suffix.lower())
    if reason:
        found.failures.append(Failure(str(path), reason))
    return reason is None


def _looks_like(path: Path) -> str:
    """Returns the kind of image or video whose signature a file has, or an empty string."""
    try:
        if not path.is_file():  # reading a pipe would block
            return ""
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:  # counted with the other files
        return ""
    kinds = (kind for mark, kind in _SIGNATURES.items() if re.match(mark, head, re.DOTALL))
    return next(kinds, "")


def _resolved(source: Path | str) -> Path | str:
    return source.resolve() if isinstance(source, Path) else source


def _is_result(path: Path | str, out: Path) -> bool:
    """Whether `path` was written by an earlier call; predictions are not predicted again."""
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
