"""Meaning of the values of index masks: class ids, unless `data.mask_values` overrides them.

`data.mask_values` maps values to class names, as in `{0: background, 255: crack}`. Several values
may map to one class, and `void` marks pixels without a label. Classes that it does not list, and
void, keep their own values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ccfnet_tf.errors import ConfigError, DataError, nearest
from ccfnet_tf.io.read_images import NO_CLASS, VALUES, read_index_values, to_classes
from ccfnet_tf.labels import VOID, is_void_name

_MAX_SHOWN = 8


@dataclass(frozen=True)
class MaskValues:
    """Meaning of the values of index masks.

    Attributes:
        names: Names of the C classes.
        ids: Value 0..65535 -> class id 0..C-1 or `VOID`; other values are rejected.
        rule: Text of error messages: the allowed values and the fix. Generated if empty.
        given: The option `data.mask_values`.
    """

    names: tuple[str, ...]
    ids: Mapping[int, int]
    rule: str = ""
    given: Mapping[int, str | int] = field(default_factory=dict)

    @property
    def void(self) -> tuple[int, ...]:
        """Values of pixels without a label, sorted."""
        return tuple(sorted(value for value, index in self.ids.items() if index == VOID))

    @cached_property
    def table(self) -> np.ndarray:
        """int32 [65536], value -> class id, `VOID` or `NO_CLASS`."""
        table = np.full(VALUES, NO_CLASS, np.int32)
        table[list(self.ids)] = list(self.ids.values())
        return table

    def classes_of(self, values: np.ndarray, path: str | Path) -> np.ndarray:
        """Converts mask values to class ids.

        Args:
            values: int32 [H, W], 0..65535.
            path: The mask file, for error messages.

        Returns:
            int32 [H, W], 0..C-1 or `VOID`.

        Raises:
            DataError: A value has no meaning; of kind `value`.
        """
        try:
            return to_classes(values, self.table, path, self.rule or self._plain_rule)
        except DataError as error:
            raise DataError(f"{error}{self._proposal(values)}", kind=error.kind) from error

    @cached_property
    def _plain_rule(self) -> str:
        classes = {value: index for value, index in self.ids.items() if index != VOID}
        if all(value == index for value, index in classes.items()):
            allowed = f"0..{len(classes) - 1} (the {len(classes)} classes)"
        else:
            shown = [f"{value} ({self.names[classes[value]]})" for value in sorted(classes)]
            more = f" and {len(shown) - _MAX_SHOWN} more" if len(shown) > _MAX_SHOWN else ""
            allowed = ", ".join(shown[:_MAX_SHOWN]) + more
        void = " or " + ", ".join(map(str, self.void)) + " (data.void_value)" if self.void else ""
        return (
            f"a mask holds {allowed}{void}; fix the mask, set data.void_value, or add the class to "
            "classes.txt"
        )

    def _proposal(self, values: np.ndarray) -> str:
        """Returns a fix for unknown values, guessed from how many values the mask has.

        A mapping is proposed only if it keeps the meaning of every class id in the mask, or if the
        ids count from 1. Otherwise one value is probably a mistake, and a mapping that counts the
        values through would shift the classes between them.
        """
        found = np.unique(values).tolist()
        keeps = all(self.ids.get(v, VOID) in (VOID, index) for index, v in enumerate(found))
        from_one = found == list(range(1, len(self.names) + 1))
        if len(found) == len(self.names) and (keeps or from_one):
            option = as_option(dict(zip(found, self.names, strict=True)))
            return f", or define the values, for example with {option}"
        if len(found) > 2 * len(self.names) + 2:
            if found == list(range(found[0], found[-1] + 1)):
                return (
                    f"; the values {found[0]} to {found[-1]} look like instance ids: export class "
                    "ids, not instances"
                )
            return (
                f"; {len(found)} values in one mask are typical of JPEG compression or smoothing: "
                "export it again without them"
            )
        return ", or define the value with data.mask_values"


def index_values(
    names: Sequence[str],
    given: Mapping[int, str | int] | None,
    *,
    values: Sequence[int] | None = None,
    void: Collection[int],
    rule: str = "",
) -> MaskValues:
    """Builds the meaning of mask values from a layout and `data.mask_values`.

    Args:
        names: Names of the C classes.
        given: The option `data.mask_values`.
        values: Mask value of each class in the layout; 0..C-1 if None.
        void: Void values of the layout; they take precedence over class values.
        rule: As in `MaskValues`; used if `given` is None.

    Raises:
        ConfigError: `given` has an unknown class, or takes the only value of a class.
    """
    own = {value: index for index, value in enumerate(values or range(len(names)))}
    ids = own | dict.fromkeys(void, VOID)
    return with_given(MaskValues(tuple(names), ids, rule), given)


def with_given(meaning: MaskValues, given: Mapping[int, str | int] | None) -> MaskValues:
    """Applies `data.mask_values` to the meaning of mask values.

    Args:
        meaning: Meaning of the values in the layout.
        given: The option `data.mask_values`.

    Raises:
        ConfigError: As in `index_values`.
    """
    if not given:
        return meaning
    names = meaning.names
    overrides = {value: _class_id(str(name), names) for value, name in given.items()}
    overridden = set(overrides.values()) - {VOID}
    ids = {
        value: index for value, index in meaning.ids.items() if index not in overridden
    } | overrides
    for value, index in meaning.ids.items():
        if index != VOID and index not in ids.values():
            taken = "void" if ids[value] == VOID else f"'{names[ids[value]]}'"
            raise ConfigError(
                f"data.mask_values: '{names[index]}' has no value, because {value} now means "
                f"{taken}; add a value for '{names[index]}'"
            )
    return MaskValues(names, ids, given=given)


def read_index_mask(path: str | Path, meaning: MaskValues) -> np.ndarray:
    """Reads an index mask, int32 [H, W] with class ids or `VOID`.

    Raises:
        DataError: The file is missing, damaged or not an index mask, or a value has no meaning.
    """
    return meaning.classes_of(read_index_values(path), path)


def as_option(meaning: Mapping[int, str | int]) -> str:
    """Returns the option `data.mask_values`, quoted for a shell."""
    import shlex

    import yaml

    text = yaml.safe_dump(dict(meaning), default_flow_style=True, width=10**6, allow_unicode=True)
    return f"--data.mask_values {shlex.quote(text.strip())}"


def _class_id(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    if is_void_name(name):
        return VOID
    raise ConfigError(
        f"data.mask_values: '{name}' is neither void nor a class of this set"
        f"{nearest(name, names) or ': the classes are ' + ', '.join(names[:_MAX_SHOWN])}"
    )
