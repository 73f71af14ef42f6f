"""The command ``nkf predict``: inputs and outputs checked first, then one photo after the other."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from PIL import ExifTags, Image

from nkf.errors import ImageError, NkfError
from nkf.files import replacing
from nkf.images import IMAGE_SUFFIXES, read_image
from nkf.output import CsvWriter, JsonWriter, annotate
from nkf.predict import Prediction, Predictor
from nkf.progress import track
from nkf.runtime import Device

_STANDARD_OUTPUT = Path("-")
_SOFTWARE = "nkf predict --annotate"  # EXIF tag of our pictures: no other file is ever replaced by one


@dataclass(frozen=True)
class PredictOutputs:
    """Where results go besides the terminal; the path ``-`` is standard output."""

    json: Path | None = None
    csv: Path | None = None
    annotate: Path | None = None

    @property
    def to_standard_output(self) -> bool:
        """Whether a file goes to standard output, so that nothing else may."""
        return _STANDARD_OUTPUT in (self.json, self.csv)


def predict_all(inputs: Sequence[Path], outputs: PredictOutputs, *, model: str, detector: str, device: Device) -> int:
    """Predict all inputs and write the outputs; returns the exit code (see `nkf.cli.predict`)."""
    images = find_images(inputs)
    pictures = _annotated_files(images, outputs.annotate)
    _check_outputs(images, outputs, pictures)
    predictor = Predictor(model, detector=detector, device=device)
    failed = False
    with ExitStack() as stack:
        writers: list[JsonWriter | CsvWriter] = []
        if outputs.json:
            writers.append(stack.enter_context(JsonWriter(_stream_or_file(outputs.json))))
        if outputs.csv:
            writers.append(stack.enter_context(CsvWriter(_stream_or_file(outputs.csv), predictor.classes)))
        if outputs.annotate:
            _make_folder(outputs.annotate)
        predictions = track(predictor.predict_files(images), "predicting", len(images))
        for k, prediction in enumerate(predictions):
            for writer in writers:
                writer.write(prediction)
            if prediction.status == "error":
                failed = True
                print("nkf:", str(prediction.message).replace("\n", " "), file=sys.stderr)
                continue
            if not outputs.to_standard_output:
                print(*_lines(prediction), sep="\n")
            if pictures and (problem := _save_annotated(prediction, images[k], pictures[k])):
                failed = True
                print("nkf:", problem, file=sys.stderr)
    return int(failed)


def find_images(inputs: Iterable[Path]) -> list[Path]:
    """List the image files that inputs mean, folders searched with their subfolders, in the order of names.

    Raises:
        NkfError: when an input does not exist, a folder holds no image, or there is no input.
    """
    images: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = sorted(file for file in _files_below(path) if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise NkfError(f"{path}: no image in this folder (endings {', '.join(sorted(IMAGE_SUFFIXES))})")
            images += found
        elif os.path.exists(path):
            images.append(path)
        else:
            raise NkfError(f"{path}: no such file or folder")
    if not images:
        raise NkfError("no input: give image files or folders, such as nkf predict photo.jpg")
    return images


def _files_below(folder: Path) -> Iterator[Path]:
    """List the files in a folder and its subfolders; one that cannot be read is an error, not left out."""

    def fail(error: OSError) -> None:
        raise NkfError(f"{error.filename}: {error.strerror}") from error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (file for file in (Path(parent, name) for name in names) if file.is_file())


def _annotated_files(images: Sequence[Path], folder: Path | None) -> list[Path]:
    """Name the annotated pictures: as their images, JPEG or else PNG; a name that is taken gets a number."""
    taken: set[str] = set()
    last_number: dict[str, int] = {}
    files = []
    for image in images if folder else ():
        suffix = ".jpg" if image.suffix.lower() in (".jpg", ".jpeg") else ".png"
        name = image.stem + suffix
        first, number = name.casefold(), last_number.get(name.casefold(), 1)
        while name.casefold() in taken:
            number += 1
            name = f"{image.stem}-{number}{suffix}"
        last_number[first] = number
        taken.add(name.casefold())
        files.append(Path(folder or ".", name))
    return files


def _check_outputs(images: Sequence[Path], outputs: PredictOutputs, pictures: Sequence[Path]) -> None:
    for path in (outputs.json, outputs.csv):
        if path and path.is_dir():
            raise NkfError(f"{path}: a folder, expected a file to write")
    if outputs.json and outputs.csv and outputs.json.resolve() == outputs.csv.resolve():
        raise NkfError(f"{outputs.json}: JSON and CSV cannot go to the same place")
    if outputs.annotate and outputs.annotate.exists() and not outputs.annotate.is_dir():
        raise NkfError(f"{outputs.annotate}: a file, expected a folder for annotated pictures")
    sources = {image.resolve() for image in images}
    for path in (outputs.json, outputs.csv, *pictures):
        if path and path.resolve() in sources:
            raise NkfError(f"{path}: an input, would be overwritten; write somewhere else")
    for picture in pictures:
        if picture.exists() and not _is_ours(picture):
            raise NkfError(f"{picture}: exists and is no annotated picture of nkf; choose another --annotate folder")


def _stream_or_file(path: Path) -> Path | TextIO:
    return sys.stdout if path == _STANDARD_OUTPUT else path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NkfError(f"{folder}: cannot be made ({error.strerror})") from error


def _lines(prediction: Prediction) -> list[str]:
    if not prediction.faces:
        return [f"{prediction.path}: no face"]
    lines = []
    for index, face in enumerate(prediction.faces):
        box = " ".join(f"{value:.0f}" for value in face.box_xyxy)
        lines.append(f"{prediction.path}: face {index}: {face.expression} {face.confidence:.0%}, box {box}")
    return lines


def _is_ours(picture: Path) -> bool:
    """Whether a picture was drawn by `_save_annotated`, and may be replaced."""
    try:
        with Image.open(picture) as image:
            return image.getexif().get(ExifTags.Base.Software) == _SOFTWARE
    except (OSError, ValueError):
        return False


def _save_annotated(prediction: Prediction, image: Path, picture: Path) -> str | None:
    """Draw one picture; returns what went wrong, if anything: the other images of a batch go on."""
    options: dict[str, Any] = {"format": "JPEG", "quality": 92} if picture.suffix == ".jpg" else {"format": "PNG"}
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _SOFTWARE
    try:
        with replacing(picture) as partial:
            annotate(read_image(image), prediction).save(partial, exif=exif, **options)
    except ImageError as error:  # gone or changed since it was predicted
        return str(error).replace("\n", " ")
    except OSError as error:
        return f"{picture}: cannot be written ({error.strerror or error})"
    return None
