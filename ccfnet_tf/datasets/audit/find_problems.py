"""Finds all problems of a data set in one pass over its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.datasets.absent_classes import ALLOW, explain
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.mask_values_to_classes import as_option
from ccfnet_tf.datasets.open_data_set import agreeing, parts_of
from ccfnet_tf.datasets.samples import Listing, bands_note
from ccfnet_tf.errors import ColoursError, DataError
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.io.read_images import is_deep
from ccfnet_tf.labels import Sample


@dataclass(frozen=True)
class Finding:
    """A problem or a note.

    Attributes:
        kind: `missing`, `unreadable`, `size` or `value` as in `DataError`; `duplicate`: an image
            with the same pixels as another; `absent`: a class is missing where it is needed;
            `void`: a label without any class; `set`: a remark on the data set; `band`: a band in
            addition to RGB is ignored; `colours`: mask colours that are in no list; `dark`: an
            image of more than 8 bits that uses only a small part of its range.
        part: `train`, `val` or `test`; empty if the file is in no split.
        file: Path of the file; empty if the finding is not about a file.
        text: One-line description.
    """

    kind: str
    part: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}" if self.file else self.text


@dataclass(frozen=True)
class Report:
    """Result of checking a data set.

    Attributes:
        counts: Split -> number of images, valid or not.
        classes: Names of the classes.
        findings: Problems to fix: missing or unreadable files, different sizes of image and label,
            unknown mask values, images in two splits, classes without a training pixel.
        notes: Remarks: notes of the listing, labels without any class, duplicates within a split,
            mask colours that are in no list, images that are nearly black.
    """

    counts: Mapping[str, int]
    classes: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is nothing to fix."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values with all findings and notes."""
        return {
            "ok": self.ok,
            "counts": dict(self.counts),
            "classes": list(self.classes),
            "findings": [asdict(finding) for finding in self.findings],
            "notes": [asdict(note) for note in self.notes],
        }


def fingerprint(image: np.ndarray) -> bytes:
    """Returns a 16-byte digest of the size and the pixels of an image."""
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
    """Checks a data set; reads every image and label of all splits once, in threads.

    Args:
        listing: The data set.
        allow_absent: Whether to report classes without a training pixel as notes, not findings.
        workers: Number of threads; 0 uses one per core, at most 8.
        advance: Called after each sample, in the thread of the caller.
    """
    parts = parts_of(listing)
    classes = len(listing.taxonomy.names)
    load = agreeing(listing.load)

    def inspect_sample(item: tuple[str, Sample]) -> _Seen:
        return _inspect_sample(*item, listing, load, classes)

    findings = [_finding(error, "", ()) for error in (*listing.unpaired, *listing.verify())]
    missing = {finding.file for finding in findings}
    notes = [_note(note) for note in listing.notes]
    if band := bands_note(sample for samples in parts.values() for sample in samples):
        notes.append(_note(band, "band"))
    copies, colours = _Copies(), _Colours()
    occurrence = _Occurrence(listing)
    items = [(part, sample) for part, samples in parts.items() for sample in samples]
    for seen in in_threads(inspect_sample, items, workers):
        part, sample = seen.part, seen.sample
        addresses = (sample.image, sample.label)
        faults = [_finding(error, part, addresses) for error in seen.faults]
        findings += [fault for fault in faults if fault.file not in missing]
        colours.add(seen.faults, sample.label)
        if seen.print:
            copies.add(seen.print, part, sample)
        notes += _sample_notes(seen)
        if seen.census is not None:
            occurrence.add(seen.census, part, sample)
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
            *occurrence.mixed_values(),
            *(absent if allow_absent else ()),
        ),
    )


class _Seen(NamedTuple):
    """Results for one sample, without pixels, so that memory use stays constant."""

    part: str
    sample: Sample
    faults: tuple[DataError, ...]
    print: bytes | None
    census: Census | None
    brightest: int = 0


def _sample_notes(seen: _Seen) -> Iterator[Finding]:
    """Yields what is worth a look in one sample, though no rule is broken."""
    if 0 < seen.brightest < _DARK and is_deep(seen.sample.image):
        text = (
            "more than 8 bits per pixel, but the brightest pixel is read as "
            f"{seen.brightest} of 255, nearly black: scale 10 or 12 bits to the full 16-bit "
            "range first"
        )
        yield Finding("dark", seen.part, seen.sample.image, text)
    if seen.census is not None and not seen.census.pixels.any():
        text = "no pixel has a class: it has no effect on training or evaluation"
        yield Finding("void", seen.part, seen.sample.label, text)


def _inspect_sample(part: str, sample: Sample, listing: Listing, load: Any, classes: int) -> _Seen:
    """Checks one sample; if it cannot be used, its label is still checked separately."""
    try:
        image, label = load(sample)
        seen = fingerprint(image), Census.of(label, classes)
        return _Seen(part, sample, (), *seen, brightest=int(image.max(initial=0)))
    except DataError as error:
        fault = error
    try:  # the error may concern the image only
        census = Census.of(listing.load_label(sample), classes)
        return _Seen(part, sample, (fault,), None, census)
    except DataError as error:
        faults = (fault,) if str(error) == str(fault) else (fault, error)
        return _Seen(part, sample, faults, None, None)


def _finding(error: DataError, part: str, addresses: tuple[str, ...]) -> Finding:
    """Splits an error of the form `file: text`."""
    line = str(error)
    for address in addresses:  # may contain a colon
        if line.startswith(f"{address}: "):
            return Finding(error.kind, part, address, line[len(address) + 2 :])
    file, _, text = line.partition(": ")
    return Finding(error.kind, part, file, text) if text else Finding(error.kind, part, "", line)


def _note(line: str, kind: str = "set") -> Finding:
    file, _, text = line.partition(": ")
    return Finding(kind, "", file, text)


class _Copies:
    """Collects images with identical pixels, across splits and within a split."""

    def __init__(self) -> None:
        self.across: list[Finding] = []
        self.within: list[Finding] = []
        self._first: dict[bytes, dict[str, Sample]] = {}  # fingerprint -> split -> first sample

    def add(self, fingerprint: bytes, part: str, sample: Sample) -> None:
        first = self._first.setdefault(fingerprint, {})
        if part in first:
            text = f"same pixels as {first[part].image}: keep both on one side of any split"
            self.within.append(Finding("duplicate", part, sample.image, text))
            return
        for other, earlier in first.items():
            text = (
                f"same pixels as {earlier.image}, which is in {other}: remove one of them, or put "
                "both in the same split"
            )
            self.across.append(Finding("duplicate", part, sample.image, text))
        first[part] = sample


class _Colours:
    """Counts mask colours that are in no list: pixels, masks, and the first mask of each."""

    def __init__(self) -> None:
        self._masks = 0
        self._found: dict[tuple[int, int, int], tuple[int, int, str]] = {}

    def add(self, faults: Sequence[DataError], mask: str) -> None:
        """Adds the unknown colours of a mask, taken from its errors."""
        for fault in faults[:1]:
            if not isinstance(fault, ColoursError):
                continue
            self._masks += 1
            for colour, count in fault.colours.items():
                pixels, masks, first = self._found.get(colour, (0, 0, mask))
                self._found[colour] = pixels + count, masks + 1, first

    def notes(self) -> list[Finding]:
        """Returns a summary, then the most frequent colours with the line to add to colours.txt."""
        if not self._found:
            return []
        count = len(self._found)
        few = count <= _MAX_COLOURS
        text = (
            f"{count} unknown colours in {self._masks} masks; add one line per colour to "
            "colours.txt to define its class"
            if few
            else f"{count} unknown colours in {self._masks} masks, too many for classes: such "
            "masks come from smoothing or JPEG, export them again without; most frequent:"
        )
        order = sorted(self._found.items(), key=lambda item: -item[1][0])
        return [
            Finding("colours", "", "", text),
            *(_colour_note(*each) for each in order[:_MAX_COLOURS_LISTED]),
        ]


_DARK = 32  # of 255; 16-bit images that use at most 13 bits are below
_MAX_COLOURS_LISTED = 19
_MAX_COLOURS = 256


def _colour_note(colour: tuple[int, int, int], seen: tuple[int, int, str]) -> Finding:
    pixels, masks, first = seen
    more = f", also in {masks - 1} more" if masks > 1 else ""
    rgb = " ".join(map(str, colour))
    text = f"{rgb} on {pixels:,} pixels{more}: add `{rgb} NAME` to colours.txt"
    return Finding("colours", "", first, text)


class _Occurrence:
    """Records which classes occur in which splits."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._names = listing.taxonomy.names
        self._image_counts: dict[str, np.ndarray] = {}  # split -> int64 [C]
        self._first: dict[tuple[str, int], Sample] = {}
        self._void = 0
        self._images_with_void = 0  # number of images with void pixels
        self._with_void = np.zeros(len(self._names), np.int64)  # of these, images with the class

    def add(self, census: Census, part: str, sample: Sample) -> None:
        for index in np.flatnonzero(census.pictures):
            self._first.setdefault((part, int(index)), sample)
        self._image_counts[part] = self._image_counts.get(part, 0) + census.pictures
        self._void += census.void
        if census.void:
            self._images_with_void += 1
            self._with_void += census.pictures

    def not_in_train(self) -> list[Finding]:
        findings = []
        for (part, index), sample in self._first.items():
            if ("train", index) not in self._first:
                others = int(self._image_counts[part][index]) - 1
                more = f" (as do {others} more of {part})" if others else ""
                text = (
                    f"contains class '{self._names[index]}'{more}, which no training image does: "
                    "split again, drop the class with data.label_map, or, if it is meant to be "
                    f"absent, add {ALLOW}"
                )
                findings.append(Finding("absent", part, sample.label, text))
        return findings

    def mixed_values(self) -> list[Finding]:
        """Returns a note if, with two classes, void never occurs together with one of them.

        This happens if some masks use the values 0 and 1, and others 0 and 255.
        """
        masks = self._listing.mask_values
        image_counts = np.sum([*self._image_counts.values()], axis=0)
        if (
            masks is None
            or len(masks.void) != 1
            or len(self._names) != 2
            or not self._images_with_void
        ):
            return []
        exclusive = [
            i
            for i in (0, 1)
            if image_counts[i] and not self._with_void[i] and self._with_void[1 - i]
        ]
        if not exclusive:
            return []
        name, void = self._names[exclusive[0]], masks.void[0]
        own = [value for value, index in masks.ids.items() if index == exclusive[0]]
        option = as_option(dict.fromkeys([*own, void], name))
        text = (
            f"{self._images_with_void} labels contain {void}, the void value, and "
            f"{image_counts[exclusive[0]]} contain '{name}', but none both: if {void} means "
            f"'{name}' in some masks, set {option}"
        )
        return [Finding("void", "", "", text)]

    def nowhere(self) -> list[Finding]:
        if not self._first:  # nothing readable, or all void: reported elsewhere
            return []
        found = {index for _, index in self._first}
        missing = [name for index, name in enumerate(self._names) if index not in found]
        if not missing:
            return []
        text = explain(missing, "nowhere", self._void, self._listing.mask_values)
        return [Finding("absent", "", "", text)]
