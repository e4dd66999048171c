"""Samples, class names, class colours and the void label.

Inside the package a label map is int32 `[H, W]` with class ids 0..C-1, and `VOID` for unlabelled
pixels. Files use void values of their own, which the readers convert to `VOID`.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

VOID = -1
"""Class id of unlabelled pixels, which are excluded from losses and metrics."""

VOID_COLOUR = (0, 0, 0)
"""RGB colour of void pixels in visualizations."""

HARD, EASY = 0, 1
"""Attention classes: coarse prediction wrong (0) or right (1), as in the paper's label map."""

IGNORED = "__ignore__"
"""Void label in labelme's class lists and shapes."""

BACKGROUND = "_background_"
"""labelme's class name for pixels outside all shapes."""

_VOID_NAMES = ("void", "ignore", "ignored", "unlabeled", "unlabelled", IGNORED)


def is_void_name(name: str) -> bool:
    """Returns whether a name in a list of classes, colours or values means void.

    Void names are void, ignore, ignored, unlabeled, unlabelled and `__ignore__`; case is ignored.
    """
    return name.casefold() in _VOID_NAMES


@dataclass(frozen=True)
class Sample:
    """Paths of one image and its label; the files are not read yet.

    Attributes:
        name: Unique name in the data set: a relative path without suffix, used in messages and
            for output files.
        image: Path of the image, or a locator in the format of the layout's reader.
        label: Path of the label, or a locator likewise.
    """

    name: str
    image: str
    label: str


@dataclass(frozen=True)
class Taxonomy:
    """The classes of a data set.

    Attributes:
        names: C class names; the index is the class id.
        palette: C colours, RGB 0..255, used in visualizations.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} class names but {len(self.palette)} colours")


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns `count` RGB colours; the same ones at every call, with neighbours far apart."""
    golden = 0.618033988749895  # Steps of the golden ratio spread the hues evenly for any count.
    colours = []
    for index in range(count):
        hue = (0.58 + index * golden) % 1.0
        value = (0.95, 0.75, 0.55)[index % 3]
        saturation = (0.65, 0.85)[(index // 3) % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)
