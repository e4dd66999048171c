"""The data that a run was trained on, wherever they are stored now."""

from __future__ import annotations

from dataclasses import replace

from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.runs.run_folder import RunInfo, refuse_other_classes


def with_data_at(run: RunInfo, root: str | None) -> RunInfo:
    """Returns a run whose `data.root` is where its data are stored now.

    Args:
        run: The run.
        root: The folder; None if the data were not moved.

    Raises:
        ConfigError: A folder is given for generated scenes.
    """
    if root is None:
        return run
    data = run.config.data
    if data.format == "scenes":
        raise ConfigError(
            f"--data.root is {root}: {run.path} was trained on generated scenes, which are not "
            "read from a folder: remove --data.root"
        )
    return replace(run, config=replace(run.config, data=replace(data, root=root)))


def read_run_parts(run: RunInfo, root: str | None) -> Parts:
    """Lists the splits of a run's data.

    Args:
        run: The run.
        root: Where the data are stored now; None if they were not moved.

    Raises:
        ConfigError: A folder is given for generated scenes.
        DataError: The data cannot be read.
        RunError: The data have other classes than the run.
    """
    config = with_data_at(run, root).config
    parts = read_parts(config.data, config.seed)
    refuse_other_classes(parts.taxonomy, run)
    return parts
