"""The examples in docstrings of public names."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "name", ["datasets.open_data_set", "evaluation.confusion", "network.ccfnet"]
)
def test_the_examples_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(import_module(f"ccfnet_tf.{name}"))
    assert result.attempted
    assert not result.failed
