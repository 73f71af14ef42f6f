"""Folders and zips, the hostile ones too."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nkf.data.sources import MAX_IMAGE_BYTES, open_source
from nkf.errors import ImageError, NkfError

FILES = {"a/1.png": b"one", "a/b/2.png": b"two", "readme.txt": b"text"}
HIDDEN = {".DS_Store": b"", "a/.hidden": b"", "__MACOSX/a/._1.png": b"", ".git/config": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("make", [make_zip, make_folder])
def test_names_and_bytes(tmp_path: Path, make: Callable[[Path, dict[str, bytes]], Path]) -> None:
    with open_source(make(tmp_path / "source", FILES | HIDDEN)) as source:
        assert source.names == sorted(FILES)
        assert {name: source.read(name) for name in source.names} == FILES
        with pytest.raises(ImageError, match=r"nothing\.png: [Nn]o such file"):
            source.read("nothing.png")
        with pytest.raises(ImageError, match=r"readme\.txt: more than 0 MiB, which is no file of this dataset$"):
            source.read("readme.txt", limit=3)
        assert source.read("readme.txt", limit=4) == b"text"


def test_zip_folders_are_no_files(tmp_path: Path) -> None:
    with open_source(make_zip(tmp_path / "a.zip", {"a/": b"", "a/1.png": b"one"})) as source:
        assert source.names == ["a/1.png"]


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "a\\..\\..\\evil.png", "\\evil.png",
     "two\nlines.png", "bell\a.png"],
)  # fmt: skip
def test_hostile_member_names(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": b"", name: b"x"})
    message = r"a\.zip: refused for the name of a file in it, '.*'; expected plain relative names$"
    with pytest.raises(NkfError, match=message) as caught, open_source(path):
        pytest.fail("the block must not run")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


def test_member_that_unpacks_enormous(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"bomb.png": bytes(MAX_IMAGE_BYTES + 1)})
    assert path.stat().st_size < 100_000
    with open_source(path) as source, pytest.raises(ImageError, match=r"bomb\.png: more than 64 MiB, which is no"):
        source.read("bomb.png")


def patched(data: bytes, signature: bytes, offset: int, value: int) -> bytes:
    """Change one byte of the first record with a signature."""
    position = data.index(signature) + offset
    return data[:position] + bytes([value]) + data[position + 1 :]


CENTRAL = b"PK\x01\x02"
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "changed byte": (lambda data: data.replace(b"stored", b"sTored"), r"a\.png: broken zip member \(Bad CRC-32"),
    "password": (lambda data: patched(data, CENTRAL, 8, 1), r"a\.png: zip member cannot be read \(.*encrypted"),
    "compression": (lambda data: patched(data, CENTRAL, 10, 99), r"a\.png: zip member cannot be read \("),
    "no deflate stream": (lambda data: patched(data, CENTRAL, 10, 8), r"a\.png: broken zip member \("),
    "no lzma stream": (lambda data: patched(data, CENTRAL, 10, 14), r"a\.png: broken zip member \("),
    "no bzip2 stream": (lambda data: patched(data, CENTRAL, 10, 12), r"a\.png: broken zip member \("),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_member(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", b"stored bytes")
    (tmp_path / "a.zip").write_bytes(damage(buffer.getvalue()))
    with open_source(tmp_path / "a.zip") as source, pytest.raises(ImageError, match=message):
        source.read("a.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"source: no such file or folder; expected a dataset's folder or a zip of it$"),
        (b"", r"source: not a readable zip \(.*\); expected a dataset's folder or a zip of it$"),
        (b"a tar, perhaps", r"source: not a readable zip \(File is not a zip file\); expected a dataset's"),
    ],
)
def test_no_source(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "source").write_bytes(data)
    with pytest.raises(NkfError, match=message), open_source(tmp_path / "source"):
        pytest.fail("the block must not run")
