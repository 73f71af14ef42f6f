"""Counts beside the known ones, and pictures in two splits."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nkf.data.check import KNOWN_COUNTS, compare_counts, count_classes, count_totals, find_leaks, read_md5_list
from nkf.data.ferplus import LabelFile
from nkf.data.labels import FERPLUS_COLUMNS, VOTE_COLUMNS
from nkf.errors import NkfError


def vote_rows(votes: dict[str, int], count: int) -> NDArray[np.uint8]:
    return np.tile(np.array([votes.get(name, 0) for name in VOTE_COLUMNS], np.uint8), (count, 1))


def known_votes(label_file: LabelFile, split: str) -> NDArray[np.uint8]:
    """Make votes with exactly the known counts under ``majority``, and the known totals under the other rules."""
    known = {rule: KNOWN_COUNTS[label_file][rule][split] for rule in ("majority", "argmax10", "argmax8")}
    assert known["majority"].by_class is not None
    rows = [vote_rows({name: 10}, n) for name, n in zip(FERPLUS_COLUMNS, known["majority"].by_class, strict=False)]
    # Half of the votes is no majority; where unknown wins, only argmax8 finds a label.
    rows.append(vote_rows({"neutral": 5, "happiness": 5}, known["argmax10"].total - known["majority"].total))
    rows.append(vote_rows({"neutral": 4, "unknown": 6}, known["argmax8"].total - known["argmax10"].total))
    return np.concatenate(rows)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_known_counts_add_up(split: str) -> None:
    for rules in KNOWN_COUNTS.values():
        for splits in rules.values():
            known = splits[split]
            assert known.by_class is None or (sum(known.by_class) == known.total and len(known.by_class) == 8)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_known_counts_raise_no_warning(split: str) -> None:
    votes = known_votes("label_csv", split)
    assert compare_counts("label_csv", [split] * len(votes), votes) == []


def test_each_difference_is_named() -> None:
    votes = known_votes("label_csv", "valid")
    votes[0] = vote_rows({"fear": 10}, 1)[0]  # was neutral
    votes = votes[:-1]  # under argmax8 alone it had a label
    assert compare_counts("label_csv", ["valid"] * len(votes), votes) == [
        "counts differ from the known FER+ (label_csv, majority, valid): neutral 1179 not 1180, fear 61 not 60",
        "counts differ from the known FER+ (label_csv, argmax8, valid): total 3578 not 3579",
    ]


def test_the_label_files_are_not_taken_for_each_other() -> None:
    votes = known_votes("label_csv", "test")
    first, *_ = compare_counts("fer2013new", ["test"] * len(votes), votes)
    assert first.startswith("counts differ from the known FER+ (fer2013new, majority, test): total 3137 not 3153, ")


def test_only_splits_that_occur_are_compared() -> None:
    votes = np.concatenate([known_votes("label_csv", "test"), vote_rows({"anger": 10}, 1)])
    warnings = compare_counts("label_csv", ["test"] * (len(votes) - 1) + ["valid"], votes)
    assert [warning.split(":")[0][-7:] for warning in warnings] == [" valid)"] * 3
    assert compare_counts("label_csv", [], np.zeros((0, 10), np.uint8)) == []


def test_count_by_split_and_class() -> None:
    votes = np.concatenate([vote_rows({"fear": 10}, 2), vote_rows({"unknown": 9, "anger": 1}, 1)])
    splits = ["train", "test", "test"]
    assert {split: {k: n for k, n in row.items() if n} for split, row in count_classes(splits, votes).items()} == {
        "train": {"fear": 1},
        "test": {"fear": 1},
    }
    assert count_totals(splits, votes) == {
        "majority": {"train": 1, "test": 1},
        "argmax8": {"train": 1, "test": 2},
        "argmax10": {"train": 1, "test": 1},
        "distribution": {"train": 1, "test": 1},
    }


@pytest.mark.parametrize(
    ("images", "listed", "found", "leaked"),
    [
        ("train:a train:b valid:c", "", {"valid in train": 0}, ""),
        ("train:a train:b valid:a valid:a", "", {"valid in train": 2}, "0"),
        ("train:a train:a valid:a", "", {"valid in train": 1}, "01"),
        ("train:a train:a", "", {}, ""),  # a copy within a split is no leak
        ("valid:a valid:b test:b", "", {"test in valid": 1}, ""),
        (
            "train:a train:b train:c valid:a test:b test:a",
            "",
            {"valid in train": 1, "test in train": 2, "test in valid": 1},
            "01",
        ),
        ("train:a train:b", "b z", {"listed in train": 1}, "1"),
        ("test:b", "b", {"listed in train": 0}, ""),
    ],
)
def test_find_leaks(images: str, listed: str, found: dict[str, int], leaked: str) -> None:
    splits, digests = zip(*(image.split(":") for image in images.split()), strict=True)
    counts, flags = find_leaks(splits, digests, listed.split())
    assert counts == found
    assert "".join(map(str, np.flatnonzero(flags))) == leaked


def test_read_md5_list(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("0" * 32 + "\r\n" + "ABCDEF" + "1" * 26 + "\n\n" + "2" * 32)
    assert read_md5_list(file) == {"0" * 32, "abcdef" + "1" * 26, "2" * 32}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"0" * 32 + b"\n1234\n", r"list\.txt, line 2: '1234', expected one MD5 of 32 hex digits a line$"),
        (b"g" * 32, r"list\.txt, line 1: 'g+', expected one MD5 of 32 hex digits a line$"),
        (b"\xff\xfe", r"list\.txt: not a text file; expected one MD5 of 32 hex digits a line$"),
        (None, r"list\.txt: No such file or directory$"),
    ],
)
def test_broken_md5_list(tmp_path: Path, data: bytes | None, message: str) -> None:
    file = tmp_path / "list.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(NkfError, match=message):
        read_md5_list(file)
