"""The table of protocols, what a configuration may change of them, and what no protocol may say."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.protocols import PROTOCOLS, Protocol, check_counts, read_protocol


@pytest.mark.parametrize(
    ("name", "classes", "train", "choose", "sampling"),
    [
        ("own", 8, ("train",), "valid", "shuffled"),
        ("ferplus", 8, ("train",), "valid", "shuffled"),
        ("ferplus-literature", 8, ("train", "valid"), "last", "shuffled"),
        ("rafdb", 7, ("train",), "carved", "shuffled"),
        ("affectnet7", 7, ("train",), "carved", "balanced"),
        ("affectnet8", 8, ("train",), "carved", "balanced"),
    ],
)
def test_table(name: str, classes: int, train: tuple[str, ...], choose: str, sampling: str) -> None:
    protocol = PROTOCOLS[name]
    assert (protocol.name, protocol.test, protocol.rule) == (name, "test", "majority")
    assert (protocol.train, protocol.choose, protocol.sampling) == (train, choose, sampling)
    assert protocol.classes == EXPRESSIONS[:classes]
    assert EXPRESSIONS[7] == "contempt"


def test_table_is_complete() -> None:
    assert list(PROTOCOLS) == ["own", "ferplus", "ferplus-literature", "rafdb", "affectnet7", "affectnet8"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": ("train", "test")}, "train: the split test is never trained on, nor chooses a checkpoint"),
        ({"train": ("train", "valid")}, "choose: valid is trained on"),
        ({"test": "valid"}, "choose: valid is reported"),
        ({"test": "valid", "train": ("valid",), "choose": "last"}, "test: the split valid is trained on"),
        ({"test": "train"}, "test: the split train is trained on"),
        ({"train": ()}, "at least 1 item"),
        ({"train": ("dev",)}, "Input should be 'train', 'valid' or 'test'"),
        ({"choose": "test"}, "Input should be 'valid', 'carved' or 'last'"),
        ({"classes": ("happiness", "neutral")}, "classes: expected two or more, once each, in this order: neutral, h"),
        ({"classes": ("neutral", "joy")}, "classes: expected two or more"),
        ({"classes": ("neutral", "neutral")}, "classes: expected two or more"),
        ({"classes": ("anger",)}, "classes: expected two or more"),
        ({"valid_share": 0}, "greater than 0"),
        ({"valid_share": 1}, "less than 1"),
        ({"rule": "loudest"}, "Input should be 'majority'"),
        ({"sampler": "balanced"}, "Extra inputs are not permitted"),
    ],
)
def test_protocols_that_would_mislead_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Protocol(name="own", **fields)


def test_classes_are_translated_by_name() -> None:
    protocol = Protocol(name="own", classes=("neutral", "surprise", "anger"))
    labels = np.array([EXPRESSIONS.index(name) for name in ("anger", "neutral", "happiness", "surprise")] + [DROPPED])
    assert protocol.class_indices(labels).tolist() == [2, 0, DROPPED, 1, DROPPED]
    assert PROTOCOLS["own"].class_indices(np.array([0, 7, DROPPED])).tolist() == [0, 7, DROPPED]


def test_a_name_or_fields_that_differ() -> None:
    def read(content: Any) -> Protocol:
        return Protocol.model_validate(read_protocol(content))

    assert read("rafdb") == PROTOCOLS["rafdb"]
    assert read({"name": "rafdb"}) == PROTOCOLS["rafdb"]
    assert read({}) == PROTOCOLS["own"]
    assert read(PROTOCOLS["ferplus"]) == PROTOCOLS["ferplus"]
    changed = read({"name": "affectnet8", "sampling": "shuffled"})
    assert changed == PROTOCOLS["affectnet8"].model_copy(update={"sampling": "shuffled"})
    assert read(changed.model_dump(mode="json")) == changed


def test_counts_are_not_expected_of_other_images() -> None:
    assert read_protocol({"name": "rafdb", "classes": ["neutral", "anger"]})["expected"] == {}
    assert read_protocol({"name": "rafdb", "valid_share": 0.1})["expected"] != {}
    assert read_protocol(PROTOCOLS["rafdb"].model_dump())["expected"] == PROTOCOLS["rafdb"].expected
    assert PROTOCOLS["rafdb"].expected["test"] == (3_068,)


@pytest.mark.parametrize("content", ["afectnet8", {"name": "afectnet8"}, {"name": 8}])
def test_unknown_names_are_refused_with_the_known_ones(content: Any) -> None:
    with pytest.raises(
        ValueError, match="no such protocol; known: own, ferplus, ferplus-literature, rafdb, affectnet7"
    ):
        read_protocol(content)


def test_what_is_neither_name_nor_fields_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a name \(own, .*\) or fields of a protocol"):
        read_protocol(8)


@pytest.mark.parametrize(
    ("name", "counts", "lines"),
    [
        ("rafdb", {"train": 12_271, "test": 3_068}, []),
        ("rafdb", {"train": 12_270}, ["protocol rafdb: 12,270 images in train, a complete copy has 12,271"]),
        ("rafdb", {"train": 12_271}, []),  # of the other split the caller does not tell
        ("rafdb", {"train": 12_271, "test": 0}, ["protocol rafdb: no images in test, a complete copy has 3,068"]),
        ("rafdb", {"train": 0, "test": 3_068}, ["protocol rafdb: no images in train, a complete copy has 12,271"]),
        ("affectnet8", {"train": 287_651, "test": 3_999}, []),
        ("affectnet8", {"train": 287_651, "test": 4_000}, []),
        ("affectnet8", {"test": 10}, ["protocol affectnet8: 10 images in test, a complete copy has 4,000 or 3,999"]),
        ("affectnet7", {"train": 283_901, "test": 3_500}, []),
        ("ferplus-literature", {"train": 25_045, "valid": 3_191, "test": 3_137}, []),
        (
            "ferplus-literature",
            {"train": 25_060, "valid": 3_199, "test": 3_153},
            [
                "protocol ferplus-literature: 28,259 images in train and valid, a complete copy has 28,236",
                "protocol ferplus-literature: 3,153 images in test, a complete copy has 3,137",
            ],
        ),
        ("own", {"train": 3, "test": 1}, []),
    ],
)  # fmt: skip
def test_counts_are_compared(name: str, counts: dict[str, int], lines: list[str]) -> None:
    assert check_counts(PROTOCOLS[name], counts) == lines


def test_what_was_carved_out_of_train_counts_as_train() -> None:
    counts = {"train": 11_657, "valid": 614, "test": 3_068}
    assert check_counts(PROTOCOLS["rafdb"], counts, carved=True) == []
    assert len(check_counts(PROTOCOLS["rafdb"], counts)) == 1
