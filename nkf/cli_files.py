"""Image files that a command reads, and pictures that it writes: found first, checked before anything is written."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

from nkf.errors import NkfError
from nkf.images import IMAGE_SUFFIXES


class InputImage(NamedTuple):
    """An image file to read, and its name within the input folder it was found in; `file.name` of a file input."""

    file: Path
    name: Path


def find_images(inputs: Iterable[Path]) -> list[InputImage]:
    """List the image files that inputs mean, folders searched with their subfolders, in the order of names.

    Raises:
        NkfError: when an input does not exist, a folder holds no image, or there is no input.
    """
    images: list[InputImage] = []
    for path in inputs:
        if path.is_dir():
            found = sorted(file for file in _files_below(path) if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise NkfError(f"{path}: no image in this folder (endings {', '.join(sorted(IMAGE_SUFFIXES))})")
            images += (InputImage(file, file.relative_to(path)) for file in found)
        elif os.path.exists(path):
            images.append(InputImage(path, Path(path.name)))
        else:
            raise NkfError(f"{path}: no such file or folder")
    if not images:
        raise NkfError("no input: give image files or folders, such as photo.jpg")
    return images


def _files_below(folder: Path) -> Iterator[Path]:
    """List the files in a folder and its subfolders; one that cannot be read is an error, not left out."""

    def fail(error: OSError) -> None:
        raise NkfError(f"{error.filename}: {error.strerror}") from error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (file for file in (Path(parent, name) for name in names) if file.is_file())


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


def check_no_input(paths: Iterable[Path], images: Sequence[InputImage]) -> None:
    """Raise `NkfError` where a path to write is an image to read."""
    sources = {image.file.resolve() for image in images}
    for path in paths:
        if path.resolve() in sources:
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
