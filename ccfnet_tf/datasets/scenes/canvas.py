"""Canvas that paints image and label together, with soft masks, noise and texture.

Colours are RGB 0..1, as [3] or planes [3, H, W]; NumPy multiplies planes by a mask much faster than
interleaved pixels. Masks are float32 [H, W] with coverage 0..1: the image blends edge pixels, the
label takes a class where it covers at least half of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ccfnet_tf.labels import VOID

Colour = Sequence[float] | np.ndarray


class Canvas:
    """An image and its label, painted together.

    Attributes:
        height: Rows H.
        width: Columns W.
        unit: Scale relative to the reference height of 120 rows, at least 1.
        rng: Source of all random choices.
        image: float32 [3, H, W], RGB 0..1.
        label: int32 [H, W].
        y: float32 [H, 1], row numbers.
        x: float32 [1, W], column numbers.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.height, self.width = size
        self.unit = max(1.0, self.height / 120)
        self.rng = rng
        self.image = np.zeros((3, *size), np.float32)
        self.label = np.zeros(size, np.int32)
        self.y = np.arange(self.height, dtype=np.float32)[:, None]
        self.x = np.arange(self.width, dtype=np.float32)[None, :]

    def around(self, x: float, y: float, reach: float) -> Canvas:
        """Returns the region within `reach` of a point as a canvas that shares its pixels.

        Coordinates remain those of the full canvas. Painting small objects on a region is faster.
        """
        left, right = (min(max(0, int(x + s * reach)), self.width - 1) for s in (-1, 1))
        top, low = (min(max(0, int(y + s * reach)), self.height - 1) for s in (-1, 1))
        box = np.s_[top : low + 1, left : right + 1]
        part = Canvas.__new__(Canvas)
        part.height, part.width = low + 1 - top, right + 1 - left
        part.unit, part.rng = self.unit, self.rng
        part.image, part.label = self.image[:, *box], self.label[box]
        part.y, part.x = self.y[box[0]], self.x[:, box[1]]
        return part

    def _fixed(self, points: Sequence[tuple[float, float]]) -> np.ndarray:
        """Returns (x, y) points as OpenCV's fixed-point numbers, sixteenths of a pixel."""
        corner = (self.x[0, 0], self.y[0, 0])
        return np.round((np.array(points, np.float32) - corner) * 16).astype(np.int32)

    def noise(self, rows: float, columns: float) -> np.ndarray:
        """Returns smooth noise [H, W], about -1..1, with cells of `rows` x `columns` pixels."""
        shape = (max(2, round(self.height / rows)), max(2, round(self.width / columns)))
        cells = self.rng.uniform(-1, 1, shape).astype(np.float32)
        return cv2.resize(cells, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def curve(self, rough: float = 0.5) -> np.ndarray:
        """Returns a ridge line [W], 0..1; `rough` is the ratio of heights of successive octaves."""
        line = np.zeros((1, self.width), np.float32)
        for octave in range(5):
            knots = self.rng.random((1, 3 * 2**octave)).astype(np.float32)
            line += rough**octave * cv2.resize(
                knots, (self.width, 1), interpolation=cv2.INTER_CUBIC
            )
        line -= line.min()
        return line[0] / max(float(line.max()), 1e-6)

    def polygon(self, points: Sequence[tuple[float, float]]) -> np.ndarray:
        """Returns the mask of a polygon given as (x, y)."""
        mask = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(mask, [self._fixed(points)], 255, cv2.LINE_AA, 4)
        return mask.astype(np.float32) / 255

    def strokes(
        self, lines: Sequence[Sequence[tuple[float, float]]], thickness: float
    ) -> np.ndarray:
        """Returns the mask of lines through (x, y) points."""
        mask = np.zeros((self.height, self.width), np.uint8)
        fixed = [self._fixed(line) for line in lines]
        cv2.polylines(mask, fixed, False, 255, max(1, round(thickness)), cv2.LINE_AA, 4)
        return mask.astype(np.float32) / 255

    def blobs(self, circles: Sequence[tuple[float, float, float]]) -> np.ndarray:
        """Returns the mask of filled circles (x, y, radius)."""
        mask = np.zeros((self.height, self.width), np.uint8)
        centres = self._fixed([circle[:2] for circle in circles]).tolist()
        for centre, (_, _, radius) in zip(centres, circles, strict=True):
            cv2.circle(mask, centre, max(8, round(radius * 16)), 255, -1, cv2.LINE_AA, 4)
        return mask.astype(np.float32) / 255

    def paint(self, mask: np.ndarray, colour: Colour, class_id: int | None = None) -> None:
        """Blends a colour into the image by `mask`, and sets the label if a class is given.

        Only the bounding box of the mask is processed, because most objects are small.
        """
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not rows.size:
            return
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        paint = np.asarray(colour, np.float32)
        paint = paint[:, *box] if paint.ndim == 3 else paint[:, None, None]
        part = self.image[:, *box]
        part += mask[box].astype(np.float32) * (paint - part)
        if class_id is not None:
            self.label[box][mask[box] >= 0.5] = class_id

    def shade(self, mask: np.ndarray, factor: float) -> None:
        """Darkens or lightens the image by `mask`; the label is unchanged."""
        self.image *= (1 + mask * (factor - 1)).astype(np.float32)

    def textured(self, colour: Colour, *layers: tuple[float, np.ndarray]) -> np.ndarray:
        """Returns [3, H, W], a colour with brightness varied by (strength, noise) layers."""
        light = np.ones((self.height, self.width), np.float32)
        for strength, noise in layers:
            light += np.float32(strength) * noise.astype(np.float32)
        return planes(colour) * light

    def void_edge(self, class_id: int) -> None:
        """Sets a one-pixel outline around a class to void, as annotators often do."""
        inside = (self.label == class_id).astype(np.uint8)
        cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
        self.label[(cv2.dilate(inside, cross) - inside) == 1] = VOID


def planes(colour: Colour) -> np.ndarray:
    """Returns a colour [3] as float32 [3, 1, 1], for arithmetic with planes."""
    return np.asarray(colour, np.float32)[:, None, None]
