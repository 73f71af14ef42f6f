"""Image files that a command reads, and pictures that it writes: found first, checked before anything is written."""

import glob
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from PIL import ExifTags, Image

from nkf.errors import NkfError
from nkf.images import IMAGE_SUFFIXES


class InputImage(NamedTuple):
    """An image file to read, and its name within the input folder it was found in; `file.name` of a file input."""

    file: Path
    name: Path


STANDARD_INPUT = Path("-")
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
_CHUNK = 1 << 16  # bytes of a list that are read at once


class ImageInputs:
    """The image files that inputs mean, found again each time they are gone through, so that there may be millions.

    Inputs are files; folders, which are searched with their subfolders in the order of names; patterns such as
    ``photos/**/*.jpg``, where no file has that name; and ``-``, a list of files on standard input, one a line or with
    a zero byte after each (``find -print0``).
    """

    def __init__(self, inputs: Sequence[Path]) -> None:
        """Find and count the images.

        Raises:
            NkfError: when an input does not exist, is a video, or holds no image, or there is no input.
        """
        if not inputs:
            raise NkfError("no input: give image files or folders, such as photo.jpg")
        self._listed = _spooled_standard_input() if STANDARD_INPUT in inputs else None
        if self._listed is not None:
            weakref.finalize(self, self._listed[0].close)
        self._inputs = [path for given in inputs for path in self._expanded(given)]
        self._count = 0
        for path in self._inputs:
            found = sum(1 for _ in self._images_of(path))
            if not found and path.is_dir():
                raise NkfError(f"{path}: no image in this folder (endings {', '.join(sorted(IMAGE_SUFFIXES))})")
            if not found:
                raise NkfError("standard input: an empty list, expected names of image files")
            self._count += found

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InputImage]:
        for path in self._inputs:
            yield from self._images_of(path)

    def _expanded(self, given: Path) -> list[Path]:
        if given == STANDARD_INPUT or os.path.exists(given):
            if given.suffix.lower() in VIDEO_SUFFIXES and given.is_file():
                raise NkfError(f"{given}: a video; nkf video reads these")
            return [given]
        if not glob.has_magic(str(given)):
            raise NkfError(f"{given}: no such file or folder")
        found = sorted(Path(name) for name in glob.iglob(str(given), recursive=True))
        found = [path for path in found if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise NkfError(f"{given}: no image has such a name")
        files = [path for path in found if not path.is_dir()]
        return files or found  # ** finds folders too, whose images it has found already

    def _images_of(self, path: Path) -> Iterator[InputImage]:
        if path == STANDARD_INPUT and self._listed is not None:
            for name in _names(*self._listed):
                yield InputImage(Path(os.fsdecode(name)), Path(Path(os.fsdecode(name)).name))
        elif path.is_dir():
            yield from (InputImage(file, file.relative_to(path)) for file in _images_below(path))
        else:
            yield InputImage(path, Path(path.name))


def find_images(inputs: Sequence[Path]) -> list[InputImage]:
    """List the image files that inputs mean, see `ImageInputs`."""
    return list(ImageInputs(inputs))


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files in a folder and its subfolders in the order of names; memory holds the names of one folder at a time.

    A link to nothing is listed, so that it is told of; a folder that cannot be read is an error.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise NkfError(f"{error.filename}: {error.strerror}") from error
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _images_below(folder / entry.name)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and (entry.is_file() or _leads_nowhere(entry)):
            yield folder / entry.name


def _leads_nowhere(entry: "os.DirEntry[str]") -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _spooled_standard_input() -> tuple[BinaryIO, bytes]:
    """Keep standard input in a file, which can be read twice; returns it with what ends a name in it."""
    spool = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (it lives as long as the inputs)
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.seek(0)
    return spool, b"\0" if b"\0" in spool.read(_CHUNK) else b"\n"


def _names(listed: BinaryIO, separator: bytes) -> Iterator[bytes]:
    listed.seek(0)
    position, rest = 0, b""
    while chunk := listed.read(_CHUNK):
        position = listed.tell()
        *names, rest = (rest + chunk).split(separator)
        yield from (name for name in (name.rstrip(b"\r") for name in names) if name)
        listed.seek(position)  # the list may be gone through twice at once
    if rest.rstrip(b"\r"):
        yield rest.rstrip(b"\r")


class FreeNames:
    """Names that were not given before, whatever their case: one that is taken gets a number, from 2."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last_number: dict[str, int] = {}

    def take(self, stem: str, suffix: str) -> str:
        """Return ``stem + suffix`` or, where that is taken, the first free ``stem-N + suffix``."""
        name = stem + suffix
        first, number = name.casefold(), self._last_number.get(name.casefold(), 1)
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        self._last_number[first] = number
        self._taken.add(name.casefold())
        return name


def check_no_input(paths: Iterable[Path], images: Iterable[InputImage]) -> None:
    """Raise `NkfError` where a path to write is an image to read."""
    targets = {path.resolve(): path for path in paths}
    for image in images if targets else ():
        if (path := targets.get(image.file.resolve())) is not None:
            raise NkfError(f"{path}: an input, would be overwritten; write somewhere else")


def make_folder(folder: Path) -> None:
    """Make a folder with those above it; one that exists is fine."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NkfError(f"{folder}: cannot be made ({error.strerror})") from error


def signature(software: str) -> Image.Exif:
    """EXIF that tells which command made a picture, so that only its own are ever replaced (see `is_signed`)."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = software
    return exif


def is_signed(picture: Path, software: str) -> bool:
    """Whether a picture carries the `signature` of this command."""
    try:
        with Image.open(picture) as image:
            return image.getexif().get(ExifTags.Base.Software) == software
    except (OSError, ValueError):
        return False
