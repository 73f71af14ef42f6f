"""Tables of a video, and the video with overlay: its times, its size, and that nothing half-written is left."""

import csv
import io
import json
import math
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet
import pytest
from made_videos import CLASSES, HEIGHT, WIDTH, FakePredictor, grey_frames, two_faces

from nkf.errors import NkfError
from nkf.video import Video, VideoFrame
from nkf.video_output import (
    TRACK_COLOURS,
    FrameCsvWriter,
    FrameJsonWriter,
    FrameParquetWriter,
    OverlayWriter,
    draw_tracks,
    frame_columns,
)
from nkf.video_predict import FramePrediction, VideoPredictor

COLUMNS = (
    *("path", "frame", "time_s", "track", "status", "face", "x0", "y0", "x1", "y1", "detection_score"),
    *("expression", "confidence", *CLASSES, "smooth_expression", *(f"smooth_{name}" for name in CLASSES)),
)
ERROR = FramePrediction("a.mp4", None, None, "error", "a.mp4: cut off")


def predictions(times_s, faces=two_faces):
    images = grey_frames(len(times_s))
    frames = [VideoFrame(k, time_s, images[k]) for k, time_s in enumerate(times_s)]
    return list(VideoPredictor(FakePredictor(faces)).predict(frames, "a.mp4"))


def some_or_no_faces(number):
    return [] if number == 1 else two_faces(number)


@pytest.fixture
def documents():
    found = predictions([0.0, 0.04, 0.5], some_or_no_faces)
    return [prediction.to_dict() for _, prediction in found] + [ERROR.to_dict()]


def write(writer, documents):
    with writer:
        for document in documents:
            writer.write(document)


def test_csv(documents):
    stream = io.StringIO()
    write(FrameCsvWriter(stream, CLASSES), documents)
    assert stream.getvalue().splitlines()[0] == ",".join(COLUMNS) == ",".join(frame_columns(CLASSES))
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert [(row["frame"], row["time_s"], row["track"], row["status"], row["face"]) for row in rows] == [
        ("0", "0.0", "0", "ok", "0"),
        ("0", "0.0", "1", "ok", "1"),
        ("1", "0.04", "", "no_face", ""),
        ("2", "0.5", "0", "ok", "0"),
        ("2", "0.5", "1", "ok", "1"),
        ("", "", "", "error", ""),
    ]
    first = rows[0]
    assert [first[name] for name in ("path", "x0", "y1", "expression", "confidence", "anger")] == [
        *("a.mp4", "5.0", "50.0", "neutral", "0.8", "0.1"),
    ]
    assert (first["smooth_expression"], float(first["smooth_neutral"])) == ("neutral", 0.8)
    assert set(rows[2].values()) == {"a.mp4", "1", "0.04", "no_face", ""}


def test_parquet_has_the_rows_of_the_csv_in_typed_columns(tmp_path, documents):
    stream = io.StringIO()
    write(FrameCsvWriter(stream, CLASSES), documents)
    write(FrameParquetWriter(tmp_path / "a.parquet", CLASSES), documents)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert tuple(table.column_names) == (*COLUMNS, "message", "problems")
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["frame"], types["time_s"], types["track"], types["status"]) == ("int64", "double", "int32", "string")
    assert {types[name] for name in ("x0", "neutral", "smooth_anger", "confidence")} == {"float"}
    for typed, text in zip(table.to_pylist(), csv.DictReader(io.StringIO(stream.getvalue())), strict=True):
        assert typed.pop("message") == ("a.mp4: cut off" if typed["status"] == "error" else None)
        assert typed.pop("problems") == (None if typed["face"] is None else [])
        for name, value in typed.items():
            if isinstance(value, float):
                assert value == pytest.approx(float(text[name]), rel=1e-6)
            else:
                assert ("" if value is None else str(value)) == text[name]


@pytest.mark.parametrize(("count", "error"), [(0, False), (0, True), (3, False), (3, True)])
def test_json(tmp_path, documents, count, error):
    given = documents[:count] + documents[3:] * error
    file = tmp_path / "new" / "a.json"
    write(FrameJsonWriter(file, None, {"classes": list(CLASSES)}), given)
    found = json.loads(file.read_text())
    assert (found["schema"], found["video"], found["classes"]) == (1, None, list(CLASSES))
    assert found["frames"] == documents[:count]
    assert (found["status"], found.get("message")) == (("error", "a.mp4: cut off") if error else ("ok", None))
    assert len(file.read_text().splitlines()) == (1 if not count else count + 2)


def read_times(file):
    with Video(file) as video:
        return [frame.time_s for frame in video.frames()]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v"])
def test_the_overlay_keeps_a_variable_frame_rate(tmp_path, suffix):
    times = [0.0, 1 / 30, 0.08, 0.0801, 0.5, 1.7, 1.72]
    file = tmp_path / f"a{suffix}"
    with OverlayWriter(file) as overlay:
        for frame, prediction in predictions(times):
            overlay.write(frame.image_rgb, prediction)
    assert read_times(file) == pytest.approx(times, abs=0.5 / 90_000 + 1e-9)
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert len(container.streams) == 1
        assert stream.duration * stream.time_base > times[-1]  # the last frame is shown too


def test_the_overlay_of_a_part_begins_at_0(tmp_path):
    with OverlayWriter(tmp_path / "a.mp4", start_s=5.0) as overlay:
        for frame, prediction in predictions([5.02, 5.06, 5.1]):
            overlay.write(frame.image_rgb, prediction)
    assert read_times(tmp_path / "a.mp4") == pytest.approx([0.02, 0.06, 0.1], abs=1e-4)


def test_times_that_go_back_are_no_reason_to_fail(tmp_path):
    with OverlayWriter(tmp_path / "a.mp4") as overlay:
        for frame, prediction in predictions([1.0, 1.0, 0.5, 2.0]):
            overlay.write(frame.image_rgb, prediction)
    times = read_times(tmp_path / "a.mp4")
    assert times == sorted(set(times))
    assert (times[0], times[-1]) == (1.0, 2.0)


@pytest.mark.parametrize(("shape", "size"), [((33, 47), (34, 48)), ((1, 1), (2, 2)), ((32, 48), (32, 48))])
def test_odd_sizes_grow_by_a_pixel(tmp_path, shape, size):
    with OverlayWriter(tmp_path / "a.mp4") as overlay:
        overlay.write(np.full((*shape, 3), 200, np.uint8), FramePrediction("a", 0, 0.0, "no_face"))
        overlay.write(np.full((64, 96, 3), 200, np.uint8), FramePrediction("a", 1, 0.1, "no_face"))  # is scaled
    with Video(tmp_path / "a.mp4") as video:
        frames = list(video.frames())
    assert [frame.image_rgb.shape for frame in frames] == [(*size, 3)] * 2
    assert abs(frames[0].image_rgb.astype(int) - 200).max() <= 3  # no black rim


def test_an_overlay_that_fails_leaves_nothing(tmp_path):
    def fail():
        with OverlayWriter(tmp_path / "a.mp4") as overlay:
            for frame, prediction in predictions([0.0, 0.1]):
                overlay.write(frame.image_rgb, prediction)
            raise OSError("full")

    (tmp_path / "a.mp4").write_text("of an earlier run")
    with pytest.raises(OSError, match="full"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "of an earlier run"


@pytest.mark.parametrize("name", ["a.avi", "a", "a.png"])
def test_the_ending_of_an_overlay_is_checked(tmp_path, name):
    with pytest.raises(NkfError, match=r"expected a name that ends in \.mp4, \.m4v, \.mov$"):
        OverlayWriter(tmp_path / name)


def test_each_track_is_drawn_in_its_colour():
    frame, prediction = predictions([0.0])[0]
    large = np.repeat(np.repeat(np.zeros_like(frame.image_rgb), 4, axis=0), 4, axis=1)
    picture = np.asarray(draw_tracks(large, prediction.faces))
    assert picture.shape == (HEIGHT * 4, WIDTH * 4, 3)
    for colour in TRACK_COLOURS[:2]:
        assert (picture == colour).all(axis=2).sum() > 200  # a plate with text at least
    assert not (picture == TRACK_COLOURS[2]).all(axis=2).any()
    assert np.array_equal(np.asarray(draw_tracks(large, ())), large)


def test_faces_at_the_rim_are_drawn():
    _, prediction = predictions([0.0], lambda number: [(-20.0, (1.0, 0.0, 0.0)), (90.0, (1.0, 0.0, 0.0))])[0]
    assert draw_tracks(np.zeros((HEIGHT, WIDTH, 3), np.uint8), prediction.faces).size == (WIDTH, HEIGHT)


def test_times_of_a_video_are_not_rounded_away():
    """A microsecond is less than a tick of any usual clock."""
    for clock in (90_000, 48_000, 30_000, 25):
        ticks = [Fraction(k, clock) for k in (0, 1, 2, 10**7, 10**7 + 1)]
        assert len({round(float(tick), 6) for tick in ticks}) == len(ticks)
        assert math.isclose(round(float(ticks[1]), 6), 1 / clock, abs_tol=1e-6)
