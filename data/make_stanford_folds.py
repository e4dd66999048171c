"""Makes ccfnet_tf/datasets/stanford_background_folds.txt: python data/make_stanford_folds.py ROOT.

Five folds of 143 pictures. From a seeded random deal, pairs of units (a picture, or a pair of
near-duplicates) of equal size trade places whenever that brings the folds closer together in
two shares of each class: of labelled pixels, and of pictures that show it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ccfnet_tf.datasets.stanford_background import TAXONOMY, TWINS, read_regions

FOLDS, SEED, TRADES = 5, 2009, 30_000
LIST = Path(__file__).parents[1] / "ccfnet_tf" / "datasets" / "stanford_background_folds.txt"
HEAD = f"""\
# Stanford Background: picture id and the fold, 0..4, in which it is tested.
# The authors publish no list. This one was made by data/make_stanford_folds.py (seed {SEED}):
# 143 pictures a fold, class shares balanced, near-duplicates in one fold.
"""


def main(root: Path) -> None:
    """Deals, trades, prints the shares and writes the list."""
    names = sorted(path.name.split(".")[0] for path in (root / "labels").glob("*.regions.txt"))
    classes = len(TAXONOMY.names)
    pixels = np.array(
        [
            np.bincount(read_regions(root / "labels" / f"{n}.regions.txt").ravel() + 1,
                        minlength=classes + 1)[1:]
            for n in names
        ],
        np.float64,
    )  # fmt: skip
    features = np.hstack([pixels, pixels > 0])
    features /= features.sum(axis=0) / FOLDS  # 1 in each fold would be perfect
    kin = {name: pair[0] for pair in TWINS for name in pair}
    units: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        units.setdefault(kin.get(name, name), []).append(index)
    rng = np.random.default_rng(SEED)
    members = list(units.values())
    # Pairs first, to the folds in turn; then singles fill every fold to the same count.
    pairs = [m for m in members if len(m) == 2]
    singles = [m for m in members if len(m) == 1]
    members = pairs + [singles[i] for i in rng.permutation(len(singles))]
    fold = [i % FOLDS for i in range(len(pairs))]
    room = [len(names) // FOLDS - 2 * fold.count(f) for f in range(FOLDS)]
    fold += [f for f in range(FOLDS) for _ in range(room[f])]
    weight = np.array([features[m].sum(axis=0) for m in members])
    where = np.array(fold)
    sums = np.array([weight[where == f].sum(axis=0) for f in range(FOLDS)])
    for _ in range(TRADES):
        a, b = rng.integers(len(members), size=2)
        f, g = where[a], where[b]
        if f == g or len(members[a]) != len(members[b]):
            continue
        trial = sums[[f, g]] + (weight[b] - weight[a]) * [[1], [-1]]
        if ((trial - 1) ** 2).sum() < ((sums[[f, g]] - 1) ** 2).sum():
            sums[[f, g]], where[a], where[b] = trial, g, f
    of = {names[i]: int(where[k]) for k, m in enumerate(members) for i in m}
    LIST.write_text(HEAD + "".join(f"{name} {of[name]}\n" for name in names), encoding="ascii")
    shares = np.array([pixels[[of[n] == f for n in names]].sum(axis=0) for f in range(FOLDS)])
    print(np.round(100 * shares / shares.sum(axis=1, keepdims=True), 2))  # noqa: T201
    print(np.round(100 * pixels.sum(axis=0) / pixels.sum(), 4))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
