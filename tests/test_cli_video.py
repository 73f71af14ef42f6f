"""``nkf video``: outputs, exit codes, one line for each mistake; and what its page of documentation says."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from made_videos import FakePredictor, cut, grey_frames, make_video, two_faces
from PIL import Image

from nkf import cli
from nkf.video import Video
from nkf.video_output import FrameParquetWriter


@pytest.fixture
def run(run_nkf, tmp_path, monkeypatch):
    """Return a function that runs nkf in an empty folder and returns exit code, output lines, error lines."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("nkf.video_run.Predictor", FakePredictor(two_faces))
    return run_nkf


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4", grey_frames(30))


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


def test_a_start_after_the_end(run, clip, tmp_path):
    code, out, err = run("video", clip, "--start", 60, "--jsonl", "-")
    assert (code, err) == (1, [f"nkf: {clip}: no frame from 60 s on; it is 1.20 s long"])
    assert [json.loads(line)["status"] for line in out] == ["error"]
    code, out, err = run("video", clip, "--start", 60, "--timeline", "a.png", "--annotate", "a.mp4")
    assert (code, out, len(err)) == (1, [], 1)
    assert list((tmp_path / "work").iterdir()) == []


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
        (("CLIP", "--csv", "a.parquet"), "--csv a.parquet: the ending of what --parquet writes"),
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
    assert documented == {field.name: _in_words(field.type) for field in schema}
    assert list(documented) == schema.names


def _in_words(kind):
    return "list of string" if kind == pyarrow.list_(pyarrow.string()) else str(kind)


def test_the_figures_of_the_page_are_those_that_were_measured():
    measured = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "video.json").read_text())
    table = DOCUMENT.partition("| clip | frames |")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:4]]
    for row, clip in zip(rows, (measured["steady"], measured["varying"]), strict=True):
        assert row[1:] == [
            f"{clip['frames']:,}",
            str(clip["tracks"]),
            " / ".join(f"{100 * share:.1f} %" for share in clip["kept"]),
            " / ".join(f"{100 * share:.1f} %" for share in clip["missed"]),
            f"{clip['max_time_error_s']:g} s",
            " / ".join(f"{mib:.0f}" for mib in clip["peak_rss_mib"]) + " MiB",
        ]
    assert measured["date"] in DOCUMENT
    assert measured["machine"] in " ".join(DOCUMENT.split())
