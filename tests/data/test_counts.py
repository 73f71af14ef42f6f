"""Counts beside the known ones, and pictures in two splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nkf.data.counts import (
    ClassCounts,
    Difference,
    add_counts,
    compare_counts,
    count_classes,
    count_rows,
    find_leaks,
    officially,
    read_md5_list,
    sums,
    train_with_valid,
    votes_of,
)
from nkf.data.formats.ferplus import KNOWN, LabelFile
from nkf.data.labels import EXPRESSIONS, VOTE_COLUMNS
from nkf.data.listing import KnownCount, LabelSource
from nkf.data.tables import Table, TableWriter
from nkf.errors import NkfError

RULES: tuple[LabelSource, ...] = ("majority", "argmax10", "argmax8")


def vote_rows(votes: dict[str, int], count: int) -> NDArray[np.uint8]:
    return np.tile(np.array([votes.get(name, 0) for name in VOTE_COLUMNS], np.uint8), (count, 1))


def known_votes(label_file: LabelFile, split: str) -> NDArray[np.uint8]:
    """Make votes with exactly the known counts under ``majority``, and the known totals under the other rules."""
    known = {rule: KNOWN[label_file][rule][split] for rule in RULES}
    rows = [vote_rows({name: 10}, n) for name, n in known["majority"].by_class.items()]
    # Half of the votes is no majority; where unknown wins, only argmax8 finds a label.
    rows.append(vote_rows({"neutral": 5, "happiness": 5}, known["argmax10"].total - known["majority"].total))
    rows.append(vote_rows({"neutral": 4, "unknown": 6}, known["argmax8"].total - known["argmax10"].total))
    return np.concatenate(rows)


def count(splits: list[str], votes: NDArray[np.uint8]) -> ClassCounts:
    return count_classes(np.array(splits, str), votes, np.full(len(votes), ""))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("label_file", KNOWN)
@pytest.mark.parametrize("rule", RULES)
def test_known_counts_add_up(label_file: LabelFile, rule: LabelSource, split: str) -> None:
    known = KNOWN[label_file][rule][split]
    if rule == "majority":
        assert set(known.by_class) == set(EXPRESSIONS)
    assert not known.by_class or sum(known.by_class.values()) == known.total


def only(split: str, label_file: LabelFile = "label_csv") -> Any:
    """The known counts of one split."""
    return {rule: {split: splits[split]} for rule, splits in KNOWN[label_file].items()}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_known_counts_raise_no_warning(split: str) -> None:
    votes = known_votes("label_csv", split)
    assert compare_counts("ferplus", only(split), count([split] * len(votes), votes)) == []


def test_each_difference_is_named() -> None:
    votes = known_votes("label_csv", "valid")
    votes[0] = vote_rows({"fear": 10}, 1)[0]  # was neutral
    votes = votes[:-1]  # under argmax8 alone it had a label
    found = compare_counts("ferplus", only("valid"), count(["valid"] * len(votes), votes))
    assert [(difference.how, difference.split) for difference in found] == [("majority", "valid"), ("argmax8", "valid")]
    assert list(map(str, found)) == [
        "counts differ from the known ferplus (majority, valid): neutral 1179 not 1180, fear 61 not 60",
        "counts differ from the known ferplus (argmax8, valid): total 3578 not 3579",
    ]


def test_the_label_files_are_not_taken_for_each_other() -> None:
    votes = known_votes("label_csv", "test")
    first, *_ = compare_counts("ferplus", only("test", "fer2013new"), count(["test"] * len(votes), votes))
    assert str(first).startswith("counts differ from the known ferplus (majority, test): total 3137 not 3153, ")


def test_a_missing_split_is_one_line_whatever_the_rule() -> None:
    votes = known_votes("label_csv", "test")
    found = compare_counts("ferplus", KNOWN["label_csv"], count(["test"] * len(votes), votes))
    assert found == [
        Difference(None, "train", "ferplus: no images of the split train, a complete copy has 25,045"),
        Difference(None, "valid", "ferplus: no images of the split valid, a complete copy has 3,191"),
    ]


def test_splits_of_which_nothing_is_known_are_not_compared() -> None:
    votes = known_votes("label_csv", "test")
    counts = count(["test"] * (len(votes) - 1) + ["valid"], votes)
    assert {difference.split for difference in compare_counts("ferplus", only("valid"), counts)} == {"valid"}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"label": {"train": KnownCount(3, {"fear": 3})}}, []),
        ({"label": {"train": KnownCount(3, {"fear": 2, "anger": 1})}}, ["fear 3 not 2, anger 0 not 1"]),
        ({"label": {"train": KnownCount(4)}}, ["total 3 not 4"]),
        ({"majority": {"train": KnownCount(4)}}, []),  # the pack has no votes
        ({}, []),
    ],
)
def test_compare_labels(known: Any, expected: list[str]) -> None:
    counts: ClassCounts = {"label": {"train": {"fear": 3, "sadness": 0}}}
    assert [str(line).split("(label, train): ")[1] for line in compare_counts("made up", known, counts)] == expected


def without_zeros(counts: ClassCounts) -> dict[str, dict[str, dict[str, int]]]:
    return {
        how: {split: {name: n for name, n in row.items() if n} for split, row in splits.items()}
        for how, splits in counts.items()
    }


def test_count_by_split_and_class() -> None:
    votes = np.concatenate([vote_rows({"fear": 10}, 2), vote_rows({"unknown": 9, "anger": 1}, 1)])
    counts = count(["train", "test", "test"], votes)
    assert list(counts["majority"]["train"]) == list(EXPRESSIONS)
    assert without_zeros(counts) == {
        "majority": {"train": {"fear": 1}, "test": {"fear": 1}},
        "argmax8": {"train": {"fear": 1}, "test": {"fear": 1, "anger": 1}},
        "argmax10": {"train": {"fear": 1}, "test": {"fear": 1}},
    }
    assert sums(counts) == {
        "majority": {"train": 1, "test": 1},
        "argmax8": {"train": 1, "test": 2},
        "argmax10": {"train": 1, "test": 1},
    }


LABELS = np.array(["fear", "anger", "", "fear"])
SPLIT_NAMES = np.array(["valid", "train", "train", "valid"])


def test_count_labels() -> None:
    counts = count_classes(SPLIT_NAMES, np.zeros((4, 10), np.uint8), LABELS)
    assert without_zeros(counts) == {"label": {"train": {"anger": 1}, "valid": {"fear": 2}}}
    assert list(counts["label"]) == ["train", "valid"]


def test_where_some_have_votes_labels_stand_for_the_others() -> None:
    votes = np.concatenate([np.zeros((3, 10), np.uint8), vote_rows({"sadness": 3}, 1)])
    counts = count_classes(SPLIT_NAMES, votes, LABELS)
    assert set(counts) == set(RULES)
    assert without_zeros(counts)["argmax10"] == {"train": {"anger": 1}, "valid": {"fear": 1, "sadness": 1}}


def test_without_votes_and_labels_there_is_nothing_to_count() -> None:
    assert count_classes(SPLIT_NAMES, np.zeros((4, 10), np.uint8), np.full(4, "")) == {}


def test_count_rows_of_a_table(tmp_path: Path) -> None:
    columns = {"split": "text", "label": "text", "votes": ("uint8", 10)}
    with TableWriter(tmp_path / "rows.arrow", columns) as table:  # type: ignore[arg-type]
        table.write([{"split": "train", "label": "fear"}, {"split": "test", "label": None}])
    assert without_zeros(count_rows(Table(tmp_path / "rows.arrow"))) == {"label": {"train": {"fear": 1}, "test": {}}}


def test_add_counts() -> None:
    total = add_counts({"label": {"train": {"fear": 1}}}, {}, {"label": {"train": {"fear": 2}, "test": {"anger": 1}}})
    assert without_zeros(total) == {"label": {"train": {"fear": 3}, "test": {"anger": 1}}}
    assert list(total["label"]["test"]) == list(EXPRESSIONS)


def test_a_carved_valid_is_officially_train() -> None:
    counts: ClassCounts = {"label": {"train": {"fear": 5}, "valid": {"fear": 2, "anger": 1}, "test": {"anger": 4}}}
    assert without_zeros(officially(counts, carved=True)) == {
        "label": {"train": {"fear": 7, "anger": 1}, "test": {"anger": 4}}
    }
    assert officially(counts, carved=False) == counts


def test_known_counts_of_train_and_valid_together() -> None:
    merged = train_with_valid(KNOWN["label_csv"])
    assert {how: {split: row.total for split, row in splits.items()} for how, splits in merged.items()} == {
        "majority": {"test": 3_137, "train": 28_236},
        "argmax10": {"test": 3_545, "train": 31_940},
        "argmax8": {"test": 3_573, "train": 32_135},
    }
    assert merged["majority"]["train"].by_class["fear"] == 536 + 60
    assert sum(merged["majority"]["train"].by_class.values()) == 28_236
    assert merged["argmax8"]["train"].by_class == {}
    assert merged["majority"]["test"] == KNOWN["label_csv"]["majority"]["test"]
    assert train_with_valid({"label": {"train": KnownCount(5), "test": KnownCount(1)}}) == {
        "label": {"test": KnownCount(1)}  # of valid nothing is known, so of both together neither
    }


@pytest.mark.parametrize(("rows", "shape"), [([], (0, 10)), ([[1] * 10, [2] * 10], (2, 10))])
def test_votes_of_rows(rows: list[list[int]], shape: tuple[int, int]) -> None:
    votes = votes_of(rows)
    assert (votes.shape, votes.dtype) == (shape, np.uint8)
    assert votes.tolist() == rows


@pytest.mark.parametrize(
    ("images", "listed", "dropped", "found"),
    [
        ("train:a train:b valid:c", "", "", {"valid in train": 0}),
        ("train:a train:b valid:a valid:a", "", "", {"valid in train": 2}),
        ("train:a train:a valid:a", "", "", {"valid in train": 1}),
        ("train:a train:a", "", "", {}),  # a copy within a split is no leak
        ("valid:a valid:b test:b", "", "", {"test in valid": 1}),
        (
            "train:a train:b train:c valid:a test:b test:a",
            "",
            "",
            {"valid in train": 1, "test in train": 2, "test in valid": 1},
        ),
        ("train:a train:b", "b z", "", {"listed in train": 1}),
        ("test:b", "b", "", {"listed in train": 0}),
        ("train:a valid:b test:c", "d", "b d", {"valid in train": 1, "test in train": 0, "test in valid": 0,
                                                "listed in train": 1}),
        ("valid:b", "", "b", {"valid in train": 1}),
        ("train: valid: valid:", "", "", {}),  # unknown digests are never the same
    ],
)  # fmt: skip
def test_find_leaks(images: str, listed: str, dropped: str, found: dict[str, int]) -> None:
    splits, digests = zip(*(image.split(":") for image in images.split()), strict=True)
    assert find_leaks(np.array(splits), np.array(digests), listed.split(), dropped.split()) == found


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
