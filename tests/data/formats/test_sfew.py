"""SFEW 2.0: class folders of frames and of aligned faces."""

from pathlib import Path
from typing import Any

import pytest

from nkf.data.formats.sfew import list_sfew
from nkf.data.listing import Entry, KnownCount, Listing
from nkf.data.sources import open_source
from nkf.errors import NkfError

ORIGINAL = ["Train/Angry/Film_0001_02.png", "Train/Sad/Film_0002_01.png", "Val/Happy/Other_0003_01.png", "Test/1.png"]


def listing_of(folder: Path, *names: str, **options: Any) -> tuple[Listing, list[Entry]]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x89PNG")
    with open_source(folder) as source:
        listing = list_sfew(source, **options)
        return listing, list(listing.entries)


def test_val_is_the_test_split_and_test_is_left_out(tmp_path: Path) -> None:
    listing, entries = listing_of(tmp_path, *(f"SFEW_2/{name}" for name in ORIGINAL), "SFEW_2/Test/2.png")
    assert [(entry.split, entry.name, entry.label, entry.member) for entry in entries] == [
        ("train", "Angry/Film_0001_02.png", "anger", "SFEW_2/Train/Angry/Film_0001_02.png"),
        ("train", "Sad/Film_0002_01.png", "sadness", "SFEW_2/Train/Sad/Film_0002_01.png"),
        ("test", "Happy/Other_0003_01.png", "happiness", "SFEW_2/Val/Happy/Other_0003_01.png"),
    ]
    assert (listing.dataset, listing.shows, listing.total, listing.warnings) == ("sfew", "photo", 3, [])
    assert listing.left_out == {"picture of Test, whose labels are not public": 2}
    assert listing.details["test_split_is"] == "the official Val set"
    assert listing.known == {"label": {"train": KnownCount(958), "test": KnownCount(436)}}


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("Angry", "anger"),
        ("DISGUST", "disgust"),
        ("fear", "fear"),
        ("Happy", "happiness"),
        ("Neutral", "neutral"),
        ("sad", "sadness"),
        ("Surprise", "surprise"),
    ],
)
def test_classes_in_any_case(tmp_path: Path, folder: str, label: str) -> None:
    _, (entry,) = listing_of(tmp_path, f"Train/{folder}/1.png", "Val/Angry/Thumbs.db")
    assert entry.label == label


def test_aligned_faces_tell_which_frames_have_none(tmp_path: Path) -> None:
    aligned = ["Train_Aligned_Faces/angry/Film_0001_02.jpg", "Val_Aligned_Faces/Happy/Other_0003_01.png"]
    listing, entries = listing_of(tmp_path, *ORIGINAL, *aligned, "Test_Aligned_Faces/1.png", images="aligned")
    assert [(entry.split, entry.member, entry.label) for entry in entries] == [
        ("train", aligned[0], "anger"),
        ("test", aligned[1], "happiness"),
    ]
    assert (listing.shows, listing.known) == ("face", {})
    assert listing.warnings == [f"{tmp_path}: Train: frames without an aligned face: 1 (Train/Sad/Film_0002_01.png)"]
    assert listing.left_out == {
        "frame of Train without an aligned face": 1,
        "picture of Test, whose labels are not public": 1,
    }


def test_aligned_faces_alone(tmp_path: Path) -> None:
    aligned = ["Train_Aligned_Faces/Angry/1.png", "Val_Aligned_Faces/Angry/2.png"]
    listing, entries = listing_of(tmp_path, *aligned, images="aligned")
    assert len(entries) == 2
    assert listing.warnings == [
        f"{tmp_path}: Train: not there, so the faces without an aligned picture cannot be counted",
        f"{tmp_path}: Val: not there, so the faces without an aligned picture cannot be counted",
    ]


def test_missing_val_and_stray_images_are_told(tmp_path: Path) -> None:
    listing, entries = listing_of(tmp_path, "Train/Angry/1.png", "Train/2.png", "Train/readme.txt")
    assert [entry.name for entry in entries] == ["Angry/1.png"]
    assert listing.warnings == [
        f"{tmp_path}: Train: images left out, in no class folder: 1 (2.png)",
        f"{tmp_path}: Val: no images; expected some in Angry, Disgust, Fear, Happy, Neutral, Sad, Surprise",
    ]
    assert listing.left_out == {"image outside the class folders": 1}


@pytest.mark.parametrize(
    ("names", "images", "message"),
    [
        (["a/1.png"], "original", r"not this dataset; expected Train and Val with the folders Angry, Disgust, Fear"),
        (ORIGINAL, "aligned", r"not this dataset; expected Train_Aligned_Faces and Val_Aligned_Faces with the folders"),
        (["Train/Joy/1.png"], "original", r": Train: Joy is no class, expected Angry, .*, Surprise$"),
        (["Train/Happy/notes.txt"], "original", r"no images in Train or Val, expected some in Angry, .*, Surprise$"),
        (ORIGINAL, "cropped", r"^images 'cropped', expected one of original, aligned$"),
    ],
)
def test_errors(tmp_path: Path, names: list[str], images: str, message: str) -> None:
    with pytest.raises(NkfError, match=message):
        listing_of(tmp_path, *names, images=images)
