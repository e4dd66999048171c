"""The result of `Predictor.predict`: labels and maps of one image, overlay, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.segmenter_protocol import Maps, Prediction
from ccfnet_tf.inference.writers import KINDS, Kind, overlay_image, with_legend, write_prediction
from ccfnet_tf.io.draw_sheet import shown_ids
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.new_folder import refuse_unwritable
from ccfnet_tf.labels import Taxonomy


class _Parts(NamedTuple):
    labels: np.ndarray
    difficulty: np.ndarray
    probabilities: np.ndarray | None


class Result(_Parts):
    """The prediction for one image; unpacks to labels, difficulty and probabilities.

    Attributes:
        labels: int32 [H, W]; class ids 0..C-1.
        difficulty: float32 [H, W]; P(coarse is wrong) = 1 - probability of coarse's label, 0..1.
        probabilities: float32 [H, W, C], sums to 1 over the classes; None for servers,
            SavedModels and files exported with `--outputs labels`.
        attention: float32 [H, W]; P(coarse is wrong) as the attention head sees it, 0..1.
        risk: float32 [H, W]; P(the label is wrong) = 1 - its probability, 0..1.
        image: uint8 [H, W, 3]; the image, RGB.
        taxonomy: Names and colours of the classes.
        name: File name of the image without suffix; `picture` for arrays.
    """

    attention: np.ndarray
    risk: np.ndarray
    image: np.ndarray
    taxonomy: Taxonomy
    name: str

    def __new__(
        cls, prediction: Prediction | Maps, image: np.ndarray, taxonomy: Taxonomy, name: str
    ) -> Result:
        """Combines a prediction and its image."""
        probabilities = prediction.probabilities if isinstance(prediction, Prediction) else None
        self = super().__new__(cls, prediction.labels, prediction.difficulty, probabilities)
        self.attention, self.risk = prediction.attention, prediction.risk
        self.image, self.taxonomy, self.name = image, taxonomy, name
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Supports copying and pickling."""
        prediction: Prediction | Maps = self._maps()
        if self.probabilities is not None:
            prediction = Prediction(*self._maps(), self.probabilities)
        return Result, (prediction, self.image, self.taxonomy, self.name)

    def _maps(self) -> Maps:
        return Maps(self.labels, self.attention, self.difficulty, self.risk)

    def overlay(self, *, legend: bool = False) -> np.ndarray:
        """Returns the image tinted by class, uint8 RGB: [H, W, 3], higher with a legend."""
        drawn = overlay_image(self.labels, self.image, self.taxonomy)
        return with_legend(drawn, shown_ids([self.labels]), self.taxonomy) if legend else drawn

    def save(
        self,
        folder: str | Path,
        name: str | None = None,
        *,
        kinds: Sequence[Kind] = KINDS,
        legends: bool = True,
    ) -> list[Path]:
        """Writes the files that `ccfnet-tf predict` writes; existing ones are replaced.

        Args:
            folder: Output folder; created if missing.
            name: Stem of the file names, perhaps in a folder below (`trip/photo`); the name of the
                image if None.
            kinds: Which files: `label`, `color`, `overlay`, and for each map its name
                (`attention`, `difficulty`, `risk`), alone or followed by `_grey`, `_npy` or
                `_tiff`.
            legends: Whether overlay and coloured maps have a legend below the image.

        Returns:
            The files, in the order of `kinds`.

        Raises:
            ConfigError: `name` would place the files outside of the folder.
            ResourceError: The folder is a file, or the disk is full or not writable; none of the
                files is kept.
        """
        folder = expanded(folder)
        name = name or self.name
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
            raise ConfigError(
                f"name is '{name}': it must stay below {folder}: leave out '..' and a leading '/'"
            )
        refuse_unwritable(folder, "folder")
        return write_prediction(
            self._maps(),
            self.image,
            folder,
            name,
            self.taxonomy,
            kinds=kinds,
            legends=legends,
        )
