"""``nkf webcam``, with a file in the camera's place: a view that keeps up, whole files, one line for each mistake."""

import json
import os
import signal
import sys
import threading
import time

import pytest
from made_videos import FakePredictor, cut, grey_frames, make_video, two_faces
from rich.console import Console

from nkf import webcam
from nkf.errors import ImageError, NkfError
from nkf.video import VideoFrame
from nkf.video_predict import VideoPredictor
from nkf.webcam import FrameRate, NewestFrame, live_table


@pytest.fixture
def run(run_nkf, tmp_path, monkeypatch):
    """Return a function that runs nkf in an empty folder and returns exit code, output lines, error lines."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("nkf.webcam.Predictor", FakePredictor(two_faces))
    return run_nkf


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4", grey_frames(30))


class SlowPredictor(FakePredictor):
    def predict_batch(self, images_rgb, paths=None):
        time.sleep(0.15)
        return super().predict_batch(images_rgb, paths)


def test_webcam_drops_frames_rather_than_lag(run, clip, monkeypatch):
    predictor = SlowPredictor(two_faces)
    monkeypatch.setattr("nkf.webcam.Predictor", predictor)
    code, out, err = run("webcam", "--source", clip, "--jsonl", "-")
    assert (code, err) == (0, [])
    numbers = [json.loads(line)["frame"] for line in out]
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 20
    assert predictor.batches == [1] * len(numbers)
    assert numbers[-1] == 29  # the newest


def test_webcam_prints_lines_and_writes_its_log_whole(run, clip, tmp_path):
    code, out, err = run("webcam", "--source", clip, "--seconds", 0.4, "--jsonl", "new/log.jsonl")
    assert (code, err) == (0, [])
    assert out[0].startswith("0.00-")
    lines = [json.loads(line) for line in (tmp_path / "work/new/log.jsonl").read_text().splitlines()]
    assert lines[-1]["frame"] < 29
    assert [file.name for file in (tmp_path / "work").rglob("*.*")] == ["log.jsonl"]


def test_ctrl_c_ends_the_webcam_with_whole_files(run, clip, tmp_path, monkeypatch):
    pressed = []

    def press(number):
        if number >= 5:
            pressed.append(number)
            os.kill(os.getpid(), signal.SIGINT)
        return two_faces(number)

    monkeypatch.setattr("nkf.webcam.Predictor", FakePredictor(press))
    before = signal.getsignal(signal.SIGINT)
    code, _, err = run("webcam", "--source", clip, "--jsonl", "log.jsonl")
    assert (code, err) == (0, [])
    assert signal.getsignal(signal.SIGINT) is before
    lines = [json.loads(line) for line in (tmp_path / "work/log.jsonl").read_text().splitlines()]
    assert [lines[-1]["frame"]] == pressed


def test_a_source_that_breaks_is_told_after_its_frames(run, tmp_path):
    clip = cut(make_video(tmp_path / "clip.webm", grey_frames(10)))
    code, out, err = run("webcam", "--source", clip, "--jsonl", "-")
    assert (code, len(err)) == (1, 1)
    assert err[0].startswith(f"nkf: {clip}: cut off")
    assert [json.loads(line)["status"] for line in out][-2:] == ["ok", "error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--source", "/dev/no_camera"), "/dev/no_camera: no camera that can be read"),
        (("--source", "text.mp4"), "text.mp4: not a video that can be read"),
        (("--source", "CLIP", "--jsonl", "CLIP"), "clip.mp4: the input, would be overwritten"),
        (("--source", "CLIP", "--seconds", 0), "seconds 0: expected more than 0"),
        (("--source", "CLIP", "--window"), "--window"),
    ],
)
def test_webcam_mistakes(run, clip, tmp_path, monkeypatch, options, message):
    monkeypatch.delenv("DISPLAY", raising=False)
    (tmp_path / "work/text.mp4").write_text("hello")
    code, out, err = run("webcam", "--jsonl", "a.jsonl", *(clip if option == "CLIP" else option for option in options))
    assert (code, out, len(err)) == (2, [], 1)
    assert message in err[0]
    assert [file.name for file in (tmp_path / "work").iterdir()] == ["text.mp4"]


def test_webcam_in_a_terminal(run, clip, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    code, out, err = run("webcam", "--source", clip)
    assert (code, err) == (0, [])
    text = "\n".join(out)
    assert "#1 anger" in text
    assert "dropped" in text


def numbered(count):
    return iter([VideoFrame(k, k / 25, image) for k, image in enumerate(grey_frames(count))])


def test_the_newest_frame_is_taken_and_the_others_are_counted():
    go_on = threading.Event()

    def frames():
        for frame in numbered(10):
            yield frame
            if frame.number == 6:
                go_on.wait(10)

    reader = NewestFrame(frames())
    while reader.dropped < 6:
        time.sleep(0.001)
    assert reader.take(10).number == 6
    assert reader.take(0) is None
    go_on.set()
    while not reader.ended:
        time.sleep(0.001)
    assert reader.take(10).number == 9
    assert (reader.dropped, reader.take(10), reader.problem) == (8, None, None)


def test_a_reader_that_fails_says_so():
    def frames():
        yield from numbered(1)
        raise ImageError("a.mp4: cut off")

    reader = NewestFrame(frames())
    while not reader.ended:
        time.sleep(0.001)
    assert reader.take(10).number == 0
    assert str(reader.problem) == "a.mp4: cut off"


def test_a_reader_that_waits_for_its_time_can_be_closed():
    frames = iter([VideoFrame(0, 0.0, grey_frames(1)[0]), VideoFrame(1, 1e6, grey_frames(1)[0])])
    reader = NewestFrame(frames, in_real_time=True)
    assert reader.take(10).number == 0
    reader.close()
    assert reader.ended


def test_an_error_of_our_own_in_the_reader_is_not_hidden(run, clip, monkeypatch):
    def broken(self, selection=None):
        yield from numbered(1)
        raise ZeroDivisionError

    monkeypatch.setattr("nkf.webcam.Video.frames", broken)
    with pytest.raises(ZeroDivisionError):
        run("webcam", "--source", clip)


def test_frame_rate():
    rate = FrameRate()
    assert rate.tick(10.0) == 0
    assert [round(rate.tick(10.0 + k / 20), 6) for k in range(1, 100)] == [20] * 99
    assert rate.tick(30.0) == pytest.approx(1 / 15.05)


def test_the_live_table_shows_bars_for_each_track():
    faces = VideoPredictor(FakePredictor(two_faces)).predict(numbered(1), "a.mp4")
    ((_, prediction),) = faces
    console = Console(width=100)
    with console.capture() as capture:
        console.print(live_table(FakePredictor.classes, prediction, 12.34, 5))
    text = capture.get()
    assert "12.3 frames/s" in text
    assert "5 dropped" in text
    assert [name in text for name in ("#0 neutral", "#1 anger")] == [True, True]
    rows = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert rows["neutral"].split()[2::2] == ["80%", "20%"]


def test_a_camera_that_is_missing_is_an_error_of_the_command():
    with pytest.raises(NkfError, match="no camera that can be read"):
        webcam._open("/dev/no_camera", None)
