"""AffectNet's second release, in invented names: folders of images and npy files."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.formats.affectnet import list_affectnet
from nkf.data.sources import open_source
from nkf.errors import NkfError

Files = dict[str, str | bytes]
POINTS = np.arange(136, dtype=np.float32).reshape(68, 2) + 0.25
CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")  # of the paper


def encoded(kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (120, 90, 70)).save(stream, kind)
    return stream.getvalue()


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


def without(files: Files, part: str) -> Files:
    return {name: data for name, data in files.items() if part not in name}


@pytest.mark.parametrize("validation", ["val_set", "valid_set"])
def test_second_release(affectnet, validation: str) -> None:
    listing, entries = affectnet(face("train_set", 12) | face(validation, 3, "7"))
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
def test_scalars_are_numbers_or_strings(affectnet, code: object, valence: object) -> None:
    listing, entries = affectnet(face("train_set", 1, code, val=npy(valence)))
    assert (entries[0].label, entries[0].metadata["valence"]) == ("surprise", 0.5)
    assert listing.warnings == []


@pytest.mark.parametrize("landmarks", [POINTS, POINTS.ravel().astype(str), POINTS.astype(np.float64).ravel()])
def test_forms_of_landmarks(affectnet, landmarks: object) -> None:
    _, entries = affectnet(face("train_set", 1, lnd=landmarks))
    assert entries[0].landmarks_px is not None
    assert entries[0].landmarks_px.dtype == np.float32
    np.testing.assert_array_equal(entries[0].landmarks_px, POINTS)


def test_every_code_of_the_second_release(affectnet) -> None:
    files = {name: data for code in range(8) for name, data in face("val_set", code, str(code)).items()}
    assert tuple(entry.label for entry in affectnet(files)[1]) == CLASSES


def test_ids_in_the_order_of_their_numbers(affectnet) -> None:
    names = ["10", "9", "100", "b", "a1", "0"]
    files = {name: data for stem in names for name, data in face("train_set", stem).items()}
    _, entries = affectnet(files | {"train_set/images/notes.txt": "no image"})
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
def test_expression_that_cannot_be_read(affectnet, tmp_path: Path, data: bytes | None) -> None:
    files = face("train_set", 1) | face("train_set", 2, exp=data or b"")
    listing, entries = affectnet(files if data is not None else without(files, "2_exp"))
    assert [entry.name for entry in entries] == ["1.jpg"]
    assert listing.left_out == {"no readable expression": 1}
    assert listing.warnings == [
        f"{tmp_path}: train_set: images left out, their _exp.npy is missing or unreadable: 1 (2.jpg)"
    ]


@pytest.mark.parametrize("data", [*BROKEN_NPY.values(), None], ids=[*BROKEN_NPY, "missing"])
@pytest.mark.parametrize("kind", ["val", "aro", "lnd"])
def test_other_annotations_that_cannot_be_read(affectnet, tmp_path: Path, kind: str, data: bytes | None) -> None:
    files = face("train_set", 1, **{kind: data or b""})
    listing, entries = affectnet(files if data is not None else without(files, f"1_{kind}"))
    entry = entries[0]
    values = {"val": entry.metadata["valence"], "aro": entry.metadata["arousal"], "lnd": entry.landmarks_px}
    assert [name for name, value in values.items() if value is None] == [kind]
    assert listing.warnings == [f"{tmp_path}: train_set: _{kind}.npy missing or unreadable: 1 (1.jpg)"]


@pytest.mark.parametrize("points", [POINTS.T, POINTS[:67], POINTS[:67].ravel(), np.full(136, np.nan)])
def test_landmarks_of_other_shape(affectnet, points: object) -> None:
    listing, entries = affectnet(face("val_set", 1, lnd=points))
    assert entries[0].landmarks_px is None
    assert len(listing.warnings) == 1


def test_valence_of_minus_two_in_the_second_release(affectnet) -> None:
    listing, entries = affectnet(face("train_set", 1, val=npy("-2"), aro=npy(-2.0)))
    assert entries[0].metadata == {"valence": None, "arousal": None}
    assert listing.warnings == []


def test_small_files_are_read_lazily_and_folders_listed_once(watched) -> None:
    source = watched(face("train_set", 1) | face("train_set", 2, "broken") | face("val_set", 1))
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


def test_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "affectnet.zip", "w") as archive:
        for name, data in (face("train_set", 4) | face("val_set", 4)).items():
            archive.writestr(f"AffectNet/{name}", data)
    with open_source(tmp_path / "affectnet.zip") as source:
        listing = list_affectnet(source)
        entries = list(listing.entries)
        assert [Image.open(io.BytesIO(source.read(entry.member))).size for entry in entries] == [(8, 8)] * 2
    assert [entry.split for entry in entries] == ["train", "test"]
    assert listing.warnings == []


BROKEN: dict[str, tuple[Files, str]] = {
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
def test_refused(affectnet, tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(NkfError, match=f"^{re.escape(f'{tmp_path}{message}')}$"):
        affectnet(files)


@pytest.mark.parametrize("code", ["8", "-1", "3.0", 3.0, "happy", ""])
def test_broken_code_of_the_second_release(affectnet, tmp_path: Path, code: object) -> None:
    file = "train_set/annotations/2_exp.npy"
    message = f"{tmp_path}: {file}: expression '{code}', expected a whole number from 0 to 7"
    with pytest.raises(NkfError, match=f"^{re.escape(message)}$"):
        affectnet(face("train_set", 1) | face("train_set", 2, code))


def test_second_release_has_no_automatic_images(affectnet) -> None:
    with pytest.raises(NkfError, match=r"second release has no automatically annotated images$"):
        affectnet(face("train_set", 1), with_automatic=True)


def test_known_counts(affectnet) -> None:
    known = affectnet(face("val_set", 1))[0].known["label"]
    assert all(sum(count.by_class.values()) == count.total for count in known.values())
    assert (known["train"].total, known["train"].by_class["happiness"]) == (287_651, 134_415)
    assert known["train"].total - known["train"].by_class["contempt"] == 283_901
    assert (known["test"].total, known["test"].by_class["contempt"]) == (3_999, 499)
