"""Whose a run folder is, and which configuration a run has: before anything is read or built.

A folder holds one run. A resumed run is the same run: it keeps its configuration, but for where its
data lie and what it runs on.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ccfnet_tf.config import CACHES, DataConfig, Precision, RunConfig, from_yaml, parse_every
from ccfnet_tf.datasets.splits import with_format
from ccfnet_tf.errors import ConfigError, ResourceError, RunError
from ccfnet_tf.io.atomic_file import refuse_links, remove_leftovers
from ccfnet_tf.io.new_folder import refuse_file, refuse_unwritable
from ccfnet_tf.network.weights import IMAGENET, NO_WEIGHTS
from ccfnet_tf.runs.run_files import epochs_written, write_text
from ccfnet_tf.runs.run_folder import (
    CHECKPOINTS,
    CONFIG,
    LABEL_MAP,
    LISTS,
    read_config,
    with_own_files,
)
from ccfnet_tf.training.checkpoint import BEST, PREVIOUS, read_epoch
from ccfnet_tf.training.distribution.devices import resolve_precision

FREE_ON_RESUME = {
    "data": ("root", "workers", "cache", "absent_classes"),
    "train": ("strategy", "virtual_cpus", "checkpoint_every"),
}
"""Keys of a resumed run that may change."""

LOCK = ".lock"
WRITTEN = (CHECKPOINTS, LISTS, "previews", "tensorboard")
"""Folders of a run that files are written to."""


def claim(config: RunConfig, run: Path, resume: bool, config_given: bool) -> RunConfig:
    """Refuses to mix two runs in one folder.

    Args:
        config: The configuration asked for.
        run: The run folder.
        resume: Go on with the run that is there.
        config_given: `config` stems from a file that the user named, not from the run.

    Returns:
        The configuration to use, with whole paths, the layout found and a precision.

    Raises:
        CCFNetError: The folder holds another run, none, or one that cannot go on.
    """
    stored = run / CONFIG
    if not resume:
        refuse_file(run)
        if _occupied(run):
            go_on = "go on with --resume, or " if stored.is_file() else ""
            raise RunError(f"{run}: already there and not empty; {go_on}choose another --out")
        refuse_unwritable(run)
        return _resolved(config)
    refuse_unwritable(run)
    if not stored.is_file():
        if config_given and not _occupied(run):  # one command, first and after every preemption
            return _resolved(config)
        raise RunError(f"{run}: no config.yaml, so there is no run to resume; leave --resume out")
    for name in WRITTEN:  # the folder may be a stranger's
        refuse_links(run, run / name)
        refuse_unwritable(run / name)
        remove_leftovers(run / name)
    _refuse_unwritable_lock(run / LOCK)
    remove_leftovers(run)
    if not goes_on(run):
        _refuse_lost_checkpoint(run)
        return _resolved(config)
    earlier = read_config(stored)
    now = _resolved(config, earlier.train.precision)
    now = replace(now, data=_own_where_stored(now.data, stored))
    try:
        _refuse_changes(now, earlier, run)
    except ConfigError as error:
        if not config_given:
            raise
        hint = "leave --config out: a resumed run has its own configuration"
        raise ConfigError(f"{error} ({hint})") from error
    return _with_free_keys(earlier, now)


def _refuse_unwritable_lock(lock: Path) -> None:
    """Refuses another user's run before a network is built; a link is replaced later."""
    if lock.exists() and not lock.is_symlink() and not os.access(lock, os.W_OK):
        raise ResourceError(
            f"{lock}: cannot be written: change its rights, or copy the run and resume the copy"
        )


def _occupied(run: Path) -> bool:
    return run.exists() and (not run.is_dir() or any(each.name != LOCK for each in run.iterdir()))


def _own_where_stored(data: DataConfig, stored: Path) -> DataConfig:
    """Returns `data` with the run's copies of the lists and label map that its file names."""
    named = from_yaml(stored.read_text(encoding="utf-8"), source=str(stored)).data
    same = (data.lists, data.label_map) == (named.lists, named.label_map)
    return with_own_files(data, stored.parent) if same else data


def keep_files(data: DataConfig, run: Path) -> DataConfig:
    """Copies lists and label map into the run, so that it is evaluated on what it was trained on.

    Returns:
        `data` with the copies.
    """
    if data.lists:
        lists = Path(data.lists)
        for file in (*lists.glob("*.txt"), *lists.glob(f"fold_{data.fold}/*.txt")):
            copy = run / LISTS / file.relative_to(lists)
            refuse_links(run, copy)
            write_text(copy, file.read_bytes())
    if data.label_map:
        write_text(run / LABEL_MAP, Path(data.label_map).read_bytes())
    return with_own_files(data, run)


def last_checkpoint(run: Path) -> Path:
    """Returns the file that a run goes on from, where it is sound."""
    return run / CHECKPOINTS / "last.npz"


def goes_on(run: Path) -> bool:
    """Returns whether a run has a checkpoint to go on from; a resumed run begins anew without.

    `best.npz` alone may be what a kill left before the run was first saved. Then the run begins
    anew, and comes to the same weights, which a run that goes on without its optimizer does not.

    Raises:
        RunError: The run's configuration cannot be read.
    """
    folder = run / CHECKPOINTS
    if last_checkpoint(run).is_file() or (folder / PREVIOUS).is_file():
        return True
    return (folder / BEST).is_file() and _was_saved(run)


def _was_saved(run: Path) -> bool:
    """Returns whether more was learned than a kill before the first save can leave."""
    if not (run / CONFIG).stat().st_size:  # killed between `open_run` and its first file
        return False
    every = parse_every(read_config(run / CONFIG).train.checkpoint_every)
    unsaved = every.count if every.unit == "epoch" else 1
    learned = max(epochs_written(run / "metrics.csv"), read_epoch(run / CHECKPOINTS / BEST))
    return learned > unsaved


def _refuse_lost_checkpoint(run: Path) -> None:
    """Refuses to begin anew where what was learned is lost."""
    if _was_saved(run):
        raise RunError(
            f"{last_checkpoint(run)}: missing, so the run cannot go on, and there is no {PREVIOUS} "
            f"or {BEST} beside it: start another with --out NEW"
        )


def _resolved(config: RunConfig, auto: Precision | None = None) -> RunConfig:
    """Returns the configuration with whole paths, and with a precision in place of `auto`."""
    precision = config.train.precision
    if precision == "auto":
        precision = auto or resolve_precision(precision)
    return resolved_paths(replace(config, train=replace(config.train, precision=precision)))


def resolved_paths(config: RunConfig) -> RunConfig:
    """Returns the configuration with whole paths, and with the layout that its data have."""
    model, weights = config.model, config.model.backbone_weights
    if weights not in (IMAGENET, NO_WEIGHTS):
        weights = _whole(weights)
    init_from = model.init_from and _whole(model.init_from)
    return replace(
        config,
        data=_resolved_data(config.data),
        model=replace(model, backbone_weights=weights, init_from=init_from),
    )


def _resolved_data(data: DataConfig) -> DataConfig:
    """Returns the data's configuration with whole paths and the layout that was found."""
    return replace(
        data,
        format=with_format(data).format,
        root=data.root and _whole(data.root),
        lists=data.lists and _whole(data.lists),
        label_map=data.label_map and _whole(data.label_map),
        cache=data.cache if data.cache in CACHES else _whole(data.cache),
    )


def _whole(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().resolve())


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
        raise ConfigError(f"seed is {now.seed} but {run} was begun with {earlier.seed}")
    for section in ("data", "model", "train"):
        mine, theirs = vars(getattr(now, section)), vars(getattr(earlier, section))
        for key, value in mine.items():
            if value != theirs[key] and key not in FREE_ON_RESUME.get(section, ()):
                raise ConfigError(
                    f"{section}.{key} is {value} but {run} was begun with {theirs[key]}: a resumed "
                    "run keeps its configuration; for another, use a new --out with "
                    f"--model.init_from {shlex.quote(str(run))}"
                )


def open_run(run: Path, resume: bool) -> None:
    """Makes the run folder, and claims it by its configuration file."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        os.close(_open_here(run / CONFIG, 0 if resume else os.O_EXCL))
    except FileExistsError as error:
        raise RunError(f"{run}: another run has begun there; choose another --out") from error
    except OSError as error:
        raise RunError(f"{run}: cannot be made ({error.strerror}); choose another --out") from error


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps a second process from training the same run; the system unlocks it at any end.

    Raises:
        RunError: Another process is training it.
    """
    lock = run / LOCK
    if lock.is_symlink():  # planted, or of a copy: what it leads to is none of ours
        lock.unlink()
    with os.fdopen(_open_here(lock), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{run}: another process is training it; wait for its end, or choose another --out"
            ) from error
        except OSError:  # a file system without locks: then nothing is kept out
            pass
        yield


def _open_here(path: Path, flags: int = 0) -> int:
    """Opens or makes a file to write, leaving what is in it; never what a link leads to."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)
