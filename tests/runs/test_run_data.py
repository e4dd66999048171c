"""Tests of where the data of a run are read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ccfnet_tf.config import DataConfig, RunConfig
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import Taxonomy, distinct_colours
from ccfnet_tf.runs.run_data import read_run_parts, with_data_at
from ccfnet_tf.runs.run_folder import RunInfo

TAXONOMY = Taxonomy(("sky", "tree"), distinct_colours(2))
RUN = RunInfo(
    Path("runs/a"), RunConfig(data=DataConfig(format="folder", root="/old")), TAXONOMY, (), None
)
SCENES = replace(RUN, config=RunConfig(data=DataConfig(format="scenes")))


def test_moved_data_are_read_where_they_are_now() -> None:
    assert with_data_at(RUN, "/new").config.data.root == "/new"
    assert with_data_at(RUN, None) is RUN
    assert with_data_at(SCENES, None) is SCENES


@pytest.mark.parametrize("read", [with_data_at, read_run_parts])
def test_generated_scenes_have_no_folder(read: Callable[[RunInfo, str], object]) -> None:
    expected = "--data.root is /new: runs/a was trained on generated scenes.*remove --data.root"
    with pytest.raises(ConfigError, match=expected):
        read(SCENES, "/new")
