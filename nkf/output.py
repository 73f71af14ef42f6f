"""What becomes of predictions: JSON, JSON lines, CSV and Parquet, written whole or not at all.

Every writer takes predictions in their JSON form (`Prediction.to_dict`), so that a table is the same whether its
predictions were just made or read back from the journal of a run that was stopped (`nkf.journal`).
"""

import csv
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from nkf.errors import NkfError
from nkf.files import printable, real_path, replacing
from nkf.predict import Prediction

BOX_COLUMNS = ("x0", "y0", "x1", "y1")
CSV_COLUMNS = ("path", "status", "face", *BOX_COLUMNS, "detection_score", "expression", "confidence")
STANDARD_OUTPUT = Path("-")  # among the files that a command writes
_STREAMED = ("json", "jsonl", "csv")  # options that can write there
_ENDINGS = {".json": "json", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
Document = Mapping[str, Any]  # see `Prediction.to_dict`


class Writer(Protocol):
    """A file that appears under its name only when the ``with`` block ends without an exception."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def write(self, document: Document, /) -> None:
        """Add one prediction."""


class WholeFile:
    """Base of writers: how a ``with`` block ends, see `Writer`. `_stack` holds what was opened."""

    _stack: ExitStack

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._finish()

    def _finish(self) -> None:
        """Write what comes last."""


class _TextWriter(WholeFile):
    """A text file, see `Writer`.

    Missing folders are made. A stream, or a path that is no regular file (``/dev/stdout``, a pipe), is written
    directly.
    """

    def __init__(self, file: Path | TextIO) -> None:
        self._file = file
        self._stream: TextIO

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if isinstance(self._file, Path):
                try:
                    self._stream = stack.enter_context(_opened(self._file))
                except OSError as error:
                    raise NkfError(f"{self._file}: cannot be written ({error.strerror})") from error
            else:
                self._stream = self._file
            self._start()
            self._stack = stack.pop_all()
        return self

    def _finish(self) -> None:
        self._end()
        self._stream.flush()

    def _start(self) -> None:
        """Write what comes before the first prediction."""

    def _end(self) -> None:
        """Write what comes after the last prediction."""


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    # Paths that are not valid Unicode come back as the bytes they were.
    form: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with _place(file) as target, target.open("w", **form) as stream:
        yield stream


@contextmanager
def _place(file: Path) -> Iterator[Path]:
    """Yield where to write a file: beside it, or directly what is no regular file; missing folders are made."""
    direct = file.exists() and not file.is_file()
    if not direct:
        file = real_path(file)  # a link stays, what it points to is replaced
        file.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext(file) if direct else replacing(file) as target:
        yield target


def stream_or_file(path: Path) -> Path | TextIO:
    """What a writer takes for a path that a command was given: standard output for ``-``."""
    return sys.stdout if path == STANDARD_OUTPUT else path


def check_files(files: Mapping[str, Path], folders: Collection[Path] = (), *, sources: Collection[Path] = ()) -> None:
    """See that what a command is going to write are different places, each of the kind that its option says.

    Args:
        files: by the name of the option; `STANDARD_OUTPUT` is one, for `_STREAMED` alone.
        folders: that pictures go into.
        sources: files that are read.

    Raises:
        NkfError: when two are the same, or one is read; when a file is a folder, a stream where a file is needed, or
            has the ending of what another option writes; or a folder is a file.
    """
    for option, path in files.items():
        if path == STANDARD_OUTPUT and option not in _STREAMED:
            raise NkfError(f"--{option} -: expected a file; --json, --jsonl and --csv can go to standard output")
        if path.is_dir():
            raise NkfError(f"{path}: a folder, expected a file to write")
        other = _ENDINGS.get(path.suffix.lower(), option)
        if option in _ENDINGS.values() and other != option:
            raise NkfError(f"--{option} {path}: the ending of what --{other} writes; choose one of the two")
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise NkfError(f"{folder}: a file, expected a folder for pictures")
    places: set[Path] = set()
    read = {real_path(path) for path in sources}
    for path in [*files.values(), *folders]:
        place = path if path == STANDARD_OUTPUT else real_path(path)
        if place in read:
            raise NkfError(f"{path}: the input, would be overwritten; write somewhere else")
        if place in places:
            raise NkfError(f"{path}: two outputs cannot go to the same place")
        places.add(place)


def check_place(file: Path) -> None:
    """Make the folders above a file, and see that it can be written there, before hours of work go into it.

    Standard output and what is no regular file need nothing.

    Raises:
        NkfError: when it cannot.
    """
    if file == STANDARD_OUTPUT or (file.exists() and not file.is_file()):
        return
    try:
        real_path(file).parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=real_path(file).parent):
            pass
    except OSError as error:
        raise NkfError(f"{file}: cannot be written ({error.strerror})") from error


class JsonWriter(_TextWriter):
    """A JSON list with one object an image, each on a line of its own."""

    def _start(self) -> None:
        self._separator = "[\n"

    def write(self, document: Document) -> None:
        """Add one prediction."""
        self._stream.write(self._separator + json.dumps(document, allow_nan=False))
        self._separator = ",\n"

    def _end(self) -> None:
        self._stream.write("[]\n" if self._separator == "[\n" else "\n]\n")


class JsonLinesWriter(_TextWriter):
    """One JSON object a line and image; on a stream each line can be read at once."""

    def write(self, document: Document) -> None:
        """Add one prediction."""
        self._stream.write(json.dumps(document, allow_nan=False) + "\n")
        if not isinstance(self._file, Path):
            self._stream.flush()


class CsvWriter(_TextWriter):
    """A table with one row a face; an image without faces has one row with empty fields.

    Args:
        file: a path or an open text stream.
        classes: names of the expressions, a column each after `CSV_COLUMNS`.
    """

    def __init__(self, file: Path | TextIO, classes: tuple[str, ...]) -> None:
        super().__init__(file)
        self._classes = classes

    def _start(self) -> None:
        self._rows = csv.DictWriter(self._stream, [*CSV_COLUMNS, *self._classes], restval="", lineterminator="\n")
        self._rows.writeheader()

    def write(self, document: Document) -> None:
        """Add the rows of one prediction; ``face`` counts from 0 in the order of ``Prediction.faces``."""
        self._rows.writerows(face_rows(document))


def face_rows(document: Document) -> list[dict[str, Any]]:
    """Rows of a prediction by column of the CSV, one a face, or one with ``path`` and ``status`` for an image without.

    The ``status`` of a row with a face is the face's.
    """
    if not document["faces"]:
        return [{"path": document["path"], "status": document["status"]}]
    return [
        {"path": document["path"], "status": face["status"], "face": index}
        | dict(zip(BOX_COLUMNS, face["box_xyxy"], strict=True))
        | {"detection_score": face["detection_score"], "expression": face["expression"]}
        | {"confidence": face["probabilities"][face["expression"]]}
        | face["probabilities"]
        for index, face in enumerate(document["faces"])
    ]


class ParquetWriter(WholeFile):
    """A table with the rows of the CSV in typed columns, and more of each face; see docs/prediction.md.

    Args:
        file: a path.
        classes: names of the expressions, a column each.

    Raises:
        NkfError: when pyarrow is not installed.
    """

    ROWS = 4096  # in one group: so many are held in memory

    def __init__(self, file: Path, classes: tuple[str, ...]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise NkfError("Parquet needs pyarrow: pip install pyarrow") from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self._file = file
        self._rows: list[dict[str, Any]] = []
        self._schema = self._make_schema(classes)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                target = stack.enter_context(stack.enter_context(_place(self._file)).open("wb"))
                self._table = stack.enter_context(self._parquet.ParquetWriter(target, self._schema, compression="zstd"))
            except OSError as error:
                raise NkfError(f"{self._file}: cannot be written ({error.strerror or error})") from error
            self._stack = stack.pop_all()
        return self

    def _finish(self) -> None:
        self._write_group()

    def _make_schema(self, classes: tuple[str, ...]) -> Any:
        whole, number, text = self._arrow.int32(), self._arrow.float32(), self._arrow.string()
        image = {"path": text, "status": text, "message": text, "width": whole, "height": whole}
        place = {"face": whole, **dict.fromkeys((*BOX_COLUMNS, "detection_score"), number)}
        decision = {"expression": text, **dict.fromkeys(("confidence", *classes), number)}
        lists = {"problems": text, "landmarks_px": number, "landmark_spread_px": number}
        more = {name: self._arrow.list_(kind) for name, kind in lists.items()}
        return self._arrow.schema((image | place | decision | more).items())

    def write(self, document: Document) -> None:
        """Add the rows of one prediction."""
        image = {name: document.get(name) for name in ("message", "width", "height")}
        lists = [
            {
                "problems": face["problems"],
                "landmarks_px": [value for point in face["landmarks_px"] for value in point],
                "landmark_spread_px": face["landmark_spread_px"],
            }
            for face in document["faces"]
        ]
        rows = face_rows(document)
        self._rows += [image | row | more for row, more in zip(rows, lists or [{}], strict=True)]
        if len(self._rows) >= self.ROWS:
            self._write_group()

    def _write_group(self) -> None:
        for row in self._rows:  # what names a path need not be valid Unicode, a Parquet string has to be
            row |= {name: printable(row[name]) for name in ("path", "message") if row.get(name)}
        self._table.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []


def write_json(predictions: Iterable[Prediction], file: Path | TextIO) -> None:
    """Write a JSON list of predictions, one by one."""
    _write(JsonWriter(file), predictions)


def write_json_lines(predictions: Iterable[Prediction], file: Path | TextIO) -> None:
    """Write predictions as one JSON object a line, one by one."""
    _write(JsonLinesWriter(file), predictions)


def write_csv(predictions: Iterable[Prediction], file: Path | TextIO, classes: tuple[str, ...]) -> None:
    """Write a table of predictions, one by one; see `CsvWriter`."""
    _write(CsvWriter(file, classes), predictions)


def write_parquet(predictions: Iterable[Prediction], file: Path, classes: tuple[str, ...]) -> None:
    """Write a Parquet table of predictions; see `ParquetWriter`."""
    _write(ParquetWriter(file, classes), predictions)


def _write(writer: Writer, predictions: Iterable[Prediction]) -> None:
    with writer:
        for prediction in predictions:
            writer.write(prediction.to_dict())
