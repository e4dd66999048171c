"""Finds the labels of images to predict that belong to a labelled data set, and counts by them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import has_layout
from ccfnet_tf.datasets.open_data_set import list_set, parts_of
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.labels import VOID, Taxonomy

_HIGHEST = 6
"""Folders searched for a data set above an image: ADE20K has five between root and image."""


class LabelsOfInputs:
    """Labels of the images below some folders, wherever those are part of a data set.

    The data set is the nearest folder above an image that has a known layout and the classes of
    the network.

    Args:
        images: Images to predict.
        taxonomy: Classes of the network.
        data: Configuration of the data the network was trained on, if known: its label map and
            mask values are used.
        trained: Digests of the images that the network was trained on, as far as they are known.
        say: Called with one line for every data set or label that cannot be used.

    Attributes:
        images: Number of images that `count` found a label for.
        kept: Pixels of these images that are labelled in the data set and in the prediction.
        right: How many of them agree.
        trained: How many of the images the network was trained on.
    """

    def __init__(
        self,
        images: Iterable[Path],
        taxonomy: Taxonomy,
        data: DataConfig | None,
        trained: Collection[str],
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._lock = Lock()
        self._loaders: dict[Path, tuple[Callable[[], np.ndarray], Callable[[], str]]] = {}
        self._trained = trained
        self.images = self.kept = self.right = self.trained = 0
        problems: dict[Path, str] = {}
        unused: set[str] = set()
        for folder in sorted({path.resolve().parent for path in images}):
            problem = ""
            for root in _data_sets_above(folder):
                if root not in problems:
                    problems[root] = self._add(root, taxonomy, data or DataConfig())
                problem = problems[root]
                if not problem:
                    break
            if problem:
                unused.add(problem)
        for problem in sorted(unused):
            say(f"note: labels are not compared: {problem}")

    @property
    def accuracy(self) -> float | None:
        """Share of the labels kept that are right, 0..1; None if no pixel was compared."""
        return self.right / self.kept if self.kept else None

    def count(self, image: Path, predicted: np.ndarray) -> None:
        """Compares the prediction of an image with its label, if it has one.

        Args:
            image: The image.
            predicted: int32 [H, W], class ids, or `VOID` for pixels without a prediction.
        """
        if image.resolve() not in self._loaders:
            return
        load, fingerprint = self._loaders[image.resolve()]
        try:
            label = load()
            trained = bool(self._trained) and fingerprint() in self._trained
        except DataError as error:
            self._say(f"note: {image}: its label is not compared: {error}")
            return
        if label.shape != predicted.shape:
            (height, width), (high, wide) = label.shape, predicted.shape
            self._say(
                f"note: {image}: its label is not compared: it has {width}x{height} pixels, the "
                f"image {wide}x{high}"
            )
            return
        kept = (label != VOID) & (predicted != VOID)
        right = kept & (label == predicted)
        with self._lock:
            self.images += 1
            self.kept += int(kept.sum())
            self.right += int(right.sum())
            self.trained += trained

    def _add(self, root: Path, taxonomy: Taxonomy, data: DataConfig) -> str:
        """Adds the samples of a data set; returns why they cannot be used, or an empty string."""
        try:
            # `lists` may leave out images; all folds together have every image once.
            listing = list_set(
                replace(data, root=str(root), format="auto", lists=None, fold=0), seed=0
            )
        except (ConfigError, DataError) as error:
            return str(error)
        if listing.taxonomy.names != taxonomy.names:
            return (
                f"{root}: its classes ({', '.join(listing.taxonomy.names)}) are not those of the "
                f"network ({', '.join(taxonomy.names)})"
            )
        for samples in parts_of(listing).values():
            for sample in samples:
                self._loaders[Path(sample.image).resolve()] = (
                    partial(listing.load_label, sample),
                    partial(listing.fingerprint, sample),
                )
        return ""


def _data_sets_above(folder: Path) -> list[Path]:
    """Returns the folders with a known layout that an image in `folder` may belong to.

    The nearest is first. A split of a data set may look like a data set, but lack its classes.
    """
    return [path for path in islice((folder, *folder.parents), _HIGHEST) if has_layout(path)]
