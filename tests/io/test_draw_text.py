"""Text in images: every letter that a class may be named with."""

from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.io.draw_text import draw_text, shortened, text_width


def drawn(text: str, size: int = 16) -> np.ndarray:
    picture = np.full((40, 300, 3), 255, np.uint8)
    draw_text(picture, text, (4, 4), size)
    return picture


@pytest.mark.parametrize("letter", ["Ä", "ß", "Θ", "я", "空", "そ", "하", "ữ", "ש", "ع"])
def test_letters_of_many_scripts_are_drawn(letter: str) -> None:
    picture = drawn(letter)
    assert (picture < 128).any()
    assert (picture != drawn("?")).any()  # what stands for a letter that the font lacks


@pytest.mark.parametrize("text", ["", "a\nb", "\x1b[31m", "\x00", "\ud800", "name\udcff.jpg"])
def test_what_is_no_text_is_drawn_as_question_marks(text: str) -> None:
    same = "".join(c if c.isprintable() else "?" for c in text)
    np.testing.assert_array_equal(drawn(text), drawn(same))
    assert text_width(text, 16) == text_width(same, 16)


def test_text_stays_where_it_is_put() -> None:
    rows, columns = np.nonzero(drawn("Ägypten", 16).min(-1) < 200)
    assert 4 <= columns.min() <= 8
    assert columns.max() <= 4 + text_width("Ägypten", 16) + 1
    assert rows.min() >= 4
    assert rows.max() <= 4 + 16 + 5


def test_long_text_is_cut_with_dots() -> None:
    assert shortened("sky", 14, 100) == "sky"
    cut = shortened("a very long name of a class", 14, 80)
    assert cut.endswith("...")
    assert cut.startswith("a ver")
    assert text_width(cut, 14) <= 80
