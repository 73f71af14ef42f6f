"""The command ``nkf predict``: inputs and outputs checked first, then predicted in batches, then written whole."""

import glob
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from nkf.annotate import annotate
from nkf.cli_files import FreeNames, ImageInputs, InputImage, check_no_input, is_signed, make_folder, signature
from nkf.errors import ImageError, NkfError
from nkf.explain_draw import draw_explanations
from nkf.files import replacing
from nkf.images import read_image
from nkf.journal import SUFFIX, Journal
from nkf.output import (
    STANDARD_OUTPUT,
    CsvWriter,
    JsonLinesWriter,
    JsonWriter,
    ParquetWriter,
    Writer,
    check_files,
    check_place,
    stream_or_file,
)
from nkf.predict import BATCH_FILES, Prediction, Predictor
from nkf.progress import track
from nkf.runtime import Device, usable_cores

_SOFTWARE = "nkf predict --"  # and the option, signs our pictures: no other file is ever replaced by one

_KINDS = {"annotate": "annotated", "explain": "explained"}


@dataclass(frozen=True)
class PredictOutputs:
    """Where results go besides the terminal; the path ``-`` is standard output."""

    json: Path | None = None
    jsonl: Path | None = None
    csv: Path | None = None
    parquet: Path | None = None
    annotate: Path | None = None
    explain: Path | None = None

    @property
    def folders(self) -> dict[str, Path]:
        """Folders of pictures that are wanted, by option."""
        both = {"annotate": self.annotate, "explain": self.explain}
        return {option: folder for option, folder in both.items() if folder is not None}

    @property
    def files(self) -> dict[str, Path]:
        """Files and standard output, by option, in the order of the fields."""
        every = {"json": self.json, "jsonl": self.jsonl, "csv": self.csv, "parquet": self.parquet}
        return {option: path for option, path in every.items() if path is not None}

    @property
    def to_standard_output(self) -> bool:
        """Whether a file goes to standard output, so that nothing else may."""
        return STANDARD_OUTPUT in self.files.values()

    @property
    def journal(self) -> Path | None:
        """Where the journal of the run lies: beside the first file, or in the folder of pictures."""
        files = [path for path in self.files.values() if not _is_stream(path)]
        if files:
            return files[0].with_name(files[0].name + SUFFIX)
        return next((folder / f"{option}{SUFFIX}" for option, folder in self.folders.items()), None)

    def writers(self, classes: tuple[str, ...], *, streams: bool) -> Iterator[Writer]:
        """Make the writers of what is written at once (see `_is_stream`), or of the files."""
        for path, kind in ((self.json, JsonWriter), (self.jsonl, JsonLinesWriter)):
            if path is not None and _is_stream(path) == streams:
                yield kind(stream_or_file(path))
        if self.csv is not None and _is_stream(self.csv) == streams:
            yield CsvWriter(stream_or_file(self.csv), classes)
        if self.parquet is not None and _is_stream(self.parquet) == streams:
            yield ParquetWriter(self.parquet, classes)


@dataclass(frozen=True)
class PredictSettings:
    """What decides the answers; a run that goes on must share them (see `nkf.journal`)."""

    model: str
    detector: str
    device: Device
    min_confidence: float | None
    min_face: int | None


def predict_all(
    inputs: Sequence[Path], outputs: PredictOutputs, settings: PredictSettings, *, workers: int, resume: bool
) -> int:
    """Predict all inputs and write the outputs; returns the exit code (see `nkf.cli.predict`)."""
    if workers < 0:
        raise NkfError(f"workers {workers}: expected 1 or more, or 0 for as many as there are cores")
    if resume and outputs.journal is None:
        raise NkfError(
            "--resume: needs --json, --jsonl, --csv, --parquet, --annotate or --explain, beside which it is kept"
        )
    signed = {folder: _SOFTWARE + option for option, folder in outputs.folders.items()}
    images = ImageInputs(inputs, written=signed)
    pictures = {option: _picture_files(images, folder) for option, folder in outputs.folders.items()}
    _check_outputs(images, outputs, pictures)
    workers = min(workers or usable_cores(), -(-len(images) // BATCH_FILES))
    predictor = Predictor(
        settings.model,
        detector=settings.detector,
        device=settings.device,
        min_confidence=settings.min_confidence,
        min_face_px=settings.min_face,
        threads=max(1, usable_cores() // workers),
    )
    for path in outputs.files.values():
        check_place(path)
    for folder in outputs.folders.values():
        make_folder(folder)
    if resume and outputs.journal and not outputs.journal.exists():
        print(f"nkf: no {outputs.journal}: no such run was stopped, this one starts at the beginning", file=sys.stderr)
    run = _Run(predictor, outputs, images, pictures, workers)
    with ExitStack() as stack:
        run.writers = [stack.enter_context(w) for w in outputs.writers(predictor.classes, streams=True)]
        if outputs.journal is None:
            return run.go(None)
        folders = {"annotate": str(outputs.annotate), "explain": str(outputs.explain)}
        known = asdict(settings) | {"sha256": [info.sha256 for info in predictor.weights]} | folders
        with _journal(outputs.journal, known, resume) as journal:
            code = run.go(journal)
            _write_files(outputs, predictor.classes, journal)
            journal.remove()
            return code


@contextmanager
def _journal(file: Path, settings: dict[str, Any], resume: bool) -> Iterator[Journal]:
    """A journal that says how to go on when the run is stopped, and that does not stay behind empty."""
    thrown_away = file.exists() and not resume
    with Journal(file, settings, resume=resume, block=BATCH_FILES) as journal:
        if thrown_away:
            print(f"nkf: {file}, of a run that was stopped, is thrown away (--resume goes on with it)", file=sys.stderr)
        before = journal.count
        try:
            yield journal
        except BaseException:
            if journal.count > before:
                print(f"nkf: stopped after {journal.count:,}; the same command with --resume goes on", file=sys.stderr)
            elif not journal.count:
                journal.remove()
            raise


def _write_files(outputs: PredictOutputs, classes: tuple[str, ...], journal: Journal) -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(writer) for writer in outputs.writers(classes, streams=False)]
        for entry in journal if writers else ():
            for writer in writers:
                writer.write(entry.document)


@dataclass
class _Run:
    """Goes through the images that are not done yet; `writers` write to standard output at once."""

    predictor: Predictor
    outputs: PredictOutputs
    images: ImageInputs
    pictures: Mapping[str, Sequence[Path]]
    workers: int
    writers: Sequence[Writer] = ()

    def go(self, journal: Journal | None) -> int:
        failed = self._already_done(journal) if journal else False
        done = journal.count if journal else 0
        files = (image.file for image in islice(self.images, done, None))
        going = self.predictor.predict_files(files, workers=self.workers)
        tracked = track(going, "predicting", len(self.images) - done)
        for k, (image, prediction) in enumerate(zip(islice(self.images, done, None), tracked, strict=True), done):
            prediction, problem = self._draw(prediction, image.file, k)
            document = prediction.to_dict()
            if journal:
                journal.add(document, problem)
            for writer in self.writers:
                writer.write(document)
            failed |= self._tell(prediction, problem)
        return int(failed)

    def _already_done(self, journal: Journal) -> bool:
        """Check that a journal is about these inputs, give it to the writers, and tell whether anything failed."""
        failed = False
        if journal.count > len(self.images):
            raise NkfError(f"{journal.file}: of a run with {journal.count:,} inputs or more; run without --resume")
        for image, entry in zip(self.images, journal, strict=False):
            if entry.document["path"] != str(image.file):
                raise NkfError(f"{journal.file}: of a run with other inputs ({image.file}); run without --resume")
            failed |= entry.document["status"] == "error" or entry.problem is not None
            for writer in self.writers:
                writer.write(entry.document)
        self._remove_halves(journal.count)
        if journal.count:
            print(f"nkf: going on after {journal.count:,} of {len(self.images):,}", file=sys.stderr)
        return failed

    def _remove_halves(self, done: int) -> None:
        """Remove what a kill left of a picture: it was one of the first that are drawn now."""
        for files in self.pictures.values():
            for file in files[done : done + BATCH_FILES]:
                for half in file.parent.glob(f"{glob.escape(file.name)}.*.partial"):
                    half.unlink(missing_ok=True)

    def _tell(self, prediction: Prediction, problem: str | None) -> bool:
        """Print what a person wants to know; returns whether anything failed."""
        if prediction.status == "error":
            print("nkf:", str(prediction.message).replace("\n", " "), file=sys.stderr)
            return True
        if not self.outputs.to_standard_output:
            print(*_lines(prediction), sep="\n")
        if problem:
            print("nkf:", problem, file=sys.stderr)
        return problem is not None

    def _draw(self, prediction: Prediction, image: Path, index: int) -> tuple[Prediction, str | None]:
        """Draw the pictures of one image; returns the prediction, explained if that is wanted, and what went wrong, if
        anything: the other images of a batch go on.
        """
        if not self.pictures or prediction.status == "error":
            return prediction, None
        try:
            image_rgb = read_image(image)
        except ImageError as error:  # gone or changed since it was predicted
            return prediction, str(error).replace("\n", " ")
        problems = []
        if "annotate" in self.pictures:
            problems += _save(annotate(image_rgb, prediction), self.pictures["annotate"][index], "annotate")
        if "explain" in self.pictures and prediction.faces:
            prediction = self.predictor.explain(image_rgb, prediction)
            problems += _save(draw_explanations(image_rgb, prediction), self.pictures["explain"][index], "explain")
        return prediction, "; ".join(problems) or None


def _save(picture: Image.Image, file: Path, option: str) -> list[str]:
    """Write a picture and sign it; returns what went wrong, if anything."""
    options: dict[str, Any] = {"format": "JPEG", "quality": 92} if file.suffix == ".jpg" else {"format": "PNG"}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            picture.save(partial, exif=signature(_SOFTWARE + option), **options)
    except OSError as error:
        return [f"{file}: cannot be written ({error.strerror or error})"]
    return []


def _picture_files(images: Iterable[InputImage], folder: Path) -> list[Path]:
    """Name the pictures of a folder: as their images, in the same subfolders, JPEG or else PNG; a name that is taken
    gets a number.
    """
    names = FreeNames(images)
    return [
        folder / names.take(image.stem, ".jpg" if image.file.suffix.lower() in (".jpg", ".jpeg") else ".png")
        for image in images
    ]


def _check_outputs(images: ImageInputs, outputs: PredictOutputs, pictures: Mapping[str, Sequence[Path]]) -> None:
    written = outputs.files | ({} if outputs.journal is None else {"journal": outputs.journal})
    check_files(written, outputs.folders.values())
    check_no_input([*written.values(), *(file for files in pictures.values() for file in files)], images)
    for option, files in pictures.items():
        for file in files:
            if file.exists() and not is_signed(file, _SOFTWARE + option):
                kind = _KINDS[option]
                raise NkfError(f"{file}: exists and is no {kind} picture of nkf; choose another --{option} folder")


def _is_stream(path: Path) -> bool:
    """Whether a path is written at once: standard output, a pipe, a device. A file appears when all is done."""
    return path == STANDARD_OUTPUT or (path.exists() and not path.is_file())


def _lines(prediction: Prediction) -> list[str]:
    if not prediction.faces:
        return [f"{prediction.path}: no face"]
    lines = []
    for index, face in enumerate(prediction.faces):
        box = " ".join(f"{value:.0f}" for value in face.box_xyxy)
        doubt = ", uncertain" if face.status == "uncertain" else ""
        verdict = f", low quality: {', '.join(face.problems)}" if face.problems else doubt
        lines.append(f"{prediction.path}: face {index}: {face.expression} {face.confidence:.0%}, box {box}{verdict}")
    return lines
