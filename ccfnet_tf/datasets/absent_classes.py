"""Detects classes without a training pixel, most often caused by a misinterpreted mask value.

Masks with the values 0 and 255 are the usual case: 255 is void by default, so that a class stored
as 255 leaves only background, and an untrained network is right on every pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.mask_values_to_classes import MaskValues, as_option

ALLOW = "--data.absent_classes allow"

_MAX_NAMES = 6


def allowed(data: DataConfig) -> bool:
    """Returns whether the training split may lack a class; generated scenes always may."""
    return data.absent_classes == "allow" or data.format == "scenes"


def absent(names: Sequence[str], pixels: np.ndarray) -> tuple[str, ...]:
    """Returns the names of the classes without a pixel. `pixels` is int [C]."""
    return tuple(name for name, count in zip(names, pixels, strict=True) if not count)


def explain(
    missing: Sequence[str], where: str, void_pixels: int, mask_values: MaskValues | None
) -> str:
    """Returns a one-line message: the absent classes, the likely cause, and the fix.

    Args:
        missing: Names of the absent classes.
        where: Scope of the message, such as `nowhere in the training split`.
        void_pixels: Number of void pixels in that scope.
        mask_values: Meaning of the mask values; `None` if the set has no index masks.
    """
    more = f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
    named = ", ".join(f"'{name}'" for name in missing[:_MAX_NAMES]) + more
    subject = f"class {named} occurs" if len(missing) == 1 else f"classes {named} occur"
    allow_hint = f"if it is meant to be absent, add {ALLOW}"
    void = mask_values.void if mask_values else ()
    if void_pixels and len(void) == 1 and mask_values and missing[0] in mask_values.names:
        one = f"'{missing[0]}'" if len(missing) == 1 else "one of them"
        option = as_option({**mask_values.given, void[0]: missing[0]})
        return (
            f"{subject} {where}, but {void[0]}, the void value, occurs on {void_pixels:,} "
            f"pixels: if {void[0]} means {one}, set {option}; {allow_hint}"
        )
    return (
        f"{subject} {where}: fix the masks, remove the class from the class list, or {allow_hint}"
    )
