"""What an import found: counts by split and class beside the known ones, and pictures that lie in two splits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nkf.data.ferplus import LabelFile
from nkf.data.labels import EXPRESSIONS, FERPLUS_COLUMNS, LABEL_RULES, LabelRule, labels_from_votes
from nkf.data.pack import SPLITS
from nkf.errors import NkfError

ClassCounts = Mapping[str, Mapping[str, int]]  # split -> class -> images
Totals = Mapping[str, Mapping[str, int]]  # rule -> split -> images


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did; `counts`, `totals` and `images` are of what the pack holds.

    Attributes:
        images: split -> images in the pack.
        counts: split -> class -> images under the rule ``majority``; empty without labels.
        totals: rule -> split -> images to which the rule gives a label; empty without labels.
        warnings: one line each: images skipped, counts that differ from the known ones, doubled names.
        leaks_found: "valid in train" and so on -> images of the former split with a pixel-identical one in the latter;
            "listed in train" are train images whose pixels are in the list of `leak_md5`.
        leaks_dropped: train images left out for that.
        images_skipped: unreadable images; each has its line in `warnings`.
        landmarks_found: images with landmarks.
        landmarks_missing: images without.
    """

    images: Mapping[str, int]
    counts: ClassCounts = field(default_factory=dict)
    totals: Totals = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    leaks_found: Mapping[str, int] = field(default_factory=dict)
    leaks_dropped: int = 0
    images_skipped: int = 0
    landmarks_found: int = 0
    landmarks_missing: int = 0


@dataclass(frozen=True, slots=True)
class KnownCount:
    """Images that a rule keeps in one split.

    Attributes:
        total: all of them.
        by_class: (8,) in the order of FER+'s files, or None where only the total is known.
    """

    total: int
    by_class: tuple[int, ...] | None = None


# Counted from Microsoft's fer2013new.csv (one image a row, doubled names twice) and from the label.csv files that its
# generator writes. With label.csv and majority the literature's "28,236 train" is train and valid together.
# fmt: off
KNOWN_COUNTS: Mapping[LabelFile, Mapping[LabelRule, Mapping[str, KnownCount]]] = {
    "fer2013new": {
        "majority": {
            "train": KnownCount(25_060, (8740, 7287, 3149, 3014, 2100, 119, 532, 119)),
            "valid": KnownCount(3_199, (1182, 865, 415, 351, 287, 24, 62, 13)),
            "test": KnownCount(3_153, (1090, 893, 396, 384, 273, 18, 83, 16)),
        },
        "argmax10": {
            "train": KnownCount(28_389, (10309, 7528, 3562, 3515, 2467, 191, 652, 165)),
            "valid": KnownCount(3_553, (1335, 899, 456, 412, 319, 34, 74, 24)),
            "test": KnownCount(3_546, (1262, 928, 444, 444, 325, 23, 93, 27)),
        },
        "argmax8": {
            "train": KnownCount(28_559, (10388, 7539, 3588, 3549, 2478, 194, 656, 167)),
            "valid": KnownCount(3_579, (1347, 899, 459, 418, 320, 36, 75, 25)),
            "test": KnownCount(3_573, (1278, 929, 446, 448, 326, 23, 94, 29)),
        },
    },
    "label_csv": {
        "majority": {
            "train": KnownCount(25_045, (8733, 7284, 3136, 3022, 2098, 116, 536, 120)),
            "valid": KnownCount(3_191, (1180, 862, 411, 348, 289, 25, 60, 16)),
            "test": KnownCount(3_137, (1083, 892, 394, 382, 269, 16, 86, 15)),
        },
        "argmax10": {"train": KnownCount(28_385), "valid": KnownCount(3_555), "test": KnownCount(3_545)},
        "argmax8": {"train": KnownCount(28_556), "valid": KnownCount(3_579), "test": KnownCount(3_573)},
    },
}
# fmt: on


def count_classes(splits: Sequence[str], votes: NDArray[np.uint8], rule: LabelRule = "majority") -> ClassCounts:
    """Count images by split and class under a rule.

    Args:
        splits: the split of each image.
        votes: (N, 10) in the order of `VOTE_COLUMNS`.
        rule: how votes become a label.

    Returns:
        split -> class -> images, for the splits that occur, in the order of `SPLITS` and `EXPRESSIONS`.
    """
    labels, split_of = labels_from_votes(votes, rule), np.asarray(splits)
    return {
        split: {name: int(((labels == index) & (split_of == split)).sum()) for index, name in enumerate(EXPRESSIONS)}
        for split in SPLITS
        if split in splits
    }


def count_totals(splits: Sequence[str], votes: NDArray[np.uint8]) -> Totals:
    """Count the images that each rule keeps: rule -> split -> images."""
    counts = {rule: count_classes(splits, votes, rule) for rule in LABEL_RULES}
    return {rule: {split: sum(row.values()) for split, row in rows.items()} for rule, rows in counts.items()}


def compare_counts(label_file: LabelFile, splits: Sequence[str], votes: NDArray[np.uint8]) -> list[str]:
    """Name each difference to `KNOWN_COUNTS`, one line for each rule and split; only splits that occur count."""
    warnings = []
    for rule, known_splits in KNOWN_COUNTS[label_file].items():
        for split, row in count_classes(splits, votes, rule).items():
            known = known_splits[split]
            expected = {"total": known.total}
            if known.by_class is not None:
                expected |= dict(zip(FERPLUS_COLUMNS, known.by_class, strict=False))
            seen = {"total": sum(row.values()), **row}
            differences = [f"{key} {seen[key]} not {count}" for key, count in expected.items() if seen[key] != count]
            if differences:
                warnings.append(
                    f"counts differ from the known FER+ ({label_file}, {rule}, {split}): " + ", ".join(differences)
                )
    return warnings


def read_md5_list(path: Path) -> frozenset[str]:
    """Read a list of pixel MD5s, one a line.

    Raises:
        NkfError: when it is unreadable, or a line is not an MD5.
    """
    try:
        lines = path.read_text("ascii").split("\n")
    except OSError as error:
        raise NkfError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise NkfError(f"{path}: not a text file; expected one MD5 of 32 hex digits a line") from error
    listed = set()
    for number, line in enumerate(lines, 1):
        digest = line.strip().lower()
        if digest and (len(digest) != 32 or set(digest) - set("0123456789abcdef")):
            raise NkfError(f"{path}, line {number}: {digest[:40]!r}, expected one MD5 of 32 hex digits a line")
        listed.add(digest)
    return frozenset(listed - {""})


def find_leaks(
    splits: Sequence[str], digests: Sequence[str], listed: Iterable[str] = ()
) -> tuple[dict[str, int], NDArray[np.bool_]]:
    """Find pictures that lie in two splits, by the MD5 of their pixels.

    Args:
        splits: the split of each image.
        digests: `pixels_md5` of each image.
        listed: MD5s of pictures that must not be trained on either.

    Returns:
        Counts as in `ImportReport.leaks_found`, and (N,) which train images have a copy in valid, in test or in the
        list.
    """
    of_split = {split: {d for s, d in zip(splits, digests, strict=True) if s == split} for split in SPLITS}
    found = {
        f"{later} in {earlier}": sum(
            s == later and d in of_split[earlier] for s, d in zip(splits, digests, strict=True)
        )
        for later, earlier in (("valid", "train"), ("test", "train"), ("test", "valid"))
        if of_split[later] and of_split[earlier]
    }
    in_list = set(listed)
    if in_list:
        found["listed in train"] = sum(s == "train" and d in in_list for s, d in zip(splits, digests, strict=True))
    forbidden = of_split["valid"] | of_split["test"] | in_list
    leaked = [s == "train" and d in forbidden for s, d in zip(splits, digests, strict=True)]
    return found, np.array(leaked, bool)
