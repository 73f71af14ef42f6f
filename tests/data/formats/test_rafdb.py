"""RAF-DB's basic part, in invented names: both spellings of the list, both pictures, boxes and groups of people."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nkf.data.formats.rafdb import LABEL_OF_CODE, list_rafdb
from nkf.data.listing import Entry, Listing
from nkf.data.sources import FolderSource, ZipSource, open_source
from nkf.errors import NkfError

Files = dict[str, str | bytes]

LIST = "EmoLabel/list_patition_label.txt"
OTHER_LIST = "EmoLabel/list_partition_label.txt"
ROWS = "train_00001.jpg 5\ntrain_00002.jpg 4\ntest_0001.jpg 7\n"
NAMES = ("train_00001", "train_00002", "test_0001")
POINTS = "40.5 50.25\n61 50\n50 60\n44 70\n58 70.125\n"


def jpeg(side: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (120, 90, 70)).save(stream, "JPEG")
    return stream.getvalue()


def basic(**changes: str) -> Files:
    """All files of the basic part, three images; `changes` are texts by the names of the fixtures' parts."""
    files: Files = {LIST: changes.get("rows", ROWS)}
    for number, name in enumerate(NAMES):
        files[f"Image/original/{name}.jpg"] = jpeg(16)
        files[f"Image/aligned/{name}_aligned.jpg"] = jpeg(8)
        files[f"Annotation/manual/{name}_manu_attri.txt"] = changes.get("people", f"{POINTS}{number}\n{number}\n2\n")
        files[f"Annotation/boundingbox/{name}_boundingbox.txt"] = changes.get("box", f"{number} 2 {number + 9}.5 11 \n")
    return files


def write(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[Listing, list[Entry]]]:
    """Return a function that writes files and lists them; entries are iterated to the end."""

    def list_files(files: Files, **options: str) -> tuple[Listing, list[Entry]]:
        listing = list_rafdb(FolderSource(write(tmp_path, files)), **options)  # type: ignore[arg-type]
        return listing, list(listing.entries)

    return list_files


def without(files: Files, part: str) -> Files:
    return {name: data for name, data in files.items() if part not in name}


def test_every_code_has_its_class(read) -> None:
    classes = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # of the dataset's readme
    rows = "".join(f"train_{code:05}.jpg {code}\n" for code in range(1, 8))
    images = {f"Image/aligned/train_{code:05}_aligned.jpg": jpeg(8) for code in range(1, 8)}
    _, entries = read({LIST: rows, **images})
    assert [entry.label for entry in entries] == list(classes)
    assert len(LABEL_OF_CODE) == 7


def test_aligned_images(read) -> None:
    listing, entries = read(basic())
    assert (listing.dataset, listing.shows, listing.total, listing.warnings) == ("rafdb", "face", 3, [])
    assert listing.details == {
        "layout": "basic",
        "crop": "aligned (100x100, official)",
        "label_file": "list_patition_label.txt",
    }
    assert [(entry.name, entry.split, entry.label) for entry in entries] == [
        ("train_00001_aligned.jpg", "train", "sadness"),
        ("train_00002_aligned.jpg", "train", "happiness"),
        ("test_0001_aligned.jpg", "test", "neutral"),
    ]
    assert entries[0].member == "Image/aligned/train_00001_aligned.jpg"
    assert all(entry.box_xyxy is None for entry in entries)  # boxes are those of the photos
    assert "non-commercial" in listing.licence


def test_people(read) -> None:
    listing, entries = read(basic())
    assert listing.metadata == {"sex": "text", "ethnic_group": "text", "age_group": "text"}
    assert [entry.metadata for entry in entries] == [
        {"sex": "male", "ethnic_group": "Caucasian", "age_group": "20-39"},
        {"sex": "female", "ethnic_group": "African-American", "age_group": "20-39"},
        {"sex": "unsure", "ethnic_group": "Asian", "age_group": "20-39"},
    ]


@pytest.mark.parametrize(("code", "group"), list(enumerate(["0-3", "4-19", "20-39", "40-69", "70+"])))
def test_age_groups(read, code: int, group: str) -> None:
    _, entries = read(basic(people=f"{POINTS}0\n0\n{code}"))
    assert {entry.metadata["age_group"] for entry in entries} == {group}


def test_original_images_with_boxes(read) -> None:
    listing, entries = read(basic(), images="original")
    assert (listing.shows, listing.details["crop"], listing.warnings) == ("photo", "original", [])
    assert [entry.name for entry in entries] == [f"{name}.jpg" for name in NAMES]
    assert entries[1].member == "Image/original/train_00002.jpg"
    assert entries[1].box_xyxy is not None
    assert entries[1].box_xyxy.dtype == np.float32
    assert entries[1].box_xyxy.tolist() == [1, 2, 10.5, 11]


def test_auto_falls_back_to_original(read) -> None:
    listing, entries = read(without(basic(), "aligned"))
    assert listing.details["crop"] == "original"
    assert len(entries) == 3


def test_no_annotations(read) -> None:
    listing, entries = read(without(basic(), "Annotation"), images="original")
    assert (listing.metadata, listing.warnings) == ({}, [])
    assert [(entry.box_xyxy, dict(entry.metadata)) for entry in entries] == [(None, {})] * 3


@pytest.mark.parametrize("file", [OTHER_LIST, "list_patition_label.txt", "list_partition_label.txt"])
def test_other_places_of_the_list(read, file: str) -> None:
    listing, entries = read({file: ROWS, **without(basic(), LIST)})
    assert listing.details["label_file"] == Path(file).name
    assert len(entries) == 3


def test_two_lists(read, tmp_path: Path) -> None:
    listing, entries = read({OTHER_LIST: ROWS.replace("5", "1"), **basic()})
    assert listing.warnings == [f"{tmp_path}: {LIST} is read, {OTHER_LIST} is not"]
    assert entries[0].label == "sadness"


@pytest.mark.parametrize(
    ("old", "new"), [("\n", "\r\n"), ("\n", "\n\n"), ("\n", " \n"), (" ", "  "), ("train_00001", "\ufefftrain_00001")]
)
def test_harmless_differences(read, old: str, new: str) -> None:
    listing, entries = read(basic(rows=ROWS.replace(old, new)))
    assert [entry.label for entry in entries] == ["sadness", "happiness", "neutral"]
    assert listing.warnings == []


@pytest.mark.parametrize("kind", [FolderSource, ZipSource])
def test_deeper_and_beside_the_compound_part(tmp_path: Path, kind: type) -> None:
    compound: Files = {LIST: "train_0001.jpg 11\n", "Image/aligned/train_0001_aligned.jpg": jpeg(8)}
    files: Files = {f"RAF/basic/{name}": data for name, data in basic().items()}
    files |= {f"RAF/compound/{name}": data for name, data in compound.items()}
    path = tmp_path / "raf.zip"
    if kind is FolderSource:
        write(path, files)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    with open_source(path) as source:
        assert isinstance(source, kind)
        listing = list_rafdb(source)
        entries = list(listing.entries)
        assert source.read(entries[2].member) == jpeg(8)
    assert entries[2].member == "RAF/basic/Image/aligned/test_0001_aligned.jpg"
    assert entries[2].metadata["ethnic_group"] == "Asian"
    assert listing.warnings == []


def test_list_and_folder_differ(read, tmp_path: Path) -> None:
    files = without(basic(), "train_00002_aligned") | {f"Image/aligned/x{i}.jpg": jpeg(8) for i in range(6)}
    listing, entries = read(files | {"Image/aligned/notes.txt": "no image"})
    assert [entry.split for entry in entries] == ["train", "test"]
    assert listing.total == 2
    assert listing.left_out == {"no image file": 1}
    assert listing.warnings == [
        f"{tmp_path}: Image/aligned: images of the list that are missing: 1 (train_00002_aligned.jpg)",
        f"{tmp_path}: Image/aligned: images left out, not in the list: 6 (x0.jpg, x1.jpg, x2.jpg, x3.jpg, ...)",
    ]


@pytest.mark.parametrize(("code", "detail"), [("5", ""), ("1", " with other codes")])
def test_double_names(read, tmp_path: Path, code: str, detail: str) -> None:
    listing, entries = read(
        basic(rows=f"train_00001.jpg {code}\ntrain_00002.jpg 4\ntrain_00001.jpg 5\ntest_0001.jpg 7\n")
    )
    assert [(entry.name, entry.label) for entry in entries] == [
        ("train_00002_aligned.jpg", "happiness"),
        ("train_00001_aligned.jpg", "sadness"),
        ("test_0001_aligned.jpg", "neutral"),
    ]
    what = f"names listed more than once{detail}, the last row counts: 1 (train_00001.jpg)"
    assert listing.warnings == [f"{tmp_path}: {LIST}: {what}"]


BROKEN_PEOPLE = {
    "four points": POINTS.split("\n", 1)[1] + "0\n0\n0\n",
    "three numbers": POINTS.replace("61 50", "61 50 1") + "0\n0\n0\n",
    "no numbers": POINTS.replace("61 50", "x y") + "0\n0\n0\n",
    "unknown sex": POINTS + "3\n0\n0\n",
    "unknown ethnic group": POINTS + "0\n3\n0\n",
    "unknown age group": POINTS + "0\n0\n5\n",
    "one line": POINTS + "0 0 0\n",
    "empty": "",
}


@pytest.mark.parametrize("text", BROKEN_PEOPLE.values(), ids=BROKEN_PEOPLE)
def test_broken_people(read, tmp_path: Path, text: str) -> None:
    file = "Annotation/manual/train_00002_manu_attri.txt"
    listing, entries = read(basic() | {file: text})
    assert [bool(entry.metadata) for entry in entries] == [True, False, True]
    expected = "five lines x y, then the codes of sex, ethnic group and age group, a line each"
    assert listing.warnings == [
        f"{tmp_path}: Annotation/manual: files not understood, expected {expected}: 1 (train_00002_manu_attri.txt)"
    ]


@pytest.mark.parametrize(
    "text",
    ["1 2 3", "1 2 3 4 5", "9 2 1 11", "1 11 9 2", "1 2 1 11", "a b c d", "1 2 nan 11", "1 2 inf 11", "", b"\xff\xfe"],
)
def test_broken_box(read, tmp_path: Path, text: str | bytes) -> None:
    listing, entries = read(basic() | {"Annotation/boundingbox/test_0001_boundingbox.txt": text}, images="original")
    assert [entry.box_xyxy is None for entry in entries] == [False, False, True]
    expected = "expected four numbers x0 y0 x1 y1: 1 (test_0001_boundingbox.txt)"
    assert listing.warnings == [f"{tmp_path}: Annotation/boundingbox: files not understood, {expected}"]


def test_missing_annotation_files(read, tmp_path: Path) -> None:
    files = without(without(basic(), "train_00001_manu"), "test_0001_bounding")
    listing, entries = read(files, images="original")
    assert [entry.box_xyxy is None for entry in entries] == [False, False, True]
    assert [bool(entry.metadata) for entry in entries] == [False, True, True]
    assert listing.warnings == [
        f"{tmp_path}: Annotation/manual: files missing: 1 (train_00001_manu_attri.txt)",
        f"{tmp_path}: Annotation/boundingbox: files missing: 1 (test_0001_boundingbox.txt)",
    ]


WHERE = r": EmoLabel/list_patition_label\.txt"
BROKEN: dict[str, tuple[Files, str]] = {
    "nothing": ({"notes.txt": ""}, r": not RAF-DB; expected EmoLabel/list_patition_label\.txt \(or list_partition"),
    "compound only": (
        {f"compound/{name}": data for name, data in basic().items()},
        r": only the compound part of RAF-DB, which is another task; expected its basic part, the folder basic",
    ),
    "compound only, without its list": ({"RAF/compound/a.jpg": b""}, ": only the compound part of RAF-DB"),
    "twice": (
        {f"{copy}/{name}": data for copy in "ab" for name, data in basic().items()},
        ": holds RAF-DB 2 times, in a, b; name one of them$",
    ),
    "no images": (without(basic(), "Image"), ": no Image/aligned or Image/original with the images$"),
    "packed images": (
        without(basic(), "Image") | {"Image/aligned.zip": b""},
        r": no Image/aligned or Image/original with the images; unpack Image/aligned\.zip there$",
    ),
    "other images": (
        basic(rows="train_00007.jpg 1\n"),
        rf": Image/aligned has none of the images of {LIST}; expected train_00007_aligned\.jpg and others$",
    ),
    "empty": (basic(rows=" \n"), WHERE + r": empty; expected a row for each image, as train_00001\.jpg 5$"),
    "binary": (basic() | {LIST: b"\xff\xfe\x00"}, WHERE + r": not a text table \(UTF-8\)$"),
}
NOT_A_ROW = "expected a name and a code, as train_00001.jpg 5$"
BROKEN_ROWS = {
    "train_00002.jpg 0": "code '0', expected 1 to 7",
    "train_00002.jpg 8": r"code '8', expected 1 to 7 \(1 to 11 are those of the compound part\)$",
    "train_00002.jpg -1": "code '-1', expected 1 to 7",
    "train_00002.jpg 4.0": "code '4.0', expected 1 to 7",
    "train_00002.jpg happy": "code 'happy', expected 1 to 7",
    "train_00002.jpg": f"'train_00002.jpg', {NOT_A_ROW}",
    "train_00002.jpg 4 4": f"'train_00002.jpg 4 4', {NOT_A_ROW}",
    "train_00002.jpg,4": f"'train_00002.jpg,4', {NOT_A_ROW}",
    "valid_00002.jpg 4": f"'valid_00002.jpg 4', {NOT_A_ROW}",
    "../train_00002.jpg 4": f"'../train_00002.jpg 4', {NOT_A_ROW}",
}


@pytest.mark.parametrize(("files", "message"), BROKEN.values(), ids=BROKEN)
def test_refused(read, tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(NkfError, match=f"^{tmp_path}{message}"):
        read(files)


@pytest.mark.parametrize(("row", "message"), BROKEN_ROWS.items(), ids=BROKEN_ROWS)
def test_broken_rows(read, row: str, message: str) -> None:
    with pytest.raises(NkfError, match=rf"{WHERE}, line 2: {message}"):
        read(basic(rows=ROWS.replace("train_00002.jpg 4", row)))


@pytest.mark.parametrize("images", ["aligned", "original"])
def test_images_asked_for_are_absent(read, images: str) -> None:
    with pytest.raises(NkfError, match=f": no Image/{images} with the images$"):
        read(without(basic(), images), images=images)


def test_compound_folder_itself(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match="only the compound part"):
        list_rafdb(FolderSource(write(tmp_path / "compound", basic())))


def test_known_counts(read) -> None:
    known = read(basic())[0].known["label"]
    assert {split: count.total for split, count in known.items()} == {"train": 12_271, "test": 3_068}
    assert all(sum(count.by_class.values()) == count.total for count in known.values())
    assert known["train"].by_class["happiness"] == 4_772
    assert known["test"].by_class["fear"] == 74
    assert "contempt" not in known["train"].by_class
