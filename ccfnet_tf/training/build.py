"""The network of a run, built, loaded and compiled in the scope of its strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from ccfnet_tf.config import ModelConfig, RunConfig
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.compile_options import LossWeights
from ccfnet_tf.network.model import CCFNet
from ccfnet_tf.network.weights import IMAGENET, NO_WEIGHTS, check_weights_file
from ccfnet_tf.runs.checkpoint_file import MODEL, load_matching, read_arrays
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.training.data import RunData, class_weights
from ccfnet_tf.training.distribution.devices import resolve_precision
from ccfnet_tf.training.optimizer import make_optimizer


def check_start(config: RunConfig, console: Console) -> None:
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


def build_model(
    config: RunConfig, strategy: Any, data: RunData, steps: int, console: Console, *, fresh: bool
) -> CCFNet:
    """Builds, loads and compiles the network in the strategy's scope.

    Args:
        config: The run's configuration.
        strategy: Where its variables live.
        data: Number of classes, and counts for their weights.
        steps: Optimizer steps of an epoch.
        console: Where it is said what was loaded.
        fresh: Load what the run starts from. A resumed run has its weights in its checkpoint, and
            what it once started from may be gone; a worker gets those of the chief.

    Raises:
        CCFNetError: Weights or class weights do not fit.
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
            clip_norm=train.clip_norm,
            balanced_attention=train.balanced_attention,
            class_weights=class_weights(train.class_weights, data.train.census),
            accumulate=train.accumulate,
            jit_compile=train.jit_compile,
        )
    return model


def freeze_batch_norm(backbone: Any) -> None:
    """Keeps the statistics, scales and offsets of the backbone's batch norm as they are."""
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def _init_from(model: CCFNet, settings: ModelConfig, console: Console) -> None:
    path = _checkpoint_to_tune(settings)
    left_out = load_matching(model, read_arrays(path, prefix=MODEL), source=path)
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
