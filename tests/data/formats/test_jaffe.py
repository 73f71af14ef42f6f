"""JAFFE: everything is in the file names."""

from pathlib import Path

import pytest

from nkf.data.formats.jaffe import list_jaffe
from nkf.data.listing import Entry, Listing
from nkf.data.sources import open_source
from nkf.errors import NkfError


def listing_of(folder: Path, *names: str) -> tuple[Listing, list[Entry]]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"II*\0")
    with open_source(folder) as source:
        listing = list_jaffe(source)
        return listing, list(listing.entries)


@pytest.mark.parametrize(
    ("name", "label", "subject", "index"),
    [
        ("QA.AN1.39.tiff", "anger", "QA", 39),
        ("QA.DI2.4.tiff", "disgust", "QA", 4),
        ("QB.FE3.105.tiff", "fear", "QB", 105),
        ("QB.HA1.7.tif", "happiness", "QB", 7),
        ("QB.NE1..8.tiff", "neutral", "QB", 8),
        ("QC.SA1.9.TIFF", "sadness", "QC", 9),
        ("QC.SU1.10.tiff", "surprise", "QC", 10),
    ],
)
def test_names(tmp_path: Path, name: str, label: str, subject: str, index: int) -> None:
    listing, (entry,) = listing_of(tmp_path, f"jaffe/{name}")
    assert (entry.name, entry.split, entry.member, entry.label) == (name, "train", f"jaffe/{name}", label)
    assert entry.metadata == {"subject": subject, "index": index}
    assert set(entry.metadata) == set(listing.metadata)
    assert (listing.dataset, listing.shows, listing.total, listing.warnings) == ("jaffe", "photo", 1, [])


def test_counts_are_not_known_and_the_protocol_is_told(tmp_path: Path) -> None:
    listing, _ = listing_of(tmp_path, "QA.AN1.39.tiff")
    assert listing.known == {}
    assert "leaving one subject out" in listing.details["protocol"]
    assert "non-commercial" in listing.licence


def test_other_names_are_listed_not_guessed(tmp_path: Path) -> None:
    others = ["QA.AN1.tiff", "QA.XX1.3.tiff", "QA.AN1.3.png", "QA.ANG.3.tiff", "Q1.AN1.3.tiff"]
    listing, entries = listing_of(tmp_path, "QA.AN1.39.tiff", "README.txt", *others)
    assert [entry.name for entry in entries] == ["QA.AN1.39.tiff"]
    (warning,) = listing.warnings
    assert warning.startswith(f"{tmp_path}: images left out, expected names such as KA.AN1.39.tiff")
    assert "): 5 (Q1.AN1.3.tiff, " in warning
    assert listing.left_out == {"name that is not one of the dataset's": 5}


def test_the_same_picture_again(tmp_path: Path) -> None:
    listing, entries = listing_of(tmp_path, "a/QA.AN1.39.tiff", "b/QA.AN1.39.tif", "b/QA.AN1..39.tiff")
    assert [entry.member for entry in entries] == ["a/QA.AN1.39.tiff"]
    assert listing.warnings == [
        f"{tmp_path}: pictures left out that are there twice, the first counts: 2 (b/QA.AN1..39.tiff, b/QA.AN1.39.tif)"
    ]
    assert listing.left_out == {"the same picture again": 2}


def test_no_picture(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"no JAFFE pictures; expected names such as KA\.AN1\.39\.tiff \(subject"):
        listing_of(tmp_path, "somebody.png", "notes.txt")
