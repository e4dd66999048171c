"""Plots: the numbers at their axes."""

from __future__ import annotations

import re

import pytest

from ccfnet_tf.report.svg_plots import Line, line_plot


@pytest.mark.parametrize("epochs", [1, 2, 4, 30])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    points = [float(n) for n in range(1, epochs + 1)], [0.5] * epochs
    plot = line_plot("x", "title", [Line("a", points)], axes=("epoch", "%"), whole=True)
    texts = re.findall("<text[^>]*>([^<]*)</text>", plot.svg)
    ticks = texts[: texts.index("epoch")]
    assert ticks
    assert all(tick.isdigit() for tick in ticks)
    assert epochs > 1 or ticks == ["1"]
