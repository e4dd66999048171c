"""Writes and reads references: real images and Keras's outputs, to compare exported files with."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.errors import CCFNetError, ConfigError, DataError, first_line
from ccfnet_tf.inference.segmenter_protocol import MAPS, Maps, Prediction, refuse_no_image
from ccfnet_tf.io.npz_file import DAMAGE, parse_array
from ccfnet_tf.runtimes.manifest import LEVELS, REFERENCE, Difference

if TYPE_CHECKING:
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.runs.run_folder import RunInfo

REFERENCE_IMAGES = 6

MIN_LEAD = 1e-3
"""Smallest lead of a label's log-probability for which files of float weights must agree."""

BRANCH_LEAD = 0.05
"""Smallest distance of attention's logit from a hard blend's threshold where files must agree."""

MAX_BYTES = 1 << 31
"""Largest uncompressed size of all references of an artifact, in bytes."""


def run_parts(run: RunInfo) -> Parts:
    """Reads the data set of a run.

    Raises:
        ConfigError: The data set cannot be read, for example because it was moved.
    """
    try:
        return read_parts(run.config.data, run.config.seed)
    except CCFNetError as error:
        raise ConfigError(
            f"{run.path}: an export is verified on images of the run's data, which cannot be "
            f"read ({error}); set their new folder with --data.root"
        ) from error


def reference_images(parts: Parts, count: int = REFERENCE_IMAGES) -> list[np.ndarray]:
    """Returns evenly spaced images, uint8 [H, W, 3], of test, else val, else train."""
    samples = parts.test or parts.val or parts.train
    step = max(1, len(samples) // count)
    return [parts.load(sample)[0] for sample in samples[::step][:count]]


class Reference(NamedTuple):
    """An image and Keras's outputs for it.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        settled: bool [H, W]; whether coarse's label is clear. Where its two largest
            log-probabilities differ by less than `MIN_LEAD`, rounding may choose the other class,
            and difficulty jumps; it is not compared there.
        clear_branch: bool [H, W]; whether the branch that a hard blend chooses is clear, true for
            other blends. Where attention's logit is within `BRANCH_LEAD` of the threshold, rounding
            may choose the other branch, and everything but attention jumps; only attention is
            compared there.
        prediction: Keras's prediction.
    """

    image: np.ndarray
    settled: np.ndarray
    clear_branch: np.ndarray
    prediction: Prediction


def settled(log_probabilities: np.ndarray) -> np.ndarray:
    """Returns where the two largest of [..., C] differ by `MIN_LEAD` or more, bool [...]."""
    largest = np.partition(log_probabilities, -2, axis=-1)[..., -2:]
    return np.asarray(largest[..., 1] - largest[..., 0] >= MIN_LEAD)


def clear_branch(attention: np.ndarray, threshold: float | None) -> np.ndarray:
    """Returns where a hard blend's branch is clear, bool [...], of attention's logits [...].

    Args:
        attention: Logits of P(coarse is wrong).
        threshold: That of the blend, as a logit; None for a soft blend.
    """
    if threshold is None:
        return np.ones(attention.shape, bool)
    return np.asarray(np.abs(attention - threshold) >= BRANCH_LEAD)


def write_reference(path: Path, predictor: KerasNetwork, images: Sequence[np.ndarray]) -> None:
    """Writes images and Keras's outputs as named arrays, at most `MAX_BYTES` unless there is one.

    The keys are `NAME/N` for each name of `Reference` and `Prediction`.
    """
    arrays: dict[str, np.ndarray] = {}
    size = 0
    for number, image in enumerate(images):
        heads = predictor.head_outputs(image)
        clear = clear_branch(heads.attention, predictor.hard_threshold)
        named = {"image": image, "settled": settled(heads.coarse), "clear_branch": clear}
        named |= predictor.prediction(heads)._asdict()
        size += sum(each.nbytes for each in named.values())
        if arrays and size > MAX_BYTES:
            break
        arrays |= {f"{name}/{number}": each for name, each in named.items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_references(folder: Path) -> Iterator[Reference]:
    """Yields the references in a folder.

    Raises:
        ValueError: There are none, or the file is damaged or unpacks to more than `MAX_BYTES`.
    """
    path = folder / REFERENCE
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sum(info.file_size for info in members.values()) > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
            keys = sorted(name for name in members if name.startswith("image/"))
            if not keys:
                raise ValueError("it contains no references")
            for key in keys:
                number = key.removeprefix("image/")
                image, clear, branch, *outputs = (
                    parse_array(_read_member(archive, members[f"{name}/{number}"]))
                    for name in ("image", "settled", "clear_branch", *Prediction._fields)
                )
                reference = Reference(image, clear, branch, Prediction(*outputs))
                _check_shapes(reference)
                yield reference
    except (*DAMAGE, DataError) as error:
        reason = first_line(error)
        raise ValueError(f"{path}: damaged ({reason})") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Reads a member in chunks: a single read could allocate any amount of memory."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"compressed by method {info.compress_type}: expected stored or deflated")
    with archive.open(info) as member:
        return b"".join(iter(partial(member.read, 1 << 20), b""))


def _check_shapes(reference: Reference) -> None:
    image, *masks, prediction = reference
    refuse_no_image(image)
    size, classes = image.shape[:2], prediction.probabilities.shape[-1:]
    types: dict[str, type] = {"labels": np.int32}
    for name, array in prediction._asdict().items():
        shape = (*size, *classes) if name == "probabilities" else size
        if array.dtype != types.get(name, np.float32) or array.shape != shape:
            raise ValueError(f"{name} of {array.dtype} {list(array.shape)}")
    for mask in masks:
        if mask.dtype != bool or mask.shape != size:
            raise ValueError(f"a mask of {mask.dtype} {list(mask.shape)}")


class Gaps:
    """Accumulates differences over images and outputs."""

    def __init__(self) -> None:
        self._gaps: list[np.ndarray] = []
        self._other_labels = self._pixels = 0

    def add_prediction(self, found: Prediction | Maps, reference: Reference) -> None:
        """Adds a file's labels, maps and, where it returns them, probabilities.

        Raises:
            ValueError: An output has a wrong shape.
        """
        expected, clear = reference.prediction, reference.clear_branch
        compared = {"attention": ..., "difficulty": reference.settled & clear, "risk": clear}
        if isinstance(found, Prediction):
            same_shape("probabilities", found.probabilities, expected.probabilities)
            self.add(np.abs(found.probabilities - expected.probabilities)[clear])
        for name in MAPS:
            values, exact_values = getattr(found, name), getattr(expected, name)
            same_shape(name, values, exact_values)
            gaps = np.abs(values - exact_values)
            if isinstance(found, Maps):
                gaps = beyond_rounding(np.round(LEVELS * values), exact_values)
            self.add(gaps[compared[name]])
        same_shape("labels", found.labels, expected.labels)
        self.add_labels(found.labels[clear], expected.labels[clear])

    def add(self, gaps: np.ndarray) -> None:
        """Adds absolute differences of probabilities."""
        self._gaps.append(gaps.ravel())

    def add_labels(self, predicted: np.ndarray, expected: np.ndarray) -> None:
        """Adds predicted and expected class ids [H, W]."""
        same_shape("labels", predicted, expected)
        self._other_labels += int((predicted != expected).sum())
        self._pixels += expected.size

    def difference(self) -> Difference:
        """Returns the summary of all differences.

        Raises:
            ValueError: A difference is not finite.
        """
        differences = np.concatenate(self._gaps)
        if not np.isfinite(differences).all():
            raise ValueError("an output is not finite")
        return Difference(
            largest=float(differences.max()),
            percentile=float(np.percentile(differences, 99.9)),
            mean=float(differences.mean()),
            other_labels=self._other_labels / self._pixels,
        )


def beyond_rounding(stored: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns differences between probabilities stored as bytes and exact ones, less rounding."""
    gap = np.abs(stored.astype(np.float64) / LEVELS - expected)
    return np.maximum(0.0, gap - 0.5 / LEVELS)


def same_shape(name: str, predicted: np.ndarray, expected: np.ndarray) -> None:
    """Raises ValueError if two arrays have different shapes."""
    if predicted.shape != expected.shape:
        raise ValueError(
            f"{name} has shape {list(predicted.shape)}: expected {list(expected.shape)}"
        )
