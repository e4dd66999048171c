"""`fit`: from a configuration to a run folder with a trained network."""

from __future__ import annotations

import errno
import os
import shlex
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.config import RunConfig, from_yaml, to_yaml
from ccfnet_tf.errors import CCFNetError, DataError, ResourceError, RunError, WorkerLostError
from ccfnet_tf.network.model import CCFNet
from ccfnet_tf.pipeline.batch import original_error, training_batches
from ccfnet_tf.pipeline.worker_sharding import Share
from ccfnet_tf.runs.run_files import (
    keep_sound_rows,
    write_classes,
    write_environment,
    write_sizes,
    write_text,
)
from ccfnet_tf.runs.run_folder import CONFIG, read_run
from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.build import build_model, check_start
from ccfnet_tf.training.callbacks.epoch_end import EpochEnd, Validation
from ccfnet_tf.training.callbacks.nan_guard import StopWhenNotFinite
from ccfnet_tf.training.callbacks.preemption import Preemption
from ccfnet_tf.training.callbacks.progress_bar import ProgressBar
from ccfnet_tf.training.callbacks.step_checkpoint import StepCheckpoint
from ccfnet_tf.training.data import RunData, check_data, rarity, share_of, training_load
from ccfnet_tf.training.data_digest import (
    Digest,
    compare_classes,
    compare_with_start,
    digest_of,
    write_digest,
)
from ccfnet_tf.training.distribution.collectives import Collectives
from ccfnet_tf.training.distribution.devices import cluster_of, make_strategy
from ccfnet_tf.training.optimizer import scaled_rate
from ccfnet_tf.training.resume import (
    FREE_ON_RESUME,
    claim,
    goes_on,
    keep_files,
    last_checkpoint,
    locked,
    open_run,
)

NO_SPACE = os.strerror(errno.ENOSPC)

LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
"""How TensorFlow says that another worker is gone."""


def fit(
    config: RunConfig,
    run: Path,
    *,
    resume: bool,
    console: Console,
    config_given: bool = False,
    accept_changed_data: bool = False,
) -> None:
    """Trains CCFNet and writes the run folder.

    Several workers (`train.strategy`) call it alike; the chief alone looks at the run folder and
    writes it, and says to the others what it found there.

    Args:
        config: The configuration; with `resume` it must be the run's own.
        run: The run folder; made when missing.
        resume: Go on from the last sound checkpoint.
        console: Where progress is shown.
        config_given: `config` stems from a file that the user named, not from the run.
        accept_changed_data: Go on though images or labels have changed since the run began.

    Raises:
        CCFNetError: Data, configuration, run folder, memory, disk or another worker do not allow
            it.
        TerminatedError: SIGTERM came; the run is saved.
    """
    cluster = cluster_of(config.train)
    chief = cluster is None or cluster.index == 0
    if chief:  # before others are waited for
        config = claim(config, run, resume, config_given)
    strategy = make_strategy(config.train, cluster, console)
    workers = Collectives(strategy, cluster)
    console = console if chief else Console(quiet=True)
    with _resource_errors(config, run, workers.count), ExitStack() as held:
        config = _of_chief(config, workers)
        resuming = chief and goes_on(run)
        if chief and not resuming:
            if resume:
                console.print(f"{run}: no checkpoint yet: starting from epoch 1")
            check_start(config, console)
        data = check_data(config, console)
        digest = digest_of(data, config.data.workers)
        _refuse_other_samples(data, digest, workers)
        if resuming:  # before what depends on the data is built
            unfinished = checkpoint.read_epoch(last_checkpoint(run)) < config.train.epochs
            accept, say = accept_changed_data and unfinished, console.print
            compare_classes(read_run(run), data.parts.taxonomy, accept=accept, say=say)
        if resuming and unfinished:
            compare_with_start(config, run, data, digest, accept=accept, say=say)
        place = _Place(run, strategy, workers, console, digest)
        trained = _train(config, place, data, resume=resume, resuming=resuming, held=held)
    done = "trained; " if trained else ""
    evaluate = f"ccfnet-tf evaluate {shlex.quote(str(run))}{_split_option(data)}"
    console.print(f"{run}: {done}next: {evaluate}", highlight=False, soft_wrap=True)


def _split_option(data: RunData) -> str:
    """Returns what `evaluate` needs to be told where the set has no test split."""
    if data.parts.test:
        return ""
    return f" --split {'val' if data.parts.val else 'train'}"


@dataclass(frozen=True)
class _Place:
    """Where a run is trained, and what its data are."""

    run: Path
    strategy: Any
    workers: Collectives
    console: Console
    digest: Digest


def _of_chief(config: RunConfig, workers: Collectives) -> RunConfig:
    """Returns the chief's configuration with what may differ between machines from this one's."""
    if workers.count == 1:
        return config
    theirs = from_yaml(workers.text_from_chief(to_yaml(config)), source="the chief's config.yaml")
    own = {
        key: getattr(config.data, key) for key in (*FREE_ON_RESUME["data"], "lists", "label_map")
    }
    return replace(theirs, data=replace(theirs.data, **own))


def _train(
    config: RunConfig,
    place: _Place,
    data: RunData,
    *,
    resume: bool,
    resuming: bool,
    held: ExitStack,
) -> bool:
    """Trains what is left to train; returns whether anything was.

    Args:
        config: The run's configuration.
        place: Where it is trained.
        data: What it is trained on.
        resume: The run folder may be there already.
        resuming: There is a checkpoint to go on from, and this worker reads it.
        held: Keeps the run folder locked.
    """
    run, console, workers = place.run, place.console, place.workers
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    share, epochs = share_of(data.parts, config.train.batch, workers, console), config.train.epochs
    console.print("building the network; the first step takes a while")
    model = build_model(
        config,
        place.strategy,
        data,
        share.steps,
        console,
        fresh=workers.chief and not resuming,
    )
    if workers.chief:
        if not resuming:
            open_run(run, resume)
        held.enter_context(locked(run))
        if not resuming:
            config = replace(config, data=keep_files(config.data, run))
    restored = checkpoint.Restored()
    if resuming:
        restored = checkpoint.restore(last_checkpoint(run), model, console.print, epochs=epochs)
    if workers.count > 1:
        restored = checkpoint.Restored(checkpoint.send(restored, model, workers))
    restored = _with_steps(restored, share.steps, run)
    progress = restored.progress
    if progress.epoch >= epochs:
        console.print(f"{run}: epoch {progress.epoch} of {epochs} is done; nothing to resume")
        return False
    within = progress.step - progress.epoch * share.steps
    if progress.step:
        also = f" and {within} of {share.steps} steps" if within else ""
        console.print(f"{run}: going on after epoch {progress.epoch} of {epochs}{also}")
    _write_start(config, place, data, share, progress.epoch)
    _learn(config, place, data, share, model=model, restored=restored)
    return True


def _with_steps(restored: checkpoint.Restored, steps: int, run: Path) -> checkpoint.Restored:
    """Refuses an epoch of another length: the place within a run would be another."""
    begun = restored.progress.steps
    if begun not in (0, steps):
        raise RunError(
            f"{run}: was begun with {begun} steps an epoch, which are {steps} now: the training "
            "part has another size, or shards are divided among another number of workers; bring "
            "back what it was, or begin anew in another --out"
        )
    return replace(restored, progress=replace(restored.progress, steps=steps))


def _refuse_other_samples(data: RunData, digest: Digest, workers: Collectives) -> None:
    """Refuses workers that were given unlike data."""
    rows = "\n".join("\t".join(row) for part in digest.values() for row in part)
    mine = np.array(zlib.crc32(rows.encode()), np.int64)
    (chiefs,) = workers.from_chief([mine])
    if chiefs != mine:
        raise DataError(
            f"{data.parts.format}: worker {workers.index + 1} has other samples than the chief: "
            "data.root, data.lists and data.label_map must lead to the same data on every worker"
        )


def _write_start(
    config: RunConfig, place: _Place, data: RunData, share: Share, epochs_done: int
) -> None:
    """Writes what a run is, and says on what it trains."""
    train, strategy = config.train, place.strategy
    devices = [device.name for device in tf.config.list_logical_devices()]
    if place.workers.count > 1:  # there the list is of every machine's
        devices = list(strategy.extended.worker_devices)
    if place.workers.chief:
        write_text(place.run / CONFIG, to_yaml(config))
        write_classes(place.run, data.parts.taxonomy)
        write_sizes(place.run, data.train.sizes)
        write_digest(place.run, place.digest)
        say = place.console.print
        write_environment(
            place.run, devices, train.precision, workers=place.workers.count, warn=say
        )
        keep_sound_rows(place.run / "metrics.csv", epochs_done, say)
    replicas, workers = strategy.num_replicas_in_sync, place.workers.count
    rate = scaled_rate(train)
    place.console.print(
        f"{replicas} {'replica' if replicas == 1 else 'replicas'} on {_kinds(devices)}"
        f"{f' of each of {workers} workers' if workers > 1 else ''}, {train.precision}, "
        f"{share.steps} {'step' if share.steps == 1 else 'steps'} an epoch"
        f"{f', learning rate {rate:g}' if rate != train.learning_rate else ''}"
    )


def _learn(
    config: RunConfig,
    place: _Place,
    data: RunData,
    share: Share,
    *,
    model: CCFNet,
    restored: checkpoint.Restored,
) -> None:
    """Trains from where the run is to its end."""
    parts, train, progress = data.parts, config.train, restored.progress
    console, told = place.console, Preemption()
    validation = Validation(parts, data.val.sizes, config.data, place.workers, console)
    bar = ProgressBar(console, train.epochs)
    shown = parts.val or parts.train
    epoch_end = EpochEnd(place.run, validation, shown, progress, train, told=told, console=console)
    callbacks = [
        StopWhenNotFinite(progress.step, steps=share.steps, console=console),
        bar,
        epoch_end,
        StepCheckpoint(epoch_end, restored, steps=share.steps),
    ]
    load = training_load(config.data, data, console, share)

    def batches(first_step: int, replicas: int) -> Any:
        return training_batches(
            parts.train,
            load,
            config.data,
            batch=train.batch,
            seed=config.seed,
            first_step=first_step,
            rarity=rarity(config.data, data.train.census),
            share=share,
            replicas=replicas,
        )

    def learn(first_epoch: int, epochs: int, done: int) -> None:
        """Trains to the end of `epochs`; of the first, `done` steps are done already."""
        model.fit(
            _distributed(batches, first_epoch * share.steps + done, place),
            epochs=epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=share.steps - done,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,  # the order is ours, and seeded
        )

    first, within = progress.epoch, progress.step - progress.epoch * share.steps
    with told.listening(), closing(bar):
        if within == share.steps:  # received SIGTERM while the epoch was validated
            whole = checkpoint.restore_figures(model, restored.metrics)
            epoch_end.set_model(model)
            epoch_end.on_epoch_end(first, model.get_metrics_result() if whole else {})
        elif within:  # Keras knows only whole epochs
            learn(first, first + 1, within)
        first += within > 0
        if first < train.epochs:
            learn(first, train.epochs, 0)


def _distributed(batches: Callable[[int, int], Any], first_step: int, place: _Place) -> Any:
    """Returns the batches from a step on as `model.fit` wants them."""
    if place.workers.count == 1:
        return batches(first_step, 1)
    # Whole batches would be divided once more; these are this worker's own already.
    replicas = place.strategy.num_replicas_in_sync // place.workers.count
    return place.strategy.distribute_datasets_from_function(lambda _: batches(first_step, replicas))


def _kinds(devices: Sequence[str]) -> str:
    """Returns `CPU:0, CPU:1` of TensorFlow's long names; the GPUs alone where there are any."""
    short = [name.rsplit("/device:", 1)[-1] for name in devices]
    return ", ".join([name for name in short if name.startswith("GPU")] or short)


@contextmanager
def _resource_errors(config: RunConfig, run: Path, workers: int = 1) -> Iterator[None]:
    """Turns TensorFlow's errors that a user can fix into one line."""
    try:
        yield
    except CCFNetError:
        raise
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        if NO_SPACE in str(error):  # TensorFlow has one error for memory and disk
            raise ResourceError(
                f"{run}: the disk is full; no checkpoint was damaged: free space and go on with "
                "--resume"
            ) from error
        raise ResourceError(
            f"memory ran out with train.batch {config.train.batch}, data.crop {config.data.crop}, "
            f"train.precision {config.train.precision}: lower the batch, then the crop"
            f"{', or use bfloat16' if config.train.precision == 'float32' else ''}"
        ) from error
    except tf.errors.OpError as error:
        ours = original_error(error)
        if workers > 1 and isinstance(error, LOST):
            raise WorkerLostError(
                f"{run}: another of the {workers} workers ended or cannot be reached: see its log, "
                "then start all of them again with --resume"
            ) from error
        if ours is None:
            raise
        raise ours from error
