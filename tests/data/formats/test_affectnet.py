"""AffectNet's two releases, in invented names: tables with and without a header, and folders of npy files."""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.formats.affectnet import list_affectnet
from nkf.data.listing import Entry, Listing
from nkf.data.sources import Children, FolderSource, open_source
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


def npy(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(value))
    return stream.getvalue()


def face(split: str, name: object, code: object = "1", lnd: object = POINTS.ravel(), **changes: bytes) -> Files:
    """One image of the second release with its four annotations, its scalars strings as in the official files."""
    annotations = {"exp": npy(code), "val": npy("0.5"), "aro": npy("-0.25"), "lnd": npy(lnd)} | changes
    return {f"{split}/images/{name}.jpg": encoded()} | {
        f"{split}/annotations/{name}_{kind}.npy": data for kind, data in annotations.items()
    }


def write(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def without(files: Files, part: str) -> Files:
    return {name: data for name, data in files.items() if part not in name}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[Listing, list[Entry]]]:
    """Return a function that writes files and lists them; entries are iterated to the end."""

    def list_files(files: Files, **options: bool) -> tuple[Listing, list[Entry]]:
        listing = list_affectnet(FolderSource(write(tmp_path, files)), **options)
        return listing, list(listing.entries)

    return list_files


class WatchedSource(FolderSource):
    """Counts how often each method is called with which name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: Counter[tuple[str, str]] = Counter()

    def children(self, folder: str = "") -> Children:
        self.calls["children", folder] += 1
        return super().children(folder)

    def has(self, name: str) -> bool:
        self.calls["has", name] += 1
        return super().has(name)

    def read(self, name: str, limit: int = 1 << 20) -> bytes:
        self.calls["read", name] += 1
        return super().read(name, limit)


def test_first_release(read) -> None:
    listing, entries = read(first())
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
def test_header_or_none(read, header: str, split: str) -> None:
    files = first(**{"train": "", "validation": ""} | {split: header + row(code=2) + row("1/b.jpg", 3)})
    assert [entry.label for entry in read(files)[1]] == ["sadness", "surprise"]


def test_header_in_other_order(read) -> None:
    columns = HEADER.strip().split(",")
    fields = dict(zip(columns, row(code=6).strip().split(","), strict=True)) | {"id": "7"}
    order = ["id", "expression", *(name for name in reversed(columns) if name != "expression")]
    table = f"{','.join(order)}\n{','.join(fields[name] for name in order)}\n"
    _, entries = read(first(validation="") | {TRAIN: table})
    assert (entries[0].name, entries[0].label, entries[0].metadata["arousal"]) == ("1/a.jpg", "anger", -0.25)
    assert entries[0].box_xyxy is not None
    assert entries[0].box_xyxy.tolist() == [3, 4, 13, 24]


def test_every_code(read) -> None:
    """8, 9 and 10 say that there is no expression."""
    listing, entries = read(first("".join(row(f"1/a{code}.jpg", code) for code in (*range(11), 9, 10, 10)), ""))
    assert tuple(entry.label for entry in entries) == CLASSES
    assert listing.left_out == {"none": 1, "uncertain": 2, "no face": 3}
    assert listing.warnings == []


@pytest.mark.parametrize(
    "box", ["3,4,-10,20", "3,4,10,-20", "3,4,0,20", "3,4,10,0", "3,4,nan,20", "3,4,inf,20", "x,4,10,20", ",,,"]
)
def test_broken_box(read, tmp_path: Path, box: str) -> None:
    listing, entries = read(first(HEADER + row() + row("1/b.jpg", box=box), ""))
    assert [entry.name for entry in entries] == ["1/a.jpg"]
    assert listing.left_out == {"broken box": 1}
    assert listing.warnings == [
        f"{tmp_path}: {TRAIN}: rows left out, their face box has no positive width and height: 1 (line 3 1/b.jpg)"
    ]


@pytest.mark.parametrize(
    ("text", "value"), [("-2", None), ("-1", -1), ("1", 1), ("1.001", None), ("0", 0), ("nan", None), (" -0.5 ", -0.5)]
)
def test_valence_and_arousal_are_masked(read, text: str, value: float | None) -> None:
    listing, entries = read(first(row(valence=text) + row("1/b.jpg", arousal=text), ""))
    assert (entries[0].metadata["valence"], entries[1].metadata["arousal"]) == (value, value)
    assert (entries[0].metadata["arousal"], entries[1].metadata["valence"]) == (-0.25, 0.5)
    assert listing.warnings == []


def test_valence_that_is_no_number(read, tmp_path: Path) -> None:
    listing, entries = read(first(row(valence="high"), ""))
    assert entries[0].metadata == {"valence": None, "arousal": -0.25}
    assert listing.warnings == [f"{tmp_path}: {TRAIN}: valences that are no number: 1 (line 1 1/a.jpg)"]


@pytest.mark.parametrize(
    "text", ["", "1;2", LANDMARKS + ";1;2", LANDMARKS.replace("0.25", "x", 1), LANDMARKS.replace("0.25", "nan", 1)]
)
def test_broken_landmarks(read, tmp_path: Path, text: str) -> None:
    rows = [row(f"1/b{number}.jpg", landmarks=text) for number in range(6)]
    listing, entries = read(first(row(landmarks=LANDMARKS + ";") + "".join(rows), ""))
    assert [entry.landmarks_px is None for entry in entries] == [False] + [True] * 6
    examples = ", ".join(f"line {number + 2} 1/b{number}.jpg" for number in range(4))
    assert listing.warnings == [
        f"{tmp_path}: {TRAIN}: images without landmarks, expected 68 pairs x;y: 6 ({examples}, ...)"
    ]


def test_row_that_comes_again(read, tmp_path: Path) -> None:
    listing, entries = read(first(row(code=1) + row("./1//a.jpg", 2), row(code=3)))
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
def test_other_places(read, old: str, new: str) -> None:
    files = first()
    if not new:
        files = {name.replace(IMAGES, "Manually_Annotated_Images"): data for name, data in files.items()}
    files = {re.sub(f"^{old}", new, name): data for name, data in files.items()}
    _, entries = read(files)
    assert len(entries) == 2
    assert all(entry.member in files for entry in entries)


def test_automatic_images_only_when_asked_for(read) -> None:
    automatic = {AUTOMATIC: HEADER + row("9/m.jpg", 4), "Automatically_Annotated/9/m.jpg": encoded()}
    listing, entries = read(first() | automatic)
    assert [entry.name for entry in entries] == ["1/a.jpg", "2/v.png"]
    assert "annotation" not in entries[0].metadata
    listing, entries = read({}, with_automatic=True)
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
def test_places_of_automatic_images(read, folder: str) -> None:
    automatic = {AUTOMATIC: row("9/m.jpg", 4), f"{folder}/9/m.jpg": encoded()}
    _, entries = read(first("") | automatic, with_automatic=True)
    assert [entry.member for entry in entries] == [f"{folder}/9/m.jpg", f"{IMAGES}/2/v.png"]


def test_tables_are_read_lazily(tmp_path: Path) -> None:
    rows = [row(f"1/a{number}.jpg") for number in range(20)] + [row("1/b.jpg", "broken")]
    entries = iter(list_affectnet(FolderSource(write(tmp_path, first("".join(rows), "")))).entries)
    assert next(entries).name == "1/a0.jpg"
    with pytest.raises(NkfError, match="line 21: expression 'broken'"):
        list(entries)


def test_images_are_not_looked_up_one_by_one(tmp_path: Path) -> None:
    source = WatchedSource(write(tmp_path, first("".join(row(f"1/a{number}.jpg") for number in range(30)), "")))
    assert len(list(list_affectnet(source).entries)) == 30
    assert sum(count for (method, _), count in source.calls.items() if method == "has") < 10
    assert ("children", f"{IMAGES}/1") not in source.calls


@pytest.mark.parametrize("validation", ["val_set", "valid_set"])
def test_second_release(read, validation: str) -> None:
    listing, entries = read(face("train_set", 12) | face(validation, 3, "7"))
    assert (listing.dataset, listing.shows, listing.total, listing.warnings) == ("affectnet", "face", 2, [])
    assert listing.details == {"release": "second", "test_split_is": "the official validation set"}
    assert [(entry.name, entry.split, entry.label, entry.member) for entry in entries] == [
        ("12.jpg", "train", "happiness", "train_set/images/12.jpg"),
        ("3.jpg", "test", "contempt", f"{validation}/images/3.jpg"),
    ]
    assert entries[0].metadata == {"valence": 0.5, "arousal": -0.25}
    assert entries[0].box_xyxy is None
    assert entries[0].landmarks_px is not None
    np.testing.assert_array_equal(entries[0].landmarks_px, POINTS)


@pytest.mark.parametrize("code", [3, "3", b"3", np.int32(3), ["3"]], ids=repr)
@pytest.mark.parametrize("valence", [0.5, "0.5", b"0.5", np.float32(0.5)], ids=repr)
def test_scalars_are_numbers_or_strings(read, code: object, valence: object) -> None:
    listing, entries = read(face("train_set", 1, code, val=npy(valence)))
    assert (entries[0].label, entries[0].metadata["valence"]) == ("surprise", 0.5)
    assert listing.warnings == []


@pytest.mark.parametrize("landmarks", [POINTS, POINTS.ravel().astype(str), POINTS.astype(np.float64).ravel()])
def test_forms_of_landmarks(read, landmarks: object) -> None:
    _, entries = read(face("train_set", 1, lnd=landmarks))
    assert entries[0].landmarks_px is not None
    assert entries[0].landmarks_px.dtype == np.float32
    np.testing.assert_array_equal(entries[0].landmarks_px, POINTS)


def test_every_code_of_the_second_release(read) -> None:
    files = {name: data for code in range(8) for name, data in face("val_set", code, str(code)).items()}
    assert tuple(entry.label for entry in read(files)[1]) == CLASSES


def test_ids_in_the_order_of_their_numbers(read) -> None:
    names = ["10", "9", "100", "b", "a1", "0"]
    files = {name: data for stem in names for name, data in face("train_set", stem).items()}
    _, entries = read(files | {"train_set/images/notes.txt": "no image"})
    assert [entry.name for entry in entries] == ["0.jpg", "9.jpg", "10.jpg", "100.jpg", "a1.jpg", "b.jpg"]


BROKEN_NPY = {
    "empty": b"",
    "text": b"3\n",
    "cut": npy("3")[:-2],
    "header": npy("3").replace(b"'descr'", b"'desc\n("),
    "pickle": npy(np.array({"a": 1}, object)),
    "not Unicode": npy("3")[:-4] + b"\xff\xff\xff\xff",
    "two values": npy([1, 2]),
}


@pytest.mark.parametrize("data", [*BROKEN_NPY.values(), None], ids=[*BROKEN_NPY, "missing"])
def test_expression_that_cannot_be_read(read, tmp_path: Path, data: bytes | None) -> None:
    files = face("train_set", 1) | face("train_set", 2, exp=data or b"")
    listing, entries = read(files if data is not None else without(files, "2_exp"))
    assert [entry.name for entry in entries] == ["1.jpg"]
    assert listing.left_out == {"no readable expression": 1}
    assert listing.warnings == [
        f"{tmp_path}: train_set: images left out, their _exp.npy is missing or unreadable: 1 (2.jpg)"
    ]


@pytest.mark.parametrize("data", [*BROKEN_NPY.values(), None], ids=[*BROKEN_NPY, "missing"])
@pytest.mark.parametrize("kind", ["val", "aro", "lnd"])
def test_other_annotations_that_cannot_be_read(read, tmp_path: Path, kind: str, data: bytes | None) -> None:
    files = face("train_set", 1, **{kind: data or b""})
    listing, entries = read(files if data is not None else without(files, f"1_{kind}"))
    entry = entries[0]
    values = {"val": entry.metadata["valence"], "aro": entry.metadata["arousal"], "lnd": entry.landmarks_px}
    assert [name for name, value in values.items() if value is None] == [kind]
    assert listing.warnings == [f"{tmp_path}: train_set: _{kind}.npy missing or unreadable: 1 (1.jpg)"]


@pytest.mark.parametrize("points", [POINTS.T, POINTS[:67], POINTS[:67].ravel(), np.full(136, np.nan)])
def test_landmarks_of_other_shape(read, points: object) -> None:
    listing, entries = read(face("val_set", 1, lnd=points))
    assert entries[0].landmarks_px is None
    assert len(listing.warnings) == 1


def test_valence_of_minus_two_in_the_second_release(read) -> None:
    listing, entries = read(face("train_set", 1, val=npy("-2"), aro=npy(-2.0)))
    assert entries[0].metadata == {"valence": None, "arousal": None}
    assert listing.warnings == []


def test_small_files_are_read_lazily_and_folders_listed_once(tmp_path: Path) -> None:
    source = WatchedSource(write(tmp_path, face("train_set", 1) | face("train_set", 2, "broken") | face("val_set", 1)))
    entries = iter(list_affectnet(source).entries)
    assert not [name for method, name in source.calls if method == "read"]
    assert next(entries).name == "1.jpg"
    assert {name for method, name in source.calls if method == "read"} == {
        f"train_set/annotations/1_{kind}.npy" for kind in ("exp", "val", "aro", "lnd")
    }
    large = {
        name: source.calls["children", name] for _, name in source.calls if name.endswith(("images", "annotations"))
    }
    assert large == {"train_set/images": 1, "val_set/images": 1}
    assert not [name for method, name in source.calls if method == "has"]


@pytest.mark.parametrize("files", [first(), face("train_set", 4) | face("val_set", 4)], ids=["first", "second"])
def test_zip(tmp_path: Path, files: Files) -> None:
    with zipfile.ZipFile(tmp_path / "affectnet.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"AffectNet/{name}", data)
    with open_source(tmp_path / "affectnet.zip") as source:
        listing = list_affectnet(source)
        entries = list(listing.entries)
        assert [Image.open(io.BytesIO(source.read(entry.member))).size for entry in entries] == [(8, 8)] * 2
    assert [entry.split for entry in entries] == ["train", "test"]
    assert listing.warnings == []


BOTH = first() | face("train_set", 1)
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
    "two validation sets": (
        face("train_set", 1) | face("val_set", 1) | face("valid_set", 1),
        ": has both val_set and valid_set; expected one validation set",
    ),
    "no annotations": (
        without(face("train_set", 1), "annotations"),
        ": train_set: no annotations in it; expected images and annotations",
    ),
    "no folder of images": (
        without(face("val_set", 1), "images"),
        ": val_set: no images in it; expected images and annotations",
    ),
    "no image": (
        face("val_set", 1) | {"train_set/images/a.txt": "", "train_set/annotations/a": ""},
        ": train_set/images: no image in it",
    ),
}


@pytest.mark.parametrize(("files", "message"), BROKEN.values(), ids=BROKEN)
def test_refused(read, tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(NkfError, match=f"^{re.escape(f'{tmp_path}{message}')}$"):
        read(files)


@pytest.mark.parametrize("code", ["11", "-1", "1.0", "happy", "", "1_0", "١"])
def test_broken_code(read, tmp_path: Path, code: str) -> None:
    message = f"{tmp_path}: {TRAIN}, line 3: expression {code!r}, expected a whole number from 0 to 10"
    with pytest.raises(NkfError, match=f"^{re.escape(message)}$"):
        read(first(HEADER + row() + row("1/b.jpg", code)))


def test_broken_code_without_header(read) -> None:
    with pytest.raises(
        NkfError, match=r"training\.csv, line 1: expression '11', expected a whole number from 0 to 10$"
    ):
        read(first(row(code=11)))


@pytest.mark.parametrize("code", ["8", "-1", "3.0", 3.0, "happy", ""])
def test_broken_code_of_the_second_release(read, tmp_path: Path, code: object) -> None:
    file = "train_set/annotations/2_exp.npy"
    message = f"{tmp_path}: {file}: expression '{code}', expected a whole number from 0 to 7"
    with pytest.raises(NkfError, match=f"^{re.escape(message)}$"):
        read(face("train_set", 1) | face("train_set", 2, code))


@pytest.mark.parametrize(
    "path", ["../a.jpg", "1/../../a.jpg", "/etc/a.jpg", "C:/a.jpg", "1\\a.jpg", "", ".", "1/\x07.jpg"]
)
def test_paths_that_lead_elsewhere(read, path: str) -> None:
    with pytest.raises(NkfError, match=r"training\.csv, line 2: image .*, expected a path below the images' folder"):
        read(first(row() + row(path)))


def test_second_release_has_no_automatic_images(read) -> None:
    with pytest.raises(NkfError, match=r"second release has no automatically annotated images$"):
        read(face("train_set", 1), with_automatic=True)


def test_automatic_images_that_are_absent(read) -> None:
    with pytest.raises(NkfError, match=f": no automatically annotated images; expected {AUTOMATIC}$"):
        read(first(), with_automatic=True)


@pytest.mark.parametrize(
    ("files", "total", "contempt"), [(first(), 4_000, 500), (face("val_set", 1), 3_999, 499)], ids=["first", "second"]
)
def test_known_counts(read, files: Files, total: int, contempt: int) -> None:
    known = read(files)[0].known["label"]
    assert all(sum(count.by_class.values()) == count.total for count in known.values())
    assert (known["train"].total, known["train"].by_class["happiness"]) == (287_651, 134_415)
    assert known["train"].total - known["train"].by_class["contempt"] == 283_901
    assert (known["test"].total, known["test"].by_class["contempt"]) == (total, contempt)
    assert known["test"].total - contempt == 3_500
