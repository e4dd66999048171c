"""`fit`: trains a network from a configuration and writes a run folder."""

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
from ccfnet_tf.io.parent_command import IS_PART
from ccfnet_tf.network.model import CCFNet
from ccfnet_tf.pipeline.batch import original_error, training_batches
from ccfnet_tf.pipeline.worker_sharding import Share
from ccfnet_tf.runs.checkpoint_file import FREE_SPACE
from ccfnet_tf.runs.progress import read_epoch
from ccfnet_tf.runs.run_folder import CONFIG, METRICS, read_run
from ccfnet_tf.runs.write_run_files import (
    keep_sound_rows,
    write_classes,
    write_environment,
    write_sizes,
    write_text,
)
from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.build_network import build_model, check_start, initial_run
from ccfnet_tf.training.callbacks.epoch_end import EpochEnd, Validation
from ccfnet_tf.training.callbacks.nan_guard import StopWhenNotFinite
from ccfnet_tf.training.callbacks.progress_bar import ProgressBar
from ccfnet_tf.training.callbacks.step_checkpoint import StepCheckpoint
from ccfnet_tf.training.check_data import RunData, check_data, rarity, share_of, training_load
from ccfnet_tf.training.claim_run_folder import (
    FREE_ON_RESUME,
    can_resume,
    claim,
    keep_files,
    last_checkpoint,
    locked,
    open_run,
)
from ccfnet_tf.training.data_digest import (
    Digest,
    compare_classes,
    compare_with_start,
    digest_of,
    with_earlier,
    write_digest,
)
from ccfnet_tf.training.distribution.collectives import Collectives
from ccfnet_tf.training.distribution.devices import cluster_of, make_strategy
from ccfnet_tf.training.images_not_trained_on import warn_of_seen
from ccfnet_tf.training.optimizer import scaled_rate
from ccfnet_tf.training.sigterm_flag import Preemption

NO_SPACE = os.strerror(errno.ENOSPC)

LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
"""Errors that TensorFlow raises when another worker has ended or cannot be reached."""


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

    With several workers (`train.strategy`), every worker calls it with the same arguments. Only
    the chief reads and writes the run folder. It sends the configuration and the state of the run
    to the others.

    Args:
        config: Configuration of the run. With `resume` it must be that of the existing run.
        run: The run folder; created if missing.
        resume: Resume from the last valid checkpoint.
        console: Where progress is printed.
        config_given: Whether `config` was read from a file that the user passed, not from the run.
        accept_changed_data: Resume even if images or labels have changed since the run was
            started.

    Raises:
        CCFNetError: The data, configuration, run folder, memory, disk or another worker do not
            allow training.
        TerminatedError: The process received SIGTERM. The run is saved.
    """
    cluster = cluster_of(config.train)
    chief = cluster is None or cluster.index == 0
    if chief:  # before waiting for the other workers
        config = claim(config, run, resume, config_given)
    strategy = make_strategy(config.train, cluster, console)
    workers = Collectives(strategy, cluster)
    console = console if chief else Console(quiet=True)
    with _resource_errors(config, run, workers.count), ExitStack() as stack:
        config = _receive_config(config, workers)
        resuming = chief and can_resume(run)
        if chief and not resuming:
            if resume and not IS_PART:
                console.print(f"{run}: no checkpoint yet: starting from epoch 1")
            check_start(config, console)
        data = check_data(config, console)
        digest: Digest = digest_of(data, config.data.workers)
        _refuse_other_samples(data, digest, workers)
        if resuming:  # before the network and the data pipeline are built
            unfinished = read_epoch(last_checkpoint(run)) < config.train.epochs
            accept, say = accept_changed_data and unfinished, console.print
            compare_classes(read_run(run), data.parts.taxonomy, accept=accept, say=say)
        if resuming and unfinished:
            compare_with_start(config, run, data, digest, accept=accept, say=say)
        if chief:
            digest = with_earlier(digest, run if resuming else initial_run(config.model))
            if not resuming or accept_changed_data:
                init_from = config.model.init_from
                warn_of_seen(data.parts, digest, console, init_from=init_from)
        context = _Context(run, strategy, workers, console, digest)
        trained = _train(config, context, data, resume=resume, resuming=resuming, stack=stack)
    following = [] if IS_PART else [f"next: {_next_commands(run, data)}"]
    if said := "; ".join((["trained"] if trained else []) + following):
        console.print(f"{run}: {said}", highlight=False, soft_wrap=True)


def _next_commands(run: Path, data: RunData) -> str:
    """Returns what to do with a run; calibrated is what has another split to be evaluated on."""
    folder = shlex.quote(str(run))
    evaluate = f"ccfnet-tf evaluate {folder}{_split_option(data)}"
    both = data.parts.val and data.parts.test
    return f"ccfnet-tf calibrate {folder} && {evaluate}" if both else evaluate


def _split_option(data: RunData) -> str:
    """Returns the `--split` option that `evaluate` needs if the data set has no test split."""
    if data.parts.test:
        return ""
    return f" --split {'val' if data.parts.val else 'train'}"


@dataclass(frozen=True)
class _Context:
    """Run folder, strategy, workers, console and data digest of a run."""

    run: Path
    strategy: Any
    workers: Collectives
    console: Console
    digest: Digest


def _receive_config(config: RunConfig, workers: Collectives) -> RunConfig:
    """Returns the chief's configuration, with this worker's values of machine-specific keys."""
    if workers.count == 1:
        return config
    received = from_yaml(workers.text_from_chief(to_yaml(config)), source="the chief's config.yaml")
    own = {
        key: getattr(config.data, key) for key in (*FREE_ON_RESUME["data"], "lists", "label_map")
    }
    return replace(received, data=replace(received.data, **own))


def _train(
    config: RunConfig,
    context: _Context,
    data: RunData,
    *,
    resume: bool,
    resuming: bool,
    stack: ExitStack,
) -> bool:
    """Trains the remaining epochs; returns whether there were any.

    Args:
        config: Configuration of the run.
        context: Run folder, strategy and workers.
        data: Data of the run.
        resume: Whether the run folder may already exist.
        resuming: Whether this worker resumes from a checkpoint.
        stack: Exit stack that keeps the run folder locked.
    """
    run, console, workers = context.run, context.console, context.workers
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    share, epochs = share_of(data.parts, config.train.batch, workers, console), config.train.epochs
    console.print("building the network; the first step takes a while")
    model = build_model(
        config,
        context.strategy,
        data,
        share.steps,
        console,
        fresh=workers.chief and not resuming,
    )
    if workers.chief:
        if not resuming:
            open_run(run, resume)
        stack.enter_context(locked(run))
        if not resuming:
            config = replace(config, data=keep_files(config.data, run))
    restored = checkpoint.Restored()
    if resuming:
        restored = checkpoint.restore(last_checkpoint(run), model, console.print, epochs=epochs)
    if workers.count > 1:
        restored = checkpoint.Restored(checkpoint.send(restored, model, workers))
    restored = _check_steps(restored, share.steps, run)
    progress = restored.progress
    if progress.epoch >= epochs:
        console.print(f"{run}: epoch {progress.epoch} of {epochs} is finished; nothing to resume")
        return False
    within = progress.step - progress.epoch * share.steps
    if progress.step:
        detail = f" and {within} of {share.steps} steps" if within else ""
        console.print(f"{run}: resuming after epoch {progress.epoch} of {epochs}{detail}")
    _write_start(config, context, data, share, progress.epoch)
    _learn(config, context, data, share, model=model, restored=restored)
    return True


def _check_steps(restored: checkpoint.Restored, steps: int, run: Path) -> checkpoint.Restored:
    """Checks that the number of steps per epoch has not changed, and stores it."""
    original = restored.progress.steps
    if original not in (0, steps):
        raise RunError(
            f"{run}: was started with {original} steps per epoch, but has {steps} now: the "
            "size of the training split, or the number of workers that share its shards, has "
            "changed; restore it, or start a new run in another --out"
        )
    return replace(restored, progress=replace(restored.progress, steps=steps))


def _refuse_other_samples(data: RunData, digest: Digest, workers: Collectives) -> None:
    """Checks that all workers have the same data."""
    rows = "\n".join("\t".join(row) for part in digest.values() for row in part)
    own = np.array(zlib.crc32(rows.encode()), np.int64)
    (chiefs,) = workers.from_chief([own])
    if chiefs != own:
        raise DataError(
            f"{data.parts.format}: worker {workers.index + 1} has other samples than the chief: "
            "data.root, data.lists and data.label_map must refer to the same data on every worker"
        )


def _write_start(
    config: RunConfig, context: _Context, data: RunData, share: Share, epochs_done: int
) -> None:
    """Writes the files that describe a run, and reports the devices it is trained on."""
    train, strategy = config.train, context.strategy
    devices = [device.name for device in tf.config.list_logical_devices()]
    if context.workers.count > 1:  # the list contains the devices of all machines
        devices = list(strategy.extended.worker_devices)
    if context.workers.chief:
        write_text(context.run / CONFIG, to_yaml(config))
        write_classes(context.run, data.parts.taxonomy)
        write_sizes(context.run, data.train.sizes)
        write_digest(context.run, context.digest)
        say = context.console.print
        write_environment(
            context.run, devices, train.precision, workers=context.workers.count, warn=say
        )
        keep_sound_rows(context.run / METRICS, epochs_done, say)
    replicas, workers = strategy.num_replicas_in_sync, context.workers.count
    rate = scaled_rate(train)
    context.console.print(
        f"{replicas} {'replica' if replicas == 1 else 'replicas'} on {_kinds(devices)}"
        f"{f' of each of {workers} workers' if workers > 1 else ''}, {train.precision}, "
        f"{share.steps} {'step' if share.steps == 1 else 'steps'} per epoch"
        f"{f', learning rate {rate:g}' if rate != train.learning_rate else ''}"
    )


def _learn(
    config: RunConfig,
    context: _Context,
    data: RunData,
    share: Share,
    *,
    model: CCFNet,
    restored: checkpoint.Restored,
) -> None:
    """Trains the remaining epochs."""
    parts, train, progress = data.parts, config.train, restored.progress
    preemption = Preemption()
    bar = ProgressBar(context.console, train.epochs, share.steps, train.best_by)
    epoch_end = EpochEnd(
        context.run,
        Validation(parts, data.val.sizes, config.data, context.workers, context.console),
        parts.val or parts.train,
        progress,
        train,
        preemption=preemption,
        console=context.console,
    )
    callbacks = [
        StopWhenNotFinite(progress.step, steps=share.steps, console=context.console),
        bar,
        epoch_end,
        StepCheckpoint(epoch_end, restored, steps=share.steps),
    ]
    batches = _batches(config, context, data, share)

    def learn(first_epoch: int, epochs: int, done: int) -> None:
        """Trains up to epoch `epochs`, skipping the first `done` steps of the first epoch."""
        model.fit(
            _distributed(batches, first_epoch * share.steps + done, context),
            epochs=epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=share.steps - done,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,  # the dataset is shuffled already, with the seed of the run
        )

    first, within = progress.epoch, progress.step - progress.epoch * share.steps
    with preemption.listening(), closing(bar):
        if within == share.steps:  # received SIGTERM while the epoch was validated
            has_metrics = checkpoint.restore_figures(model, restored.metrics)
            epoch_end.set_model(model)
            epoch_end.on_epoch_end(first, model.get_metrics_result() if has_metrics else {})
        elif within:  # the rest of the epoch needs a `fit` of its own, with fewer steps
            learn(first, first + 1, within)
        first += within > 0
        if first < train.epochs:
            learn(first, train.epochs, 0)


def _batches(
    config: RunConfig, context: _Context, data: RunData, share: Share
) -> Callable[[int, int], Any]:
    """Returns a function from first step and replicas to this worker's batches from there on."""
    load = training_load(config.data, data, context.console, share)

    def batches(first_step: int, replicas: int) -> Any:
        return training_batches(
            data.parts.train,
            load,
            config.data,
            batch=config.train.batch,
            seed=config.seed,
            first_step=first_step,
            rarity=rarity(config.data, data.train.census),
            share=share,
            replicas=replicas,
        )

    return batches


def _distributed(batches: Callable[[int, int], Any], first_step: int, context: _Context) -> Any:
    """Returns the batches from a step on, as the input of `model.fit`."""
    if context.workers.count == 1:
        return batches(first_step, 1)
    # These batches are already divided among workers; `fit` would divide global batches again.
    replicas = context.strategy.num_replicas_in_sync // context.workers.count
    return context.strategy.distribute_datasets_from_function(
        lambda _: batches(first_step, replicas)
    )


def _kinds(devices: Sequence[str]) -> str:
    """Returns short device names such as `CPU:0, CPU:1`; only the GPUs if there are any."""
    short = [name.rsplit("/device:", 1)[-1] for name in devices]
    return ", ".join([name for name in short if name.startswith("GPU")] or short)


@contextmanager
def _resource_errors(config: RunConfig, run: Path, workers: int = 1) -> Iterator[None]:
    """Converts TensorFlow errors that a user can fix into one-line errors."""
    try:
        yield
    except CCFNetError:
        raise
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        if NO_SPACE in str(error):  # TensorFlow raises the same error for memory and disk
            raise ResourceError(f"{run}: the disk is full; {FREE_SPACE}") from error
        raise ResourceError(
            f"out of memory with train.batch {config.train.batch}, data.crop {config.data.crop}, "
            f"train.precision {config.train.precision}: lower the batch, then the crop"
            f"{', or use bfloat16' if config.train.precision == 'float32' else ''}"
        ) from error
    except tf.errors.OpError as error:
        cause = original_error(error)
        if workers > 1 and isinstance(error, LOST):
            raise WorkerLostError(
                f"{run}: another of the {workers} workers ended or cannot be reached: see its log, "
                "then restart all workers with --resume"
            ) from error
        if cause is None:
            raise
        raise cause from error
