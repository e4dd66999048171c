"""Everything that is wrong or odd in a data set, found by reading all of it once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.datasets.absent_classes import explain
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.scan import in_threads
from ccfnet_tf.datasets.base import Listing, bands_note
from ccfnet_tf.datasets.mask_values import as_option
from ccfnet_tf.datasets.splits import agreeing, parts_of
from ccfnet_tf.errors import ColoursError, DataError
from ccfnet_tf.io.images import is_deep
from ccfnet_tf.labels import Sample


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: `missing`, `unreadable`, `size` or `value` as in `DataError`; `duplicate`: the pixels
            of another image; `absent`: a class that is not where it is needed; `void`: a label
            without a class; `set`: something about the whole set; `band`: a band beside the
            colours is left out; `colours`: colours of masks that no list names; `dark`: an image
            of more than 8 bits that uses few of its values.
        part: `train`, `val` or `test`; empty where it belongs to none.
        file: The file's address; empty where it is about no file.
        text: What is wrong with it, one line.
    """

    kind: str
    part: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}" if self.file else self.text


@dataclass(frozen=True)
class Report:
    """What a data set was found to be.

    Attributes:
        counts: Part -> number of its images, sound or not.
        classes: Names of the classes.
        findings: What must be fixed: files that are missing, cannot be read, differ in size or
            hold a value outside the classes; images that are in two parts; classes that train
            does not show.
        notes: What is worth knowing: what the listing notes, labels without a class, images that
            one part has twice, colours of masks that no list names, images read as nearly black.
    """

    counts: Mapping[str, int]
    classes: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing must be fixed."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; every finding is in them."""
        return {
            "ok": self.ok,
            "counts": dict(self.counts),
            "classes": list(self.classes),
            "findings": [asdict(finding) for finding in self.findings],
            "notes": [asdict(note) for note in self.notes],
        }


def fingerprint(image: np.ndarray) -> bytes:
    """Returns 16 bytes that two images share only when size and every pixel are the same."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def inspect(
    listing: Listing,
    *,
    allow_absent: bool = False,
    workers: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Reads every image and label of every part once, in threads.

    Args:
        listing: The set.
        allow_absent: Classes that train does not show are noted, not found wrong.
        workers: Threads; 0 takes one a core, 8 at most.
        advance: Called after each sample, in the caller's thread.
    """
    parts = parts_of(listing)
    classes = len(listing.taxonomy.names)
    load = agreeing(listing.load)

    def look(place: tuple[str, Sample]) -> _Seen:
        return _look(*place, listing, load, classes)

    findings = [_finding(error, "", ()) for error in (*listing.unpaired, *listing.verify())]
    missing = {finding.file for finding in findings}
    notes = [_note(note) for note in listing.notes]
    if band := bands_note(sample for samples in parts.values() for sample in samples):
        notes.append(_note(band, "band"))
    copies, colours = _Copies(), _Colours()
    occurrence = _Occurrence(listing)
    places = [(part, sample) for part, samples in parts.items() for sample in samples]
    for seen in in_threads(look, places, workers):
        part, sample = seen.part, seen.sample
        addresses = (sample.image, sample.label)
        faults = [_finding(error, part, addresses) for error in seen.faults]
        findings += [fault for fault in faults if fault.file not in missing]
        colours.add(seen.faults, sample.label)
        if seen.print:
            copies.add(seen.print, part, sample)
        if 0 < seen.brightest < _DARK and is_deep(sample.image):
            text = (
                f"more than 8 bits a pixel, but the brightest is read as {seen.brightest} of 255, "
                "nearly black: bring 10 or 12 bits to the full range of 16 first"
            )
            notes.append(Finding("dark", part, sample.image, text))
        if seen.census is not None:
            occurrence.add(seen.census, part, sample)
            if not seen.census.pixels.any():
                text = "no pixel has a class: nothing is learned from it or measured on it"
                notes.append(Finding("void", part, sample.label, text))
        advance()
    absent = (*occurrence.not_in_train(), *occurrence.nowhere())
    return Report(
        counts={part: len(samples) for part, samples in parts.items()},
        classes=listing.taxonomy.names,
        findings=(*findings, *copies.across, *(() if allow_absent else absent)),
        notes=(
            *notes,
            *copies.within,
            *colours.notes(),
            *occurrence.in_two_codings(),
            *(absent if allow_absent else ()),
        ),
    )


class _Seen(NamedTuple):
    """What is kept of a sample: no pixels, so that memory stays flat."""

    part: str
    sample: Sample
    faults: tuple[DataError, ...]
    print: bytes | None
    census: Census | None
    brightest: int = 0


def _look(part: str, sample: Sample, listing: Listing, load: Any, classes: int) -> _Seen:
    """Reads one sample; of one that cannot be used, what can be said of its label."""
    try:
        image, label = load(sample)
        seen = fingerprint(image), Census.of(label, classes)
        return _Seen(part, sample, (), *seen, brightest=int(image.max(initial=0)))
    except DataError as error:
        fault = error
    try:  # the image may be what is wrong: the label may be sound, or wrong as well
        census = Census.of(listing.load_label(sample), classes)
        return _Seen(part, sample, (fault,), None, census)
    except DataError as error:
        faults = (fault,) if str(error) == str(fault) else (fault, error)
        return _Seen(part, sample, faults, None, None)


def _finding(error: DataError, part: str, addresses: tuple[str, ...]) -> Finding:
    """Splits `file: what is wrong` at the file."""
    line = str(error)
    for address in addresses:  # which may hold a colon itself
        if line.startswith(f"{address}: "):
            return Finding(error.kind, part, address, line[len(address) + 2 :])
    file, _, text = line.partition(": ")
    return Finding(error.kind, part, file, text) if text else Finding(error.kind, part, "", line)


def _note(line: str, kind: str = "set") -> Finding:
    file, _, text = line.partition(": ")
    return Finding(kind, "", file, text)


class _Copies:
    """Images of the same pixels: those in two parts, and those that one part has twice."""

    def __init__(self) -> None:
        self.across: list[Finding] = []
        self.within: list[Finding] = []
        self._first: dict[bytes, dict[str, Sample]] = {}  # fingerprint -> part -> first such

    def add(self, fingerprint: bytes, part: str, sample: Sample) -> None:
        first = self._first.setdefault(fingerprint, {})
        if part in first:
            text = f"the same pixels as {first[part].image}: keep both on one side of any split"
            self.within.append(Finding("duplicate", part, sample.image, text))
            return
        for other, earlier in first.items():
            text = (
                f"the same pixels as {earlier.image}, which is in {other}: "
                "remove one of them, or put both in one part"
            )
            self.across.append(Finding("duplicate", part, sample.image, text))
        first[part] = sample


class _Colours:
    """Colours of masks that no list names: on how many pixels, in how many masks, the first."""

    def __init__(self) -> None:
        self._masks = 0
        self._found: dict[tuple[int, int, int], tuple[int, int, str]] = {}

    def add(self, faults: Sequence[DataError], mask: str) -> None:
        """Counts the colours of a mask among whose faults they are."""
        for fault in faults[:1]:
            if not isinstance(fault, ColoursError):
                continue
            self._masks += 1
            for colour, count in fault.colours.items():
                pixels, masks, first = self._found.get(colour, (0, 0, mask))
                self._found[colour] = pixels + count, masks + 1, first

    def notes(self) -> list[Finding]:
        """Returns how many there are, then the most frequent ones, each with its line of a list."""
        if not self._found:
            return []
        count = len(self._found)
        few = count <= _MOST_COLOURS
        text = (
            f"{count} colours that no list names in {self._masks} masks; a line for each in "
            "colours.txt says which class it is"
            if few
            else f"{count} colours that no list names in {self._masks} masks, more than classes "
            "have: smoothing or JPEG leaves such masks, make them anew without; most frequent:"
        )
        order = sorted(self._found.items(), key=lambda item: -item[1][0])
        return [Finding("colours", "", "", text), *(_colour_note(*each) for each in order[:_SHOWN])]


_DARK = 32  # of 255: 16 bits that hold no more than 13 of them are below
_SHOWN = 19
_MOST_COLOURS = 256


def _colour_note(colour: tuple[int, int, int], seen: tuple[int, int, str]) -> Finding:
    pixels, masks, first = seen
    more = f", also in {masks - 1} more" if masks > 1 else ""
    rgb = " ".join(map(str, colour))
    text = f"{rgb} on {pixels:,} pixels{more}: in colours.txt the line `{rgb} NAME`"
    return Finding("colours", "", first, text)


class _Occurrence:
    """Which classes occur where."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._names = listing.taxonomy.names
        self._pictures: dict[str, np.ndarray] = {}  # part -> int64 [C]
        self._first: dict[tuple[str, int], Sample] = {}
        self._void = 0
        self._voided = 0  # images with pixels without a label
        self._beside = np.zeros(len(self._names), np.int64)  # of these, those that show the class

    def add(self, census: Census, part: str, sample: Sample) -> None:
        for index in np.flatnonzero(census.pictures):
            self._first.setdefault((part, int(index)), sample)
        self._pictures[part] = self._pictures.get(part, 0) + census.pictures
        self._void += census.void
        if census.void:
            self._voided += 1
            self._beside += census.pictures

    def not_in_train(self) -> list[Finding]:
        findings = []
        for (part, index), sample in self._first.items():
            if ("train", index) not in self._first:
                others = int(self._pictures[part][index]) - 1
                more = f", as do {others} more of {part}" if others else ""
                text = (
                    f"shows class '{self._names[index]}'{more}, which no image of train shows: "
                    "split anew, or drop the class with data.label_map"
                )
                findings.append(Finding("absent", part, sample.label, text))
        return findings

    def in_two_codings(self) -> list[Finding]:
        """Returns a note where void and a class of two are in no label together.

        So it is where some masks of a set hold 0 and 1, and others 0 and 255.
        """
        masks = self._listing.mask_values
        shown = np.sum([*self._pictures.values()], axis=0)
        if masks is None or len(masks.void) != 1 or len(self._names) != 2 or not self._voided:
            return []
        apart = [i for i in (0, 1) if shown[i] and not self._beside[i] and self._beside[1 - i]]
        if not apart:
            return []
        name, void = self._names[apart[0]], masks.void[0]
        own = [value for value, index in masks.ids.items() if index == apart[0]]
        option = as_option(dict.fromkeys([*own, void], name))
        text = (
            f"{self._voided} labels hold {void}, the value for no label, and {shown[apart[0]]} "
            f"hold '{name}', but none both: if {void} means '{name}' in some masks, say so with "
            f"{option}"
        )
        return [Finding("void", "", "", text)]

    def nowhere(self) -> list[Finding]:
        if not self._first:  # nothing could be read, or all is void: which is said elsewhere
            return []
        found = {index for _, index in self._first}
        missing = [name for index, name in enumerate(self._names) if index not in found]
        if not missing:
            return []
        text = explain(missing, "nowhere", self._void, self._listing.mask_values)
        return [Finding("absent", "", "", text)]
