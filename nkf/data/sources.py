"""Where an importer reads files from: a folder or a zip, behind the same few methods.

A zip is read member by member and never unpacked to disk; names that lead out of it are refused, and no member may be
larger than its caller expects. Of a zip the names of all files are held in memory, as its directory lists them; of a
folder only those of the folder that is looked into.
"""

import csv
import io
import lzma
import os
import struct
import unicodedata
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
MAX_ROW = 8 << 20  # characters of one row of a table; a zip of some kilobytes may unpack to a line without end
SEARCH_DEPTH = 4  # folders that a dataset may lie below what the user names
MAX_DEPTH = 50  # folders in each other
MAX_SHOWN = 200  # characters of a name in a message


UNPRINTABLE = "expected a printable name"


@dataclass(frozen=True, slots=True)
class Children:
    """What one folder of a source holds: names without the folder, sorted, hidden ones left out."""

    folders: Sequence[str]
    files: Sequence[str]


class Source(Protocol):
    """A tree of files. Names are relative to its top, with forward slashes; the top itself is "".

    Attributes:
        path: the folder or the zip.
        warnings: what was left out for its name, one line each; grows as folders are looked into.
        opened: files of a folder that have been opened with `open`: name -> `file_stamp` at that time. A zip is one
            file and needs no such notes.
    """

    path: Path
    warnings: list[str]
    opened: dict[str, list[int]]

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
        self.opened: dict[str, list[int]] = {}
        self._left_out: set[str] = set()

    def children(self, folder: str = "") -> Children:
        folders, files, left_out = [], [], {}
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if _is_hidden(entry.name):
                        continue
                    if not is_printable(entry.name):
                        left_out[entry.name] = UNPRINTABLE
                    elif not entry.is_dir():
                        files.append(entry.name)
                    elif entry.is_symlink() and self._leads_back(folder, entry.path):
                        left_out[entry.name] = "it is a link to a folder that it lies in"
                    else:
                        folders.append(entry.name)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise NkfError(f"{self.path / folder}: {error.strerror}") from error
        for name, reason in sorted(left_out.items()):
            self._leave_out(join(folder, name), reason)
        return Children(sorted(folders), sorted(files))

    def _leads_back(self, folder: str, link: str) -> bool:
        """Tell whether a link leads to a folder on the way to it, or to one above the source."""
        target = os.path.realpath(link)
        on_the_way = [self.path, *(self.path / folder for folder in _above(folder))]
        return any(Path(os.path.realpath(step)).is_relative_to(target) for step in on_the_way)

    def _leave_out(self, name: str, reason: str) -> None:
        if name not in self._left_out:  # folders are looked into more than once
            self._left_out.add(name)
            self.warnings.append(f"left out {name!a}: {reason}")

    def has(self, name: str) -> bool:
        try:
            return (self.path / name).is_file()
        except OSError:  # a name that is too long, for one
            return False

    def open(self, name: str) -> IO[bytes]:
        file = self.path / name
        try:
            self.opened[name] = file_stamp(file)
            return file.open("rb")
        except OSError as error:
            raise NkfError(f"{file}: {error.strerror}") from error

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        file = self.path / name
        try:
            with file.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                return _read_at_most(stream.read, limit, str(file), min(size, limit))
        except OSError as error:
            raise ImageError(f"{file}: {error.strerror}") from error


class ZipSource:
    """Members of an open zip; see `Source`. What some programs write between folders, a backslash, is read as "/"."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.opened: dict[str, list[int]] = {}
        self._archive = archive
        self._tree: dict[str, Children] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        folders: dict[str, set[str]] = {"": set()}
        files: dict[str, set[str]] = {}
        for info in archive.infolist():
            name = self._usable_name(info.filename)
            if name is None:
                continue
            files.setdefault(_parent(name), set()).add(name.name)
            self._members[name.as_posix()] = info
            for folder in map(PurePosixPath, _above(_parent(name))):
                folders.setdefault(_parent(folder), set()).add(folder.name)
        for top in folders.keys() | files.keys():
            self._tree[top] = Children(sorted(folders.get(top, ())), sorted(files.get(top, ())))

    def _usable_name(self, filename: str) -> PurePosixPath | None:
        """The name of a file, or None for a folder and for what is left out."""
        name = PurePosixPath(filename.replace("\\", "/"))
        if any(map(_is_hidden, name.parts)):
            return None
        if not name.parts or ".." in name.parts or name.parts[0].startswith("/") or name.parts[0].endswith(":"):
            where = f"{self.path}: refused for the name of a file in it, {filename!a}"
            raise NkfError(f"{where}; expected plain relative names")
        if len(name.parts) > MAX_DEPTH + 1:
            raise NkfError(f"{self.path}: more than {MAX_DEPTH} folders in each other, {filename[:80]!a}...")
        if filename.endswith(("/", "\\")):
            return None
        if not is_printable(filename):
            self.warnings.append(f"left out {filename!a}: {UNPRINTABLE}")
            return None
        return name

    def children(self, folder: str = "") -> Children:
        return self._tree.get(folder, Children([], []))

    def has(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> IO[bytes]:
        with self._explained(name, NkfError):
            return self._archive.open(self._members[name])

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        with self._explained(name, ImageError), self._archive.open(self._members[name]) as stream:
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
    """Names of all files below a folder, at any depth, in an order that depends on the names alone.

    Raises:
        NkfError: where more than `MAX_DEPTH` folders lie in each other.
    """
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        if folder.count("/") >= MAX_DEPTH:
            raise NkfError(f"{source.path}: more than {MAX_DEPTH} folders in each other, {folder[:80]!a}...")
        children = source.children(folder)
        for name in children.files:
            yield join(folder, name)
        waiting += [join(folder, name) for name in reversed(children.folders)]


def file_stamp(file: Path) -> list[int]:
    """What tells whether a file is still the same: its bytes and nanoseconds of its last change; [] = no such file."""
    if not file.is_file():
        return []
    known = file.stat()
    return [known.st_size, known.st_mtime_ns]


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
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        size = 0  # of the row that is being read; a row may have several lines

        def lines() -> Iterator[str]:
            nonlocal size
            while line := text.readline(MAX_ROW - size + 1):
                size += len(line)
                if size > MAX_ROW:
                    raise NkfError(f"{where}, line {reader.line_num + 1}: a row of more than {MAX_ROW >> 20} MiB")
                yield line

        reader = csv.reader(lines(), delimiter=delimiter)
        try:
            for fields in reader:
                size = 0
                if fields:
                    yield reader.line_num, fields
        except UnicodeDecodeError as error:
            raise NkfError(f"{where}: not a text table (UTF-8)") from error
        except csv.Error as error:
            raise NkfError(f"{where}, line {reader.line_num}: not a csv table ({error})") from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise NkfError(f"{where}: cannot be read to its end ({error})") from error


def some(names: Sequence[str], count: int = 4) -> str:
    """The first few of a list of names, for a message; what is too long for a name is cut."""
    shown = [name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}..." for name in names[:count]]
    return ", ".join(shown) + (", ..." if len(names) > count else "")


def _read_at_most(read: Callable[[int], bytes], limit: int, where: str, expected: int | None = None) -> bytes:
    """Read a file; a buffer for all of the limit would take longer to make than a small file to read."""
    data = read(limit + 1 if expected is None else expected + 1)
    if expected is not None and len(data) > expected:  # it has grown meanwhile, or did not tell its size
        data += read(limit + 1 - len(data))
    if len(data) > limit:
        raise ImageError(f"{where}: more than {limit >> 20} MiB, which is no file of this dataset")
    return data


def _parent(name: PurePosixPath) -> str:
    return name.parent.as_posix() if name.parent.name else ""


def _above(folder: str) -> list[str]:
    """A folder and all that it lies in, the top left out: "a", "a/b" for "a/b"."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part != "..") or part == "__MACOSX"


def is_printable(name: str) -> bool:
    """Tell whether a name can stand in a line of UTF-8; unlike `str.isprintable`, spaces of every kind may be in it."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
