"""What an importer makes of a dataset before any image is read: an `Entry` for each, and what to expect of them all."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nkf.data.labels import EXPRESSIONS
from nkf.data.sources import some
from nkf.geometry import Points

SPLITS = ("train", "valid", "test")
MAX_COORDINATE = 1e6  # pixels; no photo has more
LabelSource = Literal["label", "majority", "argmax8", "argmax10"]  # how an image came to its class: "label" = as it is
# A metadata column: text, a whole number, a number, or that many numbers an image.
MetadataType = Literal["text", "integer", "number"] | int


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a dataset, its bytes not read yet.

    Attributes:
        name: what the image is called, unique within its split; may have folders.
        split: one of `SPLITS`.
        member: the file in the source.
        image_bytes: the encoded image, for sources that have no file for it; then `member` only says where it is from.
        folder: the folder that tells splits apart in a teacher's landmark file, or "".
        label: class name out of `EXPRESSIONS`, or None.
        votes: (10,) counts in the order of `VOTE_COLUMNS`, or None.
        distribution: (8,) shares in the order of `EXPRESSIONS`, with sum 1, or None.
        box_xyxy: (4,) face box in pixels of the upright image, or None.
        landmarks_px: (68, 2) in pixels of the upright image, or None.
        metadata: a value for some of `Listing.metadata`; None or absent where the dataset does not tell.
    """

    name: str
    split: str
    member: str
    image_bytes: bytes | None = None
    folder: str = ""
    label: str | None = None
    votes: NDArray[np.uint8] | None = None
    distribution: NDArray[np.float32] | None = None
    box_xyxy: NDArray[np.float32] | None = None
    landmarks_px: Points | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}, expected one of {', '.join(SPLITS)}")
        if self.label is not None and self.label not in EXPRESSIONS:
            raise ValueError(f"label {self.label!r}, expected one of {', '.join(EXPRESSIONS)}")


@dataclass(frozen=True, slots=True)
class KnownCount:
    """Images that a complete copy of a dataset has in one split.

    Attributes:
        total: all of them that get a class.
        by_class: class name -> images; empty where only the total is known.
    """

    total: int
    by_class: Mapping[str, int] = field(default_factory=dict)


KnownCounts = Mapping[LabelSource, Mapping[str, KnownCount]]  # how labelled -> split -> images


@dataclass(slots=True)
class Listing:
    """A dataset as found in a source.

    `warnings`, `left_out` and `uncounted` are complete when `entries` have been iterated to the end.

    Attributes:
        dataset: short name, such as ``rafdb``.
        licence: terms in one or two sentences, for the manifest and for the sidecars of what is trained on it.
        entries: the images, in an order that depends on the source alone; iterated once.
        shows: ``face``: each image, or the box of its entry, is one face; ``photo``: it has to be found.
        details: what else the manifest says: the layout, the label file, what the official splits are called.
        metadata: the metadata columns that entries may fill.
        known: counts to compare with, or empty.
        warnings: one line each.
        left_out: reason -> rows of the dataset that give no image here, such as those without an expression.
        uncounted: votes and splits of rows that `known` counts, but that give no image.
        total: number of entries if it is known, for the progress bar.
    """

    dataset: str
    licence: str
    entries: Iterable[Entry]
    shows: Literal["face", "photo"] = "face"
    details: dict[str, str] = field(default_factory=dict)
    metadata: Mapping[str, MetadataType] = field(default_factory=dict)
    known: KnownCounts = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    uncounted: list[tuple[str, NDArray[np.uint8]]] = field(default_factory=list)
    total: int | None = None


class Problems:
    """Counts what is wrong and keeps a few examples, for one line of warning for each kind.

    Args:
        where: the file or folder that the lines begin with.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._counts: Counter[str] = Counter()
        self._examples: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, what: str, example: str) -> None:
        """Count one more of a kind."""
        self._counts[what] += 1
        if len(self._examples[what]) < 5:  # one more than a line shows, so that it ends in dots
            self._examples[what].append(example)

    def warnings(self) -> list[str]:
        """The lines, in the order in which the kinds came up."""
        return [
            f"{self._where}: {what}: {count:,} ({some(self._examples[what])})" for what, count in self._counts.items()
        ]


def known_to_json(known: KnownCounts) -> dict[str, Any]:
    """Counts to compare with, for a manifest."""
    return {
        how: {split: {"total": count.total, "by_class": dict(count.by_class)} for split, count in splits.items()}
        for how, splits in known.items()
    }


def known_from_json(content: Any) -> KnownCounts:
    """Counts to compare with, as a manifest holds them."""
    return {
        how: {split: KnownCount(count["total"], count["by_class"]) for split, count in splits.items()}
        for how, splits in content.items()
    }
