"""Real pictures and what Keras answers for them: what an exported file is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccfnet_tf.datasets.parts import read_parts
from ccfnet_tf.errors import CCFNetError, ConfigError
from ccfnet_tf.inference.predictor import Predictor
from ccfnet_tf.inference.runs import RunInfo

PICTURES = 6


def reference_pictures(run: RunInfo, count: int = PICTURES) -> list[np.ndarray]:
    """Returns pictures of the run's own data, uint8 [H, W, 3]: of test, else val, else train.

    Raises:
        ConfigError: The run's data are no longer where they were.
    """
    try:
        parts = read_parts(run.config.data, run.config.seed)
    except CCFNetError as error:
        raise ConfigError(
            f"{run.path}: an export is checked on pictures of the run's data, which cannot be "
            f"read ({error}); say where they are now with --data-root"
        ) from error
    samples = parts.test or parts.val or parts.train
    step = max(1, len(samples) // count)
    return [parts.load(sample)[0] for sample in samples[::step][:count]]


def write_reference(path: Path, predictor: Predictor, pictures: Sequence[np.ndarray]) -> None:
    """Writes pictures and Keras's answers as named arrays.

    Keys: `image/N` uint8 [H, W, 3], `probabilities/N` float32 [H, W, C], `difficulty/N` float32
    [H, W].
    """
    arrays: dict[str, np.ndarray] = {}
    for number, picture in enumerate(pictures):
        found = predictor.predict(picture)
        arrays[f"image/{number}"] = picture
        arrays[f"probabilities/{number}"] = found.probabilities
        arrays[f"difficulty/{number}"] = found.difficulty
    np.savez_compressed(path, allow_pickle=False, **arrays)
