"""Locks a folder against other processes, without a file in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ccfnet_tf.errors import ResourceError, RunError


@contextmanager
def locked_folder(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Creates a folder and locks it; folders that are still empty in the end are removed again.

    The operating system releases the lock however the process ends.

    Args:
        folder: The folder.
        busy: Message of the error if another process has the lock; None waits for it.

    Raises:
        RunError: Another process has the lock.
        ResourceError: The folder cannot be created or opened.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be created or opened ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise RunError(f"{folder}: {busy}") from error
        except OSError:  # the file system does not support locks: go on without one
            pass
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # not empty
            for each in missing:
                each.rmdir()
