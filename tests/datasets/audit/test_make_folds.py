from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.make_folds import deal, gaps, joined, split
from ccfnet_tf.datasets.audit.sequences import groups_of
from ccfnet_tf.datasets.class_and_split_lists import read_names
from ccfnet_tf.datasets.layouts import stanford_background
from ccfnet_tf.datasets.layouts.stanford_background import TWINS, fold_of, read_regions
from ccfnet_tf.datasets.open_data_set import _draw_val, _with_lists, parts_of
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import ConfigError, DataError, ResourceError
from ccfnet_tf.labels import Sample, Taxonomy, distinct_colours

NAMES = ("sky", "sea", "moon")


def random_set(samples: int, classes: int, seed: int) -> np.ndarray:
    """Pixel counts of classes from common to rare, as in real data sets."""
    rng = np.random.default_rng(seed)
    frequency = np.geomspace(0.9, 0.05, classes)
    return (rng.random((samples, classes)) < frequency) * rng.gamma(1, 1000, (samples, classes))


def features(pixels: np.ndarray) -> np.ndarray:
    return np.hstack([pixels, pixels > 0])


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=12, max_size=60),
    folds=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_any_assignment_is_valid(sizes: list[int], folds: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.random.default_rng(seed).permutation(groups)
    found = features(random_set(len(groups), 4, seed))
    where = deal(found, groups.tolist(), folds, seed)
    np.testing.assert_array_equal(where, deal(found, groups.tolist(), folds, seed))
    assert all(len(set(where[groups == unit])) == 1 for unit in range(len(sizes)))
    counts = np.bincount(where, minlength=folds)
    assert len(counts) == folds
    # Single samples even out the sizes if there are enough of them.
    if sizes.count(1) >= 2 * folds:
        assert counts.max() - counts.min() <= 1


def test_sizes_are_equal_if_units_allow_it() -> None:
    # The smallest fold first gives 7 and 5; one swap gives 6 and 6.
    groups = np.repeat(np.arange(5), [3, 3, 2, 2, 2])
    where = deal(np.zeros((12, 1)), groups.tolist(), 2, 0)
    assert np.bincount(where).tolist() == [6, 6]


def test_shares_are_far_closer_than_by_chance() -> None:
    pixels = random_set(300, 8, 0)

    def spread(where: np.ndarray) -> float:
        shares = np.array([pixels[where == k].sum(axis=0) for k in range(5)])
        return float(np.abs(5 * shares / pixels.sum(axis=0) - 1).mean())

    dealt = spread(deal(features(pixels), list(range(300)), 5, 1))
    chance = spread(np.random.default_rng(0).permutation(np.arange(300) % 5))
    assert dealt < 0.1 * chance


def test_seeds_differ() -> None:
    found = features(random_set(50, 3, 0))
    assert (deal(found, list(range(50)), 5, 0) != deal(found, list(range(50)), 5, 1)).any()


@pytest.mark.parametrize("seed", range(6))
def test_rare_classes_are_in_nearly_every_fold(seed: int) -> None:
    # 20 classes of exactly 5 images each among 150: one per fold, or a reported gap.
    rng = np.random.default_rng(seed)
    pixels = np.zeros((150, 20))
    for index in range(20):
        pixels[rng.choice(150, 5, replace=False), index] = rng.gamma(1, 1000, 5) + 1
    where = deal(features(pixels), list(range(150)), 5, seed)
    left = gaps(pixels, list(range(150)), where, 5)
    assert len(left) <= 1
    for index in {*range(20)} - {feature for _, feature in left}:
        assert sorted(where[pixels[:, index] > 0]) == [0, 1, 2, 3, 4]
    assert np.bincount(where).tolist() == [30] * 5


def test_images_of_a_rare_class_are_in_different_folds() -> None:
    # Two images of a rare class; balancing the common class alone would keep them together.
    pixels = np.array([[10.0, 1], [10, 1], [5, 0], [5, 0], [5, 0], [5, 0]] + [[0.0, 0]] * 6)
    for seed in range(10):
        where = deal(pixels, list(range(12)), 2, seed)
        assert where[0] != where[1]


def test_the_search_for_gaps_keeps_the_balance() -> None:
    impossible = np.zeros((120, 3))
    impossible[:3] = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    common = random_set(120, 4, 0)
    where = deal(features(np.hstack([common, impossible])), list(range(120)), 2, 0)
    assert len(gaps(impossible, list(range(120)), where, 2)) == 1
    shares = common[where == 0].sum(axis=0) / common.sum(axis=0)
    np.testing.assert_allclose(shares[:3], 0.5, atol=0.015)  # the fourth has 6 images


def test_unavoidable_gaps_are_reported() -> None:
    pixels = np.array([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]])
    where = deal(pixels, [0, 1, 2], 2, 0)
    left = gaps(pixels, [0, 1, 2], where, 2)
    assert len(left) == 1
    fold, feature = left[0]
    assert not pixels[where == fold, feature].any()


def test_a_class_of_fewer_units_than_folds_is_no_gap() -> None:
    pixels = np.array([[1.0], [1], [1], [0], [0], [0]])
    where = np.array([0, 0, 0, 1, 1, 1])
    assert gaps(pixels, [0, 0, 1, 2, 3, 4], where, 2) == [(1, 0)]
    assert gaps(pixels, [0, 0, 0, 1, 2, 3], where, 2) == []


def test_joined_merges_groups_of_all_keys() -> None:
    assert joined(["a", "b", "c", "d", "b"]) == [0, 1, 2, 3, 1]
    assert joined(["a", "a", "b", "c", "d"], [1, 2, 2, 3, 4]) == [0, 0, 0, 1, 2]
    assert joined(["a", "b", "c", "d"], [1, 2, 2, 1], [5, 6, 7, 6]) == [0, 0, 0, 0]


def made(tmp_path: Path, *, samples: int = 12) -> Listing:
    """Images 0..11 in three splits; 3 and 9 have the same pixels, 1 and 5 are near-duplicates."""

    def image(index: int) -> np.ndarray:
        return np.random.default_rng(3 if index == 9 else index).integers(
            0, 255, (4, 4, 3), np.uint8
        )

    def label(sample: Sample) -> np.ndarray:
        return np.full((4, 4), int(sample.name[1:]) % 3, np.int32)

    every = tuple(Sample(f"p{i}", f"{i}.jpg", f"{i}.png") for i in range(samples))
    return Listing(
        Taxonomy(NAMES, distinct_colours(3)),
        every[:6],
        every[6:8],
        every[8:],
        lambda sample: (image(int(sample.name[1:])), label(sample)),
        label,
        near_duplicates={"p1": "k", "p5": "k"},
    )


def test_split_writes_lists_for_training(tmp_path: Path) -> None:
    listing = made(tmp_path)
    steps: list[int] = []
    out = tmp_path / "lists"
    done = split(listing, out, folds=3, seed=4, advance=lambda: steps.append(1))
    assert done.folders == tuple(out / f"fold_{k}" for k in range(3))
    assert len(steps) == 12
    assert done.kept == 2
    assert done.absent == ()
    tested: list[str] = []
    for k, census in enumerate(done.census):
        parts = _with_lists(listing, out, k)
        train, test = ([s.name for s in part] for part in (parts.train, parts.test))
        assert parts.val is None
        assert len(test) == census.samples == 4
        assert (census.pictures > 0).all()
        assert sorted(train + test) == sorted(f"p{i}" for i in range(12))
        assert train == sorted(train, key=lambda name: int(name[1:]))  # in the order of the set
        for one, other in (("p3", "p9"), ("p1", "p5")):
            assert (one in test) == (other in test)
        tested += test
    assert len(set(tested)) == 12
    head = (out / "fold_1" / "test.txt").read_text().splitlines()[0]
    assert head.startswith("# Fold 1 of 0..2: data split --folds 3 --seed 4; 4 of 12 images")


def films(root: Path) -> Listing:
    """Twelve frames of four videos, in splits that do not follow the names."""
    listing = made(root)
    samples = tuple(
        Sample(f"{'ab'[i % 2]}{'cd'[i // 2 % 2]}_{i}", f"{i}.jpg", f"{i}.png") for i in range(12)
    )
    pictures = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), np.uint8)

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        index = int(sample.name.split("_")[1])
        return pictures[index], np.full((16, 16), index % 3, np.int32)

    return replace(
        listing, train=samples[:8], val=samples[8:], test=(), load=load, near_duplicates={}
    )


def test_groups_stay_in_one_fold(tmp_path: Path) -> None:
    def group_of(samples: Sequence[Sample]) -> list[str]:
        return groups_of("^(..)_", [replace(s, image=f"{s.name}.jpg") for s in samples], tmp_path)

    done = split(films(tmp_path), tmp_path / "out", folds=2, seed=0, group_of=group_of)
    assert (done.kept, done.frames) == (4, 0)
    for folder in done.folders:
        sides = [
            {name[:2] for _, name in read_names(folder / f"{p}.txt")} for p in ("train", "test")
        ]
        assert not sides[0] & sides[1]
    with pytest.raises(ConfigError, match=r"--folds is 5: expected 2 to 4"):
        split(films(tmp_path), tmp_path / "o", folds=5, seed=0, group_of=group_of)
    with pytest.raises(ConfigError, match="all 12 images are in one group"):
        split(films(tmp_path), tmp_path / "o", folds=2, seed=0, group_of=lambda s: ["x"] * len(s))


def test_similar_frames_stay_in_one_fold(tmp_path: Path) -> None:
    listing = films(tmp_path)

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Frames of the videos ac and bc differ in a single pixel."""
        image, label = listing.load(sample)
        if sample.name[1] == "c":
            image = np.full_like(image, 200 if sample.name[0] == "a" else 50)
            image[0, 0, 0] = label[0, 0]
        return image, label

    done = split(replace(listing, load=load), tmp_path / "out", folds=3, seed=0)
    assert (done.kept, done.frames) == (2, 6)
    for folder in done.folders:
        tested = {name for _, name in read_names(folder / "test.txt")}
        for film in ("ac", "bc"):
            assert sum(name.startswith(film) for name in tested) in (0, 3)


def test_a_validation_share_of_videos_is_never_empty(tmp_path: Path) -> None:
    def group_of(samples: Sequence[Sample]) -> list[str]:
        return [s.name[:2] for s in samples]

    split(films(tmp_path), tmp_path / "out", folds=2, seed=0, group_of=group_of)
    listing = _with_lists(films(tmp_path), tmp_path / "out", 0)
    train, val = _draw_val(listing, 0.1, 0)
    assert {s.name[:2] for s in train}.isdisjoint({s.name[:2] for s in val})
    assert (len(train), len(val)) == (3, 3)


def test_split_twice_is_the_same_and_another_seed_is_not(tmp_path: Path) -> None:
    listing = made(tmp_path)
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split(listing, tmp_path / name, folds=4, seed=seed)
        files = sorted((tmp_path / name).rglob("*.txt"))
        texts.append([[name for _, name in read_names(path)] for path in files])
    assert texts[0] == texts[1] != texts[2]


def test_existing_lists_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "lists"
    (out / "fold_7").mkdir(parents=True)
    (out / "fold_7" / "train.txt").write_text("mine")
    with pytest.raises(ConfigError, match="lists: already exists and is not empty"):
        split(made(tmp_path), out, folds=2, seed=0)
    assert (out / "fold_7" / "train.txt").read_text() == "mine"
    assert not (out / "fold_0").exists()


def test_near_duplicates_are_written_next_to_the_folds(tmp_path: Path) -> None:
    listing = made(tmp_path)
    first, second = listing.train[:2]
    split(
        replace(listing, near_duplicates={first.name: "x", second.name: "x"}),
        tmp_path / "l",
        folds=2,
        seed=0,
    )
    groups = [
        line.split("\t")
        for line in (tmp_path / "l" / "near_duplicates.txt").read_text().splitlines()
    ]
    assert [first.name, second.name] in groups


@pytest.mark.parametrize("folds", [0, 1, 11])
def test_invalid_numbers_of_folds(tmp_path: Path, folds: int) -> None:
    with pytest.raises(ConfigError, match=rf"--folds is {folds}: expected 2 to 10"):
        split(made(tmp_path), tmp_path / "out", folds=folds, seed=0)
    assert not (tmp_path / "out").exists()


def with_name(listing: Listing, name: str) -> Listing:
    first = replace(listing.train[0], name=name)
    return replace(listing, train=(first, *listing.train[1:]))


@pytest.mark.parametrize("name", ["#p0", " p0", "p0\n", "p\n0", "p\u20280"])
def test_names_not_allowed_in_a_list(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"^0\.jpg: the name .* is not allowed in a list") as caught:
        split(with_name(made(tmp_path), name), tmp_path / "out", folds=2, seed=0)
    assert "\n" not in str(caught.value)


def test_unpaired_files_raise(tmp_path: Path) -> None:
    lonely = DataError("z.jpg: no mask", kind="missing")
    listing = replace(made(tmp_path), unpaired=(lonely, lonely, lonely))
    with pytest.raises(DataError, match=r"^z\.jpg: no mask \(and 2 more such files\)$"):
        split(listing, tmp_path / "out", folds=2, seed=0)


def test_an_unwritable_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ResourceError, match="while writing"):
        split(made(tmp_path), tmp_path / "file" / "out", folds=2, seed=0)


@pytest.mark.slow
def test_the_shipped_folds_of_stanford(stanford_root: Path) -> None:
    names = list(fold_of())
    labels = (read_regions(stanford_root / "labels" / f"{n}.regions.txt") for n in names)
    pixels = np.array([Census.of(label, 8).pixels for label in labels])
    near_duplicates = {name: pair[0] for pair in TWINS for name in pair}
    where = deal(
        features(pixels), joined([near_duplicates.get(name, name) for name in names]), 5, 2009
    )
    assert dict(zip(names, where.tolist(), strict=True)) == fold_of()


def test_near_duplicates_not_known_to_the_layout(stanford_root: Path, tmp_path: Path) -> None:
    data = DataConfig(format="stanford_background", root=str(stanford_root))
    listing = stanford_background.read(data, stanford_root, 0)
    samples = {s.name: s for part in parts_of(listing).values() for s in part}
    chosen = tuple(samples[name] for twins in TWINS for name in twins)
    done = split(
        replace(listing, train=chosen, test=(), near_duplicates={}), tmp_path, folds=3, seed=0
    )
    assert done.kept == 6  # three exact duplicates, three near-duplicates
    for k in range(3):
        test = {name for _, name in read_names(tmp_path / f"fold_{k}" / "test.txt")}
        assert len(test) == 4
        assert all((one in test) == (other in test) for one, other in TWINS)
