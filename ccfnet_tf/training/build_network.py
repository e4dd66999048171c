"""Builds, loads and compiles the network of a run in the scope of its strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from ccfnet_tf.config import IMAGENET, NO_WEIGHTS, ModelConfig, RunConfig
from ccfnet_tf.errors import ConfigError, RunError
from ccfnet_tf.network.backbone_weights import check_weights_file
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.check_compile_arguments import LossWeights
from ccfnet_tf.network.model import CCFNet
from ccfnet_tf.runs.checkpoint_file import MODEL, load_matching, read_arrays
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.training.check_data import RunData, class_weights
from ccfnet_tf.training.data_digest import FILE as DIGEST
from ccfnet_tf.training.data_digest import read_seen
from ccfnet_tf.training.distribution.devices import resolve_precision
from ccfnet_tf.training.optimizer import make_optimizer


def check_start(config: RunConfig, console: Console) -> None:
    """Checks the source of the initial weights, before the data are read."""
    model = config.model
    if run := initial_run(model):
        _initial_checkpoint(model)
        in_shards = "shards" in (config.data.format, read_run(run).config.data.format)
        if in_shards or not read_seen(run):
            reason = "images in shards" if in_shards else f"no readable {DIGEST}"
            console.print(
                f"warning: model.init_from {run}: {reason}: images that it was trained on are not "
                "recognised if they are in the validation or test split now",
                markup=False,
            )
    elif model.backbone_weights == NO_WEIGHTS:
        if config.freezes_random_batch_norm:
            console.print(
                "warning: train.batch_norm is frozen and the backbone is randomly initialised "
                "(model.backbone_weights none): its batch norm keeps mean 0 and variance 1, which "
                "hinders training; add --train.batch_norm synchronised"
            )
    elif model.backbone_weights != IMAGENET:
        check_weights_file(model.backbone, Path(model.backbone_weights))


def initial_run(model: ModelConfig) -> Path | None:
    """Returns the run whose weights a new network starts with, if any."""
    return None if model.init_from is None else Path(model.init_from)


def build_model(
    config: RunConfig, strategy: Any, data: RunData, steps: int, console: Console, *, fresh: bool
) -> CCFNet:
    """Builds, loads and compiles the network in the strategy's scope.

    Args:
        config: Configuration of the run.
        strategy: Strategy in whose scope the variables are created.
        data: Data of the run, for the number of classes and the class weights.
        steps: Optimizer steps per epoch.
        console: Reports which weights were loaded.
        fresh: Load the initial weights. False for a resumed run, whose weights are in its
            checkpoint and whose initial weights may no longer exist, and for workers other than
            the chief, which receive the weights of the chief.

    Raises:
        CCFNetError: The weights or the class weights do not match the network.
    """
    train, settings = config.train, config.model
    replicas = strategy.num_replicas_in_sync
    fine_tuned = fresh and settings.init_from is not None
    with strategy.scope():
        model = build_ccfnet(
            len(data.parts.taxonomy.names),
            backbone_weights=settings.backbone_weights if fresh and not fine_tuned else None,
            synchronized=replicas > 1 and train.batch_norm != "trainable",
            precision=resolve_precision(train.precision),
            **settings.architecture(),
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
            ohem_share=train.ohem_share,
            hard_pixel_weight=train.hard_pixel_weight,
            label_smoothing=train.label_smoothing,
            clip_norm=train.clip_norm,
            balanced_attention=train.balanced_attention,
            class_weights=class_weights(train.class_weights, data.train.census),
            accumulate=train.accumulate,
            fine_threshold=settings.blend_threshold if train.fine_loss_pixels == "hard" else 0.0,
            jit_compile=train.jit_compile,
        )
    return model


def freeze_batch_norm(backbone: Any) -> None:
    """Makes the backbone's batch norm non-trainable: statistics, scales and offsets are kept."""
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def _init_from(model: CCFNet, settings: ModelConfig, console: Console) -> None:
    path = _initial_checkpoint(settings)
    left_out = load_matching(model, read_arrays(path, prefix=MODEL), source=path)
    console.print(f"weights from {path}")
    if left_out:
        console.print(
            f"initialised as in a new network, since the run has no values of their shape: "
            f"{', '.join(left_out)}"
        )


def _initial_checkpoint(settings: ModelConfig) -> Path:
    """Returns the checkpoint of `model.init_from`, after checking that the backbone is the same."""
    try:
        source = read_run(str(settings.init_from))
        checkpoint = source.checkpoint()
    except RunError as error:
        raise RunError(f"model.init_from: {error}") from error
    backbone = source.config.model.backbone
    if backbone != settings.backbone:
        raise ConfigError(
            f"model.init_from {source.path}: its backbone is {backbone}, but model.backbone is "
            f"{settings.backbone}; add --model.backbone {backbone}"
        )
    return checkpoint
