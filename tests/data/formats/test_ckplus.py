"""CK+: labelled sequences, frames, subjects, landmarks, and the copy in class folders."""

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nkf.data.formats.ckplus import LABEL_OF_CODE, list_ckplus
from nkf.data.listing import Entry, Listing
from nkf.data.sources import open_source
from nkf.errors import NkfError

POINTS = "".join(f"   {100 + i:.7e}   {200 + i:.7e}\n" for i in range(68))


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(data)
    return folder


def listing_of(path: Path, **options: Any) -> tuple[Listing, list[Entry]]:
    with open_source(path) as source:
        listing = list_ckplus(source, **options)
        return listing, list(listing.entries)


def images_of(sequence: str, count: int) -> dict[str, str]:
    stem = sequence.replace("/", "_")
    return {f"cohn-kanade-images/{sequence}/{stem}_{frame:08d}.png": "image" for frame in range(1, count + 1)}


def sequence_files(sequence: str, count: int, emotion: str | None = None) -> dict[str, str]:
    files = images_of(sequence, count)
    if emotion is not None:
        files[f"Emotion/{sequence}/{sequence.replace('/', '_')}_{count:08d}_emotion.txt"] = emotion
    return files


def summary(entries: list[Entry]) -> list[tuple[str, str | None, int, str]]:
    return [
        (f"{e.metadata['subject']}/{e.metadata['sequence']}", e.label, e.metadata["frame"], e.metadata["phase"])
        for e in entries
    ]


def test_last_three_and_first_of_labelled_sequences(tmp_path: Path) -> None:
    files = sequence_files("S805/001", 11, "   3.0000000e+00\n") | sequence_files("S806/002", 5, "7\n")
    listing, entries = listing_of(make(tmp_path / "ck", files | sequence_files("S805/002", 6)))
    assert summary(entries) == [
        ("S805/001", "neutral", 1, "neutral"),
        ("S805/001", "disgust", 9, "peak"),
        ("S805/001", "disgust", 10, "peak"),
        ("S805/001", "disgust", 11, "peak"),
        ("S806/002", "neutral", 1, "neutral"),
        ("S806/002", "surprise", 3, "peak"),
        ("S806/002", "surprise", 4, "peak"),
        ("S806/002", "surprise", 5, "peak"),
    ]
    assert entries[1].name == "S805/001/S805_001_00000009.png"
    assert entries[1].member == "cohn-kanade-images/S805/001/S805_001_00000009.png"
    assert {entry.split for entry in entries} == {"train"}
    assert all(set(entry.metadata) == set(listing.metadata) for entry in entries)
    assert (listing.dataset, listing.shows, listing.total, listing.warnings) == ("ckplus", "photo", 8, [])
    assert listing.left_out == {"sequence without an emotion file": 1}
    assert "nkf data split" in listing.details["protocol"]


@pytest.mark.parametrize(("code", "label"), LABEL_OF_CODE.items())
def test_codes(tmp_path: Path, code: int, label: str) -> None:
    expected = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
    assert label == expected[code]
    files = sequence_files("S805/001", 2, f"   {code:.7e}\n")
    _, entries = listing_of(make(tmp_path, files), frames=1, neutral=False)
    assert summary(entries) == [("S805/001", label, 2, "peak")]


@pytest.mark.parametrize("text", ["", "  \n", "3.5", "8.0", "-1", "nan", "inf", "three", "3.0 3.0", "3.0\n4.0\n"])
def test_broken_emotion_files(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        NkfError, match=r"S805_001_00000004_emotion\.txt: '.*', expected one whole number from 0 to 7 such as 3\.0"
    ):
        listing_of(make(tmp_path, sequence_files("S805/001", 4, text)))


@pytest.mark.parametrize(
    ("count", "frames", "neutral", "numbers", "warning"),
    [
        (4, 3, True, [1, 2, 3, 4], None),
        (3, 3, True, [1, 2, 3], "sequences shorter than 4 images, too short for a neutral image"),
        (2, 3, True, [1, 2], "sequences shorter than 4 images, too short for a neutral image"),
        (3, 3, False, [1, 2, 3], None),
        (2, 3, False, [1, 2], "sequences shorter than 3 images, too short for 3 images"),
        (6, 1, True, [1, 6], None),
        (6, 5, True, [1, 2, 3, 4, 5, 6], None),
    ],
)
def test_short_sequences(
    tmp_path: Path, count: int, frames: int, neutral: bool, numbers: list[int], warning: str | None
) -> None:
    files = sequence_files("S805/001", count, "5.0")
    listing, entries = listing_of(make(tmp_path, files), frames=frames, neutral=neutral)
    assert [entry.metadata["frame"] for entry in entries] == numbers
    assert Counter(entry.label for entry in entries)["neutral"] == int(neutral and count > frames)
    assert listing.warnings == ([f"{tmp_path}: {warning}: 1 (S805/001)"] if warning else [])
    assert listing.total == len(entries)


@pytest.mark.parametrize(
    ("options", "total", "anger", "neutral"),
    [
        ({}, 981 + 327, 135, 327),
        ({"neutral": False}, 981, 135, None),
        ({"frames": 1, "neutral": False}, 327, 45, None),
    ],
)
def test_known_counts(tmp_path: Path, options: dict[str, Any], total: int, anger: int, neutral: int | None) -> None:
    listing, _ = listing_of(make(tmp_path, sequence_files("S805/001", 8, "1.0")), **options)
    known = listing.known["label"]["train"]
    assert known.total == sum(known.by_class.values()) == total
    assert (known.by_class["anger"], known.by_class.get("neutral")) == (anger, neutral)


def test_counts_of_more_frames_are_not_known(tmp_path: Path) -> None:
    assert listing_of(make(tmp_path, sequence_files("S805/001", 8, "1.0")), frames=4)[0].known == {}


def test_emotion_file_is_found_by_its_folder(tmp_path: Path) -> None:
    files = images_of("S805/001", 5) | {"Emotion/S805/001/S0805_001_00000005_emotion.txt": "4.0"}
    listing, entries = listing_of(make(tmp_path, files), frames=1, neutral=False)
    assert summary(entries) == [("S805/001", "fear", 5, "peak")]
    assert listing.warnings == []


@pytest.mark.parametrize(
    ("files", "warning", "left_out"),
    [
        ({"Emotion/S805/001/copy.txt": "1.0"}, "sequences with more than one emotion file, with the same code", None),
        (
            {"Emotion/S805/001/copy.txt": "2.0"},
            "sequences left out, their emotion files contradict each other",
            "sequence with contradictory emotion files",
        ),
        (
            {"Emotion/S805/002/S805_002_00000005_emotion.txt": "2.0"},
            "sequences left out, with an emotion file but without images",
            "sequence without images",
        ),
        (
            {"cohn-kanade-images/S805/001/S805_001_00000006.png": "image"},
            "sequences that end at another image than their emotion file tells",
            None,
        ),
        (
            {"cohn-kanade-images/S805/001/peak.png": "image"},
            "sequences with images left out, without a frame number in their names",
            None,
        ),
    ],
)
def test_oddities_are_told(tmp_path: Path, files: dict[str, str], warning: str, left_out: str | None) -> None:
    usual = sequence_files("S805/001", 5, "1.0") | sequence_files("S806/001", 5, "6.0")
    listing, entries = listing_of(make(tmp_path, usual | files), frames=1, neutral=False)
    number = "002" if "S805/002" in next(iter(files)) else "001"
    assert listing.warnings == [f"{tmp_path}: {warning}: 1 (S805/{number})"]
    assert listing.left_out == ({left_out: 1} if left_out else {})
    assert ("S806/001", "sadness", 5, "peak") in summary(entries)
    contradictory = left_out == "sequence with contradictory emotion files"
    assert any(entry.metadata["subject"] == "S805" for entry in entries) != contradictory


def test_landmarks_of_the_frames_that_have_them(tmp_path: Path) -> None:
    folder = "Landmarks/S805/001/S805_001"
    files = sequence_files("S805/001", 5, "1.0") | {
        f"{folder}_00000003_landmarks.txt": POINTS,
        f"{folder}_00000004_landmarks.txt": POINTS.replace("1.0000000e+02", "nan"),
    }
    listing, entries = listing_of(make(tmp_path, files))
    assert [entry.landmarks_px is not None for entry in entries] == [False, True, False, False]
    np.testing.assert_array_equal(entries[1].landmarks_px, [(100 + i, 200 + i) for i in range(68)])
    assert listing.warnings == [
        f"{tmp_path}: landmark files that are not 68 lines of x and y: 1 ({folder}_00000004_landmarks.txt)"
    ]
    assert "68 points" in listing.details["landmarks_are"]


@pytest.mark.parametrize("text", ["", "1 2\n", POINTS + "1 2\n", POINTS.replace("e+02", "", 1) + "x", "1 2 3\n" * 68])
def test_broken_landmarks_are_left_out(tmp_path: Path, text: str) -> None:
    file = "Landmarks/S805/001/S805_001_00000005_landmarks.txt"
    files = sequence_files("S805/001", 5, "1.0") | {file: text}
    listing, entries = listing_of(make(tmp_path, files))
    assert all(entry.landmarks_px is None for entry in entries)
    assert listing.warnings == [f"{tmp_path}: landmark files that are not 68 lines of x and y: 1 ({file})"]


def test_parts_unpacked_apart_and_zipped(tmp_path: Path) -> None:
    files = sequence_files("S805/001", 5, "1.0") | {"Landmarks/S805/001/S805_001_00000005_landmarks.txt": POINTS}
    parts = {"cohn-kanade-images": "images", "Emotion": "Emotion_labels", "Landmarks": "Landmarks"}
    path = tmp_path / "ck.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"CK+/{parts[name.split('/')[0]]}/{name}", data)
    _, entries = listing_of(path)
    assert [entry.metadata["frame"] for entry in entries] == [1, 3, 4, 5]
    assert entries[3].landmarks_px is not None
    assert entries[3].member == "CK+/images/cohn-kanade-images/S805/001/S805_001_00000005.png"


COPY = {
    f"CK+48/{folder}/{subject}_{frame:08d}.png": "image"
    for folder, subject in {"happy": "S810_004", "contempt": "S811_001", "anger": "S810_002"}.items()
    for frame in (17, 18, 19)
}


def test_copy_in_class_folders(tmp_path: Path) -> None:
    listing, entries = listing_of(make(tmp_path, COPY))
    assert summary(entries)[::3] == [
        ("S810/002", "anger", 17, "peak"),
        ("S811/001", "contempt", 17, "peak"),
        ("S810/004", "happiness", 17, "peak"),
    ]
    assert (entries[0].name, entries[0].member) == ("anger/S810_002_00000017.png", "CK+48/anger/S810_002_00000017.png")
    assert (listing.shows, listing.total, listing.warnings) == ("face", 9, [])
    assert listing.details["layout"] == "48x48 re-upload of 981 pictures"
    assert listing.known["label"]["train"].total == 981
    assert "neutral" not in listing.known["label"]["train"].by_class


def test_copy_with_fewer_frames_and_other_names(tmp_path: Path) -> None:
    others = {"CK+48/anger/face.png": "image", "CK+48/anger/S810_002_17.png": "image", "CK+48/notes/a.txt": ""}
    listing, entries = listing_of(make(tmp_path, COPY | others), frames=2)
    assert sorted({entry.metadata["frame"] for entry in entries}) == [18, 19]
    (warning,) = listing.warnings
    assert warning.startswith(
        f"{tmp_path}: images left out, expected names such as S010_004_00000017.png: 2 (CK+48/anger/S8"
    )
    assert listing.left_out == {"name that is not one of the dataset's": 2}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/b.png": ""}, r"not CK\+; expected cohn-kanade-images/ and Emotion/ with folders S005/001, or the folders"),
        ({"anger/b.png": ""}, r"not CK\+; expected"),
        (images_of("S805/001", 4), r"has no folder Emotion; expected cohn-kanade-images/ and Emotion/"),
        ({"Emotion/S805/001/a_emotion.txt": "1"}, r"has no folder cohn-kanade-images; expected"),
        (
            images_of("S805/001", 4) | {"Emotion/readme.txt": ""},
            r": Emotion: no emotion file of a sequence with images; expected",
        ),
        (
            {f"{split}/{name}": "" for split in ("train", "test") for name in COPY},
            r"class folders in test/CK\+48, train/CK\+48; expected one set of them, since a split that is not by",
        ),
        (
            COPY | {"CK+48/neutral/S810_004_00000001.png": ""},
            r"CK\+48/neutral is no class, expected anger, .*surprise$",
        ),
        (
            {f"{part}/{name}": "" for part in "ab" for name in images_of("S805/001", 4)},
            r"cohn-kanade-images is there 2 times, in a, b; name one of them$",
        ),
    ],
)
def test_errors(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(NkfError, match=message):
        listing_of(make(tmp_path, files))


def test_frames_have_to_be_some(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"^frames 0, expected at least 1$"):
        listing_of(make(tmp_path, COPY), frames=0)
