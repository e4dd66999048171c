r"""Images that a file names: only those below the folder of the set are ever opened.

Paths of another computer are found by their last parts:

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

from ccfnet_tf.datasets.name_lists import plain_name
from ccfnet_tf.datasets.pairing import PHOTOS
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.json_files import shown

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # what Label Studio puts before a name


def path_parts(named: str) -> tuple[str, ...]:
    """Returns the folders and the name of a path from anywhere, without what leads upwards.

    Args:
        named: A path of any system, or an address.
    """
    path = named.replace("\\", "/")
    if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE) or "/?d=" in path:
        try:
            address = urlsplit(path)
        except ValueError:  # what looks like an address and is none is taken as a path
            address = urlsplit("")
        path = (parse_qs(address.query).get("d") or [unquote(address.path)])[0] or path
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return tuple(parts[1:] if parts and re.fullmatch("[A-Za-z]:", parts[0]) else parts)


def is_below(path: str | Path, root: Path) -> bool:
    """Returns whether a path lies in a folder as it is written; links in the folder are its own."""
    lexical = Path(os.path.normpath(Path(path).absolute()))
    return lexical.is_relative_to(os.path.normpath(root.absolute()))


class FoundPictures:
    """The images below a folder, by name."""

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
        """Returns the one image whose path ends as the named path does.

        Args:
            named: What a file calls it.
            where: Place that messages begin with.
            outside: Folders whose images are others.

        Raises:
            DataError: None, or several; of kind `missing`.
        """
        *folders, name = path_parts(named) or ("",)
        plain = unquote(name)
        for spelling in (
            name,
            plain,
            *(_UPLOADED.sub("", each, count=1) for each in (name, plain)),
        ):
            there = self._by_name.get(plain_name(spelling), ())
            found = [path for path in there if _is_outside(path, outside)]
            if len(found) > 1:
                found = _longest_match(found, folders)
            if len(found) == 1:
                return found[0]
            if found:
                both = " and ".join(str(path) for path in found[:2])
                raise DataError(
                    f"{where}: image {shown(named)} could be {both}: write the path below "
                    f"{self.root} into the file",
                    kind="missing",
                )
        raise DataError(
            f"{where}: no such image in {self.root}, and none of that name: add it",
            kind="missing",
        )


def _is_outside(path: Path, folders: Collection[Path]) -> bool:
    return not any(path.is_relative_to(folder) for folder in folders)


def _longest_match(paths: list[Path], folders: list[str]) -> list[Path]:
    """Returns those paths that share the most folders before the name."""

    def shared(path: Path) -> int:
        pairs = zip(reversed(folders), reversed(path.parts[:-1]), strict=False)
        return next((n for n, (one, other) in enumerate(pairs) if one != other), len(folders))

    best = max(map(shared, paths))
    return [path for path in paths if shared(path) == best]
