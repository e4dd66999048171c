"""The small network and run folders of `tests/inference`."""

from __future__ import annotations

from tests.inference.conftest import make_run, model, other_model, picture, predictor

__all__ = ["make_run", "model", "other_model", "picture", "predictor"]
