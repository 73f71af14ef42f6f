"""The timeline: what is kept of a long video, and what stands in the picture and the page."""

import json
import os
import re

import numpy as np
import pytest
from made_videos import CLASSES, FakePredictor, grey_frames, two_faces
from PIL import Image

from nkf.predict import FacePrediction
from nkf.timeline import MAX_POINTS, MAX_TRACKS, Timeline, class_colours, draw_timeline
from nkf.timeline_html import write_timeline_html
from nkf.video import VideoFrame
from nkf.video_predict import FramePrediction, TrackedFace, VideoPredictor


@pytest.fixture(scope="module")
def timeline():
    """Of 20 frames with two faces."""
    frames = [VideoFrame(k, k / 25, image) for k, image in enumerate(grey_frames(20))]
    result = Timeline("clips/</script>.mp4", CLASSES)
    for _, prediction in VideoPredictor(FakePredictor(two_faces)).predict(frames, result.path):
        result.add(prediction)
    return result


def face(track, values=(0.5, 0.3, 0.2)):
    by_class = dict(zip(CLASSES, values, strict=True))
    found = FacePrediction(np.zeros(4), 0.9, np.zeros((68, 2)), np.zeros(68), CLASSES[0], by_class)
    return TrackedFace(track, found, by_class)


def add(timeline, time_s, *tracks):
    timeline.add(FramePrediction("a", 0, time_s, "ok", faces=tuple(face(track) for track in tracks)))


def test_what_is_kept(timeline):
    first, second = timeline.lines()
    assert (first.track, first.frames, first.first_s, first.last_s) == (0, 20, 0.0, 0.76)
    assert (second.track, second.frames, len(second.times_s)) == (1, 17, 17)
    assert second.times_s == [k / 25 for k in range(20) if not 5 <= k <= 7]
    assert second.trusted == [k != 3 for k in range(17)]
    np.testing.assert_allclose(second.raw[3], [0.1, 0.8, 0.1])
    assert second.smooth[3][2] > 0.6
    assert timeline.left_out() == ""


def test_a_long_track_is_thinned_evenly_and_keeps_its_ends():
    timeline = Timeline("a", CLASSES)
    for k in range(20_000):
        add(timeline, k / 30, 0)
    (line,) = timeline.lines()
    assert MAX_POINTS / 2 <= len(line.times_s) <= MAX_POINTS
    assert len(line.times_s) == len(line.raw) == len(line.smooth) == len(line.trusted)
    assert len(set(np.round(np.diff(line.times_s), 6))) == 1
    assert (line.frames, line.first_s, line.last_s) == (20_000, 0, pytest.approx(19_999 / 30))


def test_of_many_tracks_the_longest_are_kept():
    timeline = Timeline("a", CLASSES)
    for k in range(3000):
        add(timeline, k / 10, *([0, 10 + k] if k % 2 else [0]), *([1] if k > 2900 else []))
    assert timeline.tracks == 1502
    assert len(timeline._lines) < 300
    lines = timeline.lines()
    assert len(lines) == MAX_TRACKS
    assert {0, 1} <= {line.track for line in lines}
    assert timeline.left_out() == f"{1502 - MAX_TRACKS:,} shorter tracks are not shown"


def test_colours_belong_to_classes():
    known = class_colours(("anger", "neutral"))
    assert known == class_colours(("neutral", "anger"))[::-1]
    many = class_colours([f"class{k}" for k in range(9)])
    assert len(many) == 9
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in many)


@pytest.mark.parametrize("empty", [False, True])
def test_png(tmp_path, timeline, empty):
    draw_timeline(Timeline("a", CLASSES) if empty else timeline, tmp_path / "a.partial")
    with Image.open(tmp_path / "a.partial") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in class_colours(CLASSES):
        rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        assert (pixels == rgb).all(axis=1).sum() > 50  # in the legend at least


def test_html_needs_nothing_from_outside_and_holds_the_numbers(tmp_path, timeline):
    write_timeline_html(timeline, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=|@import|url\(|fetch|XMLHttp|import\(", text)
    assert "</script>.mp4" not in text  # the name of the file is data, not markup
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    assert data["classes"] == list(CLASSES)
    assert [track["track"] for track in data["tracks"]] == [0, 1]
    assert data["tracks"][1]["times"] == [round(k / 25, 4) for k in range(20) if not 5 <= k <= 7]
    assert data["tracks"][1]["raw"][3] == [0.1, 0.8, 0.1]
    assert data["tracks"][1]["trusted"][3] == 0
    assert (data["start"], data["end"]) == (0, 0.76)
    assert text.count("<canvas>") == 2
    for name in CLASSES:
        assert f">{name}</button>" in text


def test_a_name_that_is_no_unicode_is_drawn(tmp_path):
    odd = Timeline(os.fsdecode(b"caf\xe9.mp4"), CLASSES)
    write_timeline_html(odd, tmp_path / "a.html")
    draw_timeline(odd, tmp_path / "a.png")
    assert "caf\N{REPLACEMENT CHARACTER}.mp4" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_html_without_faces(tmp_path):
    write_timeline_html(Timeline("a.mp4", CLASSES), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "No faces were found." in text
    assert "<canvas>" not in text
