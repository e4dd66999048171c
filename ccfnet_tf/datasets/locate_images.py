r"""Locates images that annotation files name; opens only files below the folder of the set.

Paths from another computer are matched by their last components:

../../media/upload/1/a.jpg    C:\data\a.jpg    https://host/data/a%20b.jpg
/data/local-files/?d=set/a.jpg and /data/upload/1/0a1b2c3d-a.jpg (Label Studio)
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ccfnet_tf.datasets.class_and_split_lists import plain_name
from ccfnet_tf.datasets.layout_helpers import PHOTOS
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import shown

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # prefix that Label Studio adds to file names


def path_parts(named: str) -> tuple[str, ...]:
    """Splits a path of any operating system into components, dropping roots, `.` and `..`.

    Args:
        named: A path or a URL.
    """
    path = named.replace("\\", "/")
    if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE) or "/?d=" in path:
        try:
            address = urlsplit(path)
        except ValueError:  # not a valid URL: treat it as a path
            address = urlsplit("")
        path = (parse_qs(address.query).get("d") or [unquote(address.path)])[0] or path
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return tuple(parts[1:] if parts and re.fullmatch("[A-Za-z]:", parts[0]) else parts)


def is_below(path: str | Path, root: Path) -> bool:
    """Returns whether a path is below a folder, without resolving symbolic links."""
    lexical = Path(os.path.normpath(Path(path).absolute()))
    return lexical.is_relative_to(os.path.normpath(root.absolute()))


class FoundImages:
    """Index of the images below a folder, by file name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root)
            hidden = any(part.startswith(".") for part in relative.parts)
            if path.suffix.lower() in PHOTOS and not hidden and path.is_file():
                found.setdefault(plain_name(path.name), []).append(path)
        return found

    def find(self, named: str, where: str, outside: Collection[Path] = ()) -> Path:
        """Returns the image whose path matches the last components of a named path.

        Args:
            named: Path as written in an annotation file.
            where: Start of error messages: the file and position that names the image.
            outside: Folders to exclude from the search.

        Raises:
            DataError: No image matches, or several do; of kind `missing`.
        """
        *folders, name = path_parts(named) or ("",)
        unquoted = unquote(name)
        for spelling in (
            name,
            unquoted,
            *(_UPLOADED.sub("", each, count=1) for each in (name, unquoted)),
        ):
            candidates = self._by_name.get(plain_name(spelling), ())
            found = [path for path in candidates if _is_outside(path, outside)]
            if len(found) > 1:
                found = _longest_match(found, folders)
            if len(found) == 1:
                return found[0]
            if found:
                matches = " and ".join(str(path) for path in found[:2])
                raise DataError(
                    f"{where}: image {shown(named)} could be {matches}: write its path relative to "
                    f"{self.root} into the file",
                    kind="missing",
                )
        raise DataError(
            f"{where}: no such image, and none of that name, in {self.root}: add it",
            kind="missing",
        )


def _is_outside(path: Path, folders: Collection[Path]) -> bool:
    return not any(path.is_relative_to(folder) for folder in folders)


def _longest_match(paths: list[Path], folders: list[str]) -> list[Path]:
    """Returns the paths that share the most parent folders with the named path."""

    def shared(path: Path) -> int:
        pairs = zip(reversed(folders), reversed(path.parts[:-1]), strict=False)
        return next((n for n, (one, other) in enumerate(pairs) if one != other), len(folders))

    best = max(map(shared, paths))
    return [path for path in paths if shared(path) == best]
