"""A folder that is either whole or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ccfnet_tf.errors import ConfigError, ResourceError, is_disk_full


def refuse_existing(out: Path) -> None:
    """Refuses a place where `new_folder` cannot make a folder.

    Raises:
        ConfigError: `out` is there and not empty, or an address of an object store.
    """
    if ":/" in str(out):
        raise ConfigError(f"{out}: give a folder on this machine, then copy it there")
    if out.is_symlink() and not out.exists():
        raise ConfigError(f"{out}: a link that leads nowhere; remove it or choose another folder")
    refuse_file(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: already there and not empty; remove it or choose another folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` that becomes `out` when all went well, else is removed.

    Raises:
        ConfigError: `out` is there and not empty, an address of an object store, or being written
            by another process.
        ResourceError: The disk is full or cannot be written.
    """
    refuse_existing(out)
    out = out.resolve()
    missing = [folder for folder in out.parents if not folder.exists()]
    with _writable(out), _locked(out) as unfinished:
        try:
            yield unfinished
            if out.exists():
                out.rmdir()
            unfinished.rename(out)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):  # another process has put something there
                for folder in missing:
                    folder.rmdir()
            raise


def being_written(out: Path) -> bool:
    """Whether a process is in `new_folder(out)` at the moment."""
    try:
        lock = _lock(_unfinished(out))
    except (FileNotFoundError, NotADirectoryError):  # a link counts as no folder
        return False
    except BlockingIOError:
        return True
    os.close(lock)
    return False


def _unfinished(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        cure = "free space" if is_disk_full(error) else "see that its folder can be written"
        raise ResourceError(
            f"{reason} while writing {out}: nothing was kept: {cure}, or choose another folder"
        ) from error


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """Yields an empty folder that this process alone holds; it may be what a killed one left.

    Its name is known to all, as the lock needs it; so a link there is removed and never followed.
    """
    unfinished = _unfinished(out)
    if unfinished.is_symlink():
        unfinished.unlink()
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock(unfinished)
    except (FileNotFoundError, BlockingIOError) as error:
        raise ConfigError(
            f"{out}: another process is writing it: wait for it, or choose another folder"
        ) from error
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            raise ConfigError(f"{unfinished}: belongs to another user: remove it")
        _empty(lock)
        yield unfinished
    finally:
        os.close(lock)


def _empty(folder: int) -> None:
    """Removes what is in an open folder; links in it are removed, not what they lead to."""
    for name in os.listdir(folder):
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def _lock(folder: Path) -> int:
    """Returns the descriptor that holds a folder's lock, which ends with it or the process.

    Raises:
        FileNotFoundError: The folder is not there, or was finished at this moment.
        NotADirectoryError: It is a link, or a file.
        BlockingIOError: Another holds it.
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
    """Refuses a folder for results that cannot be made or written, before anything is computed.

    Args:
        out: The folder; it need not be there.
        option: What named it, for the message.

    Raises:
        ResourceError: A file is in its place, or the system does not allow it.
    """
    place = next(each for each in (out, *out.absolute().parents) if each.exists())
    refuse_file(place, option)
    if not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(
            f"{place}: cannot be written: give another {option}, or change its rights"
        )


def refuse_file(out: Path, option: str = "--out") -> None:
    """Refuses a file where a folder for results is to be.

    Raises:
        ResourceError: There is one.
    """
    if out.exists() and not out.is_dir():
        raise ResourceError(f"{out}: is a file, and results need a folder: give another {option}")
