"""Tables of one's own as CSV, TSV and Parquet: columns, values, and files that are damaged."""

import csv
import io
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nkf.data.formats.table import LANDMARKS, list_table
from nkf.data.labels import EXPRESSIONS, VOTE_COLUMNS
from nkf.data.listing import Entry, Listing
from nkf.data.sources import open_source
from nkf.errors import NkfError

Rows = Sequence[Mapping[str, Any]]
PATHS: Rows = ({"path": "a.jpg", "label": "happy"}, {"path": "sub/b.png", "label": "Sad"})


def as_text(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(rows[0])
    writer.writerows(["" if value is None else value for value in row.values()] for row in rows)
    return text.getvalue().encode()


def as_parquet(rows: Rows, **types: pyarrow.DataType) -> bytes:
    table = pyarrow.table({
        name: pyarrow.array([row[name] for row in rows], types.get(name)) for name in rows[0]
    })  # fmt: skip
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Rows], bytes]] = {
    "t.csv": as_text,
    "t.tsv": lambda rows: as_text(rows, "\t"),
    "t.parquet": as_parquet,
}


def save(path: Path, files: Mapping[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@contextmanager
def listed(path: Path, files: Mapping[str, bytes], table: str | None = None, **options: Any) -> Iterator[Listing]:
    with open_source(save(path, files)) as source:
        yield list_table(source, table, **options)


def listing_of(tmp_path: Path, data: bytes, name: str = "t.csv") -> tuple[list[Entry], Listing]:
    with listed(tmp_path / "source", {name: data}) as listing:
        return list(listing.entries), listing


def entries_of(tmp_path: Path, rows: Rows) -> list[Entry]:
    return listing_of(tmp_path, as_text(rows))[0]


@pytest.mark.parametrize("container", ["source", "source.zip"])
@pytest.mark.parametrize("top", ["", "wrapping/"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format(tmp_path: Path, name: str, top: str, container: str) -> None:
    with listed(tmp_path / container, {top + name: FORMATS[name](PATHS), f"{top}a.jpg": b""}) as listing:
        found = [(entry.split, entry.name, entry.member, entry.label) for entry in listing.entries]
    assert found == [
        ("train", "a.jpg", f"{top}a.jpg", "happiness"),
        ("train", "sub/b.png", f"{top}sub/b.png", "sadness"),
    ]
    assert (listing.dataset, listing.shows, listing.warnings, listing.metadata) == ("table", "photo", [], {})
    assert listing.details == {"layout": "table", "label_file": top + name}
    assert listing.total == (2 if name == "t.parquet" else None)


def test_options(tmp_path: Path) -> None:
    with listed(tmp_path / "source", {"t.csv": as_text(PATHS)}, shows="face", licence="Ours.") as listing:
        assert (listing.shows, listing.licence) == ("face", "Ours.")


@pytest.mark.parametrize("name", ["one/t.csv", "one/T.CSV", "two.tsv"])
def test_a_named_table_and_its_folder(tmp_path: Path, name: str) -> None:
    files = {
        "two.tsv": as_text(PATHS, "\t"),
        "three.csv": b"",
        "one/t.csv": as_text(PATHS),
        "one/T.CSV": as_text(PATHS),
    }
    with listed(tmp_path / "source.zip", files, f"./{name}") as listing:
        assert [entry.member for entry in listing.entries] == (
            ["one/a.jpg", "one/sub/b.png"] if "/" in name else ["a.jpg", "sub/b.png"]
        )


@pytest.mark.parametrize(
    ("files", "table", "message"),
    [
        (["a.csv", "b.tsv", "c.parquet"], None, r"has 3 tables, a.csv, b.tsv, c.parquet; name one of them$"),
        (["w/a.csv", "w/b.csv"], None, r"has 2 tables, w/a.csv, w/b.csv; name"),
        (["a.txt", "w/a.csv", "v/a.csv"], None, r"no table at its top; expected a .csv, .tsv, .parquet file"),
        (["a.csv"], "b.csv", r": b.csv: no such table in it; found a.csv$"),
        (["a.csv"], "w/b.csv", r": w/b.csv: no such table in it$"),
        (["a.csv"], "a.xlsx", r": table 'a.xlsx', expected a .csv, .tsv, .parquet file$"),
        (["a.csv"], "../a.csv", r": table path '../a.csv', expected a relative file name"),
    ],
)
def test_no_such_table(tmp_path: Path, files: list[str], table: str | None, message: str) -> None:
    with (
        pytest.raises(NkfError, match=message),
        listed(tmp_path / "source", dict.fromkeys(files, b"path,label\n"), table),
    ):
        pass


def test_column_names_and_labels_in_any_case(tmp_path: Path) -> None:
    entries, listing = listing_of(
        tmp_path, b"PATH,Label , SPLIT,Age\r\na.jpg, JOY ,Val,20-29\r\n\r\nb.jpg,fear,TEST,\r\n"
    )
    assert [(entry.label, entry.split, entry.metadata) for entry in entries] == [
        ("happiness", "valid", {"age": "20-29"}),
        ("fear", "test", {"age": None}),
    ]
    assert listing.metadata == {"age": "text"}


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("valid", "valid"), ("val", "valid"), ("Validation", "valid"), ("test", "test")],
)
def test_splits(tmp_path: Path, name: str, split: str) -> None:
    assert entries_of(tmp_path, [{"path": "a.jpg", "label": "sad", "split": name}])[0].split == split


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("refused", ["not_a_face", "NF"])
def test_votes(tmp_path: Path, name: str, refused: str) -> None:
    votes = {"happy": 3, "contempt": 0, "neutral": 255, "unknown": 2, refused: 1}
    rows = [
        {"path": "a.jpg", "label": "sad", **votes},
        {"path": "b.jpg", "label": "sad", **dict.fromkeys(votes, 0)},
        {"path": "c.jpg", "label": "sad", **dict.fromkeys(votes, None)},
        {"path": "d.jpg", "label": None, **dict.fromkeys(votes, None), "happy": 4},
    ]
    entries, listing = listing_of(tmp_path, FORMATS[name](rows), name)
    expected = {"happiness": 3, "neutral": 255, "unknown": 2, "not_a_face": 1}
    assert entries[0].votes is not None
    assert entries[0].votes.dtype == np.uint8
    assert dict(zip(VOTE_COLUMNS, entries[0].votes, strict=True)) == dict.fromkeys(VOTE_COLUMNS, 0) | expected
    assert [entry.votes is None for entry in entries] == [False, True, True, False]
    assert [entry.label for entry in entries] == ["sadness", "sadness", "sadness", None]
    assert listing.metadata == {}
    assert listing.warnings == []


def test_whole_numbers_may_have_a_point(tmp_path: Path) -> None:
    (entry,) = entries_of(tmp_path, [{"path": "a.jpg", "fear": "3.0", "anger": "1e1"}])
    assert entry.votes is not None
    assert entry.votes.tolist() == [0, 0, 0, 0, 3, 0, 10, 0, 0, 0]


@pytest.mark.parametrize("name", FORMATS)
def test_shares(tmp_path: Path, name: str) -> None:
    rows = [
        {"path": "a.jpg", "p_happy": 0.333, "P_Anger": 0.66, "p_value": 7.0},
        {"path": "b.jpg", "p_happy": 1.0, "P_Anger": None, "p_value": 7.0},
        {"path": "c.jpg", "p_happy": None, "P_Anger": None, "p_value": 7.0},
    ]
    entries, listing = listing_of(tmp_path, FORMATS[name](rows), name)
    first, second, third = (entry.distribution for entry in entries)
    assert first is not None
    assert first.dtype == np.float32
    expected = {"happiness": 0.333 / 0.993, "anger": 0.66 / 0.993}
    np.testing.assert_allclose(first, [expected.get(expression, 0) for expression in EXPRESSIONS], rtol=1e-6)
    assert second is not None
    assert second.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert third is None
    assert [entry.votes for entry in entries] == [None] * 3
    assert [entry.label for entry in entries] == ["anger", "happiness", None]
    assert list(listing.metadata) == ["p_value"]
    assert len(listing.warnings) == 1
    assert listing.warnings[0].endswith(f"{name}: rows without a label: 1 (c.jpg)")


def test_the_largest_share_is_the_label_if_none_is_given(tmp_path: Path) -> None:
    lines = [
        "a.jpg,,.6,.4,",
        "b.jpg,fear,.6,.4,",
        "c.jpg,,.4,.4,.2",
        "d.jpg,,.333,.333,.334",
        "e.jpg,,,,",
        "f.jpg,,,.5,.5",
    ]
    entries, listing = listing_of(tmp_path, "\n".join(["path,label,p_happy,p_sad,p_fear", *lines]).encode())
    assert [entry.label for entry in entries] == ["happiness", "fear", None, "fear", None, None]
    assert [entry.distribution is None for entry in entries] == [False] * 4 + [True, False]
    where = f"{tmp_path / 'source'}: t.csv: rows without a label"
    assert listing.warnings == [
        f"{where}, several classes have the largest share: 2 (c.jpg, f.jpg)",
        f"{where}: 1 (e.jpg)",
    ]


@pytest.mark.parametrize("column", ["subject", "photo", "group"])
@pytest.mark.parametrize(("values", "texts"), [
    ([7, None, 1 << 60], ["7", None, str(1 << 60)]),
    ([7.0, float("nan"), 2.5], ["7", None, "2.5"]),
    (["007", " ", None], ["007", None, None]),
])  # fmt: skip
def test_columns_that_link_rows_are_text(tmp_path: Path, column: str, values: list[Any], texts: list[str]) -> None:
    rows = [{"path": f"{number}.jpg", "label": "sad", column: value} for number, value in enumerate(values)]
    entries, listing = listing_of(tmp_path, as_parquet(rows), "t.parquet")
    assert listing.metadata == {column: "text"}
    assert [entry.metadata[column] for entry in entries] == texts


def test_rows_without_a_label_are_counted(tmp_path: Path) -> None:
    entries, listing = listing_of(tmp_path, b"path,label\n" + b"".join(b"%d.jpg, \n" % number for number in range(7)))
    assert [entry.label for entry in entries] == [None] * 7
    assert listing.warnings == [
        f"{tmp_path / 'source'}: t.csv: rows without a label: 7 (0.jpg, 1.jpg, 2.jpg, 3.jpg, ...)"
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_and_landmarks(tmp_path: Path, name: str) -> None:
    points = np.arange(136) / 4
    row = {"path": "a.jpg", "label": "sad"}
    numbers = {"y0": -2.5, "X0": 1.0, "x1": 30.0, "y1": 40.0, **dict(zip(LANDMARKS, points.tolist(), strict=True))}
    rows = [{**row, **numbers}, {**row, "path": "b.jpg", **dict.fromkeys(numbers)}]
    entries, listing = listing_of(tmp_path, FORMATS[name](rows), name)
    box, landmarks = entries[0].box_xyxy, entries[0].landmarks_px
    assert box is not None
    assert (box.dtype, box.tolist()) == (np.float32, [1, -2.5, 30, 40])
    assert landmarks is not None
    assert (landmarks.dtype, landmarks.shape) == (np.float32, (68, 2))
    np.testing.assert_array_equal(landmarks, points.reshape(68, 2))
    assert (entries[1].box_xyxy, entries[1].landmarks_px) == (None, None)
    assert listing.metadata == {}


def test_several_faces_of_a_photo(tmp_path: Path) -> None:
    boxes = [(0, 0, 9, 9), (5, 0, 9, 9), (1, 1, 2, 2)]
    rows = [{"path": "a.jpg", "label": "sad", "split": "train", **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))}
            for box in boxes]  # fmt: skip
    entries = entries_of(tmp_path, [*rows, {**rows[0], "split": "test"}])
    assert [(entry.split, entry.name, entry.member) for entry in entries] == [
        ("train", "a.jpg", "a.jpg"),
        ("train", "a.jpg#2", "a.jpg"),
        ("train", "a.jpg#3", "a.jpg"),
        ("test", "a.jpg", "a.jpg"),
    ]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (["", ""], "line 3: path 'a.jpg' again in train, without a box of its own; expected one row for each face$"),
        (["0,0,9,9", "0,0,9,9.0"], "line 3: path 'a.jpg' again in train, with the same box; expected"),
        (["0,0,9,9", "0,0,8,9", "0,0,9,9"], "line 4: path 'a.jpg' again in train, with the same box; expected"),
        (["", "0,0,9,9"], "line 3: path 'a.jpg' again in train, without a box"),
        (["0,0,9,9", ""], "line 3: path 'a.jpg' again in train, without a box"),
    ],
)
def test_double_rows(tmp_path: Path, boxes: list[str], message: str) -> None:
    lines = [f"{path},sad,{box or ',,,'}" for path, box in zip(("a.jpg", "./a.jpg", "a.jpg"), boxes, strict=False)]
    with pytest.raises(NkfError, match=message):
        listing_of(tmp_path, "\n".join(["path,label,x0,y0,x1,y1", *lines]).encode())


def test_metadata_of_text_files(tmp_path: Path) -> None:
    row = {"path": "a.jpg", "label": "sad", "Subject": "007", "group": "b", "age": "30", "valence": "-.5",
           "arousal": "", "yaw": "10", "age group": "x"}  # fmt: skip
    entries, listing = listing_of(tmp_path, as_text([row]))
    assert listing.metadata == {
        **{"subject": "text", "group": "text", "age": "text"},
        **{"valence": "number", "arousal": "number", "yaw": "number", "age group": "text"},
    }
    assert entries[0].metadata == {
        **{"subject": "007", "group": "b", "age": "30"},
        **{"valence": -0.5, "arousal": None, "yaw": 10.0, "age group": "x"},
    }


def test_metadata_of_parquet(tmp_path: Path) -> None:
    row = {"path": "a.jpg", "label": "sad", "subject": 7, "count": 1 << 60, "good": True, "score": 0.5, "site": "x",
           "mesh": [1.0, None], "yaw": 3, "note": None}  # fmt: skip
    empty = {**dict.fromkeys(row), "path": "b.jpg", "label": "sad", "score": float("nan")}
    types = {
        "mesh": pyarrow.list_(pyarrow.float32(), 2),
        "site": pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
        "label": pyarrow.large_string(),
    }
    entries, listing = listing_of(tmp_path, as_parquet([row, empty], **types), "t.parquet")
    assert listing.metadata == {
        **{"subject": "text", "count": "integer", "good": "integer", "score": "number", "site": "text"},
        **{"mesh": 2, "yaw": "number", "note": "text"},
    }
    assert entries[0].metadata == {
        **{"subject": "7", "count": 1 << 60, "good": 1, "score": 0.5, "site": "x"},
        **{"mesh": [1.0, pytest.approx(np.nan, nan_ok=True)], "yaw": 3.0, "note": None},
    }
    assert entries[1].metadata == dict.fromkeys(listing.metadata)


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    rows = [{"path": f"{number}.jpg", "label": "sad"} for number in range(2500)]
    entries, listing = listing_of(tmp_path, as_parquet([*rows]), "t.parquet")
    assert [entry.name for entry in entries] == [row["path"] for row in rows]
    assert listing.total == 2500
    with pytest.raises(NkfError, match=r"t\.parquet, row 2501: label 'hapy', expected one of"):
        listing_of(tmp_path, as_parquet([*rows, {"path": "x.jpg", "label": "hapy"}]), "t.parquet")


def test_misspelt_columns_are_pointed_out(tmp_path: Path) -> None:
    _, listing = listing_of(tmp_path, b"path,label,slpit,hapiness,age,pose\na.jpg,sad,test,1,3,x\n")
    where = f"{tmp_path / 'source'}: t.csv"
    assert listing.warnings == [
        f"{where}: column 'slpit' is taken for metadata. Perhaps you meant 'split'?",
        f"{where}: column 'hapiness' is taken for metadata. Perhaps you meant 'happiness'?",
    ]


@pytest.mark.parametrize("container", ["source", "source.zip"])
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.parquet", b"path,label\n", "not a readable Parquet file"),
        ("t.parquet", b"", "not a readable Parquet file"),
        ("t.csv", b"path,label\na.jpg,\xff\n", "not a text table"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, container: str, name: str, data: bytes, message: str) -> None:
    with (
        pytest.raises(NkfError, match=rf"{name}: {message}") as caught,
        listed(tmp_path / container, {name: data}) as listing,
    ):
        list(listing.entries)
    assert "\n" not in str(caught.value)


def test_damaged_pages_of_parquet(tmp_path: Path) -> None:
    data = bytearray(as_parquet([{"path": f"{number}.jpg", "label": "sad"} for number in range(99)]))
    data[4:60] = bytes(56)  # the footer is whole
    with pytest.raises(NkfError, match=r"t\.parquet: not a readable Parquet file"):
        listing_of(tmp_path, bytes(data), "t.parquet")


def test_a_damaged_zip_member(tmp_path: Path) -> None:
    data = as_parquet(PATHS)
    path = save(tmp_path / "source.zip", {"t.parquet": data})
    whole = bytearray(path.read_bytes())
    whole[60:90] = bytes(30)
    path.write_bytes(whole)
    with (
        pytest.raises(NkfError, match=r"t\.parquet: cannot be read to its end"),
        open_source(path) as source,
    ):
        list_table(source)


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = as_parquet(PATHS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NkfError, match=r"t\.parquet: reading Parquet needs pyarrow: pip install pyarrow$"):
        listing_of(tmp_path, data, "t.parquet")
