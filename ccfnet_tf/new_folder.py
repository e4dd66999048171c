"""A folder that is either whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ccfnet_tf.errors import ConfigError, ResourceError


def refuse_existing(out: Path) -> None:
    """Refuses a place where `new_folder` cannot make a folder.

    Raises:
        ConfigError: `out` is there and not empty, or an address of an object store.
    """
    if ":/" in str(out):
        raise ConfigError(f"{out}: give a folder on this machine, then copy it there")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: already there and not empty; choose another folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` that becomes `out` when all went well, else is removed.

    Raises:
        ConfigError: `out` is there and not empty, or an address of an object store.
        ResourceError: The disk is full or cannot be written.
    """
    refuse_existing(out)
    out = out.resolve()
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir(parents=True)
        yield unfinished
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise ResourceError(f"{reason} while writing {out}: nothing was kept") from error
        raise
