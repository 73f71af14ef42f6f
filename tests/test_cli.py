"""The command line: exit codes, one line for each mistake, and every file it writes."""

import csv
import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from nkf import __version__, cli
from nkf.errors import NkfError

pytestmark = pytest.mark.usefixtures("fake_package")


@pytest.fixture
def run(run_nkf, tmp_path, monkeypatch):
    """Return a function that runs nkf in an empty folder and returns exit code, output lines, error lines."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return run_nkf


@pytest.fixture
def portrait(portrait_path):
    with Image.open(portrait_path) as image:
        return image.convert("RGB")


def png_header(width, height):
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


# name of the file: (content or a function that saves the portrait as it, status, part of the error message)
INPUTS = {
    "truncated.jpg": (lambda image, file: file.write_bytes(jpeg(image)[:30_000]), "error", "broken image"),
    "empty.jpg": (lambda image, file: file.touch(), "error", "empty file"),
    "text.jpg": (lambda image, file: file.write_text("not a picture"), "error", "not an image"),
    "bomb.png": (lambda image, file: file.write_bytes(png_header(20_000, 20_000)), "error", "pixels, at most"),
    "cmyk.jpg": (lambda image, file: image.convert("CMYK").save(file), "ok", None),
    "grey16.png": (lambda image, file: Image.fromarray(grey16(image)).save(file), "ok", None),
    "alpha.png": (lambda image, file: with_alpha(image).save(file), "ok", None),
    "palette.gif": (lambda image, file: image.quantize(256).save(file), "ok", None),
    "turned.jpg": (lambda image, file: save_turned(image, file), "ok", None),
    "plain.png": (lambda image, file: Image.new("RGB", (512, 512), "grey").save(file), "no_face", None),
}


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def grey16(image):
    return np.asarray(image.convert("L")).astype(np.uint16) * 257


def with_alpha(image):
    image = image.copy()
    image.putalpha(230)
    return image


def save_turned(image, file):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise for display
    image.transpose(Image.Transpose.ROTATE_90).save(file, quality=95, exif=exif)


@pytest.mark.parametrize("name", INPUTS)
def test_one_input_of_every_kind(run, portrait, tmp_path, name):
    save, status, message = INPUTS[name]
    file = tmp_path / name
    save(portrait, file)
    code, out, err = run("predict", file, "--json", "a.json", "--csv", "a.csv", "--annotate", "pictures")
    (document,) = json.loads((tmp_path / "work" / "a.json").read_text())
    (row,) = read_csv(tmp_path / "work" / "a.csv")
    assert document["status"] == row["status"] == status
    assert code == (1 if status == "error" else 0)
    if status == "error":
        assert out == []
        assert len(err) == 1
        assert err[0].startswith(f"nkf: {file}: ")
        assert message in err[0]
        assert document["message"] in err[0]
    else:
        assert (document["width"], document["height"]) == (512, 512)
        assert err == []
        assert len(out) == 1
        assert len(list((tmp_path / "work" / "pictures").iterdir())) == 1
    if status == "ok":
        np.testing.assert_allclose(document["faces"][0]["box_xyxy"], [184, 63, 268, 174], atol=10)


def read_csv(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_bad_input_among_good_ones(run, portrait_path, tmp_path):
    (tmp_path / "bad.jpg").write_text("no")
    code, out, err = run("predict", portrait_path, tmp_path / "bad.jpg", portrait_path, "--json", "a.json")
    assert code == 1
    assert [item["status"] for item in json.loads((tmp_path / "work" / "a.json").read_text())] == ["ok", "error", "ok"]
    assert len(out) == 2
    assert len(err) == 1


def test_a_line_for_each_face(run, portrait_path):
    code, out, err = run("predict", portrait_path)
    assert (code, err) == (0, [])
    assert out == [f"{portrait_path}: face 0: happiness 79%, box 178 67 272 179"]


def test_no_face_is_a_result(run, tmp_path):
    Image.new("RGB", (100, 80)).save(tmp_path / "black.png")
    assert run("predict", tmp_path / "black.png") == (0, [f"{tmp_path / 'black.png'}: no face"], [])


def test_folders_are_searched_in_order(run, portrait, tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        portrait.resize((64, 64)).save(tmp_path / "in" / name, "PNG")
    code, out, _ = run("predict", tmp_path / "in", "--detector", "none")
    assert code == 0
    assert [line.split(":")[0] for line in out] == [
        str(tmp_path / "in" / name) for name in ("a.PNG", "b.jpg", "sub/c.webp")
    ]


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_file_to_standard_output_is_alone_there(run, portrait_path, kind):
    code, out, err = run("predict", portrait_path, f"--{kind}", "-")
    assert (code, err) == (0, [])
    rows = json.loads("\n".join(out)) if kind == "json" else list(csv.DictReader(out))
    assert len(rows) == 1
    assert rows[0]["path"] == str(portrait_path)


def test_annotated_pictures_never_overwrite_each_other(run, portrait, tmp_path):
    names = ["one/a.jpg", "two/a.jpg", "two/a-2.jpg", "two/A.jpeg", "two/a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        portrait.resize((64, 64)).save(tmp_path / name)
    run("predict", *(tmp_path / name for name in names), "--detector", "none", "--annotate", "out")
    written = sorted(file.name for file in (tmp_path / "work" / "out").iterdir())
    assert written == ["A-3.jpg", "a-2-2.jpg", "a-2.jpg", "a.jpg", "a.png"]
    run("predict", tmp_path, "--detector", "none", "--annotate", "out")
    below = {str(file.relative_to(tmp_path / "work" / "out")) for file in (tmp_path / "work" / "out").rglob("*/*")}
    assert below == {"one/a.jpg", "two/A.jpg", "two/a-2.jpg", "two/a-3.jpg", "two/a.png"}


# arguments ({in} is a folder with a photo), part of the one line on standard error
MISTAKES = [
    ("predict", "no input: give image files or folders"),
    ("predict missing.jpg", "missing.jpg: no such file or folder"),
    ("predict {in} missing.jpg --json a.json --annotate pictures", "missing.jpg: no such file or folder"),
    ("predict .", r".: no image in this folder"),
    ("predict {in} --jsn a.json", "unrecognized options: --jsn, a.json. Perhaps you meant --json or --jsonl? (see nkf"),
    ("predict {in} --json", "missing value for argument '--json'"),
    ("predict {in} --device gpu", "invalid choice 'gpu' for argument '--device'"),
    ("predict {in} --model nonsense --json a.json", "model 'nonsense': neither a packaged model (face, fan, mobile)"),
    ("predict {in} --model fan --json a.json", "model 'fan': it finds landmarks"),
    ("predict {in} --model {in}/notes.onnx", "notes.json: no readable sidecar"),
    ("predict {in} --detector haar --csv a.csv", "detector 'haar': unknown; known are auto, nkf, centerface, none"),
    ("predict {in} --json {in}", "a folder, expected a file to write"),
    ("predict {in} --json {in}/a.jpg", "a.jpg: an input, would be overwritten"),
    ("predict {in} --annotate {in}", "a.jpg: an input, would be overwritten"),
    ("predict {in} --annotate {in}/a.jpg", "a.jpg: a file, expected a folder"),
    ("predict {in} --json x --csv ./x", "x: two outputs cannot go to the same place"),
    ("predict {in} --json a.json --csv {in}/a.jpg/b.csv", "b.csv: cannot be written (File exists)"),
    ("predict {in} --json {in}/a.jpg/b/c.json", "c.json: cannot be written (Not a directory)"),
    ("predcit a.jpg", "unknown command 'predcit'. Perhaps you meant 'predict'? The commands are: predict, "),
    ("--modle x", "unknown option '--modle'."),
    ("models extra more", "unrecognized options: more"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(run, portrait, tmp_path, line, message):
    (tmp_path / "in").mkdir()
    portrait.save(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "notes.onnx").touch()
    before = sorted((tmp_path / "in").iterdir())
    code, out, err = run(*line.replace("{in}", str(tmp_path / "in")).split())
    assert code == 2
    assert out == []
    assert len(err) == 1
    assert err[0].startswith("nkf: ")
    assert message in err[0]
    assert list((tmp_path / "work").iterdir()) == []
    assert sorted((tmp_path / "in").iterdir()) == before


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands_with_examples(run, arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, [])
    assert out[0] == "usage: nkf COMMAND ..."
    assert "Examples:" in out
    assert any(line.startswith("  predict ") for line in out)


def test_help_of_a_command_has_options_and_examples(run):
    code, out, err = run("predict", "--help")
    assert (code, err) == (0, [])
    text = "\n".join(out)
    for part in ("usage: nkf predict", "--annotate DIR", "nkf predict photo.jpg", "Exit code 0"):
        assert part in text


def test_version(run):
    assert run("--version") == (0, [f"nkf {__version__}"], [])


def test_models_lists_what_is_packaged(run):
    code, out, err = run("models")
    assert (code, err) == (0, [])
    assert out[0].split()[:5] == ["name", "kind", "input", "parameters", "MMACs"]
    rows = [line.split()[:4] for line in out if line[:1].strip()][1:]
    assert [row[:2] for row in rows[:3]] == [["face", "detector"], ["fan", "fan"], ["mobile", "nkf"]]
    assert rows[1][3] == "136"
    assert "nkf train configs/systems/poster-pp.yaml" in next(line for line in out if line.startswith("POSTER++"))


def test_commands_nest(run, monkeypatch):
    def import_ferplus(source: str) -> int:
        """Import FERPlus."""
        return len(source)

    monkeypatch.setitem(cli.COMMANDS, "data", {"import": {"ferplus": import_ferplus}})
    assert run("data", "import", "ferplus", "--source", "abc")[0] == 3
    assert "  import ferplus  Import FERPlus." in run("data")[1]
    assert "Perhaps you meant 'ferplus'?" in run("data", "import", "ferpuls")[2][0]


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (NkfError("two\nlines"), 2, ["nkf: two lines"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_how_a_command_can_end(run, monkeypatch, error, code, lines):
    def stop() -> None:
        """Stop."""
        raise error

    monkeypatch.setitem(cli.COMMANDS, "stop", stop)
    assert run("stop") == (code, [], lines)


def test_a_programming_error_in_a_command_is_not_taken_for_a_mistake_of_the_user(run, monkeypatch):
    def fail() -> None:
        """Fail."""
        raise ValueError("ours")

    monkeypatch.setitem(cli.COMMANDS, "fail", fail)
    with pytest.raises(ValueError, match="ours"):
        run("fail")


def test_annotation_replaces_only_its_own_pictures(run, tmp_path, portrait_path):
    folder = tmp_path / "album"
    folder.mkdir()
    mine = folder / portrait_path.name
    Image.new("RGB", (8, 8)).save(mine)
    before = mine.read_bytes()
    code, _, err = run("predict", portrait_path, "--detector", "none", "--annotate", folder)
    assert code == 2
    assert "exists and is no annotated picture of nkf" in err[0]
    assert mine.read_bytes() == before
    mine.unlink()
    for _ in range(2):
        assert run("predict", portrait_path, "--detector", "none", "--annotate", folder)[0] == 0


@pytest.mark.parametrize(
    ("before", "arguments", "printed", "code"),
    [
        ("", ["--version"], "nkf ", 0),  # at once, with all that was printed
        ("", ["nonsense"], "", 2),
        ("sys.modules['torch'] = None; ", ["--version"], "nkf ", 0),  # torch ends in its own way
    ],
)
def test_a_process_ends_with_its_exit_code(before, arguments, printed, code):
    ends = "import atexit, sys; atexit.register(print, 'tidied'); "
    program = f"{ends}{before}from nkf.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.startswith(printed)
    assert ("tidied" in done.stdout) == bool(before)
