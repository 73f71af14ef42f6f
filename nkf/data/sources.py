"""Where an importer reads files from: a folder or a zip, behind the same few methods.

A zip is read member by member and never unpacked to disk; names that lead out of it are refused, and no member may be
larger than its caller expects. Nothing here holds a list of all files: a dataset may have a million.
"""

import csv
import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from nkf.errors import ImageError, NkfError
from nkf.images import IMAGE_SUFFIXES

MAX_IMAGE_BYTES = 64 << 20
MAX_FIELD = 4 << 20  # characters of one field of a table; 68 landmarks take 2,000, the pixels of FER-2013 9,000
SEARCH_DEPTH = 4  # folders that a dataset may lie below what the user names


@dataclass(frozen=True, slots=True)
class Children:
    """What one folder of a source holds: names without the folder, sorted, hidden ones left out."""

    folders: Sequence[str]
    files: Sequence[str]


class Source(Protocol):
    """A tree of files. Names are relative to its top, with forward slashes; the top itself is "".

    Attributes:
        path: the folder or the zip.
        warnings: files left out for their names, one line each; grows as folders are looked into.
    """

    path: Path
    warnings: list[str]

    def children(self, folder: str = "") -> Children:
        """List one folder; an absent one is empty."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open one file for reading.

        Raises:
            NkfError: when it is unreadable.
        """
        ...

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        """Return the bytes of one file.

        Raises:
            ImageError: when it is unreadable or has more than `limit` bytes.
        """
        ...


class FolderSource:
    """Files under a folder; see `Source`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._left_out: set[str] = set()

    def children(self, folder: str = "") -> Children:
        folders, files, unprintable = [], [], []
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if _is_hidden(entry.name):
                        continue
                    if not entry.name.isprintable():
                        unprintable.append(join(folder, entry.name))
                    elif entry.is_dir():
                        folders.append(entry.name)
                    else:
                        files.append(entry.name)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise NkfError(f"{self.path / folder}: {error.strerror}") from error
        for name in sorted(unprintable):
            self._leave_out(name)
        return Children(sorted(folders), sorted(files))

    def _leave_out(self, name: str) -> None:
        if name not in self._left_out:  # folders are looked into more than once
            self._left_out.add(name)
            self.warnings.append(f"left out {name!a}: expected a printable name")

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def open(self, name: str) -> IO[bytes]:
        try:
            return (self.path / name).open("rb")
        except OSError as error:
            raise NkfError(f"{self.path / name}: {error.strerror}") from error

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        file = self.path / name
        try:
            with file.open("rb") as stream:
                return _read_at_most(stream.read, limit, str(file))
        except OSError as error:
            raise ImageError(f"{file}: {error.strerror}") from error


class ZipSource:
    """Members of an open zip; see `Source`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._archive = archive
        self._tree: dict[str, Children] = {}
        self._files = set()
        folders: dict[str, set[str]] = {"": set()}
        files: dict[str, list[str]] = {}
        for info in archive.infolist():
            _refuse_hostile(info.filename, path)
            if info.filename.endswith("/") or any(map(_is_hidden, PurePosixPath(info.filename).parts)):
                continue
            name = PurePosixPath(info.filename)
            files.setdefault(_parent(name), []).append(name.name)
            self._files.add(info.filename)
            while name.parent.name:
                name = name.parent
                folders.setdefault(_parent(name), set()).add(name.name)
        for folder in folders.keys() | files.keys():
            self._tree[folder] = Children(sorted(folders.get(folder, ())), sorted(files.get(folder, ())))

    def children(self, folder: str = "") -> Children:
        return self._tree.get(folder, Children([], []))

    def has(self, name: str) -> bool:
        return name in self._files

    def open(self, name: str) -> IO[bytes]:
        with self._explained(name, NkfError):
            return self._archive.open(name)

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        with self._explained(name, ImageError), self._archive.open(name) as stream:
            return _read_at_most(stream.read, limit, f"{self.path}: {name}")  # never more than the header tells

    @contextmanager
    def _explained(self, name: str, kind: type[NkfError]) -> Iterator[None]:
        where = f"{self.path}: {name}"
        try:
            yield
        except KeyError as error:
            raise kind(f"{where}: no such file in the zip") from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise kind(f"{where}: broken zip member ({error})") from error
        except (RuntimeError, NotImplementedError) as error:  # a password, or an unknown compression
            raise kind(f"{where}: zip member cannot be read ({error})") from error


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a folder or a zip for an importer.

    Raises:
        NkfError: when it is neither.
    """
    if path.is_dir():
        yield FolderSource(path)
        return
    if not path.exists():
        raise NkfError(f"{path}: no such file or folder; expected a dataset's folder or a zip of it")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise NkfError(f"{path}: not a readable zip ({error}); expected a dataset's folder or a zip of it") from error
    with archive:
        yield ZipSource(path, archive)


def join(folder: str, name: str) -> str:
    """Name of something in a folder of a source."""
    return f"{folder}/{name}" if folder else name


def walk(source: Source, folder: str = "") -> Iterator[str]:
    """Names of all files below a folder, at any depth, in an order that depends on the names alone."""
    children = source.children(folder)
    for name in children.files:
        yield join(folder, name)
    for name in children.folders:
        yield from walk(source, join(folder, name))


def walk_images(source: Source, folder: str = "") -> Iterator[str]:
    """Those of `walk` that are images by their names."""
    return (name for name in walk(source, folder) if is_image(name))


def is_image(name: str) -> bool:
    """Tell by its ending whether a file is an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def find_roots(
    source: Source, is_root: Callable[[Source, str, Children], bool], depth: int = SEARCH_DEPTH
) -> list[str]:
    """Search a source for the folders that a dataset starts in, level by level, not below one that is found.

    Args:
        source: where to search; large folders of images are listed only once each.
        is_root: tells by a folder's name and children whether it is one.
        depth: how many folders deep.
    """
    found: list[str] = []
    level = [""]
    for _ in range(depth + 1):
        below: list[str] = []
        for folder in level:
            children = source.children(folder)
            if is_root(source, folder, children):
                found.append(folder)
            else:
                below += [join(folder, name) for name in children.folders]
        level = below
    return found


def find_root(source: Source, markers: Sequence[str], expected: str) -> str:
    """Find the one folder that holds any of the files or folders named.

    Args:
        source: where to search.
        markers: names relative to the folder, such as ``EmoLabel/list_patition_label.txt``.
        expected: what the dataset looks like, for the message.

    Raises:
        NkfError: when there is none, or more than one.
    """

    def is_root(source: Source, folder: str, children: Children) -> bool:
        return any(
            source.has(join(folder, marker)) if "/" in marker else marker in (*children.folders, *children.files)
            for marker in markers
        )

    roots = find_roots(source, is_root)
    if not roots:
        raise NkfError(f"{source.path}: not this dataset; expected {expected}")
    if len(roots) > 1:
        raise NkfError(f"{source.path}: holds the dataset {len(roots)} times, in {some(roots)}; name one of them")
    return roots[0]


Row = tuple[int, list[str]]  # line number in the file, fields


def read_table(source: Source, name: str, delimiter: str = ",") -> Iterator[Row]:
    """Read a text table (UTF-8) row by row; empty lines are left out.

    Raises:
        NkfError: when it is unreadable or no table.
    """
    where = f"{source.path}: {name}"
    csv.field_size_limit(MAX_FIELD)
    with source.open(name) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter)
        try:
            yield from ((reader.line_num, fields) for fields in reader if fields)
        except UnicodeDecodeError as error:
            raise NkfError(f"{where}: not a text table (UTF-8)") from error
        except csv.Error as error:
            raise NkfError(f"{where}, line {reader.line_num}: not a csv table ({error})") from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise NkfError(f"{where}: cannot be read to its end ({error})") from error


def some(names: Sequence[str], count: int = 4) -> str:
    """The first few of a list of names, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _read_at_most(read: Callable[[int], bytes], limit: int, where: str) -> bytes:
    data = read(limit + 1)
    if len(data) > limit:
        raise ImageError(f"{where}: more than {limit >> 20} MiB, which is no file of this dataset")
    return data


def _parent(name: PurePosixPath) -> str:
    return name.parent.as_posix() if name.parent.name else ""


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _refuse_hostile(name: str, where: Path) -> None:
    """Refuse a zip whose names lead elsewhere, or break a line of a report."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    outside = not parts or ".." in parts or parts[0].startswith("/") or parts[0].endswith(":")
    if outside or not name.isprintable():
        raise NkfError(f"{where}: refused for the name of a file in it, {name!a}; expected plain relative names")
