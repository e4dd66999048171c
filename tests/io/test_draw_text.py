"""Text in images, in all scripts that class names may use."""

from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.io.draw_text import draw_text, shortened, text_width


def drawn(text: str, size: int = 16) -> np.ndarray:
    image = np.full((40, 300, 3), 255, np.uint8)
    draw_text(image, text, (4, 4), size)
    return image


@pytest.mark.parametrize("letter", ["Ä", "ß", "Θ", "я", "空", "そ", "하", "ữ", "ש", "ع"])
def test_letters_of_many_scripts_are_drawn(letter: str) -> None:
    image = drawn(letter)
    assert (image < 128).any()
    assert (image != drawn("?")).any()  # Drawn for characters missing from the font.


@pytest.mark.parametrize("text", ["", "a\nb", "\x1b[31m", "\x00", "\ud800", "name\udcff.jpg"])
def test_unprintable_characters_are_drawn_as_question_marks(text: str) -> None:
    same = "".join(c if c.isprintable() else "?" for c in text)
    np.testing.assert_array_equal(drawn(text), drawn(same))
    assert text_width(text, 16) == text_width(same, 16)


def test_text_is_drawn_at_its_position() -> None:
    rows, columns = np.nonzero(drawn("Ägypten", 16).min(-1) < 200)
    assert 4 <= columns.min() <= 8
    assert columns.max() <= 4 + text_width("Ägypten", 16) + 1
    assert rows.min() >= 4
    assert rows.max() <= 4 + 16 + 5


def test_long_text_is_truncated_with_dots() -> None:
    assert shortened("sky", 14, 100) == "sky"
    cut = shortened("a very long name of a class", 14, 80)
    assert cut.endswith("...")
    assert cut.startswith("a ver")
    assert text_width(cut, 14) <= 80
