"""Atomic creation of folders: a folder is either complete or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from ccfnet_tf.errors import ConfigError, ResourceError, is_disk_full

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTSUP)


def refuse_existing(out: Path) -> None:
    """Checks that `new_folder` can create a folder at `out`.

    Raises:
        ConfigError: `out` exists and is not empty, or is a URL of an object store.
    """
    if ":/" in str(out):
        raise ConfigError(f"{out}: is a URL: give a local folder, then copy it there")
    if out.is_symlink() and not out.exists():
        raise ConfigError(f"{out}: is a broken link; remove it, or give another --out")
    refuse_file(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(
            f"{out}: already exists and is not empty; remove it, or give another --out"
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `out` on success and removed on failure.

    Raises:
        ConfigError: `out` exists and is not empty, is a URL of an object store, or is being
            written by another process.
        ResourceError: The disk is full or not writable.
    """
    refuse_existing(out)
    out = out.resolve()
    missing = [folder for folder in out.parents if not folder.exists()]
    with _convert_os_errors(out), _locked(out) as unfinished:
        try:
            yield unfinished
            if out.exists():
                out.rmdir()
            unfinished.rename(out)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):  # Another process may have written to them.
                for folder in missing:
                    folder.rmdir()
            raise


def being_written(out: Path) -> bool:
    """Returns whether a process is currently in `new_folder(out)`."""
    try:
        lock = _lock(_unfinished(out))
    except (FileNotFoundError, NotADirectoryError):  # A link is not followed.
        return False
    except BlockingIOError:
        return True
    os.close(lock)
    return False


def _unfinished(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


@contextmanager
def _convert_os_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "free space" if is_disk_full(error) else "make its folder writable"
        raise ResourceError(
            f"{reason} while writing {out}: nothing was kept: {fix}, or give another --out"
        ) from error


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """Yields the temporary folder, emptied and locked by this process.

    A folder left by a killed process is reused. The lock needs a fixed name, under which others may
    place a link: it is removed and never followed.
    """
    unfinished = _unfinished(out)
    if unfinished.is_symlink():
        unfinished.unlink()
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock(unfinished)
    except (FileNotFoundError, BlockingIOError) as error:
        raise ConfigError(
            f"{out}: another process is writing it: wait until it ends, or give another --out"
        ) from error
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            raise ConfigError(f"{unfinished}: belongs to another user: remove it")
        _empty(lock)
        yield unfinished
    finally:
        os.close(lock)


def _empty(folder: int) -> None:
    """Empties an open folder; links in it are removed, not their targets."""
    for name in os.listdir(folder):
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def _lock(folder: Path) -> int:
    """Locks a folder; returns the descriptor, which releases the lock when it is closed.

    Raises:
        FileNotFoundError: The folder does not exist, or has just been renamed.
        NotADirectoryError: The path is a link or a file.
        BlockingIOError: Another process holds the lock.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino != folder.stat().st_ino:
            raise FileNotFoundError(folder)
    except OSError:
        os.close(lock)
        raise
    return lock


def refuse_unwritable(out: Path, option: str = "--out") -> None:
    """Checks, before anything is computed, that an output folder can be created and written.

    Args:
        out: The folder; it need not exist.
        option: Option that names it, used in error messages.

    Raises:
        ResourceError: `out` or a parent of it is a file or not writable.
    """
    existing = next(each for each in (out, *out.absolute().parents) if each.exists())
    refuse_file(existing, option)
    fix = f"give another {option}, or change its permissions"
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ResourceError(f"{existing}: cannot be written: {fix}")
    try:  # Permissions say nothing of /proc, or of a file system that is read-only for root.
        with TemporaryFile(dir=existing):
            pass
    except OSError as error:
        if error.errno in _NOT_WRITABLE:  # A full disk is reported later.
            reason = f"{existing}: cannot be written ({error.strerror})"
            raise ResourceError(f"{reason}: {fix}") from error


def refuse_file(out: Path, option: str = "--out") -> None:
    """Checks that an output folder is not an existing file.

    Raises:
        ResourceError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ResourceError(f"{out}: is a file, expected a folder: give another {option}")
