"""KDEF: everything is in the file names."""

from pathlib import Path

import pytest

from nkf.data.formats.kdef import list_kdef
from nkf.data.listing import Entry, KnownCount, Listing
from nkf.data.sources import open_source
from nkf.errors import NkfError


def listing_of(folder: Path, *names: str, angles: tuple[str, ...] | None = None) -> tuple[Listing, list[Entry]]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8")
    with open_source(folder) as source:
        listing = list_kdef(source) if angles is None else list_kdef(source, angles=angles)
        return listing, list(listing.entries)


@pytest.mark.parametrize(
    ("name", "label", "subject", "session", "sex", "angle"),
    [
        ("AF01AFFL.JPG", "fear", "F01", "A", "female", "full left"),
        ("BF01ANHL.JPG", "anger", "F01", "B", "female", "half left"),
        ("AM35DIS.JPG", "disgust", "M35", "A", "male", "straight"),
        ("BM20HAHR.jpg", "happiness", "M20", "B", "male", "half right"),
        ("AF09NEFR.Jpg", "neutral", "F09", "A", "female", "full right"),
        ("AF10SAS.JPG", "sadness", "F10", "A", "female", "straight"),
        ("AF29SUS.JPG", "surprise", "F29", "A", "female", "straight"),
    ],
)
def test_names(tmp_path: Path, name: str, label: str, subject: str, session: str, sex: str, angle: str) -> None:
    listing, (entry,) = listing_of(tmp_path, f"KDEF/{name[:4]}/{name}")
    assert (entry.name, entry.split, entry.member) == (name, "train", f"KDEF/{name[:4]}/{name}")
    assert entry.label == label
    assert entry.metadata == {"subject": subject, "session": session, "sex": sex, "angle": angle}
    assert set(entry.metadata) == set(listing.metadata)
    assert (listing.dataset, listing.shows, listing.total, listing.warnings) == ("kdef", "photo", 1, [])


def test_other_names_are_listed_not_guessed(tmp_path: Path) -> None:
    others = [
        *("AF01ANX.JPG", "AF01ANSL.JPG", "AF36ANS.JPG", "AF00ANS.JPG", "CF01ANS.JPG", "AX01ANS.JPG", "AF01XXS.JPG"),
        *("af01ans.jpg", "AF01ANS (1).JPG", "AF01ANS.png", "AF01AN.JPG", "AF1ANS.JPG"),
    ]
    listing, entries = listing_of(tmp_path, "AF01/AF02ANS.JPG", "readme.txt", *(f"x/{name}" for name in others))
    assert [entry.name for entry in entries] == ["AF02ANS.JPG"]
    (warning,) = listing.warnings
    assert warning.startswith(f"{tmp_path}: images left out, expected names such as AF01ANFL.JPG or AF01ANS.JPG")
    assert f"): {len(others)} (x/AF00ANS.JPG, " in warning
    assert listing.left_out == {"name that is not one of the dataset's": len(others)}


def test_the_same_picture_again(tmp_path: Path) -> None:
    listing, entries = listing_of(tmp_path, "a/AF01ANS.JPG", "b/AF01ANS.jpg")
    assert [entry.member for entry in entries] == ["a/AF01ANS.JPG"]
    assert listing.warnings == [
        f"{tmp_path}: pictures left out that are there twice, the first counts: 1 (b/AF01ANS.jpg)"
    ]
    assert listing.left_out == {"the same picture again": 1}


def test_angles(tmp_path: Path) -> None:
    names = ["AF01ANFL.JPG", "AF01ANHL.JPG", "AF01ANS.JPG", "AF01ANHR.JPG", "AF01ANFR.JPG"]
    listing, entries = listing_of(tmp_path, *names, angles=("HR", "S"))
    assert [entry.name for entry in entries] == ["AF01ANHR.JPG", "AF01ANS.JPG"]
    assert listing.left_out == {"angle not asked for": 3}
    assert listing.details["angles"] == "straight, half right"


@pytest.mark.parametrize(
    ("angles", "total", "per_class"),
    [(None, 4900, 700), (("S",), 980, 140), (("S", "S", "HL"), 1960, 280)],
)
def test_known_counts(tmp_path: Path, angles: tuple[str, ...] | None, total: int, per_class: int) -> None:
    listing, _ = listing_of(tmp_path, "AF01ANS.JPG", angles=angles)
    classes = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
    assert listing.known == {"label": {"train": KnownCount(total, dict.fromkeys(classes, per_class))}}


@pytest.mark.parametrize(
    ("names", "angles", "message"),
    [
        (["face.jpg"], ("S",), r"no KDEF pictures; expected names such as AF01ANFL\.JPG or AF01ANS\.JPG"),
        (["AF01ANFL.JPG"], ("S",), r"no KDEF pictures of these angles, but 1 of others$"),
        (["AF01ANS.JPG"], ("S", "X"), r"^angles X, expected some of S, HL, HR, FL, FR$"),
        (["AF01ANS.JPG"], (), r"^angles are empty, expected some of S, HL, HR, FL, FR$"),
    ],
)
def test_errors(tmp_path: Path, names: list[str], angles: tuple[str, ...], message: str) -> None:
    with pytest.raises(NkfError, match=message):
        listing_of(tmp_path, *names, angles=angles)
