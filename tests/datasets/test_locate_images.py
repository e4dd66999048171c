from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from ccfnet_tf.datasets.locate_images import FoundImages
from tests.datasets.layouts.small_copies import photo


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_accents_match_in_both_unicode_forms(tmp_path: Path, stored: str, named: str) -> None:
    path = tmp_path / unicodedata.normalize(stored, "caf\u00e9.jpg")
    photo(path)
    text = unicodedata.normalize(named, "C:\\media\\caf\u00e9.jpg")
    assert FoundImages(tmp_path).find(text, "a list") == path
