"""Benchmarks for developers, outside the wheel: `python -m benchmarks.NAME` in the checkout."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
"""PYTHONPATH of the processes that a benchmark starts."""
