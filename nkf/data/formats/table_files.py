"""Find and open the CSV, TSV or Parquet file of a source, row by row; Parquet needs the optional package pyarrow."""

import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from nkf.data.listing import MetadataType
from nkf.data.sources import SEARCH_DEPTH, Source, join, read_table, some
from nkf.errors import NkfError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
SUFFIXES = (*DELIMITERS, PARQUET)
BATCH_ROWS = 1024
MAX_COPY = 2 << 30  # bytes that a Parquet file in a zip may take on disk while it is read

Cells = Sequence[Any]  # of one row: text, or what a Parquet column holds; None where it holds nothing


@dataclass(frozen=True, slots=True)
class Table:
    """A table, its rows not read yet.

    Attributes:
        where: its name, for messages.
        unit: what `rows` counts, for messages.
        header: names of the columns.
        types: what each column holds; a text file holds text.
        rows: reads the table: number of the row (of the line in a text file, the header is line 1), and its cells.
        total: number of rows if it is known.
    """

    where: str
    unit: str
    header: Sequence[str]
    types: Sequence[MetadataType]
    rows: Callable[[], Iterator[tuple[int, Cells]]]
    total: int | None = None


def find_table(source: Source) -> str:
    """Name of the only table at the top of a source, or below it in a folder that stands alone, as zips often have one.

    Raises:
        NkfError: when there is none, or more than one.
    """
    folder = ""
    tables: list[str] = []
    for _ in range(SEARCH_DEPTH):
        tables, folders = _tables_in(source, folder), source.children(folder).folders
        if tables or len(folders) != 1:
            break
        folder = join(folder, folders[0])
    if len(tables) == 1:
        return tables[0]
    if tables:
        raise NkfError(f"{source.path}: has {len(tables)} tables, {some(tables, 10)}; name one of them")
    raise NkfError(f"{source.path}: no table at its top; expected a {', '.join(SUFFIXES)} file, or the name of one")


def open_table(source: Source, name: str) -> Table:
    """Read the header of a table.

    Raises:
        NkfError: when it is no such table.
    """
    suffix = _suffix(name)
    if suffix not in SUFFIXES:
        raise NkfError(f"{source.path}: table {name!r}, expected a {', '.join(SUFFIXES)} file")
    if not source.has(name):
        tables = _tables_in(source, folder_of(name))
        found = f"; found {some(tables, 10)}" if tables else ""
        raise NkfError(f"{source.path}: {name}: no such table in it{found}")
    return _open_parquet(source, name) if suffix == PARQUET else _open_text(source, name, DELIMITERS[suffix])


def folder_of(name: str) -> str:
    """The folder that a file of a source lies in; "" for the top."""
    return "/".join(PurePosixPath(name).parts[:-1])


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _tables_in(source: Source, folder: str) -> list[str]:
    return [join(folder, file) for file in source.children(folder).files if _suffix(file) in SUFFIXES]


def _open_text(source: Source, name: str, delimiter: str) -> Table:
    where = f"{source.path}: {name}"
    _, header = next(read_table(source, name, delimiter), (1, []))
    if not header:
        raise NkfError(f"{where}: empty; expected a line with the names of the columns, such as path and label")

    def rows() -> Iterator[tuple[int, Cells]]:
        lines = read_table(source, name, delimiter)
        next(lines, None)
        for line, cells in lines:
            if len(cells) != len(header):
                raise NkfError(f"{where}, line {line}: {len(cells)} fields, expected {len(header)} as in the header")
            yield line, cells

    return Table(where, "line", header, ["text"] * len(header), rows)


def _open_parquet(source: Source, name: str) -> Table:
    where = f"{source.path}: {name}"
    with _parquet_file(source, name, where) as file:
        schema = file.schema_arrow
        types = [_metadata_type(field, where) for field in schema]
        total = file.metadata.num_rows

    def rows() -> Iterator[tuple[int, Cells]]:
        number = 0
        with _parquet_file(source, name, where) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, cells

    return Table(where, "row", schema.names, types, rows, total)


@contextmanager
def _parquet_file(source: Source, name: str, where: str) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NkfError(f"{where}: reading Parquet needs pyarrow: pip install pyarrow") from error
    with _seekable(source, name, where) as stream:
        try:
            yield pyarrow.parquet.ParquetFile(stream)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise NkfError(f"{where}: not a readable Parquet file ({reason})") from error


@contextmanager
def _seekable(source: Source, name: str, where: str) -> Iterator[IO[bytes]]:
    """The file itself, or a copy of a zip member: going back in one means to unpack it again from its start."""
    with source.open(name) as stream:
        if not isinstance(stream, zipfile.ZipExtFile):
            yield stream
            return
        with tempfile.TemporaryFile() as copy:
            try:
                while data := stream.read(1 << 20):
                    copy.write(data)
                    if copy.tell() > MAX_COPY:
                        size = f"{MAX_COPY / (1 << 30):g} GiB"
                        raise NkfError(f"{where}: more than {size} unpacked; unpack the zip, and import its folder")
            except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise NkfError(f"{where}: cannot be read to its end ({error})") from error
            yield copy


def _metadata_type(field: Any, where: str) -> MetadataType:
    """Metadata type of a column of an Arrow schema."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_fixed_size_list(kind) and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
        return int(kind.list_size)
    if types.is_null(kind) or str(kind) in ("string", "large_string", "string_view"):
        return "text"
    if types.is_integer(kind) or types.is_boolean(kind):
        return "integer"
    if types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    raise NkfError(f"{where}: column {field.name!r} holds {kind}, expected text, numbers or lists of one length")
