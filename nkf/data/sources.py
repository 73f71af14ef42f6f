"""Where an importer reads files from: a folder or a zip, behind the same two methods.

A zip is read member by member in memory and never unpacked to disk; names that lead out of it are refused, and no
member may be larger than its caller expects.
"""

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nkf.errors import ImageError, NkfError

MAX_IMAGE_BYTES = 64 << 20
MAX_TABLE_BYTES = 512 << 20  # fer2013.csv has 287 MiB


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source with its labels; its bytes are read on demand.

    Attributes:
        name: file name, unique within its split.
        split: ``train``, ``valid`` or ``test``.
        file: what messages call the image.
        read: returns the bytes of the image file; raises `ImageError`.
        folder: the folder that tells splits apart where names do not, or "".
        votes: (10,) counts in the order of `VOTE_COLUMNS`, or None.
        box_xyxy: (4,) face box in pixels, or None for the whole image.
    """

    name: str
    split: str
    file: str
    read: Callable[[], bytes]
    folder: str = ""
    votes: NDArray[np.uint8] | None = None
    box_xyxy: NDArray[np.float32] | None = None


class Source(Protocol):
    """A tree of files.

    Attributes:
        path: the folder or the zip.
        names: the files in it, sorted: relative, with forward slashes, hidden ones left out.
    """

    path: Path
    names: list[str]

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
        found = (Path(folder, file) for folder, _, files in os.walk(path) for file in files)
        self.names = _visible((file.relative_to(path).as_posix() for file in found), path)

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
        self._archive = archive
        self.names = _visible((info.filename for info in archive.infolist() if not info.filename.endswith("/")), path)

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        where = f"{self.path}: {name}"
        try:
            with self._archive.open(name) as stream:  # never yields more than the size its header tells
                return _read_at_most(stream.read, limit, where)
        except KeyError as error:
            raise ImageError(f"{where}: no such file in the zip") from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise ImageError(f"{where}: broken zip member ({error})") from error
        except (RuntimeError, NotImplementedError) as error:  # a password, or an unknown compression
            raise ImageError(f"{where}: zip member cannot be read ({error})") from error


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


def some(names: Sequence[str], count: int = 4) -> str:
    """The first few of a list of names, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _read_at_most(read: Callable[[int], bytes], limit: int, where: str) -> bytes:
    data = read(limit + 1)
    if len(data) > limit:
        raise ImageError(f"{where}: more than {limit >> 20} MiB, which is no file of this dataset")
    return data


def _visible(names: Iterable[str], where: Path) -> list[str]:
    """Sort names and leave out hidden ones; refuse those that lead elsewhere or break a line of a report."""
    visible = set()
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        outside = not parts or ".." in parts or parts[0].startswith("/") or parts[0].endswith(":")
        if outside or not name.isprintable():
            raise NkfError(f"{where}: refused for the name of a file in it, {name!a}; expected plain relative names")
        if parts[0] != "__MACOSX" and not any(part.startswith(".") for part in parts):
            visible.add(name)
    return sorted(visible)
