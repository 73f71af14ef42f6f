"""Predictions as JSON, JSON lines, CSV and Parquet files."""

import csv
import io
import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest
from made_predictions import CLASSES, make_prediction

from nkf.errors import NkfError
from nkf.output import (
    CSV_COLUMNS,
    CsvWriter,
    JsonLinesWriter,
    JsonWriter,
    ParquetWriter,
    check_files,
    check_place,
    write_csv,
    write_json,
    write_json_lines,
    write_parquet,
)
from nkf.predict import Prediction

PREDICTIONS = [
    make_prediction((10, 20, 60, 90.126), (0, 1, 2, 3)),
    make_prediction(),
    Prediction("c.jpg", None, None, "error", "c.jpg: empty file"),
]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_is_a_list_of_the_predictions(tmp_path, count):
    write_json(PREDICTIONS[:count], tmp_path / "a.json")
    expected = [prediction.to_dict() for prediction in PREDICTIONS[:count]]
    assert json.loads((tmp_path / "a.json").read_text()) == expected
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_csv_has_a_row_for_each_face_and_each_image_without_faces(tmp_path):
    write_csv(PREDICTIONS, tmp_path / "a.csv", CLASSES)
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == CSV_COLUMNS + CLASSES
    assert list(rows[0].values()) == [
        *("a,b.jpg", "ok", "0", "10.0", "20.0", "60.0", "90.13", "0.9123", "happiness", "0.75", "0.25", "0.75")
    ]
    assert [(row["status"], row["face"]) for row in rows] == [("ok", "0"), ("ok", "1"), ("no_face", ""), ("error", "")]
    assert set(list(rows[2].values())[2:]) == {""}


def test_json_lines_are_read_one_by_one(tmp_path):
    write_json_lines(PREDICTIONS, tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [prediction.to_dict() for prediction in PREDICTIONS]


def test_parquet_has_the_rows_of_the_csv_and_more(tmp_path, monkeypatch):
    monkeypatch.setattr(ParquetWriter, "ROWS", 3)  # in a group, of four
    name = os.fsdecode(b"\xff.jpg")
    odd = Prediction(name, None, None, "error", f"{name}: empty file")
    write_parquet([*PREDICTIONS, odd], tmp_path / os.fsdecode(b"\xff.parquet"), CLASSES)
    (tmp_path / os.fsdecode(b"\xff.parquet")).rename(tmp_path / "a.parquet")
    file = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == 2
    rows = file.read().to_pylist()
    assert [(row["path"], row["status"], row["face"]) for row in rows] == [
        *[("a,b.jpg", "ok", 0), ("a,b.jpg", "ok", 1), ("a,b.jpg", "no_face", None)],
        *[("c.jpg", "error", None), ("\N{REPLACEMENT CHARACTER}.jpg", "error", None)],
    ]
    assert set(CSV_COLUMNS + CLASSES) <= set(rows[0])
    assert (rows[0]["y1"], rows[0]["width"], rows[0]["message"]) == (pytest.approx(90.13), 120, None)
    face = PREDICTIONS[0].to_dict()["faces"][0]
    assert rows[0]["landmarks_px"] == pytest.approx([value for point in face["landmarks_px"] for value in point])
    assert (rows[2]["landmarks_px"], rows[3]["message"]) == (None, "c.jpg: empty file")
    assert rows[4]["message"] == "\N{REPLACEMENT CHARACTER}.jpg: empty file"


@pytest.mark.parametrize(
    "make_writer",
    [
        JsonWriter,
        JsonLinesWriter,
        lambda file: CsvWriter(file, CLASSES),
        lambda file: ParquetWriter(file, CLASSES),
    ],
)
def test_a_run_that_dies_leaves_what_was_there(tmp_path, make_writer):
    (tmp_path / "out").write_text("old")

    def fail():
        with make_writer(tmp_path / "out") as writer:
            writer.write(PREDICTIONS[0].to_dict())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "out").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_streams_are_written_and_stay_open():
    stream = io.StringIO()
    write_json(PREDICTIONS, stream)
    assert len(json.loads(stream.getvalue())) == 3
    write_csv([], stream, CLASSES)
    assert stream.getvalue().endswith(",".join(CSV_COLUMNS + CLASSES) + "\n")


def test_missing_folders_are_made(tmp_path):
    write_json([], tmp_path / "new" / "folder" / "a.json")
    assert (tmp_path / "new" / "folder" / "a.json").read_text() == "[]\n"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NkfError, match=r"file/a\.json: cannot be written \(.+\)"):
        write_json([], tmp_path / "file" / "a.json")


@pytest.mark.parametrize("check", [check_place, lambda file: write_parquet([], file, CLASSES)])
def test_a_place_is_checked_before_the_work(tmp_path, check):
    (tmp_path / "file").touch()
    with pytest.raises(NkfError, match=r"file/a: cannot be written \(.+\)"):
        check(tmp_path / "file" / "a")
    check(tmp_path / "new" / "a")
    assert (tmp_path / "new").is_dir()


def test_a_link_that_leads_in_a_circle_is_replaced(tmp_path):
    (tmp_path / "a.json").symlink_to("a.json")
    check_files({"json": tmp_path / "a.json"})
    check_place(tmp_path / "a.json")
    write_json([], tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "[]\n"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.json").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json([], tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "[]\n"


def test_a_device_is_written_and_not_replaced():
    write_json(PREDICTIONS, Path(os.devnull))
    assert Path(os.devnull).is_char_device()
