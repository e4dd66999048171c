"""Makes ccfnet_tf/datasets/stanford_background_folds.txt: python data/make_stanford_folds.py ROOT.

Five folds of 143 images, dealt by `ccfnet_tf.datasets.audit.make_folds.deal`: near-duplicates in
one fold, and the folds alike in two shares of each class: of labelled pixels, and of images that
show it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.make_folds import deal, joined
from ccfnet_tf.datasets.layouts.stanford_background import TAXONOMY, TWINS, read_regions

FOLDS, SEED = 5, 2009
LIST = Path(__file__).parents[1] / "ccfnet_tf" / "datasets" / "stanford_background_folds.txt"
HEAD = f"""\
# Stanford Background: image id and the fold, 0..4, in which it is tested.
# The authors publish no list. This one was made by data/make_stanford_folds.py (seed {SEED}):
# 143 images a fold, class shares balanced, near-duplicates in one fold.
"""


def main(root: Path) -> None:
    """Deals, prints the shares and writes the list."""
    names = sorted(path.name.split(".")[0] for path in (root / "labels").glob("*.regions.txt"))
    labels = (read_regions(root / "labels" / f"{name}.regions.txt") for name in names)
    pixels = np.array([Census.of(label, len(TAXONOMY.names)).pixels for label in labels])
    near_duplicates = {name: pair[0] for pair in TWINS for name in pair}
    groups = joined([near_duplicates.get(name, name) for name in names])
    folds = deal(np.hstack([pixels, pixels > 0]), groups, FOLDS, SEED)
    rows = "".join(f"{name} {fold}\n" for name, fold in zip(names, folds, strict=True))
    LIST.write_text(HEAD + rows, encoding="ascii")
    shares = np.array([pixels[folds == k].sum(axis=0) for k in range(FOLDS)])
    print(np.round(100 * shares / shares.sum(axis=1, keepdims=True), 2))  # noqa: T201
    print(np.round(100 * pixels.sum(axis=0) / pixels.sum(), 4))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
