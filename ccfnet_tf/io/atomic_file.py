"""Atomic writes: a file is either complete or absent.

Other users may be able to write to the same folders. Temporary files therefore have random names,
so that nobody can place a symbolic link there in advance, and links are never followed when files
are written or deleted.
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
"""Names of temporary files; the second alternative was used by earlier versions."""

_OWN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def write_atomic(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    fix: str,
    otherwise: str | None = None,
    durable: bool = True,
) -> None:
    """Writes a temporary file and renames it, so that an existing file survives a failure.

    Args:
        path: Final path; its folder is created if needed.
        write: Writes the content to an open file.
        fix: End of the error message if the disk is full: what to do about it.
        otherwise: End of the error message for any other failure; `fix` if None.
        durable: Flush the file and its name to disk, so that a power failure after this call
            loses nothing.

    Raises:
        ResourceError: The disk is full or not writable; no temporary file is left.
    """
    # In the same folder, since a rename is atomic only within one file system. The name is short,
    # so that it is valid wherever the final name is.
    temporary = _temporary_name(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _create_locked(temporary) as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Also after Ctrl-C, no partly written file may remain.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            full = is_disk_full(error)
            reason = "disk full" if full else (error.strerror or str(error))
            advice = fix if full or otherwise is None else otherwise
            raise ResourceError(f"{reason} while saving {path}: {advice}") from error
        raise
    if durable:
        _sync_folder(path.parent)


@contextlib.contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Yields a temporary folder in `parent` for files written by another library.

    The folder is removed on exit.

    Raises:
        OSError: The folder cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary_name(parent)
    folder.mkdir(mode=0o700)
    try:
        descriptor = os.open(folder, _OWN_FOLDER)
        try:
            _try_lock(descriptor)
            yield folder
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files left by killed processes; those in use are locked and stay."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return  # The folder does not exist or cannot be read.
    for name in filter(_LEFTOVER.fullmatch, names):
        with contextlib.suppress(OSError):
            _remove_unless_held(folder / name)


def refuse_links(base: Path, path: Path) -> None:
    """Refuses a path below `base` that passes through a symbolic link; `base` itself may be one.

    Raises:
        ResourceError: A folder between `base` and `path` is a link, or `path` is a link to a
            folder.
    """
    parents = [path, *path.parents]
    for part in parents[: parents.index(base)]:
        if part.is_symlink() and (part != path or part.is_dir()):
            raise ResourceError(
                f"{part}: is a link: files would be written to its target: remove the link"
            )


def set_aside(path: Path) -> Path:
    """Renames a damaged file to an unused name in its folder, and returns the new path.

    Raises:
        ResourceError: The folder is not writable.
    """
    names = (f"{path.name}.damaged{f'.{number}' if number else ''}" for number in count())
    free = next(new for name in names if not (new := path.with_name(name)).exists())
    try:
        path.rename(free)
    except OSError as error:
        raise ResourceError(
            f"{error.strerror or error} while renaming {path}: make its folder writable"
        ) from error
    return free


def _temporary_name(folder: Path) -> Path:
    return folder / f".ccfnet-{secrets.token_hex(8)}.tmp"


def _create_locked(path: Path) -> BinaryIO:
    """Creates a file and locks it, so that `remove_leftovers` does not remove it."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        _try_lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # Otherwise it was removed before it was locked.
            return os.fdopen(descriptor, "wb")
        os.close(descriptor)


def _try_lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # The file system may not support locks.
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
    """Flushes a folder to disk where the file system supports it; the file is complete anyway."""
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
