"""Colours of classes that people with colour-vision deficiency can tell apart.

Colours are chosen one by one: each is the candidate whose smallest distance to those before it is
largest, where a distance is the smallest of four: as seen without deficiency, and with protanopia,
deuteranopia and tritanopia. Simulation by the matrices of Machado, Oliveira and Fernandes (2009) at
full severity, in linear RGB; distances are Euclidean in CIELAB (CIE 1976, D65).
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import Taxonomy

PaletteName = Literal["dataset", "accessible"]
"""`dataset`: the colours of the data set; `accessible`: for colour-vision deficiency."""

PALETTES: tuple[PaletteName, ...] = get_args(PaletteName)

_DEFICIENCIES = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ]
)
"""No deficiency, protanopia, deuteranopia, tritanopia; [4, 3, 3], linear RGB to linear RGB."""

_RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_FIRST = (0, 114, 178)  # the blue of Okabe and Ito (2008)
_LEVELS = np.array([0, 36, 73, 109, 146, 182, 219, 255])
_DARKEST, _LIGHTEST = 25.0, 92.0  # of lightness 0..100: void is black, pages are white


def with_palette(taxonomy: Taxonomy, name: PaletteName) -> Taxonomy:
    """Returns the classes with the colours of that palette.

    Raises:
        ConfigError: The palette has fewer colours than there are classes.
    """
    if name == "dataset":
        return taxonomy
    try:
        colours = accessible_colours(len(taxonomy.names))
    except ValueError as error:
        raise ConfigError(f"--palette is '{name}': {error}: use --palette dataset") from error
    return Taxonomy(taxonomy.names, colours)


@cache
def accessible_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns `count` RGB colours, 0..255; the first ones do not depend on `count`.

    Raises:
        ValueError: More than there are candidates (450).
    """
    candidates = np.stack(np.meshgrid(*[_LEVELS] * 3, indexing="ij"), -1).reshape(-1, 3)
    lightness = _seen(candidates)[0, :, 0]
    candidates = candidates[(lightness > _DARKEST) & (lightness < _LIGHTEST)]
    if count > len(candidates) + 1:
        raise ValueError(f"{count} colours are needed, and it has {len(candidates) + 1}")
    seen = _seen(candidates)
    colours = [np.array(_FIRST)]
    nearest = np.full(len(candidates), np.inf)
    while len(colours) < count:
        latest = _seen(colours[-1][None])
        distances = np.linalg.norm(seen - latest, axis=-1).min(axis=0)
        nearest = np.minimum(nearest, distances)
        colours.append(candidates[nearest.argmax()])
    return tuple((int(red), int(green), int(blue)) for red, green, blue in colours[:count])


def smallest_distance(colours: tuple[tuple[int, int, int], ...]) -> float:
    """Returns the smallest distance of two of the colours over the four kinds of vision."""
    seen = _seen(np.array(colours))
    pairs = np.triu_indices(len(colours), 1)
    distances = np.linalg.norm(seen[:, pairs[0]] - seen[:, pairs[1]], axis=-1)
    return float(distances.min())


def _seen(colours: np.ndarray) -> np.ndarray:
    """Returns CIELAB [4, N, 3] of RGB 0..255 [N, 3], for the four kinds of vision."""
    rgb = colours / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("dij,nj->dni", _DEFICIENCIES, linear), 0.0, 1.0)
    relative = seen @ _RGB_TO_XYZ.T / _WHITE
    cube = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    x, y, z = np.moveaxis(cube, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
