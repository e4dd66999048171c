"""Files that are either whole or not there.

Folders may be a stranger's: temporaries have names that nobody can plant a link under, and no link
is followed to write, empty or delete what it points to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO

from ccfnet_tf.errors import ResourceError, is_disk_full

_LEFTOVER = re.compile(r"\.(ccfnet-[0-9a-f]{16}|.+\.(npz|png|json|yaml|csv))\.tmp")
"""Names of temporaries; the second kind is of earlier versions."""

_OWN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def write_atomic(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    fix: str,
    otherwise: str | None = None,
    durable: bool = True,
) -> None:
    """Writes a file beside its final name and renames it, so that an older one survives a failure.

    Args:
        path: Where the file shall be; its folder is made.
        write: Puts the content into an open file.
        fix: What to do when the disk is full, the end of the error's line.
        otherwise: What to do when it fails for another reason; `fix` if None.
        durable: Wait until file and name are on the disk, so that a power cut after this call
            loses nothing.

    Raises:
        ResourceError: The disk is full or cannot be written; no temporary file stays behind.
    """
    # The same folder: a rename is atomic only within one file system. A short name, which fits
    # wherever the file's own does.
    temporary = _new_name(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _created(temporary) as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too: whatever stops us, nothing half-written stays
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            full = is_disk_full(error)
            reason = "disk full" if full else (error.strerror or str(error))
            cure = fix if full or otherwise is None else otherwise
            raise ResourceError(f"{reason} while saving {path}: {cure}") from error
        raise
    if durable:
        _sync_folder(path.parent)


@contextlib.contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder in `parent` for what another library writes; then it goes.

    Raises:
        OSError: It cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = _new_name(parent)
    folder.mkdir(mode=0o700)
    try:
        held = os.open(folder, _OWN_FOLDER)
        try:
            _try_lock(held)
            yield folder
        finally:
            os.close(held)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left in a folder; temporaries in use are locked, and stay."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return  # not there yet, or not to be read
    for name in filter(_LEFTOVER.fullmatch, names):
        with contextlib.suppress(OSError):
            _remove_unless_held(folder / name)


def refuse_links(base: Path, path: Path) -> None:
    """Refuses a path below `base` that leads through a link; `base` itself may be one.

    Raises:
        ResourceError: A folder between the two, or `path` where it is a folder, is a link.
    """
    places = [path, *path.parents]
    for place in places[: places.index(base)]:
        if place.is_symlink() and (place != path or place.is_dir()):
            raise ResourceError(
                f"{place}: is a link: what is written there would land elsewhere: remove the link"
            )


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


def _new_name(folder: Path) -> Path:
    return folder / f".ccfnet-{secrets.token_hex(8)}.tmp"


def _created(path: Path) -> BinaryIO:
    """Opens a new file that is not a link; `remove_leftovers` sees that it is in use."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        _try_lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # else it was removed before it was locked
            return os.fdopen(descriptor, "wb")
        os.close(descriptor)


def _try_lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_unless_held(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


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
