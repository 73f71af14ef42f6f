"""Tables on disk: every type of column there and back, parts of tables, and what damaged ones say."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nkf.data.tables import Columns, ColumnType, Table, TableWriter
from nkf.errors import NkfError

COLUMNS: Columns = {
    "text": "text",
    "bytes": "bytes",
    "integer": "integer",
    "number": "number",
    "counts": ("uint8", 3),
    "points": ("float32", 2),
}


def row(number: int) -> dict[str, Any]:
    return {
        "text": f"ä{number}",
        "bytes": bytes([0, number, 255]),
        "integer": -number,
        "number": number + 0.5,
        "counts": np.array([number, 0, 1], np.uint8),
        "points": np.array([number, -1], np.float32),
    }


def write(path: Path, *batches: list[dict[str, Any]], columns: Columns = COLUMNS, notes: Any = None) -> Table:
    with TableWriter(path, columns, notes) as table:
        for batch in batches:
            table.write(batch)
    return Table(path)


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def plain_rows(table: Table, start: int = 0) -> list[dict[str, Any]]:
    return [{name: plain(value) for name, value in found.items()} for found in table.rows(start)]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Seven rows in batches of three, one and three; the third and the last are missing in all columns."""
    rows = [row(1), row(2), {}, row(4), row(5), row(6), dict.fromkeys(COLUMNS)]
    return write(tmp_path / "a.arrow", rows[:3], rows[3:4], rows[4:], notes={"from": [1, "two"]})


def test_rows_come_back(table: Table) -> None:
    missing = dict.fromkeys(COLUMNS)
    rows = [{name: plain(value) for name, value in row(number).items()} for number in (1, 2, 4, 5, 6)]
    assert plain_rows(table) == [*rows[:2], missing, *rows[2:], missing]
    assert len(table) == 7
    assert table.columns == COLUMNS
    assert table.notes == {"from": [1, "two"]}


COLUMN_CASES: dict[str, tuple[Any, Any]] = {
    "text": (["ä1", "ä2", "", "ä4", "ä5", "ä6", ""], np.dtype("<U2")),
    "bytes": ([b"\0\1\xff", b"\0\2\xff", None, b"\0\4\xff", b"\0\5\xff", b"\0\6\xff", None], np.dtype(object)),
    "integer": ([-1, -2, np.nan, -4, -5, -6, np.nan], np.dtype(np.float64)),
    "number": ([1.5, 2.5, np.nan, 4.5, 5.5, 6.5, np.nan], np.dtype(np.float64)),
    "counts": ([[1, 0, 1], [2, 0, 1], [0, 0, 0], [4, 0, 1], [5, 0, 1], [6, 0, 1], [0, 0, 0]], np.dtype(np.uint8)),
    "points": (
        [[1, -1], [2, -1], [np.nan] * 2, [4, -1], [5, -1], [6, -1], [np.nan] * 2],
        np.dtype(np.float32),
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_come_back(table: Table, name: str) -> None:
    expected, dtype = COLUMN_CASES[name]
    column = table.column(name)
    assert column.dtype == dtype
    np.testing.assert_array_equal(column, np.array(expected, dtype))


def test_whole_numbers_stay_whole_where_none_is_missing(tmp_path: Path) -> None:
    table = write(tmp_path / "a.arrow", [row(1)], [row(2)])
    assert table.column("integer").dtype == np.int64


@pytest.mark.parametrize("value", [1_700_000_001, 0.1, -1e300])
def test_numbers_keep_their_digits(tmp_path: Path, value: float) -> None:
    table = write(tmp_path / "a.arrow", [{"number": value}, {}])
    assert table.column("number")[0] == next(table.rows())["number"] == value


def test_tables_with_short_numbers_can_be_copied(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    schema = pa.schema([pa.field("number", pa.float32())], {"nkf": "{}"})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([0.5], pa.float32())], schema=schema))
    with TableWriter(tmp_path / "b.arrow", {"number": "number"}) as copy:
        copy.copy(Table(tmp_path / "a.arrow"))
    assert Table(tmp_path / "b.arrow").column("number").tolist() == [0.5]


def test_arrays_of_any_shape_are_flattened(tmp_path: Path) -> None:
    rows = [{"points": np.array([[1.0], [2.0]])}, {}, {"points": [3, 4]}]
    table = write(tmp_path / "a.arrow", rows, columns={"points": ("float32", 2)})
    np.testing.assert_array_equal(table.column("points"), [[1, 2], [np.nan] * 2, [3, 4]])


@pytest.mark.parametrize("sizes", [(3, 3), (2, 3), (1, 3)])
def test_an_array_of_another_size_is_a_mistake(tmp_path: Path, sizes: tuple[int, int]) -> None:
    with (
        pytest.raises(ValueError, match=r"inhomogeneous shape|cannot reshape"),
        TableWriter(tmp_path / "a.arrow", {"points": ("float32", 2)}) as table,
    ):
        table.write([{"points": np.zeros(size)} for size in sizes])


def test_truth_values_are_whole_numbers(tmp_path: Path) -> None:
    table = write(tmp_path / "a.arrow", [{"known": True}, {"known": False}], columns={"known": "integer"})
    assert table.column("known").tolist() == [1, 0]


@pytest.mark.parametrize("batches", [[], [[]]], ids=["no batch", "an empty batch"])
@pytest.mark.parametrize(("name", "kind"), COLUMNS.items())
def test_empty_table(tmp_path: Path, batches: list[list[Any]], name: str, kind: ColumnType) -> None:
    table = write(tmp_path / "a.arrow", *batches)
    assert (len(table), list(table.rows())) == (0, [])
    assert table.columns[name] == kind
    assert table.column(name).shape == ((0, kind[1]) if isinstance(kind, tuple) else (0,))


@pytest.mark.parametrize("start", range(9))
def test_rows_from_a_number_on(table: Table, start: int) -> None:
    assert plain_rows(table, start) == plain_rows(table)[start:]


@pytest.mark.parametrize("keep", ["1111111", "0110010", "0001000", "0000000"])
def test_copy_of_some_rows(tmp_path: Path, table: Table, keep: str) -> None:
    flags = np.array([flag == "1" for flag in keep])
    with TableWriter(tmp_path / "b.arrow", COLUMNS) as copy:
        copy.copy(table, flags)
    expected = [found for found, flag in zip(plain_rows(table), flags, strict=True) if flag]
    assert plain_rows(Table(tmp_path / "b.arrow")) == expected


def test_copy_with_another_column(tmp_path: Path, table: Table) -> None:
    values = ["a", None, "c", "d", "e", "", "g"]
    with TableWriter(tmp_path / "b.arrow", COLUMNS) as copy:
        copy.copy(table, np.arange(7) % 2 == 0, text=values)
        copy.copy(table)
    copied = Table(tmp_path / "b.arrow")
    assert copied.column("text").tolist() == ["a", "c", "e", "g", "ä1", "ä2", "", "ä4", "ä5", "ä6", ""]
    assert [found["integer"] for found in copied.rows()] == [-1, None, -5, None, -1, -2, None, -4, -5, -6, None]


def test_copy_puts_columns_in_its_own_order(tmp_path: Path, table: Table) -> None:
    with TableWriter(tmp_path / "b.arrow", dict(reversed(COLUMNS.items()))) as copy:
        copy.copy(table)
    copied = Table(tmp_path / "b.arrow")
    assert list(copied.columns) == list(reversed(COLUMNS))
    assert plain_rows(copied) == plain_rows(table)


def test_other_programs_can_read_it(table: Table) -> None:
    with pa.OSFile(str(table.path)) as file:
        found = pa.ipc.open_file(file).read_all()
    assert found.num_rows == 7
    assert found.column("text").to_pylist() == ["ä1", "ä2", None, "ä4", "ä5", "ä6", None]
    assert found.column("integer").to_pylist()[2:4] == [None, -4]
    assert found.column("counts").to_pylist()[:3] == [[1, 0, 1], [2, 0, 1], [0, 0, 0]]
    assert found.schema.field("points").type == pa.list_(pa.float32(), 2)


def test_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [row(1), {}], [row(2)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_unknown_column(table: Table) -> None:
    with pytest.raises(NkfError, match=r"a\.arrow: no column 'age'; it has text, bytes, integer, number, counts, po"):
        table.column("age")


def test_a_row_with_a_column_too_many_is_a_mistake(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"^no columns for age, sex; there are text$"),
        TableWriter(tmp_path / "a.arrow", {"text": "text"}) as table,
    ):
        table.write([{"text": "a"}, {"sex": "f", "age": 3}])


def no_notes(path: Path) -> None:
    """An Arrow file that nkf did not write."""
    batch = pa.record_batch({"text": ["a"]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("names\n" * 100),
    "pickle": lambda path: path.write_bytes(pickle.dumps(["a"] * 100)),
    "end missing": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "begin missing": lambda path: path.write_bytes(path.read_bytes()[100:]),
    "middle missing": lambda path: path.write_bytes(path.read_bytes()[:400] + path.read_bytes()[1400:]),
    "of another program": no_notes,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_table(table: Table, case: str) -> None:
    path = table.path
    DAMAGE[case](path)
    with pytest.raises(NkfError, match=r"a\.arrow: damaged table \(.+\)$") as caught:
        Table(path)
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_anywhere_is_damaged(table: Table) -> None:
    data = table.path.read_bytes()
    path = table.path.with_name("cut.arrow")
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(NkfError, match="damaged table"):
            Table(path)


@pytest.mark.parametrize("seed", range(5))
def test_changed_bytes_are_damage_or_other_values(table: Table, seed: int) -> None:
    """Reading must neither crash nor raise anything else."""
    random = np.random.default_rng(seed)
    data = table.path.read_bytes()
    path = table.path.with_name("changed.arrow")
    damaged = 0
    for _ in range(40):
        changed = np.frombuffer(data, np.uint8).copy()
        changed[random.integers(0, len(changed), 3)] = random.integers(0, 256, 3)
        path.write_bytes(changed.tobytes())
        try:
            found = Table(path)
        except NkfError:
            damaged += 1
            continue
        assert [len(found.column(name)) for name in found.columns] == [len(found)] * len(found.columns)
        assert len(list(found.rows())) == len(found)
    assert 0 < damaged < 40
