"""Image files that a command reads, and pictures that it writes: found first, checked before anything is written."""

import glob
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from PIL import ExifTags, Image

from nkf.errors import NkfError
from nkf.files import real_path
from nkf.images import IMAGE_SUFFIXES


class InputImage(NamedTuple):
    """An image file to read, and its name within the input folder it was found in; `file.name` of a file input."""

    file: Path
    name: Path

    @property
    def stem(self) -> str:
        """The name without its ending, for what is made of the image; what has none, as ``.``, is called image."""
        return str(self.name.parent / (self.name.stem or "image"))


STANDARD_INPUT = Path("-")
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
_CHUNK = 1 << 16  # bytes of a list that are read at once


class ImageInputs:
    """The image files that inputs mean, noted in a file, since there may be millions and folders change meanwhile.

    Inputs are files; folders, which are searched with their subfolders in the order of names; patterns such as
    ``photos/**/*.jpg``, where no file has that name; and ``-``, a list of files on standard input, one a line or with
    a zero byte after each (``find -print0``).
    """

    def __init__(self, inputs: Sequence[Path], *, written: Mapping[Path, str] | None = None) -> None:
        """Find and count the images.

        Args:
            inputs: see the class.
            written: folders that pictures go into, with what signs these (see `is_signed`): pictures of an earlier run
                are left out where a folder or a pattern finds them.

        Raises:
            NkfError: when an input does not exist, is a video, or holds no image, or there is no input.
        """
        if not inputs:
            raise NkfError("no input: give image files or folders, such as photo.jpg")
        if inputs.count(STANDARD_INPUT) > 1:
            raise NkfError("standard input: can be read once only")
        self._written = {real_path(folder): software for folder, software in (written or {}).items()}
        self._notes = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (it lives as long as this)
        weakref.finalize(self, self._notes.close)
        self._count = self._own = 0  # images, and those that are left out
        for path in [path for given in inputs for path in self._expanded(given)]:
            before = self._count + self._own
            for image in self._images_of(path):
                self._notes.write(b"%d/%s\0" % (len(image.name.parts), os.fsencode(image.file)))
                self._count += 1
            if self._count + self._own == before and path.is_dir():
                raise NkfError(f"{path}: no image in this folder (endings {', '.join(sorted(IMAGE_SUFFIXES))})")
            if self._count + self._own == before:
                raise NkfError("standard input: an empty list, expected names of image files")
        if not self._count:
            raise NkfError(f"{inputs[0]}: only pictures that nkf itself has written")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InputImage]:
        for note in _parts(self._notes, b"\0"):
            depth, _, name = note.partition(b"/")
            file = Path(os.fsdecode(name))
            yield InputImage(file, Path(*file.parts[len(file.parts) - int(depth) :]))

    def _expanded(self, given: Path) -> list[Path]:
        if given == STANDARD_INPUT or os.path.exists(given):
            if given.suffix.lower() in VIDEO_SUFFIXES and given.is_file():
                raise NkfError(f"{given}: a video; nkf video reads these")
            return [given]
        if not glob.has_magic(str(given)):
            raise NkfError(f"{given}: no such file or folder")
        found = sorted(Path(name) for name in glob.iglob(str(given), recursive=True))
        files = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
        if not files and not any(path.is_dir() for path in found):
            raise NkfError(f"{given}: no image has such a name")
        if files:
            return [path for path in files if not self._is_written(path)]
        return [path for path in found if path.is_dir()]  # ** finds these too, and has found their images

    def _images_of(self, path: Path) -> Iterator[InputImage]:
        if path == STANDARD_INPUT:
            with _spooled_standard_input() as spool:
                separator = b"\0" if b"\0" in spool.read(_CHUNK) else b"\n"
                names = (name if separator == b"\0" else name.rstrip(b"\r") for name in _parts(spool, separator))
                files = (Path(os.fsdecode(name)) for name in names if name)
                yield from (InputImage(file, Path(file.name)) for file in files)
        elif path.is_dir():
            files = (file for file in _images_below(path) if not self._is_written(file))
            yield from (InputImage(file, file.relative_to(path)) for file in files)
        else:
            yield InputImage(path, Path(path.name))

    def _is_written(self, file: Path) -> bool:
        signed = [software for folder, software in self._written.items() if real_path(file).is_relative_to(folder)]
        own = any(is_signed(file, software) for software in signed)
        self._own += own
        return own


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files in a folder and its subfolders in the order of names; memory holds the names of one folder at a time.

    A folder that cannot be read is an error.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise NkfError(f"{error.filename}: {error.strerror}") from error
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _images_below(folder / entry.name)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and _may_be_file(entry):
            yield folder / entry.name


def _may_be_file(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a file, or a link to nothing or in a circle, which is listed so that it is told of."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return entry.is_symlink()


@contextmanager
def _spooled_standard_input() -> Iterator[BinaryIO]:
    """Keep standard input in a file, which can be read twice."""
    if sys.stdin is None:  # by who started the command
        raise NkfError("standard input: closed, expected names of image files")
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.seek(0)
        yield spool


def _parts(stream: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """Split a file; it may be gone through twice at once."""
    stream.seek(0)
    position, rest = 0, b""
    while chunk := stream.read(_CHUNK):
        position = stream.tell()
        *parts, rest = (rest + chunk).split(separator)
        yield from parts
        stream.seek(position)
    if rest:
        yield rest


class FreeNames:
    """Names that were not given before, whatever their case: one that is taken gets a number, from 2."""

    def __init__(self, images: Iterable[InputImage]) -> None:
        """Leave the names of the folders free that images lie in: one may be called like a picture."""
        self._taken = {str(folder).casefold() for image in images for folder in image.name.parents}
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
    targets = {real_path(path): path for path in paths}
    for image in images if targets else ():
        if (path := targets.get(real_path(image.file))) is not None:
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
