"""What a label is: samples, class names, colours and void.

Inside the package a label map is int32 `[H, W]` with class ids 0..C-1 and `VOID` where nobody
said what the pixel shows. Files keep their own void value; readers translate it once.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

VOID = -1
"""Class id of pixels that count in no loss and in no metric."""

VOID_COLOUR = (0, 0, 0)
"""RGB of void in images made for people."""

HARD, EASY = 0, 1
"""Classes of the attention head: coarse is wrong, coarse is right (the paper's 0/1 label map)."""

IGNORED = "__ignore__"
"""How labelme names, in class lists and outlines, what counts nowhere."""

BACKGROUND = "_background_"
"""How labelme names the class of what nobody outlined."""


_VOID_NAMES = ("void", "ignore", "ignored", "unlabeled", "unlabelled", IGNORED)


def is_void_name(name: str) -> bool:
    """Returns whether a name in any list of classes, colours or values stands for no class.

    These are void, ignore, ignored, unlabeled, unlabelled and `__ignore__`, in upper or lower case.
    """
    return name.casefold() in _VOID_NAMES


@dataclass(frozen=True)
class Sample:
    """One image and its label, by address; nothing is read yet.

    Attributes:
        name: Unique in the set; a relative path without suffix, used in messages and outputs.
        image: Path of the image, or an address that its reader alone understands.
        label: Path (or address) of the label.
    """

    name: str
    image: str
    label: str


@dataclass(frozen=True)
class Taxonomy:
    """The classes of a data set.

    Attributes:
        names: C class names; the index is the class id.
        palette: C colours, RGB 0..255, for images made for people.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} class names but {len(self.palette)} colours")


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns `count` RGB colours, far apart for neighbours in id, the same at every call."""
    golden = 0.618033988749895  # steps of the golden ratio spread hues evenly for any count
    colours = []
    for index in range(count):
        hue = (0.58 + index * golden) % 1.0
        value = (0.95, 0.75, 0.55)[index % 3]
        saturation = (0.65, 0.85)[(index // 3) % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)
