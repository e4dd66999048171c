from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccfnet_tf.datasets.label_map import LabelMap, read_label_map
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import VOID, Taxonomy

FIVE = Taxonomy(("sky", "car", "bus", "moon", "road"), tuple((i, i, i) for i in range(5)))


def mapped(folder: Path, text: str) -> LabelMap:
    path = folder / "map.yaml"
    path.write_text(text, encoding="utf-8")
    return read_label_map(path, FIVE)


def test_merging_and_dropping(tmp_path: Path) -> None:
    found = mapped(tmp_path, "vehicle: [bus, car]\nvoid: [moon]\n")
    assert found.taxonomy.names == ("sky", "vehicle", "road")
    assert found.taxonomy.palette == ((0, 0, 0), (1, 1, 1), (4, 4, 4))
    label = np.array([[0, 1, 2], [3, 4, VOID]], np.int32)
    np.testing.assert_array_equal(found.apply(label), [[0, 1, 1], [VOID, 2, VOID]])
    assert found.apply(label).dtype == np.int32


def test_merging_into_an_existing_class_keeps_its_name_and_colour(tmp_path: Path) -> None:
    found = mapped(tmp_path, "road: [sky]\n")
    assert found.taxonomy.names == ("road", "car", "bus", "moon")
    assert found.taxonomy.palette[0] == (4, 4, 4)


def test_a_class_that_is_called_void_stays(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("vehicle: [car, bus]\nvoid: [moon]\n")
    called = Taxonomy(("void", "car", "bus", "moon"), FIVE.palette[:4])
    found = read_label_map(path, called)
    assert found.taxonomy.names == ("void", "vehicle")
    assert found.apply(np.arange(VOID, 4)).tolist() == [VOID, 0, 1, 1, VOID]
    for name in ("void", "Ignore", "unlabeled"):
        path.write_text(f"{name}: [void]\n")
        assert read_label_map(path, called).table.tolist() == [VOID, 0, 1, 2, VOID]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vehicle: [bus, cra]\n", "'cra' is not a class of this data set; did you mean 'car'"),
        (
            "void: [Unlabeled]\n",
            "'Unlabeled' is not a class .* already means no class; leave it out",
        ),
        ("a: [bus]\nb: [bus]\n", "'bus' is in 'a' and 'b'"),
        ("a: bus\n", "'a' must hold a list"),
        ("a: [1]\n", "'a' must hold a list"),
        ("1: [bus]\n", "'1' must hold a list"),
        ("[bus]\n", "expected lines such as"),
        ("a: [bus\n", "not YAML"),
        ("", "expected lines such as"),
        ("void: [sky, car, bus, moon]\n", "1 classes remain"),
        ("one: [sky, car, bus, moon, road]\n", "1 classes remain"),
    ],
)
def test_invalid_maps(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"map.yaml: .*{words}") as caught:
        mapped(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_label_map(tmp_path / "no.yaml", FIVE)


@settings(max_examples=60, deadline=None)
@given(
    goal=st.lists(st.sampled_from(["x", "y", "void", "own"]), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_map_keeps_pixels_and_yields_valid_ids(
    tmp_path_factory: pytest.TempPathFactory, goal: list[str], seed: int
) -> None:
    tree: dict[str, list[str]] = {}
    for old, new in zip(FIVE.names, goal, strict=True):
        if new != "own":
            tree.setdefault(new, []).append(old)
    left = {new if new != "own" else old for old, new in zip(FIVE.names, goal, strict=True)}
    text = "".join(f"{new}: [{', '.join(olds)}]\n" for new, olds in tree.items()) or "{}\n"
    folder = tmp_path_factory.mktemp("map")
    if len(left - {"void"}) < 2:
        with pytest.raises(ConfigError, match="classes remain"):
            mapped(folder, text)
        return
    found = mapped(folder, text)
    label = np.random.default_rng(seed).integers(VOID, 5, (6, 7)).astype(np.int32)
    new = found.apply(label)
    assert new.shape == label.shape
    assert set(np.unique(new)) <= {VOID, *range(len(found.taxonomy.names))}
    for old_id, (old, group) in enumerate(zip(FIVE.names, goal, strict=True)):
        name = old if group == "own" else group
        wanted = VOID if name == "void" else found.taxonomy.names.index(name)
        assert (new[label == old_id] == wanted).all()
    assert (new[label == VOID] == VOID).all()
