"""``nkf video`` and ``nkf webcam``: outputs, exit codes, one line for each mistake, and a view that keeps up."""

import csv
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from made_videos import FakePredictor, grey_frames, make_video, two_faces
from PIL import Image
from rich.console import Console

from nkf import cli, webcam
from nkf.errors import ImageError, NkfError
from nkf.video import Video, VideoFrame
from nkf.video_output import FrameParquetWriter
from nkf.video_predict import VideoPredictor
from nkf.webcam import FrameRate, NewestFrame, live_table


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Return a function that runs nkf in an empty folder and returns exit code, output lines, error lines."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("nkf.video_run.Predictor", FakePredictor(two_faces))
    monkeypatch.setattr("nkf.webcam.Predictor", FakePredictor(two_faces))

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4", grey_frames(30))


def cut(file, share=0.7):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    return file


def test_lines(run, clip):
    assert run("video", clip) == (
        0,
        [
            "0.00-0.68 s track 0: neutral 74%",
            "0.68-1.16 s track 0: happiness 63%",
            "0.00-1.16 s track 1: anger 70%",
        ],
        [],
    )


def test_lines_without_faces(run, clip, monkeypatch):
    monkeypatch.setattr("nkf.video_run.Predictor", FakePredictor(lambda number: []))
    assert run("video", clip, "--stride", 10) == (0, ["no face in 3 frames"], [])


def test_a_line_says_where_most_frames_are_uncertain(run, clip, monkeypatch):
    blurred = FakePredictor(lambda number: [(5.0, (0.1, 0.2, 0.7), ("blurred",))])
    monkeypatch.setattr("nkf.video_run.Predictor", blurred)
    assert run("video", clip)[1] == ["0.00-1.16 s track 0: anger 70%, uncertain"]


def test_a_face_that_left_is_told_before_the_end(run, clip, monkeypatch):
    faces = FakePredictor(lambda number: [(5.0, (0.1, 0.2, 0.7))] if number < 3 else [(50.0, (0.7, 0.2, 0.1))])
    monkeypatch.setattr("nkf.video_run.Predictor", faces)
    lines = run("video", clip)[1]
    assert lines == ["0.00-0.08 s track 0: anger 70%", "0.12-1.16 s track 1: neutral 70%"]


def test_every_output(run, clip, tmp_path):
    names = {"json": "a.json", "jsonl": "a.jsonl", "csv": "a.csv", "parquet": "a.parquet", "annotate": "o/a.mp4"}
    options = [part for name, file in names.items() for part in (f"--{name}", file)]
    assert run("video", clip, *options, "--timeline", "new/a.png") == (0, [], [])
    assert run("video", clip, "--timeline", "a.html") == (0, [], [])
    work = tmp_path / "work"
    assert sorted(str(file.relative_to(work)) for file in work.rglob("*.*")) == sorted(
        [*names.values(), "new/a.png", "a.html"]
    )
    document = json.loads((work / "a.json").read_text())
    assert (document["schema"], document["status"], document["classes"]) == (1, "ok", list(FakePredictor.classes))
    assert (document["model"], document["stride"], document["smooth_seconds"]) == ("fake", 1, 0.5)
    assert (document["video"]["width"], document["video"]["fps"], document["video"]["path"]) == (96, 25.0, str(clip))
    assert [frame["frame"] for frame in document["frames"]] == list(range(30))
    lines = [json.loads(line) for line in (work / "a.jsonl").read_text().splitlines()]
    assert lines == document["frames"]
    with (work / "a.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == pyarrow.parquet.read_table(work / "a.parquet").num_rows == 57
    assert {row["track"] for row in rows} == {"0", "1"}
    with Video(work / "o/a.mp4") as video:
        assert [frame.time_s for frame in video.frames()] == pytest.approx([k / 25 for k in range(30)], abs=1e-4)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_standard_output(run, clip, kind, tmp_path):
    code, out, err = run("video", clip, "--stride", 10, f"--{kind}", "-")
    assert (code, err) == (0, [])
    assert run("video", clip, "--stride", 10, f"--{kind}", "file")[:2] == (0, [])
    assert (tmp_path / "work" / "file").read_text().splitlines() == out


def test_a_part_of_a_video(run, clip):
    options = ("--start", 0.4, "--end", 0.8, "--stride", 3, "--smooth-seconds", 0)
    _, out, _ = run("video", clip, *options, "--csv", "-", "--annotate", "a.mp4")
    rows = list(csv.DictReader(out))
    assert [row["frame"] for row in rows if row["track"] == "0"] == ["10", "13", "16", "19"]
    assert all(float(row["smooth_neutral"]) == float(row["neutral"]) for row in rows)
    with Video("a.mp4") as video:
        assert [round(frame.time_s, 3) for frame in video.frames()] == [0, 0.12, 0.24, 0.36]


def test_a_file_that_is_cut_off(run, tmp_path):
    clip = cut(make_video(tmp_path / "clip.webm", grey_frames(40)))
    code, out, err = run("video", clip, "--json", "a.json", "--csv", "-", "--timeline", "a.png", "--annotate", "a.mp4")
    (line,) = err
    assert code == 1
    assert line.startswith(f"nkf: {clip}: cut off after frame ")
    rows = list(csv.DictReader(out))
    assert (rows[-1]["path"], rows[-1]["status"], rows[-1]["frame"]) == (str(clip), "error", "")
    assert {row["status"] for row in rows[:-1]} == {"ok", "low_quality"}
    document = json.loads((tmp_path / "work/a.json").read_text())
    assert (document["status"], f"nkf: {document['message']}") == ("error", line)
    assert len(document["frames"]) > 10
    with Video("a.mp4") as video:
        assert len(list(video.frames())) == len(document["frames"])


def test_a_file_that_is_no_video(run, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("hello")
    code, out, err = run("video", text, "--jsonl", "-", "--json", "a.json", "--timeline", "a.png")
    assert (code, len(err)) == (1, 1)
    assert err[0].startswith(f"nkf: {text}: not a video that can be read")
    assert [json.loads(line)["status"] for line in out] == ["error"]
    assert json.loads((tmp_path / "work/a.json").read_text())["video"] is None
    assert not (tmp_path / "work/a.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("missing.mp4",), r"missing.mp4: no such file"),
        ((".",), r".: a folder, expected a video file"),
        (("CLIP", "--stride", 0), "stride is 0; expected 1"),
        (("CLIP", "--start", 2, "--end", 1), "expected an end after the start"),
        (("CLIP", "--smooth-seconds", -1), "smooth_seconds -1.0: expected 0 or more"),
        (("CLIP", "--annotate", "a.avi"), "a.avi: expected a name that ends in .mp4"),
        (("CLIP", "--timeline", "a.pdf"), "a.pdf: expected a name that ends in .htm or .html or .png"),
        (("CLIP", "--parquet", "-"), "--parquet -: expected a file"),
        (("CLIP", "--csv", "a", "--json", "./a"), "a: two outputs cannot go to the same place"),
        (("CLIP", "--annotate", "CLIP"), "clip.mp4: the input, would be overwritten"),
        (("CLIP", "--json", "."), ".: a folder, expected a file to write"),
        ((), "nkf video --help"),
    ],
)
def test_mistakes(run, clip, tmp_path, options, message):
    before = clip.read_bytes()
    code, out, err = run("video", *(clip if option == "CLIP" else option for option in options))
    assert (code, out, len(err)) == (2, [], 1)
    assert message in err[0]
    assert clip.read_bytes() == before
    assert list((tmp_path / "work").iterdir()) == []


def test_a_run_that_is_stopped_leaves_nothing(run, clip, tmp_path, monkeypatch):
    def stopped(number):
        if number == 20:
            raise KeyboardInterrupt
        return two_faces(number)

    monkeypatch.setattr("nkf.video_run.Predictor", FakePredictor(stopped))
    files = [part for name in ("json", "jsonl", "csv", "parquet") for part in (f"--{name}", f"a.{name}")]
    assert run("video", clip, *files, "--annotate", "a.mp4", "--timeline", "a.png")[0] == 130
    assert list((tmp_path / "work").iterdir()) == []


def test_real_networks(clip, portrait_path, tmp_path, monkeypatch, fake_package, capsys):
    """The one test with a real `Predictor`: its networks are fakes that find happiness everywhere."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["video", str(clip), "--detector", "none", "--stride", "5"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("0.00-1.00 s track 0: happiness")


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


DOCUMENT = (Path(__file__).parents[1] / "docs" / "video.md").read_text()


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, portrait_path, fake_package, capsys):
    monkeypatch.chdir(tmp_path)
    with Image.open(portrait_path) as image:
        portrait = np.asarray(image.convert("RGB").resize((160, 160)))
    make_video(tmp_path / "clip.mp4", [portrait] * 6)
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(compile(example, "video.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0] == "160 160 25.0"


def test_the_columns_of_the_page_are_those_of_the_table(tmp_path):
    table = DOCUMENT.partition("| column | type in Parquet | |")[2].partition("\n- ")[0]
    documented = {}
    for line in table.splitlines():
        if line.startswith("| ") and "---" not in line:
            names, kind = [cell.strip() for cell in line.split("|")[1:3]]
            each = {"one for each class": "", "`smooth_` and each class": "smooth_"}.get(names)
            listed = re.findall(r"`(\w+)`", names) if each is None else [each + name for name in FakePredictor.classes]
            documented |= dict.fromkeys(listed, kind)
    with FrameParquetWriter(tmp_path / "a.parquet", FakePredictor.classes):
        pass
    schema = pyarrow.parquet.read_schema(tmp_path / "a.parquet")
    assert documented == {field.name: str(field.type) for field in schema}
    assert list(documented) == schema.names
