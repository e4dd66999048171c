"""Finds the labels of images to predict that belong to a labelled data set, and counts by them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts.folder import has_classes
from ccfnet_tf.datasets.open_data_set import list_set, parts_of
from ccfnet_tf.errors import CCFNetError
from ccfnet_tf.inference.find_inputs import IMAGES_SIDE, LABELS_SIDE
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.labels import VOID, Taxonomy


@dataclass(frozen=True)
class Known:
    """What is known of the training of a network.

    Attributes:
        data: Configuration of its data.
        images: Digests of its training images.
    """

    data: DataConfig
    images: Collection[str]


class LabelsOfInputs:
    """Labels of images that belong to the data set of a run, or to one in the layout `folder`.

    The latter are images in `images/` with `masks/` beside it and a class list there or one folder
    higher. No other folder is searched.

    Args:
        images: Images to predict.
        taxonomy: Classes of the network. Other data sets are not compared.
        known: What is known of the training of the network; None for exports and servers.

    Attributes:
        images: Number of images that `count` found a label for.
        kept: Pixels of these images that are labelled in the data set and in the prediction.
        right: How many of them agree.
        trained: How many of the images the network was trained on.
        problems: Why data sets or labels are not compared, one line each.
    """

    def __init__(self, images: Iterable[Path], taxonomy: Taxonomy, known: Known | None) -> None:
        self._known = known
        self._lock = Lock()
        self._loaders: dict[Path, tuple[Callable[[], np.ndarray], Callable[[], str]]] = {}
        self.images = self.kept = self.right = self.trained = 0
        self.problems: list[str] = []
        self._own_root = None if known is None else _root(known.data)
        members: dict[Path, set[Path]] = {}
        for image in (path.resolve() for path in images):
            members.setdefault(image.parent, set()).add(image)
        wanted: dict[Path, set[Path]] = {}
        for folder, inside in members.items():
            if root := _root_above(folder, self._own_root):
                wanted.setdefault(root, set()).update(inside)
        for root, inside in wanted.items():
            self._add(root, inside, taxonomy)

    @property
    def accuracy(self) -> float | None:
        """Share of the labels kept that are right, 0..1; None if no pixel was compared."""
        return self.right / self.kept if self.kept else None

    def count(self, image: Path, predicted: np.ndarray) -> None:
        """Compares the prediction of an image with its label, if it has one. Threads may call it.

        Args:
            image: The image.
            predicted: int32 [H, W], class ids, or `VOID` for pixels without a prediction.
        """
        found = self._loaders.get(image.resolve())
        if found is None:
            return
        load, fingerprint = found
        try:
            label = load()
            trained = self._known is not None and fingerprint() in self._known.images
        except (CCFNetError, OSError) as error:
            self._miss(f"{image}: its label is not compared: {error}")
            return
        if label.shape != predicted.shape:
            (height, width), (high, wide) = label.shape, predicted.shape
            self._miss(
                f"{image}: its label is not compared: it has {width}x{height} pixels, the image "
                f"{wide}x{high}"
            )
            return
        kept = (label != VOID) & (predicted != VOID)
        right = kept & (label == predicted)
        with self._lock:
            self.images += 1
            self.kept += int(kept.sum())
            self.right += int(right.sum())
            self.trained += trained

    def _miss(self, problem: str) -> None:
        with self._lock:
            self.problems.append(problem)

    def _add(self, root: Path, wanted: set[Path], taxonomy: Taxonomy) -> None:
        """Adds those samples of a data set that are to be predicted, or the problem of the set."""
        problem = ""
        for data in self._configurations(root):
            try:
                listing = list_set(data, seed=0)
            except (CCFNetError, OSError) as error:
                problem = problem or str(error)
                continue
            if listing.taxonomy.names != taxonomy.names:
                problem = problem or (
                    f"{root}: its classes ({', '.join(listing.taxonomy.names)}) are not those of "
                    f"the network ({', '.join(taxonomy.names)})"
                )
                continue
            for samples in parts_of(listing).values():
                for sample in samples:
                    if (path := Path(sample.image).resolve()) in wanted:
                        self._loaders[path] = (
                            partial(listing.load_label, sample),
                            partial(listing.fingerprint, sample),
                        )
            return
        self.problems.append(f"labels are not compared: {problem}")

    def _configurations(self, root: Path) -> Iterator[DataConfig]:
        """Yields ways to read a data set: first with the label map and mask values of the run.

        `data.lists` may leave out images, and all folds together have each image once.
        """
        plain = DataConfig(root=str(root), format="folder")
        if self._known is not None:
            data = replace(self._known.data, root=str(root), lists=None, fold=0)
            yield data if root == self._own_root else replace(data, format="folder")
        yield plain


def _root_above(folder: Path, own: Path | None) -> Path | None:
    """Returns the root of the data set that the images of a folder belong to, if there is one.

    Args:
        folder: A resolved folder.
        own: Resolved root of the data that the run was trained on, if known.
    """
    ancestors = (folder, *folder.parents)
    if own in ancestors:
        return own
    for each in ancestors:
        if each.name == IMAGES_SIDE and (each.parent / LABELS_SIDE).is_dir():
            candidates = (each.parent, each.parent.parent)
            return next((root for root in candidates if has_classes(root)), None)
    return None


def _root(data: DataConfig) -> Path | None:
    """Returns the resolved folder of a data set; None for object stores and generated scenes."""
    return expanded(data.root).resolve() if data.root and "://" not in data.root else None
