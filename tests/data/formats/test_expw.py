"""ExpW: the order of the box, faces of one photo, broken rows."""

from pathlib import Path

import numpy as np
import pytest

from nkf.data.formats.expw import list_expw
from nkf.data.listing import Entry, Listing
from nkf.data.sources import open_source
from nkf.errors import NkfError

ROW = "crowd_1.jpg 0 10 20 110 90 57.5 3"


def listing_of(
    folder: Path, *rows: str, photo: str = "image/origin/crowd_1.jpg", min_confidence: float = 0.0
) -> tuple[Listing, list[Entry]]:
    for name, data in {"label/label.lst": "".join(f"{row}\n" for row in rows), photo: "photo"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(data)
    with open_source(folder) as source:
        listing = list_expw(source, min_confidence=min_confidence)
        return listing, list(listing.entries)


def test_box_is_top_left_right_bottom_in_the_file(tmp_path: Path) -> None:
    listing, (entry,) = listing_of(tmp_path, ROW)
    np.testing.assert_array_equal(entry.box_xyxy, [20, 10, 110, 90])
    assert entry.box_xyxy is not None
    assert entry.box_xyxy.dtype == np.float32
    assert (entry.name, entry.split, entry.label) == ("crowd_1.jpg#0", "train", "happiness")
    assert entry.member == "image/origin/crowd_1.jpg"
    assert entry.metadata == {"photo": "crowd_1.jpg", "face_confidence": 57.5}
    assert set(entry.metadata) == set(listing.metadata)
    assert (listing.dataset, listing.shows, listing.total, listing.warnings) == ("expw", "photo", 1, [])


@pytest.mark.parametrize(
    ("code", "label"),
    list(enumerate(["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"])),
)
def test_codes(tmp_path: Path, code: int, label: str) -> None:
    _, (entry,) = listing_of(tmp_path, f"crowd_1.jpg 0 10 20 110 90 57.5 {code}")
    assert entry.label == label


def test_faces_of_a_photo_follow_each_other_and_share_its_name(tmp_path: Path) -> None:
    rows = [ROW, "crowd_1.jpg  1 0 0 9 9 12.25 6 ", "", "alone_2.jpg 0 1 1 5 5 99 0"]
    listing, entries = listing_of(tmp_path, *rows)
    assert [entry.name for entry in entries] == ["crowd_1.jpg#0", "crowd_1.jpg#1", "alone_2.jpg#0"]
    assert [entry.metadata["photo"] for entry in entries] == ["crowd_1.jpg", "crowd_1.jpg", "alone_2.jpg"]
    assert {entry.split for entry in entries} == {"train"}
    assert "all faces of a photo have to stay in one split" in listing.details["protocol"]


def test_known_counts(tmp_path: Path) -> None:
    known = listing_of(tmp_path, ROW)[0].known["label"]["train"]
    assert known.total == sum(known.by_class.values()) == 91_793
    assert (known.by_class["anger"], known.by_class["fear"], known.by_class["neutral"]) == (3_671, 1_088, 34_883)


def test_unsure_boxes(tmp_path: Path) -> None:
    listing, entries = listing_of(tmp_path, ROW, "crowd_1.jpg 1 0 0 9 9 57.25 6", min_confidence=57.5)
    assert [entry.name for entry in entries] == ["crowd_1.jpg#0"]
    assert listing.left_out == {"confidence of the box too low": 1}
    assert listing.known == {}
    assert listing.details["min_confidence"] == "57.5"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_confidence_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(NkfError, match=rf"^min_confidence {value}: expected a number in the unit of the table$"):
        listing_of(tmp_path, ROW, min_confidence=value)


@pytest.mark.parametrize("box", ["10 20 20 90", "10 20 110 10", "10 110 20 90"])
def test_empty_box(tmp_path: Path, box: str) -> None:
    listing, entries = listing_of(tmp_path, ROW, f"crowd_1.jpg 1 {box} 50 3")
    assert len(entries) == 1
    assert listing.warnings == [
        f"{tmp_path}: label/label.lst: faces left out, their boxes are empty: 1 (crowd_1.jpg#1)"
    ]
    assert listing.left_out == {"empty box": 1}


def test_the_same_face_again(tmp_path: Path) -> None:
    listing, (entry,) = listing_of(tmp_path, ROW, "crowd_1.jpg 0 10 20 110 90 57.5 4")
    assert entry.label == "happiness"
    assert listing.warnings == [
        f"{tmp_path}: label/label.lst: faces left out that are listed twice, the first row counts: 1 (crowd_1.jpg#0)"
    ]
    assert listing.left_out == {"the same face again": 1}


@pytest.mark.parametrize("folder", ["image/origin", "image"])
def test_places_of_the_photos(tmp_path: Path, folder: str) -> None:
    _, (entry,) = listing_of(tmp_path / "ExpW", ROW, photo=f"{folder}/crowd_1.jpg")
    assert entry.member == f"{folder}/crowd_1.jpg"
    with open_source(tmp_path) as source:
        assert [entry.member for entry in list_expw(source).entries] == [f"ExpW/{folder}/crowd_1.jpg"]


@pytest.mark.parametrize(
    "row",
    [
        "crowd_1.jpg 0 10 20 110 90 57.5",
        "crowd_1.jpg 0 10 20 110 90 57.5 3 3",
        "crowd_1.jpg 0 10 20 110 90 57.5 7",
        "crowd_1.jpg 0 10 20 110 90 57.5 happy",
        "crowd_1.jpg 0.5 10 20 110 90 57.5 3",
        "crowd_1.jpg 0 10 x 110 90 57.5 3",
        "crowd_1.jpg 0 nan 20 110 90 57.5 3",
        "crowd_1.jpg 0 10 20 110 90 inf 3",
        "crowd_1.jpg,0,10,20,110,90,57.5,3",
    ],
)
def test_broken_rows(tmp_path: Path, row: str) -> None:
    with pytest.raises(
        NkfError, match=r"label/label\.lst, line 2: '.*', expected photo, face number, top, left, right, bottom, conf"
    ):
        listing_of(tmp_path, ROW, row)


@pytest.mark.parametrize("photo", ["../crowd_1.jpg", "/crowd_1.jpg", "a\\crowd_1.jpg", "..", "crowd\x07.jpg"])
def test_photos_stay_in_their_folder(tmp_path: Path, photo: str) -> None:
    with pytest.raises(NkfError, match=r"label\.lst, line 1: photo '.*', expected a plain file name$"):
        listing_of(tmp_path, f"{photo} 0 10 20 110 90 57.5 3")


def test_no_table(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    with (
        open_source(tmp_path) as source,
        pytest.raises(NkfError, match=r"not this dataset; expected label/label\.lst, and photos in image/origin/$"),
    ):
        list_expw(source)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"label\.lst: no face to import; expected rows of photo, face number"):
        listing_of(tmp_path)


def test_no_photos(tmp_path: Path) -> None:
    with pytest.raises(
        NkfError, match=r"none of the first photos .*\(crowd_1\.jpg\); expected them in image/origin/ or image/$"
    ):
        listing_of(tmp_path, ROW, photo="elsewhere/crowd_1.jpg")
