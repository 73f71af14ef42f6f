"""``nkf align``: crops, the table of landmarks, names, mistakes and exit codes."""

import csv

import numpy as np
import pytest
from PIL import Image

from nkf import cli, cli_align
from nkf.cli_align import COLUMNS
from nkf.faces import Face
from nkf.geometry import MEAN_SHAPE, transform_points
from nkf.images import align, read_image, warp_similarity


class FakeFinder:
    """Finds as many faces as the red of the first pixel tells, side by side, the last one of low quality."""

    def __init__(self, detector, device):
        assert (detector, device) == ("auto", "auto")

    def __call__(self, image_rgb):
        count = int(image_rgb[0, 0, 0])
        faces = []
        for k in range(count):
            landmarks_px = (MEAN_SHAPE - 0.5) * (40 - 4 * k) + [30 + 40 * k, 40.123]
            box = np.concatenate([landmarks_px.min(axis=0), landmarks_px.max(axis=0)])
            problems = ("small", "blurred") if 0 < k == count - 1 else ()
            spread = np.full(68, 1.5)
            faces.append(Face(box, 0.9, landmarks_px=landmarks_px, landmark_spread_px=spread, problems=problems))
        return faces


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Return a function that runs nkf in an empty folder and returns exit code, output lines, error lines."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(cli_align, "FaceFinder", FakeFinder)

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def save_photo(file, faces, seed=0):
    """A random picture, 128x80, with so many faces for `FakeFinder`."""
    pixels = np.random.default_rng(seed).integers(0, 255, (80, 128, 3), np.uint8)
    pixels[0, 0, 0] = faces
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def read_table(folder):
    with (folder / "landmarks.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def files_below(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_a_folder_with_subfolders(run, tmp_path):
    photos, out = tmp_path / "in", tmp_path / "work" / "new" / "out"
    save_photo(photos / "a.png", 1)
    save_photo(photos / "sub" / "deep" / "b.png", 2, seed=1)
    save_photo(photos / "sub" / "none.png", 0)
    (photos / "sub" / "broken.jpg").write_text("no")
    (photos / "notes.txt").touch()
    code, lines, err = run("align", photos, "new/out")
    assert code == 1
    assert lines == ["3 faces in 4 images, 1 without a face, 1 failed: new/out"]
    assert len(err) == 1
    assert err[0].startswith(f"nkf: {photos}/sub/broken.jpg: not an image")
    assert files_below(out) == ["crops/a.png", "crops/sub/deep/b-2.png", "crops/sub/deep/b.png", "landmarks.csv"]
    rows = read_table(out)
    found = [(row["path"], row["status"], row["problems"], row["face"], row["crop"]) for row in rows]
    assert found == [
        (f"{photos}/a.png", "ok", "", "0", "crops/a.png"),
        (f"{photos}/sub/broken.jpg", "error", "", "", ""),
        (f"{photos}/sub/deep/b.png", "ok", "", "0", "crops/sub/deep/b.png"),
        (f"{photos}/sub/deep/b.png", "low_quality", "small blurred", "1", "crops/sub/deep/b-2.png"),
        (f"{photos}/sub/none.png", "no_face", "", "", ""),
    ]
    assert all(rows[k][name] == "" for k in (1, 4) for name in COLUMNS[2:])


@pytest.mark.parametrize("size", [112, 64])
def test_a_row_reproduces_its_crop(run, tmp_path, size):
    photo = save_photo(tmp_path / "a.png", 2)
    assert run("align", photo, "out", "--size", size)[0] == 0
    for k, row in enumerate(read_table(tmp_path / "work" / "out")):
        crop = np.asarray(Image.open(tmp_path / "work" / "out" / row["crop"]))
        assert crop.shape == (size, size, 3)
        matrix = np.array([float(row[f"m{i}{j}"]) for i in range(2) for j in range(3)]).reshape(2, 3)
        points = np.array([[float(row[f"lm{n:02}_{axis}"]) for axis in "xy"] for n in range(68)])
        np.testing.assert_array_equal(crop, warp_similarity(read_image(photo), matrix, size))
        face = FakeFinder("auto", "auto")(read_image(photo))[k]
        expected_crop, expected_points = align(read_image(photo), face.landmarks_px, size)
        np.testing.assert_array_equal(crop, expected_crop)
        np.testing.assert_allclose(transform_points(matrix, points), expected_points, atol=0.05)
        np.testing.assert_allclose(points, face.landmarks_px, atol=0.005)
        np.testing.assert_allclose([float(row[name]) for name in ("x0", "y0", "x1", "y1")], face.box_xyxy, atol=0.005)
        assert (row["detection_score"], row["landmark_spread_px"]) == ("0.9", "1.5")


def test_only_the_largest_face(run, tmp_path):
    photo = save_photo(tmp_path / "a.png", 3)
    code, lines, _ = run("align", photo, "out", "--largest")
    assert (code, lines) == (0, ["1 face in 1 image, 0 without a face, 0 failed: out"])
    assert [row["face"] for row in read_table(tmp_path / "work" / "out")] == ["0"]


def test_no_face_is_a_result(run, tmp_path):
    assert run("align", save_photo(tmp_path / "a.png", 0), "out")[0] == 0
    assert files_below(tmp_path / "work" / "out") == ["landmarks.csv"]


def test_crops_never_take_the_name_of_another(run, tmp_path):
    """The second face of a.png would be a-2.png, as is the crop of a-2.png; two folders both have an A."""
    inputs = [
        save_photo(tmp_path / "one" / "a.png", 3, seed=1),
        save_photo(tmp_path / "one" / "a-2.png", 1, seed=2),
        save_photo(tmp_path / "two" / "A.bmp", 2, seed=3),
    ]
    assert run("align", *inputs, "out")[0] == 0
    rows = read_table(tmp_path / "work" / "out")
    crops = [row["crop"] for row in rows]
    assert len({crop.casefold() for crop in crops}) == 6
    assert crops[0] == "crops/a.png"
    assert crops[3] == "crops/a-2.png"
    for row in rows:
        face = FakeFinder("auto", "auto")(read_image(row["path"]))[int(row["face"])]
        crop = read_image(tmp_path / "work" / "out" / row["crop"])
        np.testing.assert_array_equal(crop, align(read_image(row["path"]), face.landmarks_px)[0])


def test_a_second_run_gives_the_same_files(run, tmp_path):
    photos = tmp_path / "work" / "photos"
    save_photo(photos / "a.png", 2)
    save_photo(photos / "sub" / "b.png", 1)
    for out in ("out", "photos"):  # also where the crops lie among the photos
        assert run("align", "photos", out)[0] == 0
        first = {name: (tmp_path / "work" / out / name).read_bytes() for name in files_below(tmp_path / "work" / out)}
        assert run("align", "photos", out)[0] == 0
        second = {name: (tmp_path / "work" / out / name).read_bytes() for name in files_below(tmp_path / "work" / out)}
        assert first == second


def test_foreign_files_stay(run, tmp_path):
    photo, crops = save_photo(tmp_path / "a.png", 2), tmp_path / "work" / "out" / "crops"
    foreign = save_photo(crops / "a-2.png", 0)
    before = foreign.read_bytes()
    assert run("align", photo, "out")[0] == 0  # the second face finds another name
    assert [row["crop"] for row in read_table(tmp_path / "work" / "out")] == ["crops/a.png", "crops/a-3.png"]
    assert foreign.read_bytes() == before
    save_photo(crops / "a.png", 0)
    (tmp_path / "work" / "out" / "landmarks.csv").unlink()
    code, _, err = run("align", photo, "out")
    assert (code, len(err)) == (2, 1)
    assert "a.png: exists and is no crop of nkf align" in err[0]
    assert files_below(tmp_path / "work" / "out") == ["crops/a-2.png", "crops/a-3.png", "crops/a.png"]


def test_a_crop_that_cannot_be_written_is_one_error_among_others(run, tmp_path):
    photos = tmp_path / "in"
    save_photo(photos / "a.png", 1)
    save_photo(photos / "b" / "c.png", 1)
    (tmp_path / "work" / "out" / "crops").mkdir(parents=True)
    (tmp_path / "work" / "out" / "crops" / "b").touch()  # a file where a folder has to be
    code, lines, err = run("align", photos, "out")
    assert (code, len(err)) == (1, 1)
    assert "c.png: cannot be written (" in err[0]
    assert [row["status"] for row in read_table(tmp_path / "work" / "out")] == ["ok", "error"]
    assert lines == ["1 face in 2 images, 0 without a face, 1 failed: out"]


def test_an_error_in_the_middle_leaves_no_table(run, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    photo = save_photo(tmp_path / "a.png", 1)
    assert run("align", photo, "out")[0] == 0
    before = (tmp_path / "work" / "out" / "landmarks.csv").read_bytes()
    monkeypatch.setattr(cli_align, "_save_face", stop)
    assert run("align", photo, "out")[0] == 130
    assert (tmp_path / "work" / "out" / "landmarks.csv").read_bytes() == before
    assert files_below(tmp_path / "work" / "out") == ["crops/a.png", "landmarks.csv"]


# arguments ({in} is a folder with a photo), part of the one line on standard error
MISTAKES = [
    ("align", "give image files or folders, and last the folder to write"),
    ("align {in}", "give image files or folders, and last the folder to write"),
    ("align missing.jpg out", "missing.jpg: no such file or folder"),
    ("align {in} {in}/a.png", "a.png: a file, expected a folder to write; it is the last argument"),
    ("align {in} {in}/odd", "crops: a file, expected a folder to write"),
    ("align {in}/empty out", "empty: no image in this folder"),
    ("align {in} out --size 0", "size 0: expected 8 to 4096 pixels"),
    ("align {in} out --size big", "invalid"),
    ("align {in} out --device gpu", "invalid choice 'gpu' for argument '--device'"),
    ("align {in} out --larges", "Perhaps you meant --largest?"),
    ("align {in} {in}/table", "landmarks.csv: exists and is no table of nkf align"),
    ("align {in}/old/crops/a.png {in}/old", "a.png: an input, would be overwritten"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(run, tmp_path, line, message):
    folder = tmp_path / "in"
    save_photo(folder / "a.png", 1)
    save_photo(folder / "old" / "crops" / "a.png", 1)
    for name in ("empty", "table", "odd"):
        (folder / name).mkdir()
    (folder / "table" / "landmarks.csv").write_text("my,own\n1,2\n")
    (folder / "odd" / "crops").touch()
    before = files_below(tmp_path)
    code, out, err = run(*line.replace("{in}", str(folder)).split())
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("nkf: ")
    assert message in err[0]
    assert files_below(tmp_path) == before
    assert not (tmp_path / "work" / "out").exists()


def test_an_unknown_detector_is_a_mistake(run, tmp_path, monkeypatch):
    from nkf.finder import FaceFinder

    monkeypatch.setattr(cli_align, "FaceFinder", FaceFinder)
    code, _, err = run("align", save_photo(tmp_path / "a.png", 1), "out", "--detector", "haar")
    assert (code, len(err)) == (2, 1)
    assert "detector 'haar': unknown" in err[0]
    assert not (tmp_path / "work" / "out").exists()


def test_help_has_options_and_examples(run):
    code, out, err = run("align", "--help")
    assert (code, err) == (0, [])
    text = "\n".join(out)
    for part in ("usage: nkf align", "INPUT... OUT_DIR", "--size INT", "--largest", "nkf align photo.jpg aligned"):
        assert part in text
