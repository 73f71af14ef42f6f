"""Folders of faces without labels."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from nkf.data.formats.faces import list_faces
from nkf.data.listing import Entry, Listing
from nkf.data.sources import open_source
from nkf.errors import NkfError


def save(path: Path, names: Iterable[str]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        return path
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"")
    return path


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
    assert listing.warnings == [f"{tmp_path / 'source'}: 5 files left out, no images by their names ({others})"]


@pytest.mark.parametrize("names", [["a.txt"], ["a/b/c.csv", "d"]])
def test_without_images(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(NkfError, match=r"source: no image files; expected some of \.avif, \.bmp, ") as caught:
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
