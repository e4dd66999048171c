"""Where the real data and weights lie, when they do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Quiet before TensorFlow is first imported by any test.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Two test processes on two cores: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _find(variable: str, beside: str) -> Path:
    return Path(os.environ.get(variable, REPOSITORY.parent / "shared" / beside))


@pytest.fixture(scope="session")
def stanford_root() -> Path:
    """The real Stanford Background data set."""
    root = _find("CCFNET_STANFORD_ROOT", "data/stanford_background")
    if not (root / "horizons.txt").is_file():
        pytest.skip(f"Stanford Background is not at {root}: set CCFNET_STANFORD_ROOT")
    return root


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """ImageNet weights of MobileNetV2."""
    path = _find("CCFNET_WEIGHTS_DIR", "weights") / "mobilenet_v2_1.0_no_top.weights.h5"
    if not path.is_file():
        pytest.skip(f"no MobileNetV2 weights at {path}: set CCFNET_WEIGHTS_DIR")
    return path
