"""Classes that no training label shows: most often a mask value that means another thing.

Masks of 0 and 255 are the usual case: 255 is void in this package, so that a class written as 255
leaves nothing but background, and a network that knows nothing is right everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.mask_values import MaskValues, as_option

ALLOW = "--data.absent_classes allow"

_SHOWN = 6


def allowed(data: DataConfig) -> bool:
    """Returns whether a class may lack in the training split; drawn scenes have sound labels."""
    return data.absent_classes == "allow" or data.format == "scenes"


def absent(names: Sequence[str], pixels: np.ndarray) -> tuple[str, ...]:
    """Returns the names of classes without a pixel; `pixels` is int [C]."""
    return tuple(name for name, count in zip(names, pixels, strict=True) if not count)


def explain(
    missing: Sequence[str], where: str, void_pixels: int, mask_values: MaskValues | None
) -> str:
    """Returns one line: which classes are absent, the likely cause, and what to do.

    Args:
        missing: Classes that are absent.
        where: Where they are absent, such as `nowhere in the training split`.
        void_pixels: Pixels without a label there.
        mask_values: What the values of the set's masks mean, where it has index masks.
    """
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    named = ", ".join(f"'{name}'" for name in missing[:_SHOWN]) + more
    said = f"class {named} occurs" if len(missing) == 1 else f"classes {named} occur"
    ways = f"if it is meant to be absent, add {ALLOW}"
    void = mask_values.void if mask_values else ()
    if void_pixels and len(void) == 1 and mask_values and missing[0] in mask_values.names:
        one = f"'{missing[0]}'" if len(missing) == 1 else "one of them"
        option = as_option({**mask_values.given, void[0]: missing[0]})
        return (
            f"{said} {where}, but {void[0]}, the value for no label, does, on {void_pixels:,} "
            f"pixels: if {void[0]} is {one}, say so with {option}; {ways}"
        )
    return f"{said} {where}: fix the masks, remove the class from the class list, or {ways}"
