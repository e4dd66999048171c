from __future__ import annotations

import pytest

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import VOID_COLOUR, Taxonomy, distinct_colours
from ccfnet_tf.palettes import accessible_colours, smallest_distance, with_palette

SAME = 2.3
"""Distance in CIELAB that people just notice (Mahy, Van Eycken and Oosterlinck, 1994)."""


@pytest.mark.parametrize("count", [1, 2, 8, 33, 150])
def test_colours_differ_however_they_are_seen(count: int) -> None:
    colours = accessible_colours(count)
    assert len(set(colours)) == count
    if count > 1:
        assert smallest_distance(colours) > SAME
        assert smallest_distance(colours) > smallest_distance(distinct_colours(count))
    assert smallest_distance((*colours, VOID_COLOUR)) > SAME


def test_eight_classes_are_far_apart() -> None:
    assert smallest_distance(accessible_colours(8)) > 10 * SAME


def test_more_classes_keep_the_first_colours() -> None:
    assert accessible_colours(40)[:8] == accessible_colours(8)


def test_pairs_that_a_deficiency_takes_for_one_are_near() -> None:
    red, dark_green, green = (255, 0, 0), (0, 102, 0), (0, 204, 0)
    assert smallest_distance((red, dark_green)) < SAME  # protanopia
    assert smallest_distance((red, green)) < 5 * SAME  # deuteranopia
    assert smallest_distance(((0, 0, 255), (255, 255, 0))) > 25 * SAME


def test_more_colours_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="10000 colours are needed, and it has 450"):
        accessible_colours(10000)
    many = Taxonomy(tuple(map(str, range(451))), distinct_colours(451))
    with pytest.raises(ConfigError, match=r"--palette is 'accessible': 451 colours .*dataset"):
        with_palette(many, "accessible")
    assert with_palette(many, "dataset") is many


def test_a_palette_keeps_the_names() -> None:
    taxonomy = Taxonomy(("sky", "tree"), ((1, 2, 3), (4, 5, 6)))
    assert with_palette(taxonomy, "dataset") is taxonomy
    other = with_palette(taxonomy, "accessible")
    assert other.names == taxonomy.names
    assert other.palette == accessible_colours(2)
