"""What is in a dataset: images by split and class beside the known numbers, and pictures that lie in two splits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from nkf.data.labels import EXPRESSIONS, LabelRule
from nkf.data.listing import SPLITS, KnownCount, KnownCounts, LabelSource, known_from_json
from nkf.data.pack import Pack, class_numbers
from nkf.data.tables import Table
from nkf.errors import NkfError

ClassCounts = dict[LabelSource, dict[str, dict[str, int]]]  # how labelled -> split -> class -> images
VOTE_RULES: tuple[LabelRule, ...] = ("majority", "argmax10", "argmax8")


@dataclass(frozen=True, slots=True)
class Difference:
    """A count that is not the known one; as text it is one line.

    Attributes:
        how: how labelled; None where the split is missing, whatever the rule.
        split: one of `SPLITS`.
        text: the line.
    """

    how: LabelSource | None
    split: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did; `counts` and `images` are of what the pack holds.

    Attributes:
        dataset: its short name.
        images: split -> images in the pack.
        counts: how labelled (a rule for votes, or ``label``) -> split -> class -> images; empty without labels.
        left_out: reason -> rows of the dataset that give no image.
        warnings: one line each: images skipped, counts that differ from the known ones, doubled names.
        leaks_found: "valid in train" and so on -> images of the former split with a pixel-identical one in the latter;
            "listed in train" are train images whose pixels are in the given list.
        leaks_dropped: train images left out for that.
        images_skipped: unreadable images; each has its line in `warnings`.
        landmarks_found: images with landmarks.
        landmarks_missing: images without.
        splits_as_known: those whose counts are those of a complete copy of the dataset.
    """

    dataset: str
    images: Mapping[str, int]
    counts: ClassCounts = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    leaks_found: Mapping[str, int] = field(default_factory=dict)
    leaks_dropped: int = 0
    images_skipped: int = 0
    landmarks_found: int = 0
    landmarks_missing: int = 0
    splits_as_known: tuple[str, ...] = ()


def count_classes(splits: NDArray[np.str_], votes: NDArray[np.uint8], labels: NDArray[np.str_]) -> ClassCounts:
    """Count images by split and class, under each rule where there are votes, else as ``label``.

    Args:
        splits: (N,) the split of each image.
        votes: (N, 10) in the order of `VOTE_COLUMNS`; zeros = none.
        labels: (N,) class names; "" = none.

    Returns:
        Counts for the splits that occur, in the order of `SPLITS` and `EXPRESSIONS`; empty without votes and labels.
    """
    rules: tuple[LabelSource, ...] = ()
    if votes.any():
        rules = tuple(rule for rule in get_args(LabelSource) if rule in VOTE_RULES)
    elif (labels != "").any():
        rules = ("label",)
    counts: ClassCounts = {}
    for rule in rules:
        numbers = class_numbers(votes, labels, "majority" if rule == "label" else rule)
        counts[rule] = {
            split: {name: int(((numbers == k) & (splits == split)).sum()) for k, name in enumerate(EXPRESSIONS)}
            for split in SPLITS
            if (splits == split).any()
        }
    return counts


def count_rows(rows: Table) -> ClassCounts:
    """Count the images of a pack."""
    return count_classes(rows.column("split"), rows.column("votes"), rows.column("label"))


def add_counts(*several: ClassCounts) -> ClassCounts:
    """Add counts up."""
    total: ClassCounts = {}
    for counts in several:
        for how, splits in counts.items():
            for split, classes in splits.items():
                into = total.setdefault(how, {}).setdefault(split, dict.fromkeys(EXPRESSIONS, 0))
                for name, number in classes.items():
                    into[name] += number
    return total


def compare_counts(dataset: str, known: KnownCounts, counts: ClassCounts) -> list[Difference]:
    """Find the differences to the known counts: one for each rule and split, one for each split that is missing."""
    found = []
    for how, splits in known.items():
        for split, classes in counts.get(how, {}).items():
            if split not in splits:
                continue
            expected = {"total": splits[split].total, **splits[split].by_class}
            seen = {"total": sum(classes.values()), **classes}
            differences = [f"{key} {seen.get(key, 0)} not {n}" for key, n in expected.items() if seen.get(key, 0) != n]
            if differences:
                line = f"counts differ from the known {dataset} ({how}, {split}): " + ", ".join(differences)
                found.append(Difference(how, split, line))
    for split in SPLITS:
        totals = [splits[split].total for splits in known.values() if split in splits]
        if totals and not any(split in splits for splits in counts.values()):
            line = f"{dataset}: no images of the split {split}, a complete copy has {totals[0]:,}"
            found.append(Difference(None, split, line))
    return found


def officially(counts: ClassCounts, *, carved: bool) -> ClassCounts:
    """Count a valid split that was carved out of train as train again."""
    if not carved:
        return counts
    renamed = {"valid": "train"}
    return add_counts(
        *(
            {how: {renamed.get(split, split): classes}}
            for how, splits in counts.items()
            for split, classes in splits.items()
        )
    )


def train_with_valid(known: KnownCounts) -> KnownCounts:
    """Known counts of a dataset whose valid split counts as train, as `officially` counts a carved one."""
    merged = {}
    for how, splits in known.items():
        both = [splits[split] for split in ("train", "valid") if split in splits]
        merged[how] = {split: count for split, count in splits.items() if split not in ("train", "valid")}
        if len(both) == 2:
            names = both[0].by_class.keys() & both[1].by_class.keys()
            by_class = {name: sum(count.by_class[name] for count in both) for name in EXPRESSIONS if name in names}
            merged[how]["train"] = KnownCount(sum(count.total for count in both), by_class)
    return merged


def differences(pack: Pack) -> list[Difference]:
    """Where the counts of a pack are not those that are known of its dataset, see `compare_counts`."""
    manifest = pack.manifest
    counts = add_counts(count_rows(pack.table), manifest.get("counts_not_in_pack", {}))
    counts = officially(counts, carved=bool(manifest.get("valid_carved")))
    return compare_counts(manifest.get("dataset", "dataset"), known_from_json(manifest.get("known_counts", {})), counts)


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
    splits: NDArray[np.str_], digests: NDArray[np.str_], listed: Collection[str] = (), dropped: Iterable[str] = ()
) -> dict[str, int]:
    """Count the images that lie in two splits, by a digest such as the MD5 of their pixels.

    Args:
        splits: (N,) the split of each image.
        digests: (N,) what tells that two images are the same; "" = never the same.
        listed: digests of pictures that must not be trained on either.
        dropped: digests of train images that were left out.

    Returns:
        As `ImportReport.leaks_found`.
    """
    keys = digests.astype(bytes)  # a quarter of the memory of text
    of_split = {split: keys[(splits == split) & (keys != b"")] for split in SPLITS}
    of_split["train"] = np.concatenate([of_split["train"], np.array(list(dropped), str).astype(bytes)])
    found = {
        f"{later} in {earlier}": int(np.isin(of_split[later], of_split[earlier]).sum())
        for later, earlier in (("valid", "train"), ("test", "train"), ("test", "valid"))
        if of_split[later].size and of_split[earlier].size
    }
    if listed:
        found["listed in train"] = int(np.isin(of_split["train"], np.array(list(listed)).astype(bytes)).sum())
    return found


def votes_of(rows: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """(N, 10) votes, also of no rows."""
    return np.array(rows, np.uint8).reshape(-1, len(EXPRESSIONS) + 2)


def sums(counts: ClassCounts) -> dict[LabelSource, dict[str, int]]:
    """How labelled -> split -> images that get a class."""
    return {how: {split: sum(row.values()) for split, row in splits.items()} for how, splits in counts.items()}
