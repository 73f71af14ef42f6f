"""The list of a dataset's images on disk: all of an entry comes back, in the order in which images are imported."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nkf.data import index as index_module
from nkf.data.index import Index, known_from_json, known_to_json, metadata_columns, write_index
from nkf.data.listing import Entry, KnownCount, Listing
from nkf.errors import NkfError
from nkf.progress import no_progress

METADATA = {"subject": "text", "age": "integer", "yaw": "number", "shape": 3}
FULL = Entry(
    name="a/b.png",
    split="valid",
    member="images/a/b.png",
    image_bytes=b"\0\xff",
    folder="FER2013Valid",
    label="contempt",
    votes=np.arange(10, dtype=np.uint8),
    distribution=np.full(8, 1 / 8, np.float32),
    box_xyxy=np.array([1, 2, 3, 4.5], np.float32),
    landmarks_px=np.arange(136, dtype=np.float32).reshape(68, 2),
    metadata={"subject": "Ann", "age": 3, "yaw": -0.5, "shape": np.array([1, 2, 3], np.float32)},
)


def listing_of(entries: Iterable[Entry], **changes: Any) -> Listing:
    values: dict[str, Any] = {"dataset": "made up", "licence": "none", "metadata": METADATA}
    return Listing(**{**values, "entries": entries, **changes})


def same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return type(first) is type(second) and first.shape == second.shape and bool((first == second).all())
    return bool(first == second)


def differing(first: Entry, second: Entry) -> list[str]:
    """Names of the fields and metadata that are not the same; metadata that is None is as if it were absent."""
    names = [field.name for field in fields(Entry) if field.name != "metadata"]
    found = [name for name in names if not same(getattr(first, name), getattr(second, name))]
    return found + [name for name in METADATA if not same(first.metadata.get(name), second.metadata.get(name))]


@pytest.mark.parametrize(
    "entry", [FULL, Entry("a.png", "train", "a.png"), Entry("a", "test", "a", metadata={"age": 1})]
)
def test_entries_come_back(tmp_path: Path, entry: Entry) -> None:
    write_index(listing_of([entry]), tmp_path, no_progress)
    (found,) = Index(tmp_path).entries()
    assert differing(found, entry) == []
    assert differing(found, Entry("z", "train" if entry.split == "valid" else "valid", "z")) != []


def many(count: int = 23) -> list[Entry]:
    splits = ("train", "valid", "test", "train")
    return [Entry(f"{number}.png", splits[number % 4], f"{number}") for number in range(count)]


ORDER = [*range(2, 23, 4), *range(1, 23, 4), *sorted([*range(0, 23, 4), *range(3, 23, 4)])]


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_order_is_test_valid_train(tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "BATCH", batch)
    write_index(listing_of(many()), tmp_path, no_progress)
    index = Index(tmp_path)
    numbers = [int(entry.member) for entry in index.entries()]
    assert numbers == ORDER
    assert len(index) == index.listing.total == 23
    assert [index.count(split) for split in ("train", "valid", "test")] == [11, 6, 6]
    for start in range(25):
        assert [int(entry.member) for entry in index.entries(start)] == ORDER[start:]
    assert [int(entry.member) for entry in index.listing.entries] == ORDER


def test_no_entries(tmp_path: Path) -> None:
    write_index(listing_of([]), tmp_path, no_progress)
    assert (len(Index(tmp_path)), list(Index(tmp_path).entries())) == (0, [])


def test_what_a_listing_tells_at_its_end(tmp_path: Path) -> None:
    source_warnings: list[str] = []
    known = {"majority": {"train": KnownCount(3, {"fear": 3}), "test": KnownCount(4)}}
    listing = listing_of((), shows="photo", details={"layout": "flat"}, known=known)

    def entries() -> Iterator[Entry]:
        yield FULL
        listing.warnings.append("at the end")
        listing.left_out["without a face"] += 2
        listing.uncounted.append(("train", np.arange(10, dtype=np.uint8)))
        source_warnings.append("left out 'x'")

    listing.entries = entries()
    write_index(listing, tmp_path, no_progress, source_warnings)
    found = Index(tmp_path).listing
    assert found.warnings == ["left out 'x'", "at the end"]
    assert found.left_out == Counter({"without a face": 2})
    assert [(split, votes.tolist(), votes.dtype) for split, votes in found.uncounted] == [
        ("train", list(range(10)), np.uint8)
    ]
    assert (found.dataset, found.licence, found.shows, found.details) == ("made up", "none", "photo", listing.details)
    assert (found.known, found.metadata) == (known, METADATA)


@pytest.mark.parametrize("error", [NkfError("line 7"), KeyboardInterrupt()])
def test_an_index_exists_when_it_is_complete(tmp_path: Path, error: BaseException) -> None:
    def entries() -> Iterator[Entry]:
        yield FULL
        raise error

    assert not Index.exists(tmp_path)
    with pytest.raises(type(error)):
        write_index(listing_of(entries()), tmp_path, no_progress)
    assert not Index.exists(tmp_path)
    write_index(listing_of([FULL, replace(FULL, name="other")]), tmp_path, no_progress)
    assert Index.exists(tmp_path)
    assert len(Index(tmp_path)) == 2


TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": "n" * 1001}, r"^made up: valid, 'n{100}': its name has 1,001 characters, at most 1,000 fit$"),
    "file": ({"member": "n" * 1001}, r"'a/b\.png': its file has 1,001 characters, at most 1,000 fit$"),
    "text": (
        {"metadata": {"subject": "x" * 3_000_000}},
        r"'a/b\.png': subject has 3,000,000 characters, at most 1,000",
    ),
    "huge": (
        {"metadata": {"age": 2**63}},
        r"'a/b\.png': age 9223372036854775808, expected a whole number of at most 63",
    ),
    "low": (
        {"metadata": {"age": -(2**64)}},
        r"'a/b\.png': age -18446744073709551616, expected a whole number of at most",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_does_not_fit_into_a_table_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = TOO_MUCH[case]
    with pytest.raises(NkfError, match=message) as caught:
        write_index(listing_of([replace(FULL, **changes)]), tmp_path, no_progress)
    assert "\n" not in str(caught.value)
    fits = {"subject": "x" * 1000, "age": 2**63 - 1}
    write_index(listing_of([replace(FULL, name="n" * 1000, metadata=fits)]), tmp_path, no_progress)
    assert next(Index(tmp_path).entries()).metadata["age"] == 2**63 - 1


def test_files_that_were_opened_are_kept(tmp_path: Path) -> None:
    opened: dict[str, list[int]] = {}

    def entries() -> Iterator[Entry]:
        yield FULL
        opened["label.csv"] = [7, 1_700_000_000_000_000_001]

    write_index(listing_of(entries()), tmp_path, no_progress, (), opened)
    assert Index(tmp_path).opened == {"label.csv": [7, 1_700_000_000_000_000_001]}


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    write_index(listing_of([FULL]), tmp_path, no_progress)
    (tmp_path / "index-done.json").write_text("")
    with pytest.raises(NkfError, match=r": damaged \(index-done\.json\); remove it to start anew$"):
        Index(tmp_path)


def test_progress_is_told(tmp_path: Path) -> None:
    told = []

    def progress(items: Iterable[Any], text: str, total: int, /) -> Iterable[Any]:
        told.append((text, total))
        return items

    write_index(listing_of([FULL], total=7), tmp_path, progress)
    write_index(listing_of([FULL]), tmp_path, progress)
    assert told == [("Listing", 7), ("Listing", 0)]


def test_metadata_columns() -> None:
    expected = {"subject": "text", "age": "integer", "yaw": "number", "shape": ("float32", 3)}
    assert metadata_columns(listing_of([])) == expected
    with pytest.raises(NkfError, match=r"^made up: a metadata column cannot be called width, label$"):
        metadata_columns(listing_of([], metadata={"width": "integer", "age": "integer", "label": "text"}))


def test_metadata_that_was_not_announced_is_a_mistake(tmp_path: Path) -> None:
    entry = Entry("a.png", "train", "a.png", metadata={"age": 3, "mood": "good"})
    with pytest.raises(ValueError, match="no columns for meta_mood"):
        write_index(listing_of([entry]), tmp_path, no_progress)


def test_known_counts_come_back() -> None:
    known = {"label": {"train": KnownCount(3, {"fear": 3})}, "argmax8": {"test": KnownCount(4)}}
    assert known_from_json(known_to_json(known)) == known  # type: ignore[arg-type]
    assert known_from_json({}) == {}


class Counted(bytes):
    """Bytes that count how many of them there are."""

    alive = most = 0

    def __init__(self, *_: Any) -> None:
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "BATCH", 20)
    monkeypatch.setattr(Counted, "most", 0)
    entries = (Entry(f"{k}", "train", f"{k}", image_bytes=Counted(b"x")) for k in range(1000))
    write_index(listing_of(entries), tmp_path, no_progress)
    assert 20 <= Counted.most <= 2 * 20
    assert Counted.alive == 0
    assert [entry.image_bytes for entry in Index(tmp_path).entries()] == [b"x"] * 1000
