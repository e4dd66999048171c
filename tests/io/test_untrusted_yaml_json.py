from __future__ import annotations

import re
from pathlib import Path

import pytest

from ccfnet_tf.datasets.label_map import read_label_map
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.io.untrusted_yaml_json import LONGEST_YAML, MOST_NODES, parse_json, parse_yaml
from ccfnet_tf.labels import Taxonomy


def aliases(levels: int, each: int = 9) -> str:
    """Returns a few hundred characters of YAML whose aliases expand to `each ** levels` values."""
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels + 1):
        inner = ", ".join([f"*a{level - 1}"] * each)
        lines.append(f"a{level}: &a{level} [{inner}]")
    return "\n".join(lines)


def test_anchors_are_supported() -> None:
    text = "base: &b {x: 1}\nmore: {<<: *b, y: [*b, *b]}"
    assert parse_yaml(text) == {"base": {"x": 1}, "more": {"x": 1, "y": [{"x": 1}, {"x": 1}]}}
    assert len(parse_yaml(aliases(3))["a3"]) == 9
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (aliases(10), f"expand to more than {MOST_NODES} values"),
        (aliases(200, 2), f"expand to more than {MOST_NODES} values"),
        (aliases(10).replace("[", "{<<: [").replace("]", "]}"), "expand to more than"),
        ("a: &a [*a]", "an alias that contains itself"),
        ("a: &a {b: *a}", "an alias that contains itself"),
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' occurs twice"),
        ("{x: {255: leaf, 255: stem}}", "line 1: key '255' occurs twice"),
        ("a: &a {b: 1, b: 2}\nc: *a", "line 1: key 'b' occurs twice"),
        ("a: *b", "line 1 is not YAML"),
        ("x: 1\ny: [", "line 2 is not YAML"),
        ("[" * 5000, "nested too deep"),
        ("x" * (LONGEST_YAML + 1), "expected at most"),
        ("x: " + "9" * 5000, "not YAML"),
        ("x: 0x" + "f" * 5000, "more than 64 bits"),
        ("x: 2001-99-99", "not YAML"),
        ("x: !!bool y0", "not YAML"),
        ("x: !!int ''", "not YAML"),
        ("? [1, 2]\n: 3", "not YAML"),
        ('x: "a\\0b"', "a NUL character"),
        ('x: "\\ud800"', "not YAML"),
        ("x: !!python/object/apply:os.system [true]", "not YAML"),
        ("x: !!python/name:os.system ", "not YAML"),
        ("x: !!python/module:this ", "not YAML"),
        ("\x00\x01", "not YAML"),
    ],
)
def test_invalid_yaml_is_a_one_line_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", b"\xff\xfe\x00", "[" * 100_000, "9" * 5000, ""])
def test_invalid_json_is_a_one_line_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="not JSON") as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_a_label_map_is_parsed_safely(tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    classes = Taxonomy(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    for text in (aliases(12), "[" * 5000, "x: 2001-99-99"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"map\.yaml: "):
            read_label_map(file, classes)
