"""The commands under ``nkf data``, from a dataset's own layout to packs checked, shown, split and trained on."""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from nkf.cli import main
from nkf.cli_import import IMPORT_COMMANDS
from nkf.data.labels import EXPRESSIONS
from nkf.data.pack import Pack

pytestmark = pytest.mark.usefixtures("fake_package")

Run = Callable[..., tuple[int, list[str], list[str]]]
Files = dict[str, bytes]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs nkf in an empty folder and returns exit code, output lines, error lines."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(line: str, *more: object) -> tuple[int, list[str], list[str]]:
        code = main([*line.split(), *map(str, more)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def picture(number: int, side: int = 24) -> bytes:
    """A smooth picture of few patches, so that no two of different numbers look alike."""
    patches = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def write(files: Files, folder: str = "source") -> None:
    for name, data in files.items():
        file = Path(folder) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def class_folders(per_class: int = 4, classes: tuple[str, ...] = ("happy", "sad")) -> Files:
    return {f"{name}/{n}.png": picture(100 * k + n) for k, name in enumerate(classes) for n in range(per_class)}


def npy(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(value))
    return stream.getvalue()


@pytest.mark.parametrize("name", IMPORT_COMMANDS)
def test_each_import_explains_itself(run: Run, name: str) -> None:
    code, out, err = run(f"data import {name} --help")
    text = "\n".join(out)
    assert (code, err) == (0, [])
    for part in (f"usage: nkf data import {name} ", "Example", f"  nkf data import {name} ", "--landmarks WORD|NPZ"):
        assert part in text
    for option in ("--drop-leaks", "--valid-share", "--licence", "--crops", "SOURCE", "OUT"):
        assert option in text


@pytest.mark.parametrize("name", ["check", "show", "split"])
def test_the_other_commands_explain_themselves(run: Run, name: str) -> None:
    code, out, err = run(f"data {name} --help")
    assert (code, err) == (0, [])
    assert any(line.startswith(f"  nkf data {name} ") for line in out)


def test_own_pictures_from_folders(run: Run, fake_landmarks: NDArray[np.float32]) -> None:
    write(class_folders(8) | {"happy/broken.png": picture(0)[:100]})
    code, out, err = run("data import folders source pack --faces --valid-share 0.25 --licence ours --crops 32")
    assert code == 1  # for the broken one; the others are there
    assert [line.split()[:4] for line in out[:3]] == [
        ["split", "images", "neutral", "happiness"], ["train", "12", "0", "6"], ["valid", "4", "0", "2"],
    ]  # fmt: skip
    duplicates, landmarks = "duplicates: 0 valid in train", "landmarks: 16 found, 0 missing"
    assert out[3:] == [duplicates, landmarks, "skipped: 1 unreadable images", "written to pack"]
    (warning,) = err
    assert warning.startswith("nkf: warning: skipped ")
    assert "happy/broken.png" in warning
    pack = Pack(Path("pack"))
    assert pack.manifest["licence"] == "ours"
    assert set(pack.column("landmarks_source")) == {"fan"}
    assert len(list(Path("pack/cache").glob("aligned32-*.images.npy"))) == 1
    assert np.load(next(Path("pack/cache").glob("*.images.npy"))).shape == (16, 32, 32, 3)


def test_own_pictures_from_a_table(run: Run) -> None:
    rows = ["path,label,split,subject", "a.png,happy,train,S1", "b.png,anger,test,S2", "c.png,angry,train,S3"]
    write({"labels.csv": "\n".join(rows).encode()} | {f"{name}.png": picture(n) for n, name in enumerate("abc")})
    assert run("data import table source pack --landmarks none")[0] == 0
    pack = Pack(Path("pack"))
    assert sorted(zip(pack.names, pack.splits, pack.column("label"), pack.column("subject"), strict=True)) == [
        ("a.png", "train", "happiness", "S1"), ("b.png", "test", "anger", "S2"), ("c.png", "train", "anger", "S3"),
    ]  # fmt: skip
    assert set(pack.column("landmarks_source")) == {"none"}


def test_a_table_of_shares_is_counted_and_split_by_class_and_group(run: Run) -> None:
    shares = (".7,.3", ".2,.8", ".5,.5")
    rows = ["path,p_happy,p_sad,group", *(f"{n}.png,{shares[n // 2 % 3]},{n // 2}" for n in range(24))]
    write({"labels.csv": "\n".join(rows).encode()} | {f"{n}.png": picture(n) for n in range(24)})
    code, _, err = run("data import table source pack --landmarks none")
    assert code == 0
    (warning,) = err
    assert warning.endswith(", several classes have the largest share: 8 (4.png, 5.png, 10.png, 11.png, ...)")
    assert Counter(Pack(Path("pack")).labels().tolist()) == {-1: 8, 1: 8, 2: 8}
    assert run("data split pack out --test 0.5 --by group")[0] == 0
    pack = Pack(Path("out"))
    assert Counter(pack.labels()[pack.splits == "test"].tolist()) == {-1: 4, 1: 4, 2: 4}
    assert (pack.splits[::2] == pack.splits[1::2]).all()
    code, _, err = run("data split pack other --test 0.5 --by family")
    assert (code, err) == (2, ["nkf: pack: has no column 'family'; its metadata columns: group"])


@pytest.mark.parametrize(
    ("word", "sources"),
    [
        ("none", {"none"}),
        ("dataset", {"dataset", "none"}),
        ("auto", {"dataset", "fan"}),
        ("search", {"fan"}),
        ("teacher.npz", {"teacher", "none"}),
    ],
)
def test_where_landmarks_come_from(run: Run, word: str, sources: set[str]) -> None:
    given = ",".join(f"{value:.2f}" for value in np.random.default_rng(0).uniform(2, 20, 136))
    header = "path,label," + ",".join(f"lm{n:02}_{axis}" for n in range(68) for axis in "xy")
    table = f"{header}\na.png,sad,{given}\nb.png,sad,{',' * 135}\n"
    write({"labels.csv": table.encode()} | {f"{name}.png": picture(n) for n, name in enumerate("ab")})
    points = np.random.default_rng(1).uniform(0, 24, (1, 68, 2)).astype(np.float32)
    np.savez("teacher.npz", name=np.array(["b.png"]), found=np.array([True]), landmarks68=points)
    code, out, _ = run("data import table source pack --faces --landmarks", word)
    assert code == 0
    pack = Pack(Path("pack"))
    assert set(pack.column("landmarks_source")) == sources
    found = int(np.isfinite(pack.landmarks_px).all(axis=(1, 2)).sum())
    assert f"landmarks: {found} found, {2 - found} missing" in out
    if word == "teacher.npz":
        np.testing.assert_array_equal(pack.landmarks_px[pack.names == "b.png"], points)


MISTAKES = [
    ("data import folders nowhere pack", "nowhere: no such file or folder; expected a dataset's folder or a zip of it"),
    ("data import folders source/happy/0.png pack", "0.png: not a readable zip"),
    ("data import folders source taken", "taken: exists already; name a new folder for the pack"),
    ("data import rafdb source pack", "source: not RAF-DB; expected "),
    (
        "data import folders source pack --landmarks serach",
        "--landmarks serach: neither one of auto, dataset, search, ",
    ),
    ("data import folders source pack --landmarks source/happy/0.png", "0.png: not a readable .npz"),
    ("data import folders source pack --valid-share 1.5", "valid_share 1.5: expected a share from 0 to below 1"),
    ("data import folders source pack --valid-share 0.2 --seed -1", "--seed -1: expected a whole number from 0"),
    ("data import folders source pack --crops 0", "--crops 0: expected the side of a crop in pixels, such as 112"),
    ("data import folders source pack --leak-md5 none.txt", "none.txt: No such file"),
    ("data import folders source pack --frames 3", "unrecognized options: --frames"),
    ("data import folders source", "(see nkf data import folders --help)"),
    ("data import foldres source pack", "unknown command 'foldres'. Perhaps you meant 'folders'?"),
    ("data check source", "source: no pack (manifest.json is unreadable)"),
    ("data check made --against source", "source: no pack (manifest.json is unreadable)"),
    ("data check made --out taken", "taken: a file, expected a folder"),
    ("data show source", "source: no pack"),
    ("data show made --name none.png", "made: no image called 'none.png'"),
    ("data show made --sheet x.png --label joy", "label 'joy': choose one of neutral, "),
    ("data show made --label fear", "--label chooses images to draw; give --sheet FILE with it"),
    ("data show made --split train", "--split chooses images to draw; give --sheet FILE with it"),
    ("data split made out", "valid 0 and test 0: expected shares"),
    ("data split made taken --valid 0.5", "taken: exists already"),
    ("data split made out --valid 0.5 --by subject", "made: has no column 'subject'; its metadata columns: none"),
    (
        "data split made out --folds 3 --test 0.5",
        "--folds makes train and test; give no --valid, --test or --keep-test",
    ),
    ("data split made out --folds 1", "1 folds: expected two or more"),
    ("data split made out --folds 99", "8 groups of images cannot be split into 99 parts"),
]


@pytest.fixture
def made(run: Run) -> None:
    """Folders of pictures in `source`, the pack `made` of them, and a file `taken`."""
    write(class_folders())
    Path("taken").touch()
    assert run("data import folders source made --landmarks none")[0] == 0


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(run: Run, made: None, line: str, message: str) -> None:
    before = sorted(Path().rglob("*"))
    code, out, err = run(line)
    assert (code, out) == (2, [])
    assert len(err) == 1
    assert err[0].startswith("nkf: ")
    assert message in err[0]
    assert sorted(Path().rglob("*")) == before


def test_a_byte_identical_pair_across_splits_is_found(run: Run) -> None:
    files = {f"{split}/{name}": data for split in ("train", "test") for name, data in class_folders(2).items()}
    files |= {name: picture(900 + n) for n, name in enumerate(files) if name.startswith("test/")}
    write(files | {"test/sad/copy.png": files["train/happy/1.png"]})
    assert run("data import folders source pack --landmarks none")[0] == 0
    code, out, err = run("data check pack")
    assert (code, err) == (1, [])
    assert [line for line in out if line.startswith("wrong:")] == [
        f"wrong: 1 images are in two splits (test in train), {kind}-identical" for kind in ("byte", "pixel")
    ]
    assert out[-2:] == ["pack: 9 images checked, 2 things are wrong", "written to pack/check"]
    assert json.loads(Path("pack/check/check.json").read_text())["pairs"] == [
        ["same pixels", "test/sad/copy.png", "train/happy/1.png"]
    ]
    assert run("data import folders source clean --landmarks none --drop-leaks")[0] == 0
    code, out, _ = run("data check clean --out results")
    assert (code, out[-2:]) == (0, ["clean: 8 images checked, nothing is wrong", "written to results"])


def test_check_against_another_pack(run: Run, made: None) -> None:
    write({"test/happy/a.png": class_folders()["sad/2.png"], "train/sad/b.png": picture(999)}, "other")
    assert run("data import folders other others --landmarks none")[0] == 0
    code, out, _ = run("data check made --against others")
    assert code == 1
    assert "wrong: 1 train images are in valid or test of others: sad/2.png" in out
    assert run("data check others --against made")[0] == 0


def test_show_an_image_and_a_sheet(run: Run, made: None) -> None:
    code, out, err = run("data show made")
    assert (code, err) == (0, [])
    assert out[0].startswith("made: ")
    assert "landmarks: none 8" in out
    code, out, _ = run("data show made --name happy/1.png")
    assert json.loads("\n".join(out))["label"] == "happiness"
    code, out, _ = run("data show made --sheet sheet.png --label sadness --count 3")
    assert (code, out) == (0, ["3 images drawn: sheet.png"])
    assert run("data show made --sheet missing/sheet.png")[0] == 2
    with Image.open("sheet.png") as image:
        assert image.format == "PNG"


def ckplus_files(subjects: int = 7) -> Files:
    """CK+ as published: two labelled sequences of five frames each for every subject, and one without a label."""
    files: Files = {}
    for number in range(3 * subjects):
        subject, sequence = f"S{800 + number // 3}", f"00{number % 3 + 1}"
        stem = f"{subject}_{sequence}"
        for frame in range(1, 6):
            name = f"cohn-kanade-images/{subject}/{sequence}/{stem}_{frame:08}.png"
            files[name] = picture(10 * number + frame, 16)
        if number % 3:
            code = f"   {(number % 7) + 1:.7e}\n".encode()
            files[f"Emotion/{subject}/{sequence}/{stem}_00000005_emotion.txt"] = code
    return files


def test_folds_share_no_subject(run: Run) -> None:
    write(ckplus_files())
    code, out, err = run("data import ckplus source pack --landmarks none")
    assert code == 0
    assert "left out: 7 sequence without an emotion file" in out
    assert len(err) == 1
    assert err[0].startswith("nkf: warning: counts differ from the known ckplus (label, train): total 56 not 1308")
    assert run("data split pack folds --folds 3") == (0, ["3 packs: folds/fold-00 to fold-02"], [])
    source, packs = Pack(Path("pack")), [Pack(path) for path in sorted(Path("folds").iterdir())]
    assert len(packs) == 3
    tested = Counter[str]()
    for pack in packs:
        subjects = pack.column("subject")
        train, test = (set(subjects[pack.rows(split)]) for split in ("train", "test"))
        assert train
        assert test
        assert train.isdisjoint(test)
        assert len(pack.rows("train")) + len(pack.rows("test")) == 56
        tested.update(pack.names[pack.rows("test")].tolist())
        (shard,) = pack.path.glob("images-*.bin")
        assert shard.samefile(source.path / shard.name)
        assert [pack.image_bytes(row) for row in range(56)] == [source.image_bytes(row) for row in range(56)]
        assert run("data check", pack.path)[0] == 0
    assert tested == dict.fromkeys(source.names.tolist(), 1)


def test_faces_of_one_photo_stay_together(run: Run) -> None:
    photos = {f"image/origin/crowd_{n}.png": picture(n, 64) for n in range(12)}
    rows = [
        f"crowd_{n}.png {face} {5 + 10 * face} {20 * face} {20 * face + 15} {30 + 10 * face} 50.5 {(n + face) % 3}"
        for n in range(12)
        for face in range(3)
    ]
    write(photos | {"label/label.lst": "\n".join(rows).encode()})
    assert run("data import expw source pack --min-confidence 20")[0] == 0
    pack = Pack(Path("pack"))
    np.testing.assert_array_equal(pack.column("box_xyxy")[:2], [[0, 5, 15, 30], [20, 15, 35, 40]])
    assert set(pack.column("landmarks_source")) == {"fan"}
    code, out, _ = run("data split pack out --valid 0.25 --test 0.25")
    assert code == 0
    table = [["split", "images"], ["train", "18"], ["valid", "9"], ["test", "9"]]
    assert [line.split()[:2] for line in out[:-1]] == table
    assert out[-1] == "written to out"
    split = Pack(Path("out"))
    assert len(set(zip(split.column("photo"), split.splits, strict=True))) == 12
    assert run("data check out")[0] == 0


def affectnet_files() -> Files:
    """The second release: six training images and two of the validation set for each of its eight codes."""
    files: Files = {}
    for folder, per_class, first in (("train_set", 6, 0), ("val_set", 2, 1000)):
        for n in range(8 * per_class):
            files[f"{folder}/images/{n}.jpg"] = picture(first + n)
            annotations = {"exp": npy(str(n % 8)), "val": npy("0.5"), "aro": npy("-0.5"), "lnd": npy(np.ones(136))}
            files |= {f"{folder}/annotations/{n}_{kind}.npy": data for kind, data in annotations.items()}
    return files


def test_seven_classes_drop_contempt_in_both_splits(run: Run) -> None:
    write(affectnet_files())
    code, _, err = run("data import affectnet source pack --landmarks search")
    assert code == 0
    assert all(line.startswith("nkf: warning: counts differ from the known affectnet (label, ") for line in err)
    network = {"backbone": "tiny", "keypoint_channels": 16}
    config = {"name": "tiny", "task": "expression", "data": ["pack"], "network": network, "crop_size": 32}
    config |= {"epochs": 1, "batch_size": 6, "evaluations": 1, "warmup_steps": 0}
    config |= {"protocol": {"name": "affectnet7", "valid_share": 0.2}}
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run("train tiny.yaml --device cpu")
    assert code == 0
    assert [line for line in err if line] == [
        f"nkf: warning: pack: protocol affectnet7: {found} images in {split}, a complete copy has {complete}"
        for split, found, complete in (("train", 42, "283,901"), ("test", 14, "3,500"))
    ]
    code, out, err = run("evaluate pack --split test --model runs/tiny --out results --device cpu --landmarks pack")
    assert code == 0
    assert ", 14 images" in out[0]
    assert "nkf: warning: protocol affectnet7: 14 images in test, a complete copy has 3,500" in err
    saved = json.loads(Path("results/evaluation.json").read_text())
    assert saved["classes"] == list(EXPRESSIONS[:-1])
    assert (saved["n"], saved["n_left_out"], saved["protocol"]) == (14, 2, "affectnet7")
    assert saved["pack"]["test_split_is"] == "the official validation set"
    assert all(line.startswith("nkf: warning: ") for line in err)
    assert saved["differences"] == [line.removeprefix("nkf: warning: ") for line in err]
    assert sum(map(sum, saved["confusion"])) == 14
