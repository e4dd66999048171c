"""The data that a run was trained on, wherever they are stored now."""

from __future__ import annotations

from dataclasses import replace

from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.runs.run_folder import RunInfo, refuse_other_classes


def read_run_parts(run: RunInfo, root: str | None) -> Parts:
    """Lists the splits of a run's data.

    Args:
        run: The run.
        root: Where the data are stored now; None if they were not moved.

    Raises:
        DataError: The data cannot be read.
        RunError: The data have other classes than the run.
    """
    data = run.config.data if root is None else replace(run.config.data, root=root)
    parts = read_parts(data, run.config.seed)
    refuse_other_classes(parts.taxonomy, run)
    return parts
