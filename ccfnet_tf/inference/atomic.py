"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import BinaryIO

from ccfnet_tf.errors import ResourceError


def write_atomic(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    mend: str,
    otherwise: str | None = None,
    durable: bool = True,
) -> None:
    """Writes a file beside its final name and renames it, so that an older one survives a failure.

    Args:
        path: Where the file shall be; its folder is made.
        write: Puts the content into an open file.
        mend: What to do when the disk is full, the end of the error's line.
        otherwise: What to do when it fails for another reason; `mend` if None.
        durable: Wait until file and name are on the disk, so that a power cut after this call
            loses nothing.

    Raises:
        ResourceError: The disk is full or cannot be written; no temporary file stays behind.
    """
    # The same folder: a rename is atomic only within one file system. A fixed name: what a killed
    # process left is overwritten by the next, instead of piling up.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too: whatever stops us, nothing half-written stays
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "disk full" if full else (error.strerror or str(error))
            cure = mend if full or otherwise is None else otherwise
            raise ResourceError(f"{reason} while saving {path}: {cure}") from error
        raise
    if durable:
        _sync_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Gives a file that cannot be used another name in its folder, and returns that.

    Raises:
        ResourceError: The folder cannot be written.
    """
    names = (f"{path.name}.damaged{f'.{number}' if number else ''}" for number in count())
    free = next(place for name in names if not (place := path.with_name(name)).exists())
    try:
        path.rename(free)
    except OSError as error:
        raise ResourceError(
            f"{error.strerror or error} while renaming {path}: see that its folder can be written"
        ) from error
    return free


def _sync_folder(folder: Path) -> None:
    """Puts the new name on the disk; not every file system can, and the file is whole anyway."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)
