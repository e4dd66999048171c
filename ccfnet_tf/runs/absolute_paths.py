"""The configuration of a run, independent of the folder that a command was started in."""

from __future__ import annotations

from dataclasses import replace

from ccfnet_tf.config import CACHES, NAMED_WEIGHTS, DataConfig, RunConfig
from ccfnet_tf.datasets.open_data_set import with_format
from ccfnet_tf.io.home_folder import expanded


def resolved_paths(config: RunConfig) -> RunConfig:
    """Returns the configuration with absolute paths and the detected layout of its data."""
    model, weights = config.model, config.model.backbone_weights
    if weights not in NAMED_WEIGHTS:
        weights = absolute(weights)
    init_from = model.init_from and absolute(model.init_from)
    return replace(
        config,
        data=_resolved_data(config.data),
        model=replace(model, backbone_weights=weights, init_from=init_from),
    )


def _resolved_data(data: DataConfig) -> DataConfig:
    """Returns the data configuration with absolute paths and the detected layout."""
    return replace(
        data,
        format=with_format(data).format,
        root=data.root and absolute(data.root),
        lists=data.lists and absolute(data.lists),
        label_map=data.label_map and absolute(data.label_map),
        cache=data.cache if data.cache in CACHES else absolute(data.cache),
    )


def absolute(path: str) -> str:
    """Returns an absolute path; addresses such as `gs://...` stay as they are."""
    return path if "://" in path else str(expanded(path).resolve())
