"""Tables on disk: Arrow IPC files, written batch by batch and memory-mapped for reading.

Any program that reads Arrow (pandas, polars, DuckDB, R) opens them. Missing text and whole numbers are null, missing
arrays and numbers NaN, missing votes zeros. Numbers have 64 bits, whole ones too; those in arrays have 32.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from nkf.errors import NkfError

# Text, bytes, a whole number (int64), a number (float64), or an array of so many numbers a row with their dtype.
ColumnType = Literal["text", "bytes", "integer", "number"] | tuple[Literal["uint8", "float32"], int]
Columns = Mapping[str, ColumnType]


def require_pyarrow() -> None:
    """Raise `NkfError` where packs can be neither read nor written."""
    if find_spec("pyarrow") is None:
        raise NkfError("datasets need pyarrow: pip install '.[data]' in nkf's folder")


class TableWriter:
    """Write a table batch by batch: ``with TableWriter(path, columns) as table: table.write(rows)``.

    Args:
        path: file to write; what is there is replaced. It is incomplete until the block has ended.
        columns: name to type.
        notes: JSON values that `Table.notes` gives back.
    """

    def __init__(self, path: Path, columns: Columns, notes: Mapping[str, Any] | None = None) -> None:
        require_pyarrow()
        import pyarrow as pa

        self._columns = dict(columns)
        fields = [pa.field(name, _arrow_type(kind)) for name, kind in columns.items()]
        self._schema = pa.schema(fields, {"nkf": json.dumps(notes or {})})
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def __enter__(self) -> Self:
        return self

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows as one batch; a key that a row lacks is missing there."""
        import pyarrow as pa

        unknown = {name for row in rows for name in row} - self._columns.keys()
        if unknown:
            raise ValueError(f"no columns for {', '.join(sorted(unknown))}; there are {', '.join(self._columns)}")
        arrays = [_to_arrow([row.get(name) for row in rows], kind) for name, kind in self._columns.items()]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def copy(self, table: "Table", keep: NDArray[np.bool_] | None = None, **replaced: Sequence[str | None]) -> None:
        """Append all batches of a table with the same columns.

        Args:
            table: the other one.
            keep: which of its rows; None = all.
            replaced: text columns with other values than in the table, one for each of its rows.
        """
        import pyarrow as pa

        start = 0
        for batch in table.batches():
            rows = slice(start, start + batch.num_rows)
            for name, values in replaced.items():
                column = pa.array(values[rows], pa.string())
                batch = batch.set_column(batch.schema.get_field_index(name), name, column)
            columns = [batch.column(field.name).cast(field.type) for field in self._schema]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema).filter(
                pa.array(np.ones(batch.num_rows, bool) if keep is None else keep[rows])
            ))  # fmt: skip
            start = rows.stop

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            self._writer.close()
            os.fsync(self._sink.fileno())  # otherwise the file could get its final name before its content
        finally:
            self._sink.close()


class Table:
    """Read a table; nothing is loaded before it is asked for.

    Args:
        path: the file.
        mapped: map it into memory, which several processes share; else one batch at a time is read, and let go again.

    Attributes:
        columns: name to type.
        notes: what the writer was given.

    Raises:
        NkfError: when the file is missing or damaged.
    """

    def __init__(self, path: Path, *, mapped: bool = True) -> None:
        require_pyarrow()
        import pyarrow as pa

        self.path = path
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)) if mapped else pa.OSFile(str(path)))
            self.notes: dict[str, Any] = json.loads((self._reader.schema.metadata or {})[b"nkf"])
            self.columns: dict[str, ColumnType] = {
                field.name: _column_type(field.type) for field in self._reader.schema
            }
            for batch in self.batches():  # otherwise changed bytes could crash the process
                batch.validate(full=True)
            self._starts = np.cumsum([0, *(batch.num_rows for batch in self.batches())])
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise NkfError(f"{path}: damaged table ({str(error).splitlines()[0]})") from error

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batches(self) -> Iterator[Any]:
        """``pyarrow.RecordBatch`` objects, in order."""
        for number in range(self._reader.num_record_batches):
            yield self._reader.get_batch(number)

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Rows as dictionaries from a row number on, one batch in memory at a time; what is missing is None."""
        for number, first in enumerate(self._starts[:-1]):
            skip = max(0, start - int(first))
            batch = self._reader.get_batch(number)
            if skip < batch.num_rows:
                batch = batch.slice(skip)
                columns = [_from_arrow(batch.column(name), kind, "rows") for name, kind in self.columns.items()]
                yield from (dict(zip(self.columns, values, strict=True)) for values in zip(*columns, strict=True))

    def column(self, name: str) -> NDArray[Any]:
        """One column as an array with a row an image: text as ``str`` ("" = missing), arrays as (N, size).

        Whole numbers are int64; where some are missing, float64 with NaN, which is exact up to 2**53.

        Raises:
            NkfError: when there is no such column.
        """
        if name not in self.columns:
            raise NkfError(f"{self.path}: no column {name!r}; it has {', '.join(self.columns)}")
        kind = self.columns[name]
        # Copies: a view would keep its whole batch in memory.
        parts = [np.array(_from_arrow(batch.column(name), kind, "column")) for batch in self.batches()]
        return np.concatenate(parts) if parts else _empty(kind)


def _arrow_type(kind: ColumnType) -> Any:
    import pyarrow as pa

    scalars = {"text": pa.string(), "bytes": pa.large_binary(), "integer": pa.int64(), "number": pa.float64()}
    if isinstance(kind, str):
        return scalars[kind]
    dtype, size = kind
    return pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), size)


def _column_type(arrow_type: Any) -> ColumnType:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(arrow_type):
        dtype: Literal["uint8", "float32"] = "uint8" if pa.types.is_uint8(arrow_type.value_type) else "float32"
        return dtype, arrow_type.list_size
    names: dict[Any, ColumnType] = {pa.string(): "text", pa.large_binary(): "bytes", pa.int64(): "integer"}
    return names.get(arrow_type, "number")


def _missing(kind: ColumnType) -> Any:
    if isinstance(kind, tuple):
        return np.full(kind[1], 0 if kind[0] == "uint8" else np.nan, kind[0])
    return np.nan if kind == "number" else None


def _to_arrow(values: list[Any], kind: ColumnType) -> Any:
    import pyarrow as pa

    values = [_missing(kind) if value is None else value for value in values]
    if isinstance(kind, str):
        if kind == "integer":
            values = [int(value) if isinstance(value, bool) else value for value in values]
        return pa.array(values, _arrow_type(kind), from_pandas=False)
    dtype, size = kind
    flat = np.array([np.ravel(value) for value in values], dtype).reshape(len(values), size).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), size)


def _from_arrow(array: Any, kind: ColumnType, form: Literal["rows", "column"]) -> Any:
    """A batch of a column: for "rows" something to iterate over with None where it is missing."""
    if isinstance(kind, tuple):
        values = array.flatten().to_numpy().reshape(-1, kind[1])
        if form == "column":
            return values
        return [None if (np.isnan(row).all() if kind[0] == "float32" else not row.any()) else row for row in values]
    if form == "rows":
        return [None if value != value else value for value in array.to_pylist()]  # NaN is not itself
    if kind == "text":
        return np.array(array.fill_null("").to_pylist(), str)
    return array.to_numpy(zero_copy_only=False)


def _empty(kind: ColumnType) -> NDArray[Any]:
    if isinstance(kind, tuple):
        return np.zeros((0, kind[1]), kind[0])
    return np.zeros(0, {"text": str, "integer": np.int64}.get(kind, np.float64))
