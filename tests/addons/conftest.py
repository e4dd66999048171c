"""What the addons lane is held against; collected in the lane's own environment alone."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow_addons") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Its compiled operations were built for TensorFlow with CUDA; the same in Python load anywhere.
os.environ.setdefault("TF_ADDONS_PY_OPS", "1")


@pytest.fixture(scope="session")
def material() -> Path:
    """The folder that `material.py` filled in the project's environment."""
    return Path(os.environ["ADDONS_MATERIAL"])


@pytest.fixture(scope="session")
def ours(material: Path) -> Any:
    """What this project's image operations and losses answered, by name."""
    with np.load(material / "operations.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Shows what tests recorded (`record_property`)."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.split('::')[-1]}: {name}: {value}")
