"""``nkf predict`` over many files: formats, order, runs that are stopped and go on."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from nkf.output import CSV_COLUMNS
from nkf.predict import BATCH_FILES, Predictor
from nkf.weights import DEFAULT_FAN

OUTPUTS = ("--json", "a.json", "--jsonl", "a.jsonl", "--csv", "a.csv", "--parquet", "a.parquet", "--annotate", "drawn")
FILES = 2 * BATCH_FILES + 3
BAD = (1, BATCH_FILES + 2)


@pytest.fixture
def run(fake_package, run_nkf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return run_nkf


@pytest.fixture
def photos(tmp_path, portrait_path):
    """A folder of small portraits, two files broken, one without a face."""
    with Image.open(portrait_path) as image:
        small = image.crop((120, 20, 340, 240))
    (tmp_path / "in").mkdir()
    for k in range(FILES):
        small.save(tmp_path / "in" / f"{k:02}.jpg")
    for k in BAD:
        (tmp_path / "in" / f"{k:02}.jpg").write_text("no picture")
    Image.new("RGB", (90, 60)).save(tmp_path / "in" / "00.jpg")
    return tmp_path / "in"


def contents(folder):
    # Parquet and pictures are the same to the byte too: nothing of the time is written into them.
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_all_forms_say_the_same(run, photos, tmp_path):
    code, _, err = run("predict", "in", *OUTPUTS)
    assert (code, len(err)) == (1, len(BAD))
    documents = json.loads(Path("a.json").read_text())
    assert [document["path"] for document in documents] == [f"in/{k:02}.jpg" for k in range(FILES)]
    assert [k for k, document in enumerate(documents) if document["status"] == "error"] == list(BAD)
    assert [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()] == documents
    table = pyarrow.parquet.read_table("a.parquet")
    with Path("a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == table.num_rows >= FILES
    for row, typed in zip(rows, table.to_pylist(), strict=True):
        for column in (*CSV_COLUMNS, "happiness"):
            value = typed[column]
            told = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
            assert told == (f"{float(row[column]):.6g}" if isinstance(value, float) else row[column])
    faces = [typed for typed in table.to_pylist() if typed["face"] is not None]
    assert {len(face["landmarks_px"]) for face in faces} == {136}
    assert {len(face["landmark_spread_px"]) for face in faces} == {68}
    assert [typed["message"] for typed in table.to_pylist() if typed["status"] == "error"] == [
        documents[k]["message"] for k in BAD
    ]
    assert sorted(os.listdir("drawn")) == [f"{k:02}.jpg" for k in range(FILES) if k not in BAD]
    assert sorted(os.listdir()) == sorted(["in", "drawn", *OUTPUTS[1:8:2], *_networks(tmp_path)])


def _networks(folder):
    return [name for name in os.listdir(folder) if name.startswith(("fan.", "face.", "mobile."))]


@pytest.mark.parametrize("done", [1, BATCH_FILES, BATCH_FILES + 3, FILES])
def test_a_run_that_was_stopped_goes_on_to_the_same_files(run, photos, tmp_path, monkeypatch, done):
    command = ("predict", "in", "--detector", "none", *OUTPUTS)
    whole = run(*command)
    expected = contents(tmp_path)
    for name in (*OUTPUTS[1:8:2], "drawn/03.jpg"):
        Path(name).unlink()
    going = Predictor.predict_files

    def stopped(self, paths, *, workers):
        for k, prediction in enumerate(going(self, paths, workers=workers)):
            if k == done:
                break
            yield prediction
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_files", stopped)
        code, _, err = run(*command)
    assert code == 130
    assert err[-1] == f"nkf: stopped after {done:,}; the same command with --resume goes on"
    assert not any(Path(name).exists() for name in OUTPUTS[1:8:2])
    code, out, err = run(*command, "--resume")
    assert (code, contents(tmp_path)) == (1, expected)
    kept = done // BATCH_FILES * BATCH_FILES
    assert err[: bool(kept)] == [f"nkf: going on after {kept} of {FILES}"][: bool(kept)]
    assert out == whole[1][len(whole[1]) - len(out) :]
    assert not list(tmp_path.rglob("*.journal"))


def test_a_killed_process_leaves_no_half_file_and_goes_on(photos, tmp_path):
    """With the real networks and a real kill."""
    command = [sys.executable, "-m", "nkf", "predict", "in", "--detector", "none", "--jsonl", "a.jsonl", "--csv", "-"]
    settings = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    whole = subprocess.run(command, **settings, check=False)
    expected = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").unlink()
    journal = tmp_path / "a.jsonl.journal"
    with subprocess.Popen(command, **settings) as process:
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.jsonl").exists()
    again = subprocess.run([*command, "--resume"], **settings, check=False)
    assert (again.returncode, again.stdout) == (whole.returncode, whole.stdout) == (1, whole.stdout)
    assert (tmp_path / "a.jsonl").read_bytes() == expected
    assert not journal.exists()


def test_other_inputs_or_settings_are_not_mixed(run, photos, monkeypatch):
    def stopped(self, paths, *, workers):
        yield from list(going(self, paths, workers=workers))[:BATCH_FILES]
        raise KeyboardInterrupt

    going = Predictor.predict_files
    whole_images = ("--detector", "none")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_files", stopped)
        assert run("predict", "in", *whole_images, "--json", "a.json")[0] == 130
    for arguments, message in (
        (["in", "--min-confidence", "0.1"], "a run with another min_confidence; run without --resume"),
        (["in/05.jpg", "in"], "a run with other inputs (in/05.jpg); run without --resume"),
        (["in/00.jpg"], f"of a run with {BATCH_FILES} inputs or more; run without --resume"),
    ):
        code, out, err = run("predict", *arguments, *whole_images, "--json", "a.json", "--resume")
        assert (code, out) == (2, [])
        assert message in err[0]
    assert not Path("a.json").exists()
    assert run("predict", "in", *whole_images, "--json", "a.json", "--resume")[0] == 1


def test_pipes_and_devices_are_written_at_once(run, photos, tmp_path):
    """They get what a file would hold, and no journal lies beside them; with a file besides there is one of its own."""
    arguments = ("predict", "in", "--detector", "none")
    run(*arguments, "--csv", "a.csv", "--jsonl", "a.jsonl")
    for more in ((), ("--jsonl", "b.jsonl")):
        os.mkfifo("pipe")
        with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, cwd=tmp_path) as reader:
            assert run(*arguments, "--csv", "pipe", *more)[0] == 1
            assert reader.stdout.read() == Path("a.csv").read_bytes()
        Path("pipe").unlink()
    assert Path("b.jsonl").read_bytes() == Path("a.jsonl").read_bytes()
    assert not list(tmp_path.rglob("*.journal"))


def test_what_a_stopped_run_leaves_is_cleared(run, photos, monkeypatch):
    def stopped(self, paths, *, workers):
        yield from list(going(self, paths, workers=workers))[:BATCH_FILES]
        raise KeyboardInterrupt

    going = Predictor.predict_files
    arguments = ("predict", "in", "--detector", "none", "--annotate", "drawn")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_files", stopped)
        assert run(*arguments)[0] == 130
    half = Path("drawn") / f"{BATCH_FILES:02}.jpg.123.partial"
    half.touch()
    assert run(*arguments, "--resume")[0] == 1
    assert not half.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_files", stopped)
        assert run(*arguments)[0] == 130
    code, _, err = run(*arguments)
    assert code == 1
    assert "annotate.journal, of a run that was stopped, is thrown away (--resume goes on with it)" in err[0]


def test_pictures_may_go_into_a_folder_that_is_read(run, photos):
    arguments = ("predict", "in", "--annotate", "in/drawn", "--csv", "a.csv")
    for _ in range(2):
        code, _, err = run(*arguments)
        assert (code, len(err)) == (1, len(BAD))
        rows = csv.DictReader(Path("a.csv").read_text().splitlines())
        assert [row["path"] for row in rows] == [f"in/{k:02}.jpg" for k in range(FILES)]
    assert len(os.listdir("in/drawn")) == FILES - len(BAD)


def test_a_list_may_name_what_is_no_file_and_folders_may_be_called_like_pictures(run, photos, monkeypatch):
    Path("in/00.jpeg").write_bytes(Path("in/02.jpg").read_bytes())
    Path("in/00.jpg").rename("in/x.jpg")
    Path("in/00.jpg").mkdir()
    Path("in/x.jpg").rename("in/00.jpg/x.jpg")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b".\nin/02.jpg\n")))
    code, _, err = run("predict", "-", "in", "--annotate", "drawn", "--detector", "none")
    assert (code, len(err)) == (1, 1 + len(BAD))
    assert err[0].startswith("nkf: .: ")
    drawn = {str(file.relative_to("drawn")) for file in Path("drawn").rglob("*") if file.is_file()}
    assert {"00-2.jpg", "00.jpg/x.jpg", "02.jpg", "02-2.jpg"} < drawn


def test_inputs_that_come_while_it_runs_are_not_read(run, photos, monkeypatch):
    going = Predictor.predict_files

    def busy(self, paths, *, workers):
        for prediction in going(self, paths, workers=workers):
            Path("in/zz.jpg").touch()
            yield prediction

    monkeypatch.setattr(Predictor, "predict_files", busy)
    code, _, err = run("predict", "in", "--json", "a.json", "--annotate", "drawn")
    assert (code, len(err)) == (1, len(BAD))
    assert len(json.loads(Path("a.json").read_text())) == FILES


def test_an_output_called_as_the_journal_is_refused(run, photos):
    code, _, err = run("predict", "in", "--json", "a", "--csv", "a.journal")
    assert (code, err) == (2, ["nkf: a.journal: two outputs cannot go to the same place"])


def test_resuming_what_was_not_stopped_is_told(run, photos):
    code, _, err = run("predict", "in/02.jpg", "--json", "a.json", "--resume")
    assert code == 0
    assert err == ["nkf: no a.json.journal: no such run was stopped, this one starts at the beginning"]


def test_going_on_with_other_networks_is_refused(run, photos, save_network, monkeypatch):
    def stopped(self, paths, *, workers):
        yield from list(going(self, paths, workers=workers))[:BATCH_FILES]
        raise KeyboardInterrupt

    going = Predictor.predict_files
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_files", stopped)
        assert run("predict", "in", "--csv", "a.csv")[0] == 130
    save_network("fan", np.full((68, 2), 50, np.float32), name=DEFAULT_FAN)
    code, _, err = run("predict", "in", "--csv", "a.csv", "--resume")
    assert code == 2
    assert "of a run with another sha256; run without --resume" in err[0]


def test_an_improbable_expression_is_told(run, photos):
    code, out, _ = run("predict", photos / "02.jpg", "--min-confidence", "1", "--csv", "a.csv")
    assert code == 0
    assert out[0].endswith(", uncertain")
    assert ",uncertain,0," in Path("a.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "-1"], "workers -1: expected 1 or more"),
        (["--resume"], "--resume: needs --json, --jsonl, --csv, --parquet, --annotate or --explain"),
        (["--resume", "--json", "-"], "--resume: needs"),
        (["--parquet", "-"], "--parquet -: expected a file"),
        (["--json", "x.jsonl"], "--json x.jsonl: the ending of what --jsonl writes; choose one of the two"),
        (["--min-confidence", "2"], "min_confidence 2.0: expected 0 to 1"),
        (["--min-face", "3"], "min_face_px 3: smaller faces than 24 pixels cannot be found"),
        (["--min-face", "30", "--detector", "none"], "min_face_px: for our own detector alone"),
        (["--csv", "x", "--parquet", "./x"], "two outputs cannot go to the same place"),
        (["--annotate", "x", "--explain", "x"], "two outputs cannot go to the same place"),
        (["--explain", "in/02.jpg"], "in/02.jpg: a file, expected a folder for pictures"),
    ],
)
def test_mistakes(run, photos, tmp_path, arguments, message):
    before = sorted(tmp_path.iterdir())
    code, out, err = run("predict", photos / "02.jpg", *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert message in err[0]
    assert sorted(tmp_path.iterdir()) == before


def test_explanations_are_drawn_and_told(run, photos, tmp_path):
    inputs = [photos / name for name in ("00.jpg", "01.jpg", "02.jpg", "03.jpg")]
    arguments = ("predict", *inputs, "--json", "a.json", "--annotate", "drawn", "--explain", "why")
    code, _, err = run(*arguments)
    assert (code, len(err)) == (1, 1)  # 01.jpg is broken
    nothing, _, first, second = json.loads(Path("a.json").read_text())
    assert nothing["faces"] == []
    for document in (first, second):
        (face,) = document["faces"]
        assert face["explanation"]["expression"] == face["expression"]
        assert len(face["explanation"]["contributions"]) == 68
    assert sorted(os.listdir("why")) == ["02.jpg", "03.jpg"]
    assert sorted(os.listdir("drawn")) == ["00.jpg", "02.jpg", "03.jpg"]
    assert run(*arguments)[0] == 1  # its own pictures may be replaced
    Image.new("RGB", (8, 8)).save("why/02.jpg")
    code, _, err = run(*arguments)
    assert code == 2
    assert "why/02.jpg: exists and is no explained picture of nkf; choose another --explain folder" in err[0]


def test_without_explain_there_is_none(run, photos, tmp_path):
    run("predict", photos / "02.jpg", "--json", "a.json")
    (document,) = json.loads(Path("a.json").read_text())
    assert document["faces"]
    assert all("explanation" not in face for face in document["faces"])
