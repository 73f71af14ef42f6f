"""AffectNet's first release, in invented names: tables with and without a header; and what is neither release."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nkf.data.formats.affectnet import list_affectnet
from nkf.data.sources import open_source
from nkf.errors import NkfError

Files = dict[str, str | bytes]

LISTS = "Manually_Annotated_file_lists"
TRAIN, VALIDATION = f"{LISTS}/training.csv", f"{LISTS}/validation.csv"
IMAGES = "Manually_Annotated/Manually_Annotated_Images"
AUTOMATIC = "Automatically_annotated_file_list/automatically_annotated.csv"
HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
POINTS = np.arange(136, dtype=np.float32).reshape(68, 2) + 0.25
LANDMARKS = ";".join(str(float(value)) for value in POINTS.ravel())
CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")  # of the paper


def encoded(kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (120, 90, 70)).save(stream, kind)
    return stream.getvalue()


def row(name: str = "1/a.jpg", code: object = 1, **changes: object) -> str:
    fields = {"box": "3,4,10,20", "landmarks": LANDMARKS, "valence": "0.5", "arousal": "-0.25"} | changes
    return f"{name},{fields['box']},{fields['landmarks']},{code},{fields['valence']},{fields['arousal']}\n"


def first(train: str = HEADER + row(), validation: str = row("2/v.png", 0)) -> Files:
    """The first release; an image for each row, empty lists left out."""
    files: Files = {name: text for name, text in ((TRAIN, train), (VALIDATION, validation)) if text}
    for text in (train, validation):
        for name in re.findall(r"^(\d+/\w+\.\w+),", text, re.MULTILINE):
            files[f"{IMAGES}/{name}"] = encoded("PNG" if name.endswith("png") else "JPEG")
    return files


def without(files: Files, part: str) -> Files:
    return {name: data for name, data in files.items() if part not in name}


def test_first_release(affectnet) -> None:
    listing, entries = affectnet(first())
    assert (listing.dataset, listing.shows, listing.warnings, listing.left_out) == ("affectnet", "face", [], {})
    assert listing.details == {"release": "first", "test_split_is": "the official validation set"}
    assert listing.metadata == {"valence": "number", "arousal": "number"}
    assert [(entry.name, entry.split, entry.label) for entry in entries] == [
        ("1/a.jpg", "train", "happiness"),
        ("2/v.png", "test", "neutral"),
    ]
    entry = entries[0]
    assert entry.member == f"{IMAGES}/1/a.jpg"
    assert entry.box_xyxy is not None
    assert (entry.box_xyxy.dtype, entry.box_xyxy.tolist()) == (np.float32, [3, 4, 13, 24])
    assert entry.landmarks_px is not None
    assert entry.landmarks_px.dtype == np.float32
    np.testing.assert_array_equal(entry.landmarks_px, POINTS)
    assert entry.metadata == {"valence": 0.5, "arousal": -0.25}
    assert "non-commercial" in listing.licence


@pytest.mark.parametrize("header", ["", HEADER, "\ufeff" + HEADER, HEADER.replace(",", ", ")])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_header_or_none(affectnet, header: str, split: str) -> None:
    files = first(**{"train": "", "validation": ""} | {split: header + row(code=2) + row("1/b.jpg", 3)})
    assert [entry.label for entry in affectnet(files)[1]] == ["sadness", "surprise"]


def test_header_in_other_order(affectnet) -> None:
    columns = HEADER.strip().split(",")
    fields = dict(zip(columns, row(code=6).strip().split(","), strict=True)) | {"id": "7"}
    order = ["id", "expression", *(name for name in reversed(columns) if name != "expression")]
    table = f"{','.join(order)}\n{','.join(fields[name] for name in order)}\n"
    _, entries = affectnet(first(validation="") | {TRAIN: table})
    assert (entries[0].name, entries[0].label, entries[0].metadata["arousal"]) == ("1/a.jpg", "anger", -0.25)
    assert entries[0].box_xyxy is not None
    assert entries[0].box_xyxy.tolist() == [3, 4, 13, 24]


def test_every_code(affectnet) -> None:
    """8, 9 and 10 say that there is no expression."""
    listing, entries = affectnet(first("".join(row(f"1/a{code}.jpg", code) for code in (*range(11), 9, 10, 10)), ""))
    assert tuple(entry.label for entry in entries) == CLASSES
    assert listing.left_out == {"none": 1, "uncertain": 2, "no face": 3}
    assert listing.warnings == []


@pytest.mark.parametrize(
    "box", ["3,4,-10,20", "3,4,10,-20", "3,4,0,20", "3,4,10,0", "3,4,nan,20", "3,4,inf,20", "x,4,10,20", ",,,"]
)
def test_broken_box(affectnet, tmp_path: Path, box: str) -> None:
    listing, entries = affectnet(first(HEADER + row() + row("1/b.jpg", box=box), ""))
    assert [entry.name for entry in entries] == ["1/a.jpg"]
    assert listing.left_out == {"broken box": 1}
    assert listing.warnings == [
        f"{tmp_path}: {TRAIN}: rows left out, their face box has no positive width and height: 1 (line 3 1/b.jpg)"
    ]


@pytest.mark.parametrize(
    ("text", "value"), [("-2", None), ("-1", -1), ("1", 1), ("1.001", None), ("0", 0), ("nan", None), (" -0.5 ", -0.5)]
)
def test_valence_and_arousal_are_masked(affectnet, text: str, value: float | None) -> None:
    listing, entries = affectnet(first(row(valence=text) + row("1/b.jpg", arousal=text), ""))
    assert (entries[0].metadata["valence"], entries[1].metadata["arousal"]) == (value, value)
    assert (entries[0].metadata["arousal"], entries[1].metadata["valence"]) == (-0.25, 0.5)
    assert listing.warnings == []


def test_valence_that_is_no_number(affectnet, tmp_path: Path) -> None:
    listing, entries = affectnet(first(row(valence="high"), ""))
    assert entries[0].metadata == {"valence": None, "arousal": -0.25}
    assert listing.warnings == [f"{tmp_path}: {TRAIN}: valences that are no number: 1 (line 1 1/a.jpg)"]


@pytest.mark.parametrize(
    "text", ["", "1;2", LANDMARKS + ";1;2", LANDMARKS.replace("0.25", "x", 1), LANDMARKS.replace("0.25", "nan", 1)]
)
def test_broken_landmarks(affectnet, tmp_path: Path, text: str) -> None:
    rows = [row(f"1/b{number}.jpg", landmarks=text) for number in range(6)]
    listing, entries = affectnet(first(row(landmarks=LANDMARKS + ";") + "".join(rows), ""))
    assert [entry.landmarks_px is None for entry in entries] == [False] + [True] * 6
    examples = ", ".join(f"line {number + 2} 1/b{number}.jpg" for number in range(4))
    assert listing.warnings == [
        f"{tmp_path}: {TRAIN}: images without landmarks, expected 68 pairs x;y: 6 ({examples}, ...)"
    ]


def test_row_that_comes_again(affectnet, tmp_path: Path) -> None:
    listing, entries = affectnet(first(row(code=1) + row("./1//a.jpg", 2), row(code=3)))
    assert [(entry.name, entry.split, entry.label) for entry in entries] == [
        ("1/a.jpg", "train", "happiness"),
        ("1/a.jpg", "test", "surprise"),
    ]
    assert listing.left_out == {"listed before": 1}
    assert listing.warnings == [
        f"{tmp_path}: {TRAIN}: rows left out, an earlier row has the same image: 1 (line 2 1/a.jpg)"
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [(IMAGES, "Manually_Annotated_Images"), ("Manually", "AffectNet/2017/Manually"), (f"{LISTS}/", "")],
    ids=["images beside the lists", "deeper", "lists beside the images"],
)
def test_other_places(affectnet, old: str, new: str) -> None:
    files = first()
    if not new:
        files = {name.replace(IMAGES, "Manually_Annotated_Images"): data for name, data in files.items()}
    files = {re.sub(f"^{old}", new, name): data for name, data in files.items()}
    _, entries = affectnet(files)
    assert len(entries) == 2
    assert all(entry.member in files for entry in entries)


def test_automatic_images_only_when_asked_for(affectnet) -> None:
    automatic = {AUTOMATIC: HEADER + row("9/m.jpg", 4), "Automatically_Annotated/9/m.jpg": encoded()}
    listing, entries = affectnet(first() | automatic)
    assert [entry.name for entry in entries] == ["1/a.jpg", "2/v.png"]
    assert "annotation" not in entries[0].metadata
    listing, entries = affectnet({}, with_automatic=True)
    assert [(entry.name, entry.split, entry.label, entry.metadata["annotation"]) for entry in entries] == [
        ("1/a.jpg", "train", "happiness", "manual"),
        ("9/m.jpg", "train", "fear", "automatic"),
        ("2/v.png", "test", "neutral", "manual"),
    ]
    assert entries[1].member == "Automatically_Annotated/9/m.jpg"
    assert listing.metadata == {"valence": "number", "arousal": "number", "annotation": "text"}
    assert "train" not in listing.known["label"]  # the known count is that of the manual part


@pytest.mark.parametrize(
    "folder", ["Automatically_Annotated/Automatically_Annotated_Images", "Automatically_Annotated_Images"]
)
def test_places_of_automatic_images(affectnet, folder: str) -> None:
    automatic = {AUTOMATIC: row("9/m.jpg", 4), f"{folder}/9/m.jpg": encoded()}
    _, entries = affectnet(first("") | automatic, with_automatic=True)
    assert [entry.member for entry in entries] == [f"{folder}/9/m.jpg", f"{IMAGES}/2/v.png"]


def test_tables_are_read_lazily(watched) -> None:
    rows = [row(f"1/a{number}.jpg") for number in range(20)] + [row("1/b.jpg", "broken")]
    entries = iter(list_affectnet(watched(first("".join(rows), ""))).entries)
    assert next(entries).name == "1/a0.jpg"
    with pytest.raises(NkfError, match="line 21: expression 'broken'"):
        list(entries)


def test_images_are_not_looked_up_one_by_one(watched) -> None:
    source = watched(first("".join(row(f"1/a{number}.jpg") for number in range(30)), ""))
    assert len(list(list_affectnet(source).entries)) == 30
    assert sum(count for (method, _), count in source.calls.items() if method == "has") < 10
    assert ("children", f"{IMAGES}/1") not in source.calls


def test_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "affectnet.zip", "w") as archive:
        for name, data in first().items():
            archive.writestr(f"AffectNet/{name}", data)
    with open_source(tmp_path / "affectnet.zip") as source:
        listing = list_affectnet(source)
        entries = list(listing.entries)
        assert [Image.open(io.BytesIO(source.read(entry.member))).size for entry in entries] == [(8, 8)] * 2
    assert [entry.split for entry in entries] == ["train", "test"]
    assert listing.warnings == []


BOTH: Files = first() | {"train_set/images/1.jpg": b"", "train_set/annotations/1_exp.npy": b""}
BROKEN: dict[str, tuple[Files, str]] = {
    "nothing": (
        {"notes.txt": ""},
        f": no AffectNet; expected {LISTS} with training.csv or validation.csv (first release), or train_set or "
        "val_set with images and annotations in it (second release)",
    ),
    "both in one folder": (
        BOTH,
        ": holds AffectNet 2 times, the first release in its top folder and the second release in its top folder; "
        "expected one of them",
    ),
    "both in two folders": (
        {f"{'new' if '_set' in name else 'old'}/{name}": data for name, data in BOTH.items()},
        ": holds AffectNet 2 times, the second release in new and the first release in old; expected one of them",
    ),
    "no lists": ({f"{LISTS}/notes.txt": ""}, f": {LISTS}: no training.csv or validation.csv in it"),
    "no images": (
        without(first(), IMAGES),
        f": no images; expected them in {IMAGES} or Manually_Annotated_Images",
    ),
    "other images": (
        without(first(), "1/a.jpg"),
        f": {TRAIN}: its first images are not in {IMAGES}; expected 1/a.jpg",
    ),
    "other images of the validation set": (
        without(first(), "2/v.png"),
        f": {VALIDATION}: its first images are not in {IMAGES}; expected 2/v.png",
    ),
    "empty list": (first("\n"), f": {TRAIN}: empty; expected a row for each image"),
    "header only": (first(HEADER), f": {TRAIN}: empty; expected a row for each image"),
    "missing column": (
        first(HEADER.replace("face_width", "width") + row()),
        f": {TRAIN}, line 1: no column face_width; expected the header {HEADER.strip()}, or a row in this order with "
        "a code from 0 to 10",
    ),
    "short row": (
        first(row() + row("1/b.jpg").replace(",-0.25", "")),
        f": {TRAIN}, line 2: 8 fields, expected 9: {', '.join(HEADER.strip().split(','))}",
    ),
}


@pytest.mark.parametrize(("files", "message"), BROKEN.values(), ids=BROKEN)
def test_refused(affectnet, tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(NkfError, match=f"^{re.escape(f'{tmp_path}{message}')}$"):
        affectnet(files)


@pytest.mark.parametrize("code", ["11", "-1", "1.0", "happy", "", "1_0", "١"])
def test_broken_code(affectnet, tmp_path: Path, code: str) -> None:
    message = f"{tmp_path}: {TRAIN}, line 3: expression {code!r}, expected a whole number from 0 to 10"
    with pytest.raises(NkfError, match=f"^{re.escape(message)}$"):
        affectnet(first(HEADER + row() + row("1/b.jpg", code)))


def test_broken_code_without_header(affectnet) -> None:
    with pytest.raises(
        NkfError, match=r"training\.csv, line 1: expression '11', expected a whole number from 0 to 10$"
    ):
        affectnet(first(row(code=11)))


@pytest.mark.parametrize(
    "path", ["../a.jpg", "1/../../a.jpg", "/etc/a.jpg", "C:/a.jpg", "1\\a.jpg", "", ".", "1/\x07.jpg"]
)
def test_paths_that_lead_elsewhere(affectnet, path: str) -> None:
    with pytest.raises(NkfError, match=r"training\.csv, line 2: image .*, expected a path below the images' folder"):
        affectnet(first(row() + row(path)))


def test_automatic_images_that_are_absent(affectnet) -> None:
    with pytest.raises(NkfError, match=f": no automatically annotated images; expected {AUTOMATIC}$"):
        affectnet(first(), with_automatic=True)


def test_known_counts(affectnet) -> None:
    known = affectnet(first())[0].known["label"]
    assert all(sum(count.by_class.values()) == count.total for count in known.values())
    assert (known["train"].total, known["train"].by_class["happiness"]) == (287_651, 134_415)
    assert known["train"].total - known["train"].by_class["contempt"] == 283_901
    assert (known["test"].total, known["test"].by_class["contempt"]) == (4_000, 500)
