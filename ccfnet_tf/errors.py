"""Exceptions for errors that the user can fix, and exit codes of the command line.

    CCFNetError                one line: file or key, value found, the rule, the fix
    +-- ConfigError            an invalid key or value in the configuration
    +-- DataError              an unusable file or folder of the data set
    |   +-- DamagedRecordError a damaged TFRecord record, which a run may skip
    |   +-- ColoursError       a mask with colours that no class list defines
    +-- RunError               an unusable run folder or checkpoint
    +-- ResourceError          out of memory, disk full, or a failed download
    +-- WorkerLostError        another worker of a distributed run ended
    +-- VerificationError      outputs of an exported file differ from Keras's
    +-- NotFiniteError         a loss or a variable became NaN or infinite

Any other exception is a bug in this package; the command line exits with `EXIT_UNEXPECTED`.
"""

from __future__ import annotations

import errno
import re
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from heapq import nlargest
from typing import Literal

FaultKind = Literal["missing", "unreadable", "size", "value"]

EXIT_DONE = 0
EXIT_FINDINGS = 1
EXIT_USER_ERROR = 2
EXIT_UNEXPECTED = 3
EXIT_INTERRUPTED = 130
EXIT_WORKER_LOST = 138
"""Schedulers such as Kubeflow restart workers that exit with 128 or above."""
EXIT_TERMINATED = 143

LONGEST = 2000
"""Longest message in characters. A name in a damaged file may have a million characters."""

# Every repetition is bounded, since names in files may have a million characters.
_SCHEME = r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.-]{1,30}:/{1,2}"
_LOGIN = re.compile(rf"({_SCHEME})(?:[^/?#@\n]{{0,2000}}@)?(?:\S{{0,2000}}@)?")
_QUERY = re.compile(rf"({_SCHEME}[^\s?]{{0,2000}}\?)\S*?(?=[:;,.'\")]{{0,9}}(?:\s|$))")

_SCANNED = 20_000
"""Messages longer than this many characters lose their middle before URLs are searched in them."""

_COMPARED = 500  # Most names that `nearest` compares character by character, which is slow.


class CCFNetError(Exception):
    """Base class of errors that the user can fix.

    The message is one line that names the file or key and the fix. Control characters are escaped,
    passwords in URLs are masked, and the middle of a message longer than `LONGEST` characters is
    omitted.
    """

    def __init__(self, message: str) -> None:
        text = printable(_shortened(message))
        half = LONGEST // 2
        super().__init__(text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}")


def _shortened(message: str) -> str:
    """Returns a message cut to about `_SCANNED` characters by omitting its middle."""
    if len(message) <= _SCANNED:
        return message
    word, blank, rest = message[-_SCANNED // 2 :].partition(" ")
    if "@" in word:  # Perhaps the end of a URL whose user and password can no longer be recognized.
        word = ""
    return f"{message[: _SCANNED // 2]} ... {word}{blank}{rest}"


class ConfigError(CCFNetError):
    """An unknown configuration key or option, or an invalid value."""


class DataError(CCFNetError):
    """A file or folder of the data set that cannot be used.

    Attributes:
        kind: `missing` (an image without a label, or a label without an image), `size` (image and
            label differ in size), `value` (a label value that is not a class), or `unreadable`
            (default).
    """

    def __init__(self, message: str, *, kind: FaultKind = "unreadable") -> None:
        super().__init__(message)
        self.kind: FaultKind = kind


class DamagedRecordError(DataError):
    """A damaged record of a TFRecord shard.

    Attributes:
        size: (H, W) of the image in the record.
    """

    def __init__(self, message: str, *, size: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.size = size


class ColoursError(DataError):
    """A mask with colours that no class list defines; its `kind` is `value`.

    Attributes:
        colours: Maps each undefined colour (R, G, B), 0..255, to its number of pixels; only the
            most frequent colours.
    """

    def __init__(
        self, message: str, colours: Mapping[tuple[int, int, int], int] | None = None
    ) -> None:
        super().__init__(message, kind="value")
        self.colours = dict(colours or {})


class RunError(CCFNetError):
    """A run folder or a checkpoint that cannot be used."""


class ResourceError(CCFNetError):
    """Out of memory, a disk that is full or not writable, or a failed download."""


class WorkerLostError(CCFNetError):
    """Another worker ended or cannot be reached; the last checkpoint is complete."""


class VerificationError(CCFNetError):
    """The outputs of an exported file differ from Keras's; the file is not published."""


class NotFiniteError(CCFNetError):
    """A loss or a variable became NaN or infinite; earlier checkpoints are kept."""


class TerminatedError(Exception):
    """The process received SIGTERM and saved its state; not a bug."""


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error means that the disk is full or the quota is exceeded."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def unreadable(error: OSError | ValueError) -> str:
    """Returns why a file could not be read, and the fix; a ValueError is about its encoding."""
    if isinstance(error, FileNotFoundError):
        return "no such file: check the path"
    if isinstance(error, IsADirectoryError):
        return "is a folder: give a file"
    if isinstance(error, PermissionError):
        return f"cannot be read ({error.strerror}): make it readable"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or first_line(error)})"
    return f"not a UTF-8 text file ({error}): save it as UTF-8"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class name if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Returns a text on one line, with control characters escaped and secrets in URLs masked.

    File names, class names and error messages of libraries may contain terminal escape sequences.
    """
    return without_secrets(
        "".join(
            c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text
        )
    )


def without_secrets(text: str) -> str:
    """Replaces user, password and query string of every URL in a text by `***`.

    A password may contain any character, including a slash, so everything up to the last `@` is
    replaced.
    """
    if ":/" not in text:
        return text
    hidden = _LOGIN.sub(lambda match: match[1] + ("***@" if match[0] != match[1] else ""), text)
    return _QUERY.sub(r"\1***", hidden)


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest of `known`, or an empty string."""
    names = list(known)
    if len(names) > _COMPARED:
        trigrams = _trigrams(word)
        names = nlargest(_COMPARED, names, key=lambda name: len(trigrams & _trigrams(name)))
    close = get_close_matches(word, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _trigrams(word: str) -> set[str]:
    """Returns the character trigrams of a word."""
    return {word[i : i + 3] for i in range(max(1, len(word) - 2))}
