"""Folders of faces without labels."""

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.formats.faces import list_faces
from nkf.data.importers import ImportOptions, import_dataset
from nkf.data.listing import Entry, Listing
from nkf.data.pack import Pack
from nkf.data.sources import open_source
from nkf.errors import NkfError
from nkf.geometry import Points


def save(path: Path, files: Iterable[str] | dict[str, bytes]) -> Path:
    if not isinstance(files, dict):
        files = dict.fromkeys(files, b"")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (48, 48), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def listing_of(path: Path, names: Iterable[str]) -> tuple[Listing, list[Entry]]:
    with open_source(save(path, names)) as source:
        listing = list_faces(source)
        return listing, list(listing.entries)


@pytest.mark.parametrize("kind", ["source", "source.zip"])
@pytest.mark.parametrize(
    ("members", "names"),
    [
        (["b.png", "a.JPG"], ["a.JPG", "b.png"]),
        (["a/1.png", "a/b/1.png"], ["1.png", "b/1.png"]),
        (["x/y/b/1.png", "x/y/a/2.png"], ["a/2.png", "b/1.png"]),
        (["a/1.png", "2.png"], ["2.png", "a/1.png"]),
        (["only/one.webp"], ["one.webp"]),
        (["x/y/1.png", "x/.hidden/2.png", "__MACOSX/x/1.png"], ["1.png"]),
    ],
)
def test_names_are_below_what_all_have_in_common(
    tmp_path: Path, members: list[str], names: list[str], kind: str
) -> None:
    listing, entries = listing_of(tmp_path / kind, members)
    assert [entry.name for entry in entries] == names
    assert all(entry.member.endswith(entry.name) and entry.member in members for entry in entries)
    assert {entry.split for entry in entries} == {"train"}
    assert {(entry.label, entry.votes, entry.box_xyxy) for entry in entries} == {(None, None, None)}
    assert (listing.dataset, listing.shows, listing.known, listing.warnings) == ("faces", "face", {}, [])


def test_other_files_are_told(tmp_path: Path) -> None:
    listing, entries = listing_of(tmp_path / "source", ["a/1.png", *(f"a/{k}.txt" for k in range(5))])
    assert len(entries) == 1
    others = "a/0.txt, a/1.txt, a/2.txt, a/3.txt, ..."
    assert listing.warnings == [f"{tmp_path / 'source'}: files left out, no images by their names: 5 ({others})"]


@pytest.mark.parametrize("names", [["a.txt"], ["a/b/c.csv", "d"]])
def test_without_images(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(NkfError, match=r"source: no image files; expected some of \.apng, \.avif, ") as caught:
        listing_of(tmp_path / "source", names)
    assert "\n" not in str(caught.value)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(NkfError, match=r"source: no image files"):
        listing_of(tmp_path / "source", [])


def test_unprintable_names_are_told_once(tmp_path: Path) -> None:
    with open_source(save(tmp_path / "source", ["good.png", "two\nlines.png"])) as source:
        assert [entry.name for entry in list_faces(source).entries] == ["good.png"]
        assert source.warnings == ["left out 'two\\nlines.png': expected a printable name"]


FACES = {"a/1.png": png(1), "a/b/1.png": png(2), "a/b/2.JPG": png(3)}


@pytest.mark.parametrize("kind", ["source", "source.zip"])
def test_import(tmp_path: Path, kind: str) -> None:
    files = FACES | {"a/b/broken.png": b"no image", "a/readme.txt": b"hello"}
    np.savez(
        tmp_path / "teacher.npz",
        name=np.array(["b/1.png", "2.JPG"]),
        found=np.array([True, True]),
        landmarks68=np.arange(272, dtype=np.float16).reshape(2, 68, 2),
        gender=np.array(["Female", "Male"]),
    )
    source = save(tmp_path / kind, files)
    report = import_dataset(
        list_faces, source, tmp_path / "pack", ImportOptions(landmarks=tmp_path / "teacher.npz", licence="mine")
    )
    pack = Pack(tmp_path / "pack")
    assert pack.names.tolist() == ["1.png", "b/1.png", "b/2.JPG"]
    assert pack.column("file").tolist() == ["a/1.png", "a/b/1.png", "a/b/2.JPG"]
    assert pack.rows("train").size == 3
    assert pack.labels().tolist() == [-1] * 3
    assert pack.column("gender").tolist() == ["", "Female", ""]
    assert (report.landmarks_found, report.landmarks_missing, report.images_skipped) == (1, 2, 1)
    assert (report.counts, report.leaks_found) == ({}, {})
    assert pack.manifest["licence"] == "mine"
    left_out, skipped = report.warnings
    assert left_out == f"{source}: files left out, no images by their names: 1 (a/readme.txt)"
    assert skipped.startswith(f"skipped {source}")
    assert "a/b/broken.png: not an image" in skipped


def test_import_finds_landmarks_in_the_whole_image(tmp_path: Path) -> None:
    asked = []

    def find(images: Sequence[Any], boxes_xyxy: Sequence[Any], shows: str) -> list[Points | None]:
        asked.extend((image.shape, box_xyxy, shows) for image, box_xyxy in zip(images, boxes_xyxy, strict=True))
        return [None] * len(images)

    source = save(tmp_path / "source", FACES)
    import_dataset(list_faces, source, tmp_path / "pack", ImportOptions(find_faces=find))
    assert asked == [((48, 48, 3), None, "face")] * 3


def test_import_without_images(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"source: no image files; expected some of \.apng, \.avif, "):
        import_dataset(list_faces, save(tmp_path / "source", {"a.txt": b""}), tmp_path / "pack")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]
