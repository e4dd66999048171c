"""Decides whether a run folder may be written to, and which configuration the run uses.

Runs before data are read or the network is built. A folder contains one run. A resumed run keeps
its configuration, except for the location of its data and the devices it runs on.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ccfnet_tf.config import DataConfig, Precision, RunConfig, from_yaml, parse_every
from ccfnet_tf.datasets.class_and_split_lists import part_named
from ccfnet_tf.errors import ConfigError, DataError, ResourceError, RunError, unreadable
from ccfnet_tf.io.atomic_file import refuse_links, remove_leftovers
from ccfnet_tf.io.new_folder import refuse_file, refuse_unwritable
from ccfnet_tf.runs.absolute_paths import absolute, resolved_paths
from ccfnet_tf.runs.progress import read_epoch
from ccfnet_tf.runs.run_folder import (
    CHECKPOINTS,
    CONFIG,
    LABEL_MAP,
    LISTS,
    METRICS,
    read_config,
    with_own_files,
)
from ccfnet_tf.runs.write_run_files import epochs_written, write_text
from ccfnet_tf.training.checkpoint import BEST, PREVIOUS
from ccfnet_tf.training.distribution.devices import resolve_precision

FREE_ON_RESUME = {
    "data": ("root", "workers", "cache", "absent_classes"),
    "train": ("strategy", "virtual_cpus", "checkpoint_every"),
}
"""Configuration keys that may change when a run is resumed."""

_COPIED = ("lists", "label_map")
"""Keys of `data` that name a file or folder of which a run keeps a copy."""

LOCK = ".lock"
WRITABLE_FOLDERS = (CHECKPOINTS, LISTS, "previews", "tensorboard")
"""Folders of a run that files are written to."""


def claim(config: RunConfig, run: Path, resume: bool, config_given: bool) -> RunConfig:
    """Checks that a run may use a folder, and returns its configuration.

    Args:
        config: The requested configuration.
        run: The run folder.
        resume: Resume the existing run.
        config_given: Whether `config` was read from a file that the user passed, not from the run.

    Returns:
        The configuration to use, with absolute paths, the detected data layout and a precision.

    Raises:
        CCFNetError: The folder contains another run, no run to resume, or one that cannot be
            resumed.
    """
    stored = run / CONFIG
    if not resume:
        refuse_file(run)
        if _occupied(run):
            option = "continue with --resume, or " if stored.is_file() else ""
            raise RunError(f"{run}: already exists and is not empty; {option}choose another --out")
        refuse_unwritable(run)
        return _resolved(config)
    refuse_unwritable(run)
    if not stored.is_file():
        if config_given and not _occupied(run):  # the same command may start and resume a run
            return _resolved(config)
        raise RunError(f"{run}: no config.yaml, so there is no run to resume; omit --resume")
    for name in WRITABLE_FOLDERS:  # the folder may come from an untrusted source
        refuse_links(run, run / name)
        refuse_unwritable(run / name)
        remove_leftovers(run / name)
    _refuse_unwritable_lock(run / LOCK)
    remove_leftovers(run)
    if not can_resume(run):
        _refuse_lost_checkpoint(run)
        now = _resolved(config)
        return replace(now, data=_with_copies(now.data, run))
    earlier = read_config(stored)
    now = _resolved(config, earlier.train.precision)
    now = replace(now, data=_with_copies(now.data, run))
    try:
        _refuse_changes(now, earlier, run)
    except ConfigError as error:
        if not config_given:
            raise
        hint = "omit --config: a resumed run uses its own configuration"
        raise ConfigError(f"{error} ({hint})") from error
    return _with_free_keys(earlier, now)


def _refuse_unwritable_lock(lock: Path) -> None:
    """Checks early that an existing lock file is writable; a link is replaced later."""
    if lock.exists() and not lock.is_symlink() and not os.access(lock, os.W_OK):
        raise ResourceError(
            f"{lock}: cannot be written: change its permissions, or copy the run and resume "
            "the copy"
        )


def _occupied(run: Path) -> bool:
    return run.exists() and (not run.is_dir() or any(each.name != LOCK for each in run.iterdir()))


def _with_copies(data: DataConfig, run: Path) -> DataConfig:
    """Returns `data` with the run's copies of lists and label map, where they are meant.

    They are if `data` names what config.yaml names, wherever the run was moved to since, or files
    of the same content: the options that started a run also resume it.
    """
    text = (run / CONFIG).read_text(encoding="utf-8")
    if not text:  # killed while it was started: the copies may be incomplete
        return data
    named = from_yaml(text, source=str(run / CONFIG)).data
    own = with_own_files(data, run)

    def is_meant(key: str) -> bool:
        given, copy, stored = (getattr(each, key) for each in (data, own, named))
        if given is None:
            return False
        if stored is not None and absolute(stored) == absolute(given):
            return True
        kept, found = (_contents(each, data.fold) for each in (copy, given))
        read = {name for name in found if name in kept or part_named(Path(name).stem)}
        return kept == {name: found[name] for name in read}

    return replace(data, **{key: getattr(own, key) for key in _COPIED if is_meant(key)})


def keep_files(data: DataConfig, run: Path) -> DataConfig:
    """Copies lists and label map into the run, so that it is evaluated on the same splits.

    Returns:
        `data` with the paths of the copies.
    """
    if data.lists:
        for name, content in _contents(data.lists, data.fold).items():
            copy = run / LISTS / name
            refuse_links(run, copy)
            write_text(copy, content)
    if data.label_map:
        write_text(run / LABEL_MAP, Path(data.label_map).read_bytes())
    return with_own_files(data, run)


def _contents(path: str, fold: int) -> dict[str, bytes]:
    """Returns the files of a folder of lists that a fold uses, by name, or that of a label map."""
    place = Path(path)
    lists = (*place.glob("*.txt"), *place.glob(f"fold_{fold}/*.txt"))
    files = [place] if place.is_file() else lists
    try:
        return {str(file.relative_to(place)): file.read_bytes() for file in files}
    except OSError as error:
        raise DataError(f"{path}: {unreadable(error)}") from error


def last_checkpoint(run: Path) -> Path:
    """Returns the path of the checkpoint that a run is normally resumed from."""
    return run / CHECKPOINTS / "last.npz"


def can_resume(run: Path) -> bool:
    """Returns whether a run has a checkpoint to resume from; otherwise it starts from scratch.

    If only `best.npz` exists, the run may have been killed before its complete state was first
    saved. It is then started from scratch, which reproduces the same weights. Resuming without the
    state of the optimizer would not.

    Raises:
        RunError: The configuration of the run cannot be read.
    """
    folder = run / CHECKPOINTS
    if last_checkpoint(run).is_file() or (folder / PREVIOUS).is_file():
        return True
    return (folder / BEST).is_file() and _was_saved(run)


def _was_saved(run: Path) -> bool:
    """Returns whether the run got so far that its complete state must have been saved."""
    if not (run / CONFIG).stat().st_size:  # killed between `open_run` and its first file
        return False
    every = parse_every(read_config(run / CONFIG).train.checkpoint_every)
    unsaved = every.count if every.unit == "epoch" else 1
    finished = max(epochs_written(run / METRICS), read_epoch(run / CHECKPOINTS / BEST))
    return finished > unsaved


def _refuse_lost_checkpoint(run: Path) -> None:
    """Raises an error instead of restarting a run whose checkpoints were deleted."""
    if _was_saved(run):
        raise RunError(
            f"{last_checkpoint(run)}: missing, so the run cannot be resumed, and there is no "
            f"{PREVIOUS} or {BEST} in the same folder: start another run with --out NEW"
        )


def _resolved(config: RunConfig, auto: Precision | None = None) -> RunConfig:
    """Returns the configuration with absolute paths, and with `auto` precision resolved."""
    precision = config.train.precision
    if precision == "auto":
        precision = auto or resolve_precision(precision)
    return resolved_paths(replace(config, train=replace(config.train, precision=precision)))


def _with_free_keys(earlier: RunConfig, now: RunConfig) -> RunConfig:
    sections = {
        section: replace(
            getattr(earlier, section), **{key: getattr(getattr(now, section), key) for key in keys}
        )
        for section, keys in FREE_ON_RESUME.items()
    }
    return replace(earlier, **sections)


def _refuse_changes(now: RunConfig, earlier: RunConfig, run: Path) -> None:
    if now.seed != earlier.seed:
        raise ConfigError(f"seed is {now.seed} but {run} was started with {earlier.seed}")
    for section in ("data", "model", "train"):
        values, originals = vars(getattr(now, section)), vars(getattr(earlier, section))
        for key, value in values.items():
            if value != originals[key] and key not in FREE_ON_RESUME.get(section, ()):
                raise ConfigError(
                    f"{section}.{key} is {value} but {run} was started with {originals[key]}: a "
                    "resumed run keeps its configuration; to change it, use a new --out with "
                    f"--model.init_from {shlex.quote(str(run))}"
                )


def open_run(run: Path, resume: bool) -> None:
    """Creates the run folder, and claims it by creating its configuration file."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        os.close(_open_no_follow(run / CONFIG, 0 if resume else os.O_EXCL))
    except FileExistsError as error:
        raise RunError(f"{run}: another run was started there; choose another --out") from error
    except OSError as error:
        raise RunError(
            f"{run}: cannot be created ({error.strerror}); choose another --out"
        ) from error


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Locks a run against training by a second process.

    The operating system releases the lock however the process ends.

    Raises:
        RunError: Another process is training the run.
    """
    lock = run / LOCK
    if lock.is_symlink():  # planted, or from a copied run: its target must not be written to
        lock.unlink()
    with os.fdopen(_open_no_follow(lock), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{run}: another process is training it; wait for it, or choose another --out"
            ) from error
        except OSError:  # the file system does not support locks: train without one
            pass
        yield


def _open_no_follow(path: Path, flags: int = 0) -> int:
    """Opens or creates a file for writing without truncating it or following links."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)
