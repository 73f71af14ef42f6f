"""The command ``nkf predict``: inputs and outputs checked first, then one photo after the other."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from nkf.cli_files import FreeNames, InputImage, check_no_input, find_images, is_signed, make_folder, signature
from nkf.errors import ImageError, NkfError
from nkf.files import replacing
from nkf.images import read_image
from nkf.output import CsvWriter, JsonWriter, annotate
from nkf.predict import Prediction, Predictor
from nkf.progress import track
from nkf.runtime import Device

_STANDARD_OUTPUT = Path("-")
_SOFTWARE = "nkf predict --annotate"  # signs our pictures: no other file is ever replaced by one


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
            make_folder(outputs.annotate)
        predictions = track(predictor.predict_files(image.file for image in images), "predicting", len(images))
        for k, prediction in enumerate(predictions):
            for writer in writers:
                writer.write(prediction)
            if prediction.status == "error":
                failed = True
                print("nkf:", str(prediction.message).replace("\n", " "), file=sys.stderr)
                continue
            if not outputs.to_standard_output:
                print(*_lines(prediction), sep="\n")
            if pictures and (problem := _save_annotated(prediction, images[k].file, pictures[k])):
                failed = True
                print("nkf:", problem, file=sys.stderr)
    return int(failed)


def _annotated_files(images: Sequence[InputImage], folder: Path | None) -> list[Path]:
    """Name the annotated pictures: as their images, JPEG or else PNG; a name that is taken gets a number."""
    if folder is None:
        return []
    names = FreeNames()
    jpeg = [image.file.suffix.lower() in (".jpg", ".jpeg") for image in images]
    return [
        folder / names.take(image.file.stem, ".jpg" if is_jpeg else ".png")
        for image, is_jpeg in zip(images, jpeg, strict=True)
    ]


def _check_outputs(images: Sequence[InputImage], outputs: PredictOutputs, pictures: Sequence[Path]) -> None:
    for path in (outputs.json, outputs.csv):
        if path and path.is_dir():
            raise NkfError(f"{path}: a folder, expected a file to write")
    if outputs.json and outputs.csv and outputs.json.resolve() == outputs.csv.resolve():
        raise NkfError(f"{outputs.json}: JSON and CSV cannot go to the same place")
    if outputs.annotate and outputs.annotate.exists() and not outputs.annotate.is_dir():
        raise NkfError(f"{outputs.annotate}: a file, expected a folder for annotated pictures")
    check_no_input([path for path in (outputs.json, outputs.csv, *pictures) if path], images)
    for picture in pictures:
        if picture.exists() and not is_signed(picture, _SOFTWARE):
            raise NkfError(f"{picture}: exists and is no annotated picture of nkf; choose another --annotate folder")


def _stream_or_file(path: Path) -> Path | TextIO:
    return sys.stdout if path == _STANDARD_OUTPUT else path


def _lines(prediction: Prediction) -> list[str]:
    if not prediction.faces:
        return [f"{prediction.path}: no face"]
    lines = []
    for index, face in enumerate(prediction.faces):
        box = " ".join(f"{value:.0f}" for value in face.box_xyxy)
        verdict = f", low quality: {', '.join(face.problems)}" if face.problems else ""
        lines.append(f"{prediction.path}: face {index}: {face.expression} {face.confidence:.0%}, box {box}{verdict}")
    return lines


def _save_annotated(prediction: Prediction, image: Path, picture: Path) -> str | None:
    """Draw one picture; returns what went wrong, if anything: the other images of a batch go on."""
    options: dict[str, Any] = {"format": "JPEG", "quality": 92} if picture.suffix == ".jpg" else {"format": "PNG"}
    try:
        with replacing(picture) as partial:
            annotate(read_image(image), prediction).save(partial, exif=signature(_SOFTWARE), **options)
    except ImageError as error:  # gone or changed since it was predicted
        return str(error).replace("\n", " ")
    except OSError as error:
        return f"{picture}: cannot be written ({error.strerror or error})"
    return None
