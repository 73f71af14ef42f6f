"""Every way in which a table of one's own can be wrong."""

import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from nkf.data.formats.table import KNOWN_TYPES, LANDMARKS, RESERVED, list_table
from nkf.data.listing import Entry
from nkf.data.sources import FolderSource
from nkf.errors import NkfError


def as_parquet(columns: dict[str, list[Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def list_all(folder: Path, data: bytes, name: str = "t.csv") -> list[Entry]:
    (folder / name).write_bytes(data)
    return list(list_table(FolderSource(folder)).entries)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", r"t\.csv: empty; expected a line with the names of the columns"),
        ("label", r"t\.csv: no column path; found label$"),
        ("9" * 20_000, r"t\.csv: no column path; found 9{200}\.\.\.$"),
        ("path;label", r"t\.csv: fields separated by semicolons; expected commas, or tabs in a file \*\.tsv$"),
        ("path;a,label", r"t\.csv: no column path; found path;a, label$"),
        ("path", r"t\.csv: no labels; expected a column label, or votes .*, or shares .*; found path$"),
        ("path,unknown,nf", r"t\.csv: no labels"),
        ("path,label,Path", r"t\.csv: two columns 'path'; expected each name once"),
        ("path,label,", r"t\.csv: column 3 has no name"),
        ("path,fear", r"t\.csv: votes for fear alone; expected columns for two classes or more$"),
        ("path,joy,happy", r"t\.csv: two columns for happiness, 'happy' is the second"),
        ("path,p_joy,p_happy", r"t\.csv: two columns for happiness, 'p_happy' is the second"),
        ("path,sad,happy,nf,not_a_face", r"t\.csv: two columns for not_a_face"),
        ("path,sad,happy,p_sad", r"t\.csv: both votes \(neutral, \.\.\.\) and shares"),
        ("path,label,x0,y0,x1", r"t\.csv: columns y1 missing; expected all 4 of x0 \.\.\. y1, or none$"),
        ("path,label,lm00_x", r"t\.csv: columns lm00_y, lm01_x, .*missing; expected all 136 of lm00_x \.\.\. lm67_y"),
        ("path,label,a/b", r"t\.csv: column 'a/b' is not fit for a file name; rename it"),
        ("path,label,..", r"t\.csv: column '\.\.' is not fit for a file name"),
        *((f"path,label,{name.upper()}", rf"column '{name}' is a name that packs use") for name in sorted(RESERVED)),
    ],
)
def test_broken_headers(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(NkfError, match=message):
        list_all(tmp_path, header.encode())


def test_names_of_packs_are_reserved() -> None:
    assert {"name", "votes", "pixels_md5", "shard", "image", "width", "member"} < RESERVED
    assert RESERVED.isdisjoint({"path", "label", "split", *KNOWN_TYPES})


LINE_3 = r"t\.csv, line 3: "


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "path,label",
            "b.jpg,hapy",
            "label 'hapy', expected one of neutral, .*contemptuous.*Perhaps you meant 'happy'",
        ),
        ("path,label", "b.jpg,calm", r"label 'calm', expected one of neutral, "),
        ("path,label", "b.jpg,3", "label '3': numbers mean different classes in different datasets .*expected names"),
        ("path,label", "b.jpg,3.0", "label '3.0': numbers mean"),
        ("path,label", "b.jpg", "1 fields, expected 2 as in the header$"),
        ("path,label", "b.jpg,sad,x", "3 fields, expected 2 as in the header$"),
        ("path,label", ",sad", "path '', expected a relative file name"),
        ("path,label", ".,sad", r"path '\.', expected a relative file name"),
        ("path,label", "../b.jpg,sad", r"path '\.\./b.jpg', expected a relative file name"),
        ("path,label", "x/../../b.jpg,sad", "path 'x/"),
        ("path,label", "/b.jpg,sad", "path '/b.jpg', expected"),
        ("path,label", "C:/b.jpg,sad", "path 'C:/b.jpg', expected"),
        ("path,label", "x\\b.jpg,sad", r"path 'x\\\\b.jpg', expected a relative file name with / between folders"),
        ("path,label", "\x1bb.jpg,sad", r"path '\\x1bb.jpg', expected"),
        ("label,path,split", "sad,b.jpg,", "split '', expected one of train, valid, val, validation, dev, test$"),
        ("label,path,split", "sad,b.jpg,tets", r"split 'tets', expected one of .*Perhaps you meant 'test'\?$"),
        ("path,fear,sad", "b.jpg,-1,0", "fear -1, expected a whole number from 0 to 255$"),
        ("path,fear,sad", "b.jpg,256,0", "fear 256, expected a whole number from 0 to 255$"),
        ("path,fear,sad", "b.jpg,0.5,0.5", "fear 0.5, expected a whole number .*; shares belong in columns p_neutral"),
        ("path,fear,sad", "b.jpg,3,two", "sad 'two', expected a whole number of votes$"),
        ("path,p_fear,p_sad", "b.jpg,.5,.4", "shares with the sum 0.9, expected 1$"),
        ("path,p_fear,p_sad", "b.jpg,.5,.52", "shares with the sum 1.02, expected 1$"),
        ("path,p_fear,p_sad", "b.jpg,1.5,-.5", "p_sad -0.5, expected a share from 0 to 1$"),
        ("path,p_fear,p_sad", "b.jpg,nan,1", "p_fear 'nan', expected a share$"),
        ("path,p_fear", "b.jpg,0", "shares with the sum 0, expected 1$"),
        ("path,label,x0,y0,x1,y1", "b.jpg,sad,0,0,0,9", "box 0, 0, 0, 9 is empty, expected x0 < x1 and y0 < y1$"),
        ("path,label,x0,y0,x1,y1", "b.jpg,sad,0,9,9,0", "box 0, 9, 9, 0 is empty"),
        ("path,label,x0,y0,x1,y1", "b.jpg,sad,0,0,inf,9", "x1 'inf', expected pixels$"),
        ("path,label,x0,y0,x1,y1", "b.jpg,sad,nan,0,9,9", "x0 'nan', expected pixels$"),
        ("path,label,x0,y0,x1,y1", "b.jpg,sad,0,0,1_0,9", "x1 '1_0', expected pixels$"),
        (
            "path,label,x0,y0,x1,y1",
            "b.jpg,sad,0,0,1e7,9",
            "x1 10,000,000, expected pixels from -1,000,000 to 1,000,000$",
        ),
        ("path,label,x0,y0,x1,y1", "b.jpg,sad,-1000001,0,1,9", "x0 -1,000,001, expected pixels from -1,000,000"),
        ("path,label,x0,y0,x1,y1", "b.jpg,sad,0,,9,9", "box with an empty y0, expected all 4 numbers or none$"),
        ("path,label,valence", "b.jpg,sad,much", "valence 'much', expected a number$"),
    ],
)
def test_broken_rows(tmp_path: Path, header: str, row: str, message: str) -> None:
    good = {"path": "a.jpg", "label": "sad", "split": "train", "fear": "1", "sad": "1", "p_fear": "1", "x0": "0",
            "y0": "0", "x1": "9", "y1": "9"}  # fmt: skip
    first = ",".join(good.get(name, "") for name in header.split(","))
    assert len(list_all(tmp_path, f"{header}\n{first}\n".encode())) == 1
    with pytest.raises(NkfError, match=LINE_3 + message):
        list_all(tmp_path, f"{header}\n{first}\n{row}\n".encode())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nan", "'nan', expected pixels"),
        ("", "empty lm33_y, expected all 136"),
        ("-2e6", "lm33_y -2,000,000, expected pixels from -1,000,000 to 1,000,000$"),
        ("1", "landmarks that are all one point, expected those of a face$"),
    ],
)
def test_broken_landmarks(tmp_path: Path, value: str, message: str) -> None:
    row = {"path": "a.jpg", "label": "sad", **dict.fromkeys(LANDMARKS, "1"), "lm33_y": value}
    with pytest.raises(NkfError, match=rf"line 2: .*{message}"):
        list_all(tmp_path, f"{','.join(row)}\n{','.join(row.values())}\n".encode())


def test_numbers_for_labels_in_parquet(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"t\.parquet, row 1: label '3': numbers mean different classes"):
        list_all(tmp_path, as_parquet({"path": ["a.jpg"], "label": [3]}), "t.parquet")


@pytest.mark.parametrize("value", [b"bytes", [1.0, 2.0], {"x": 1}])
def test_unknown_types_of_parquet(tmp_path: Path, value: object) -> None:
    with pytest.raises(NkfError, match=r"column 'blob' holds .*, expected text, numbers or lists of one length$"):
        list_all(tmp_path, as_parquet({"path": ["a.jpg"], "label": ["sad"], "blob": [value]}), "t.parquet")
