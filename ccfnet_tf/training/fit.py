"""`fit`: from a configuration to a run folder with a trained network."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.config import (
    CACHES,
    DataConfig,
    ModelConfig,
    RunConfig,
    from_yaml,
    parse_every,
    to_yaml,
)
from ccfnet_tf.datasets.parts import with_format
from ccfnet_tf.errors import CCFNetError, ConfigError, ResourceError, RunError
from ccfnet_tf.inference.checkpoint_file import load_matching, read_arrays
from ccfnet_tf.inference.runs import (
    CHECKPOINTS,
    CONFIG,
    LABEL_MAP,
    LISTS,
    read_config,
    read_run,
    refuse_other_classes,
    with_own_files,
)
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.model import CCFNet, LossWeights
from ccfnet_tf.network.weights import IMAGENET, NO_WEIGHTS, check_weights_file
from ccfnet_tf.pipeline.batch import original_error, steps_per_epoch, training_batches
from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.devices import Precision, make_strategy, resolve_precision
from ccfnet_tf.training.epoch_bar import EpochBar
from ccfnet_tf.training.epoch_end import EpochEnd, Validation
from ccfnet_tf.training.guard import StopWhenNotFinite
from ccfnet_tf.training.journal import (
    epochs_written,
    write_classes,
    write_environment,
    write_text,
)
from ccfnet_tf.training.optimizer import make_optimizer
from ccfnet_tf.training.run_data import (
    RunData,
    check_data,
    class_weights,
    rarity,
    training_load,
)
from ccfnet_tf.training.save_within import SaveWithin

# A resumed run is the same run: only where its data lie and what it runs on may change.
FREE_ON_RESUME = {
    "data": ("root", "workers", "cache"),
    "train": ("strategy", "virtual_cpus", "checkpoint_every"),
}


NO_SPACE = os.strerror(errno.ENOSPC)


def fit(
    config: RunConfig, run: Path, *, resume: bool, console: Console, config_given: bool = False
) -> bool:
    """Trains CCFNet and writes the run folder.

    Args:
        config: The configuration; with `resume` it must be the run's own.
        run: The run folder; made when missing.
        resume: Go on from the last checkpoint.
        console: Where progress is shown.
        config_given: `config` stems from a file that the user named, not from the run.

    Returns:
        Whether it trained; False where all epochs were done.

    Raises:
        CCFNetError: Data, configuration, run folder, memory or disk do not allow it.
    """
    config = _claim(config, run, resume, config_given)
    if not _last(run).is_file():
        if resume:
            console.print(f"{run}: no checkpoint yet: starting from epoch 1")
        _check_start(config, console)
    data = check_data(config, console)
    with _resource_errors(config, run):
        return _train(config, run, data, console, resume=resume)


def _claim(config: RunConfig, run: Path, resume: bool, config_given: bool) -> RunConfig:
    """Refuses to mix two runs in one folder; returns the configuration to use."""
    stored = run / "config.yaml"
    if not resume:
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            go_on = "go on with --resume, or " if stored.is_file() else ""
            raise RunError(f"{run}: already there and not empty; {go_on}choose another --out")
        return _resolved(config)
    if not stored.is_file():
        raise RunError(f"{run}: no config.yaml, so there is no run to resume; leave --resume out")
    if not _last(run).is_file():
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
    return _with_free_keys(earlier, config)


def _own_where_stored(data: DataConfig, stored: Path) -> DataConfig:
    """Returns `data` with the run's copies of the lists and label map that its file names."""
    named = from_yaml(stored.read_text(encoding="utf-8"), source=str(stored)).data
    same = (data.lists, data.label_map) == (named.lists, named.label_map)
    return with_own_files(data, stored.parent) if same else data


def _keep_files(data: DataConfig, run: Path) -> DataConfig:
    """Copies lists and label map into the run, so that it is evaluated on what it was trained on.

    Returns:
        `data` with the copies.
    """
    if data.lists:
        lists = Path(data.lists)
        for file in (*lists.glob("*.txt"), *lists.glob(f"fold_{data.fold}/*.txt")):
            write_text(run / LISTS / file.relative_to(lists), file.read_text(encoding="utf-8"))
    if data.label_map:
        write_text(run / LABEL_MAP, Path(data.label_map).read_text(encoding="utf-8"))
    return with_own_files(data, run)


def _last(run: Path) -> Path:
    return run / CHECKPOINTS / "last.npz"


def _refuse_lost_checkpoint(run: Path) -> None:
    """Refuses to begin anew where epochs were learned; a kill in the first leaves a row at most."""
    if epochs_written(run / "metrics.csv") < 2:
        return
    there = (run / CHECKPOINTS / "best.npz").is_file()
    raise RunError(
        f"{_last(run)}: missing, so the run cannot go on: start another with --out NEW"
        f"{f' --model.init_from {run}' if there else ''}"
    )


def _check_start(config: RunConfig, console: Console) -> None:
    """Looks at what the weights start from, before anything is read that takes long."""
    model, train = config.model, config.train
    if model.init_from is not None:
        _checkpoint_to_tune(model)
    elif model.backbone_weights == NO_WEIGHTS:
        if train.batch_norm == "frozen":
            console.print(
                "warning: train.batch_norm is frozen and the backbone starts at random "
                "(model.backbone_weights none): its batch norm stays at mean 0 and variance 1, so "
                "little is learned; add --train.batch_norm synchronised"
            )
    elif model.backbone_weights != IMAGENET:
        check_weights_file(model.backbone, Path(model.backbone_weights))


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
                    f"--model.init_from {run}"
                )


def _train(config: RunConfig, run: Path, data: RunData, console: Console, *, resume: bool) -> bool:
    """Trains what is left to train; returns whether anything was."""
    parts, train = data.parts, config.train
    strategy = make_strategy(train)
    keras.utils.set_random_seed(config.seed)
    steps = steps_per_epoch(parts.train, train.batch)
    last = _last(run)
    resuming = last.is_file()
    if resuming:
        refuse_other_classes(parts.taxonomy, read_run(run))
    console.print("building the network; the first step takes a while")
    model = _model(config, strategy, data, steps, console, fresh=not resuming)
    if not resuming:
        _open_run(run, resume)
        config = replace(config, data=_keep_files(config.data, run))
    restored = checkpoint.Restored()
    if resuming:
        restored = checkpoint.restore(last, model, console.print)
    progress = restored.progress
    if progress.epoch >= train.epochs:
        done = f"epoch {progress.epoch} of {train.epochs} is done"
        console.print(f"{run}: {done}; nothing to resume")
        return False
    within = progress.step - progress.epoch * steps
    if progress.step:
        place = f" and {within} of {steps} steps" if within else ""
        console.print(f"{run}: going on after epoch {progress.epoch} of {train.epochs}{place}")
    write_text(run / "config.yaml", to_yaml(config))
    write_classes(run, parts.taxonomy)
    devices = [device.name for device in tf.config.list_logical_devices()]
    write_environment(run, devices, train.precision)
    replicas = strategy.num_replicas_in_sync
    console.print(
        f"{replicas} {'replica' if replicas == 1 else 'replicas'} on {_kinds(devices)}, "
        f"{train.precision}, {steps} {'step' if steps == 1 else 'steps'} an epoch"
    )

    validation = Validation(parts, data.val.sizes, config.data, console)
    bar = EpochBar(console, train.epochs)
    epoch_end = EpochEnd(
        run, validation, parts.val or parts.train, progress, train, console=console
    )
    every = parse_every(train.checkpoint_every)
    callbacks = [
        StopWhenNotFinite(progress.step),
        bar,
        epoch_end,
        SaveWithin(last, every, epoch_end, restored, steps=steps),
    ]
    load = training_load(config.data, data, console)

    def learn(first_epoch: int, epochs: int, done: int) -> None:
        """Trains to the end of `epochs`; of the first, `done` steps are done already."""
        model.fit(
            training_batches(
                parts.train,
                load,
                config.data,
                batch=train.batch,
                seed=config.seed,
                first_step=first_epoch * steps + done,
                rarity=rarity(config.data, data.train.census),
            ),
            epochs=epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=steps - done,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,  # the order is ours, and seeded
        )

    try:
        first = progress.epoch
        if within:  # Keras knows only whole epochs
            learn(first, first + 1, within)
            first += 1
        if first < train.epochs:
            learn(first, train.epochs, 0)
    finally:
        bar.close()
    return True


def _kinds(devices: Sequence[str]) -> str:
    """Returns `CPU:0, CPU:1` of TensorFlow's long names; the GPUs alone where there are any."""
    short = [name.removeprefix("/device:") for name in devices]
    return ", ".join([name for name in short if name.startswith("GPU")] or short)


def _model(
    config: RunConfig, strategy: Any, data: RunData, steps: int, console: Console, *, fresh: bool
) -> CCFNet:
    """Builds, loads and compiles the network in the strategy's scope.

    A resumed run (not `fresh`) has its weights in its checkpoint: what it once started from may
    be gone.
    """
    train, settings = config.train, config.model
    replicas = strategy.num_replicas_in_sync
    fine_tuned = fresh and settings.init_from is not None
    with strategy.scope():
        model = build_ccfnet(
            len(data.parts.taxonomy.names),
            backbone=settings.backbone,
            backbone_weights=settings.backbone_weights if fresh and not fine_tuned else None,
            head_channels=settings.head_channels,
            dropout=settings.dropout,
            attention_input=settings.attention_input,
            fine_input=settings.fine_input,
            batch_norm_momentum=settings.batch_norm_momentum,
            synchronized=replicas > 1 and train.batch_norm != "trainable",
            precision=resolve_precision(train.precision),
        )
        if fine_tuned:
            _init_from(model, settings, console)
        if train.batch_norm == "frozen":
            freeze_batch_norm(model.get_layer("backbone"))
        model.compile(
            optimizer=make_optimizer(train, steps=steps * train.epochs, model=model),
            loss_weights=LossWeights(
                coarse=train.coarse_loss_weight,
                attention=train.attention_loss_weight,
                refine=train.refine_loss_weight,
                fine=train.fine_loss_weight,
            ),
            clip_norm=train.clip_norm,
            balanced_attention=train.balanced_attention,
            class_weights=class_weights(train.class_weights, data.train.census),
        )
    return model


def freeze_batch_norm(backbone: Any) -> None:
    """Keeps the statistics, scales and offsets of the backbone's batch norm as they are."""
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def _init_from(model: CCFNet, settings: ModelConfig, console: Console) -> None:
    path = _checkpoint_to_tune(settings)
    left_out = load_matching(model, read_arrays(path), source=path)
    console.print(f"weights from {path}")
    if left_out:
        console.print(f"started anew, because their shapes differ: {', '.join(left_out)}")


def _checkpoint_to_tune(settings: ModelConfig) -> Path:
    """Returns the checkpoint of `model.init_from`, known to be of the same backbone."""
    source = read_run(str(settings.init_from))
    theirs = source.config.model.backbone
    if theirs != settings.backbone:
        raise ConfigError(
            f"model.init_from {source.path}: its backbone is {theirs}, this one's is "
            f"{settings.backbone}; add --model.backbone {theirs}"
        )
    return source.checkpoint()


def _open_run(run: Path, resume: bool) -> None:
    """Makes the run folder, and claims it by its configuration file."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with (run / CONFIG).open("a" if resume else "x"):
            pass
    except FileExistsError as error:
        raise RunError(f"{run}: another run has begun there; choose another --out") from error
    except OSError as error:
        raise RunError(f"{run}: cannot be made ({error.strerror}); choose another --out") from error


@contextmanager
def _resource_errors(config: RunConfig, run: Path) -> Iterator[None]:
    """Turns TensorFlow's errors that a user can mend into one line."""
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
        if ours is None:
            raise
        raise ours from error
