"""The errors a user can meet, and the exit codes of the command line.

    CCFNetError                one line: file or key, value found, the rule, the fix
    +-- ConfigError            a key or a value of the configuration
    +-- DataError              a file or a folder of the user's data
    |   +-- DamagedRecordError a record of a shard, which a run may leave out
    |   +-- ColoursError       a mask with colours that no list names
    +-- RunError               a run folder or a checkpoint in it
    +-- ResourceError          memory or disk that ran out, a download that failed
    +-- WorkerLostError        another worker of the run ended
    +-- VerificationError      an exported file whose outputs differ from Keras's
    +-- NotFiniteError         a value of training that became NaN or infinite

Everything else is a fault of ours and ends with `EXIT_UNEXPECTED`.
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
"""128 and above: schedulers such as Kubeflow's start such a worker again."""
EXIT_TERMINATED = 143

LONGEST = 2000
"""Characters of a message: a name in a damaged file may have a million."""

# Every repetition is bounded: names in files may have a million letters.
_SCHEME = r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.-]{1,30}:/{1,2}"
_LOGIN = re.compile(rf"({_SCHEME})(?:[^/?#@\n]{{0,2000}}@)?(?:\S{{0,2000}}@)?")
_QUERY = re.compile(rf"({_SCHEME}[^\s?]{{0,2000}}\?)\S*?(?=[:;,.'\")]{{0,9}}(?:\s|$))")

_READ = 20_000
"""Characters of a message that are looked at; the middle of a longer one is left out before."""

_COMPARED = 500  # names that `nearest` compares letter by letter, which is slow


class CCFNetError(Exception):
    """A user's error; its text is one line that names the place and the fix.

    What a terminal would obey in a file's name or content is shown as an escape, and the middle of
    more than `LONGEST` characters is left out.
    """

    def __init__(self, message: str) -> None:
        text = printable(_shortened(message))
        half = LONGEST // 2
        super().__init__(text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}")


def _shortened(message: str) -> str:
    """Returns a message of little more than `_READ` characters; its middle is left out."""
    if len(message) <= _READ:
        return message
    word, blank, rest = message[-_READ // 2 :].partition(" ")
    if "@" in word:  # it may be the end of an address, whose login is no longer known as one
        word = ""
    return f"{message[: _READ // 2]} ... {word}{blank}{rest}"


class ConfigError(CCFNetError):
    """An unknown key, or a value that the rule of its key does not allow."""


class DataError(CCFNetError):
    """A file or folder of the user's data that cannot be used as it is.

    Attributes:
        kind: `missing` (an image without its label, or the reverse), `size` (they differ),
            `value` (a label outside the classes), or `unreadable`, the default.
    """

    def __init__(self, message: str, *, kind: FaultKind = "unreadable") -> None:
        super().__init__(message)
        self.kind: FaultKind = kind


class DamagedRecordError(DataError):
    """A record of a shard that is not as it was written.

    Attributes:
        size: (H, W) that its image had.
    """

    def __init__(self, message: str, *, size: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.size = size


class ColoursError(DataError):
    """A mask with colours that no list names; of kind `value`.

    Attributes:
        colours: Number of pixels of each such colour, R G B 0..255; the most frequent ones.
    """

    def __init__(
        self, message: str, colours: Mapping[tuple[int, int, int], int] | None = None
    ) -> None:
        super().__init__(message, kind="value")
        self.colours = dict(colours or {})


class RunError(CCFNetError):
    """A run folder, or a checkpoint in it, that cannot be used as asked."""


class ResourceError(CCFNetError):
    """Memory, disk or network that was not there when it was needed."""


class WorkerLostError(CCFNetError):
    """Another worker ended or cannot be reached; the last checkpoint is whole."""


class VerificationError(CCFNetError):
    """The outputs of an exported file differ from Keras's; it is not published."""


class NotFiniteError(CCFNetError):
    """A loss or a variable became NaN or infinite; checkpoints from before that are kept."""


class TerminatedError(Exception):
    """The process received SIGTERM and has saved what it was doing; not a fault."""


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error says that a disk, or a user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Returns a text on one line; what a terminal would obey in it is shown as an escape.

    Names of files and classes, and what files say of themselves, may hold anything. Addresses are
    shown without their secrets.
    """
    return without_secrets(
        "".join(
            c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text
        )
    )


def without_secrets(text: str) -> str:
    """Returns a text whose addresses have `***` for user, password and what follows `?`.

    A password may hold any character, a slash too, so all up to the last `@` is left out.
    """
    if ":/" not in text:
        return text
    hidden = _LOGIN.sub(lambda found: found[1] + ("***@" if found[0] != found[1] else ""), text)
    return _QUERY.sub(r"\1***", hidden)


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest of `known`, or an empty string."""
    names = list(known)
    if len(names) > _COMPARED:
        pieces = _pieces(word)
        names = nlargest(_COMPARED, names, key=lambda name: len(pieces & _pieces(name)))
    close = get_close_matches(word, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _pieces(word: str) -> set[str]:
    """Returns every three letters that follow each other in a word."""
    return {word[i : i + 3] for i in range(max(1, len(word) - 2))}
