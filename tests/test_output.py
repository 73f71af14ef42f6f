"""JSON and CSV files, and annotated pictures."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from nkf.annotate import MIN_ANNOTATED_SIDE, annotate
from nkf.errors import NkfError
from nkf.output import CSV_COLUMNS, CsvWriter, JsonWriter, write_csv, write_json
from nkf.predict import FacePrediction, Prediction

CLASSES = ("neutral", "happiness")
ACCENT, DARK = (255, 193, 37), (18, 20, 26)


def make_face(box=(10, 20, 60, 90), classes=CLASSES):
    x0, y0, x1, y1 = box
    landmarks = np.column_stack([np.linspace(x0, x1, 68), np.linspace(y0, y1, 68)])
    probabilities = dict.fromkeys(classes, 0.25 / (len(classes) - 1)) | {"happiness": 0.75}
    return FacePrediction(np.array(box, float), 0.91234567, landmarks, np.ones(68), "happiness", probabilities)


def make_prediction(*boxes, size=(100, 120), classes=CLASSES):
    faces = tuple(make_face(box, classes) for box in boxes)
    return Prediction("a,b.jpg", size[1], size[0], "ok" if faces else "no_face", faces=faces)


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


@pytest.mark.parametrize("make_writer", [JsonWriter, lambda file: CsvWriter(file, CLASSES)])
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


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.json").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json([], tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "[]\n"


def test_a_device_is_written_and_not_replaced():
    write_json(PREDICTIONS, Path(os.devnull))
    assert Path(os.devnull).is_char_device()


def colours(picture):
    return {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_annotate_is_readable_on_any_background(grey):
    image = np.full((600, 800, 3), grey, np.uint8)
    picture = annotate(image, make_prediction((300, 200, 420, 350)))
    assert picture.size == (800, 600)
    assert {ACCENT, DARK} <= colours(picture.crop((290, 160, 600, 220)))  # dark text on a bright plate


def test_annotate_leaves_the_rest_of_the_picture_alone():
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    picture = np.asarray(annotate(image, make_prediction((300, 200, 420, 350))))
    changed = np.argwhere((picture != image).any(axis=2))
    assert (changed.min(axis=0) > (150, 280)).all()
    assert (changed.max(axis=0) < (420, 720)).all()


@pytest.mark.parametrize("size", [(48, 48), (100, 30), (1, 1), (1, 400)])
def test_annotate_enlarges_small_images(size):
    boxes = [(0, 0, size[1], size[0])]
    picture = annotate(np.zeros((*size, 3), np.uint8), make_prediction(*boxes, size=size))
    assert max(picture.size) == MIN_ANNOTATED_SIDE


def test_annotate_large_image_keeps_its_size():
    image = np.zeros((2100, 2000, 3), np.uint8)
    assert annotate(image, make_prediction((900, 900, 1300, 1400))).size == (2000, 2100)


def test_annotate_draws_charts_for_few_faces_that_hide_no_other():
    image = np.full((400, 900, 3), 255, np.uint8)
    pair = [(100, 100, 180, 200), (300, 100, 380, 200)]
    picture = np.asarray(annotate(image, make_prediction(*pair)))
    for x0, y0, x1, y1 in pair:
        inside = picture[y0 + 10 : y1 - 10, x0 + 10 : x1 - 10]
        assert (inside == 255).all(axis=2).mean() > 0.5  # only the landmarks are on the face


def test_annotate_says_when_there_is_no_face():
    picture = annotate(np.zeros((300, 600, 3), np.uint8), make_prediction())
    assert ACCENT in colours(picture.crop((0, 0, 100, 40)))
