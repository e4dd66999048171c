"""Predicts large images in overlapping tiles, in memory that does not grow with their classes.

Along each axis two neighbouring tiles overlap. They are joined at the middle of their overlap by a
linear ramp of at most `RAMP` pixels; the rest of the overlap is context and is discarded. So every
pixel that counts has at least (overlap - ramp) / 2 pixels of image on each side, or the border of
the image: a network whose receptive field reaches no further returns the outputs of the whole
image.

A network samples the image at multiples of 8 or 16 pixels from its corner. Tiles begin at
multiples of 16, so that they are sampled where the whole image is. The last tile of a row or column
ends with the image, and is up to 15 pixels smaller for that.

Tiles are computed row by row. A pixel is finished once no later tile reaches it: what is kept of
the unfinished ones is `RAMP` rows across the image, and `RAMP` columns of one tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.head_probabilities import to_outputs, to_probabilities
from ccfnet_tf.inference.segmenter_protocol import (
    SMALLEST,
    CascadeSegmenter,
    HeadOutputs,
    Maps,
    Prediction,
    Segmenter,
    risk_of,
    too_large,
)
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import Calibration

STRIDE = 16
"""Tiles begin at multiples of it, in pixels: the coarsest grid of features of any network."""

RAMP = 32
"""Pixels over which one tile fades into the next, at most."""

OVERLAP = 0.5
"""Share of a tile that overlaps with the next where nothing is asked for.

Of tiles of 512 pixels, 112 are then context on each side of a join: as far as the zero padding at
the border of a tile changes attention. A longer ramp does not help: both tiles are changed there.
"""

LARGEST_OVERLAP = 0.5


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into tiles.

    Attributes:
        side: Height and width of a tile in pixels, at least 32.
        overlap: Share of a tile that overlaps with the next, 0..0.5; rounded up to a multiple of
            the stride.
    """

    side: int
    overlap: float = OVERLAP


def parse_tiling(tile: str | None, overlap: str | None) -> Tiling | None:
    """Reads `--tile` and `--overlap`; returns None where no tiles are asked for.

    Raises:
        ConfigError: A value that is not accepted, or an overlap without tiles.
    """
    if tile is None:
        if overlap is not None:
            raise ConfigError("--overlap is given without --tile: add --tile 512, or leave it out")
        return None
    if not (tile.isascii() and tile.isdecimal() and int(tile) >= SMALLEST):
        raise ConfigError(
            f"--tile is '{tile}': expected the side of a tile in pixels, at least {SMALLEST}, "
            "such as 512"
        )
    return Tiling(int(tile), OVERLAP if overlap is None else _parse_overlap(overlap))


def _parse_overlap(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= LARGEST_OVERLAP:
        raise ConfigError(
            f"--overlap is '{text}': expected a share of the tile from 0 to {LARGEST_OVERLAP:g}, "
            f"such as {OVERLAP:g}"
        )
    return share


@dataclass(frozen=True, eq=False)
class Span:
    """One axis of a tile, in pixels of the image.

    Attributes:
        start: First pixel that the network sees.
        stop: End of what the network sees.
        begin: First pixel that counts.
        end: End of what counts.
        before: How many pixels from `begin` on are shared with the previous tile.
        after: How many pixels up to `end` are shared with the next tile.
    """

    start: int
    stop: int
    begin: int
    end: int
    before: int
    after: int

    @property
    def weights(self) -> np.ndarray:
        """Weights of the pixels `begin` to `end`, float32; those of all tiles add up to 1."""
        values = np.ones(self.end - self.begin, np.float32)
        values[: self.before] = _ramp(self.before)
        values[len(values) - self.after :] = _ramp(self.after)[::-1]
        return values


def _ramp(length: int) -> np.ndarray:
    """Returns rising weights, float32 [length]; none is 1/2, as `length` is even."""
    return (np.arange(length, dtype=np.float32) + np.float32(0.5)) / np.float32(max(1, length))


def cut(length: int, tiling: Tiling) -> list[Span]:
    """Cuts one axis of an image, `length` pixels, into overlapping tiles."""
    if length <= tiling.side:
        return [Span(0, length, 0, length, 0, 0)]
    step = int(tiling.side * (1 - tiling.overlap) + 1e-6) // STRIDE * STRIDE
    last = -(-(length - tiling.side) // STRIDE) * STRIDE
    starts = [*range(0, last, step), last]
    stops = [*(start + tiling.side for start in starts[:-1]), length]
    # Even, at most half of an overlap, and at most the distance of two joins.
    ramp = min(RAMP, (tiling.side - step) // 4 * 2, step // 4 * 2)
    joins = [(a + b) // 2 for a, b in zip(starts[1:], stops[:-1], strict=True)]
    begins = [0, *(join - ramp // 2 for join in joins)]
    ends = [*(join + ramp // 2 for join in joins), length]
    befores, afters = [0, *[ramp] * len(joins)], [*[ramp] * len(joins), 0]
    return [Span(*each) for each in zip(starts, stops, begins, ends, befores, afters, strict=True)]


Tile = tuple[Span, Span]
"""Rows and columns."""

Track = Callable[[Sequence[Tile]], Iterable[Tile]]
"""Passes tiles through, and reports how many are done."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Maps of a part of the image that is finished.

    Attributes:
        top: First row in the image.
        left: First column in the image.
        maps: [h, w] or [h, w, K] each.
    """

    top: int
    left: int
    maps: list[np.ndarray]


def pieces(
    image: np.ndarray,
    tiling: Tiling,
    maps_of: Callable[[np.ndarray], Sequence[np.ndarray]],
    track: Track = iter,
) -> Iterator[Piece]:
    """Yields the maps of an image in pieces that cover every pixel once.

    Args:
        image: uint8 [H, W, 3].
        tiling: How it is cut.
        maps_of: Returns the maps of a tile, [h, w] or [h, w, K] each, always of the same kinds.
            Floats fade from one tile into the next; integers, such as class ids, change at the
            middle of the overlap.
        track: Passes the tiles through.
    """
    rows, columns = (cut(length, tiling) for length in image.shape[:2])
    joins: list[_Join] = []
    for row, column in track([(row, column) for row in rows for column in columns]):
        maps = maps_of(image[row.start : row.stop, column.start : column.stop])
        joins = joins or [_Join(image.shape[1], each) for each in maps]
        finished = [join.add(each, row, column) for join, each in zip(joins, maps, strict=True)]
        yield Piece(row.begin, column.begin, finished)


class _Join:
    """Joins one map of all tiles of an image, which come row by row.

    Args:
        width: Of the image.
        like: This map of any tile.
    """

    def __init__(self, width: int, like: np.ndarray) -> None:
        self._left = np.empty(0, like.dtype)  # sums of the columns shared with the next tile
        # Sums of the rows shared with the next row of tiles.
        self._above = np.empty((RAMP, width, *like.shape[2:]), like.dtype)

    def add(self, values: np.ndarray, row: Span, column: Span) -> np.ndarray:
        """Adds a tile; returns the part of it that no later tile reaches."""
        weights = np.outer(row.weights, column.weights)
        if np.issubdtype(values.dtype, np.integer):
            weights = np.outer(np.rint(row.weights), np.rint(column.weights)).astype(values.dtype)
        inside = values[
            row.begin - row.start : row.end - row.start,
            column.begin - column.start : column.end - column.start,
        ]
        sums = inside * weights.reshape(*weights.shape, *[1] * (values.ndim - 2))
        # The shared columns have their upper sums from the previous tile.
        first, last = column.begin + column.before, column.end - column.after
        sums[: row.before, column.before :] += self._above[: row.before, first : column.end]
        if column.before:
            sums[:, : column.before] += self._left
        height, width = len(sums) - row.after, last - column.begin
        self._left = sums[:, width:].copy()
        self._above[: row.after, column.begin : last] = sums[height:, :width]
        return sums[:height, :width]


class TiledNetwork:
    """Predicts an image in tiles; an image of at most one tile as the network does.

    Args:
        network: Any network.
        tiling: The tiles.
        track: Passes the tiles of an image through, to show progress.

    Attributes:
        taxonomy: The network's.
        at_once: The network's.
        calibration: The network's.
    """

    def __init__(self, network: Segmenter, tiling: Tiling, track: Track = iter) -> None:
        self._network = network
        self._tiling = tiling
        self._track = track
        self.taxonomy: Taxonomy = network.taxonomy
        self.at_once: int = network.at_once
        self.calibration: Calibration = network.calibration

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels every pixel.

        Args:
            image: uint8 [H, W, 3], RGB, upright, any size.

        Returns:
            The network's prediction where one tile holds the image, else `Maps`: probabilities of
            a large image would take gigabytes.

        Raises:
            DataError, ImageTooLargeError, ResourceError: As in `Segmenter.predict`.
        """
        if self._fits(image):
            return self._network.predict(image)
        try:
            return self._predict_tiles(image)
        except MemoryError as error:
            raise too_large(image) from error

    def _fits(self, image: np.ndarray) -> bool:
        return max(image.shape[:2]) <= self._tiling.side

    def _pieces(
        self, image: np.ndarray, maps_of: Callable[[np.ndarray], Sequence[np.ndarray]]
    ) -> Iterator[Piece]:
        return pieces(image, self._tiling, maps_of, self._track)

    def _predict_tiles(self, image: np.ndarray) -> Maps:
        def maps_of(tile: np.ndarray) -> list[np.ndarray]:
            found = self._network.predict(tile)
            maps = [getattr(found, name) for name in Maps._fields]
            if isinstance(found, Prediction):
                maps.append(self.calibration.uncalibrated(found.probabilities))
            return maps

        result = _empty_maps(image)
        for piece in self._pieces(image, maps_of):
            labels, attention, difficulty, risk, *probabilities = piece.maps
            if probabilities:
                labels = probabilities[0].argmax(axis=-1)
                risk = risk_of(labels, self.calibration.calibrated(probabilities[0]))
            _put(result, piece, Maps(labels, attention, difficulty, risk))
        return result


class TiledCascade(TiledNetwork):
    """Joins the probabilities of every head; maps follow from them.

    Args:
        network: A network whose heads can be read.
        tiling: The tiles.
        track: Passes the tiles of an image through, to show progress.
    """

    def __init__(self, network: CascadeSegmenter, tiling: Tiling, track: Track = iter) -> None:
        super().__init__(network, tiling, track)
        self._cascade = network

    def head_outputs(self, image: np.ndarray, /) -> HeadOutputs:
        """Computes the outputs of all heads for all of the image, which must fit into memory.

        Argument and errors as in `predict`.
        """
        if self._fits(image):
            return self._cascade.head_outputs(image)
        try:
            size, classes = image.shape[:2], len(self.taxonomy.names)
            shapes = [(*size, classes)] * 3 + [size]
            result = HeadOutputs(*(np.empty(shape, np.float32) for shape in shapes))
            for piece in self._pieces(image, self._heads_of):
                _put(result, piece, to_outputs(piece.maps))
        except MemoryError as error:
            raise too_large(image) from error
        return result

    def prediction(self, outputs: HeadOutputs, /) -> Prediction:
        """Returns the prediction that follows from the outputs of the heads."""
        return self._cascade.prediction(outputs)

    def _predict_tiles(self, image: np.ndarray) -> Maps:
        result = _empty_maps(image)
        for piece in self._pieces(image, self._heads_of):
            prediction = self._cascade.prediction(to_outputs(piece.maps))
            _put(result, piece, Maps(*(getattr(prediction, name) for name in Maps._fields)))
        return result

    def _heads_of(self, tile: np.ndarray) -> list[np.ndarray]:
        return to_probabilities(self._cascade.head_outputs(tile))


def _empty_maps(image: np.ndarray) -> Maps:
    """Returns labels int32 [H, W] and maps float32 [H, W], not filled."""
    types = [np.int32, *[np.float32] * (len(Maps._fields) - 1)]
    return Maps(*(np.empty(image.shape[:2], each) for each in types))


def _put(arrays: Maps | HeadOutputs, piece: Piece, values: Maps | HeadOutputs) -> None:
    """Writes values of a piece to their place in arrays of the image's size."""
    for array, part in zip(arrays, values, strict=True):
        height, width = part.shape[:2]
        array[piece.top : piece.top + height, piece.left : piece.left + width] = part
