"""Importing: FER+ in all its layouts, on small made-up data."""

import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from nkf.data import importers
from nkf.data.counts import differences, sums
from nkf.data.formats.ferplus import KNOWN, list_ferplus
from nkf.data.importers import ImportOptions, import_dataset
from nkf.data.labels import EXPRESSIONS, FERPLUS_COLUMNS, VOTE_COLUMNS
from nkf.data.pack import Pack
from nkf.errors import NkfError

USAGES = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}
FOLDERS = {"train": "FER2013Train", "valid": "FER2013Valid", "test": "FER2013Test"}

# split, name, number of the picture (the same number is the same picture), votes; packs start with test, not train
Row = tuple[str, str, int, dict[str, int]]
ROWS: tuple[Row, ...] = (
    ("train", "fer0000000.png", 0, {"happiness": 10}),
    ("train", "fer0000007.png", 1, {"fear": 8, "neutral": 2}),
    ("train", "fer0000008.png", 2, {"neutral": 5, "sadness": 5}),
    ("train", "fer0000010.png", 3, {"anger": 9, "unknown": 1}),
    ("train", "fer0000011.png", 6, {"disgust": 10}),
    ("valid", "fer0028638.png", 3, {"surprise": 10}),
    ("valid", "fer0028640.png", 4, {"unknown": 6, "contempt": 4}),
    ("test", "fer0032220.png", 5, {"contempt": 10}),
)
PACKED = (*ROWS[7:], *ROWS[5:7], *ROWS[:5])


def picture(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (48, 48), np.uint8)


def png(number: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def file_votes(votes: dict[str, int]) -> list[int]:
    return [votes.get(name, 0) for name in FERPLUS_COLUMNS]


def table(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def folder_files(rows: Iterable[Row] = ROWS) -> dict[str, bytes]:
    """The folder layout: path -> bytes."""
    files: dict[str, bytes] = {}
    for split, name, number, votes in rows:
        label = f"{FOLDERS[split]}/label.csv"
        files[label] = files.get(label, b"") + table([[name, "(0, 0, 48, 48)", *file_votes(votes)]])
        files[f"{FOLDERS[split]}/{name}"] = png(number)
    return files


def csv_files(rows: Iterable[Row] = ROWS) -> dict[str, bytes]:
    """The two tables; a row without a name is a picture that the annotators refused."""
    rows = list(rows)
    pixels = [[0, " ".join(map(str, picture(number).ravel())), USAGES[split]] for split, _, number, _ in rows]
    votes = [[USAGES[split], name, *file_votes(votes)] for split, name, _, votes in rows]
    header = ["Usage", "Image name", *FERPLUS_COLUMNS[:-1], "NF"]
    return {
        "fer2013.csv": table([["emotion", "pixels", "Usage"], *pixels]),
        "fer2013new.csv": table([header, *votes]),
    }


def save_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def save_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def below(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"data/ferplus/{name}": data for name, data in files.items()}


Save = Callable[[Path, dict[str, bytes]], Path]


@pytest.mark.parametrize("save", [save_folder, save_zip])
@pytest.mark.parametrize("depth", [dict, below], ids=["at the top", "deeper"])
@pytest.mark.parametrize(("files", "label_file"), [(folder_files, "label_csv"), (csv_files, "fer2013new")])
def test_every_layout(
    tmp_path: Path, files: Callable[[], dict[str, bytes]], label_file: str, depth: Callable[..., Any], save: Save
) -> None:
    source = save(tmp_path / "source", depth(files()))
    report = import_dataset(list_ferplus, source, tmp_path / "pack")
    pack = Pack(tmp_path / "pack")
    assert pack.names.tolist() == [name for _, name, _, _ in PACKED]
    assert [pack.rows(split).size for split in FOLDERS] == [5, 2, 1]
    expected_votes = [[votes.get(name, 0) for name in VOTE_COLUMNS] for *_, votes in PACKED]
    np.testing.assert_array_equal(pack.column("votes"), expected_votes)
    for row, (_, _, number, _) in enumerate(PACKED):
        np.testing.assert_array_equal(pack.image(row)[..., 0], picture(number))
    assert pack.manifest["label_file"] == label_file
    assert pack.manifest["dataset"] == report.dataset == "ferplus"
    assert pack.manifest["source"] == "source"
    assert pack.manifest["counts"] == report.counts
    assert (pack.manifest["shows"], pack.manifest["landmarks"]) == ("face", "dataset")
    assert pack.manifest["valid_carved"] is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pack", "source"]
    assert "research weights" in pack.manifest["licence"]
    assert (pack.column("box_xyxy") == [0, 0, 48, 48]).all() == (label_file == "label_csv")


def test_report(tmp_path: Path) -> None:
    source = save_folder(tmp_path / "source", folder_files())
    report = import_dataset(list_ferplus, source, tmp_path / "pack")
    assert report.images == {"train": 5, "valid": 2, "test": 1}
    majority = report.counts["majority"]
    kept = {split: {name for name, count in row.items() if count == 1} for split, row in majority.items()}
    assert kept == {"train": {"happiness", "fear", "anger", "disgust"}, "valid": {"surprise"}, "test": {"contempt"}}
    assert sums(report.counts) == {
        "majority": {"train": 4, "valid": 1, "test": 1},
        "argmax10": {"train": 5, "valid": 1, "test": 1},
        "argmax8": {"train": 5, "valid": 2, "test": 1},
    }
    assert report.leaks_found == {"valid in train": 1, "test in train": 0, "test in valid": 0}
    assert report.splits_as_known == ()
    assert (report.landmarks_found, report.landmarks_missing, report.images_skipped) == (0, 8, 0)
    assert (report.leaks_dropped, report.left_out) == (0, {})
    first = report.warnings[0]  # of 7,284 happy faces we have one
    assert first.startswith("counts differ from the known ferplus (majority, train): total 4 not 25045, ")
    assert "happiness 1 not 7284" in first
    assert list(report.warnings) == list(map(str, differences(Pack(tmp_path / "pack"))))


@pytest.mark.parametrize("split", FOLDERS)
def test_one_folder_alone(tmp_path: Path, split: str) -> None:
    rows = [row for row in ROWS if row[0] == split]
    report = import_dataset(list_ferplus, save_folder(tmp_path / "source", folder_files(rows)), tmp_path / "pack")
    assert report.images == {split: len(rows)}
    absent = [warning for warning in report.warnings if "no images of the split" in warning]
    assert all(f", {split}): " in warning for warning in set(report.warnings) - set(absent))


def test_tables_are_joined_by_row_and_not_by_name(tmp_path: Path) -> None:
    rows = [
        ("train", "fer0000000.png", 0, {"fear": 10}),
        ("train", "", 1, {"not_a_face": 10}),  # from here on, names lag behind rows
        ("train", "fer0000001.png", 2, {"anger": 10}),
        ("valid", "fer0028638.png", 28638, {"sadness": 10}),
    ]
    report = import_dataset(list_ferplus, save_folder(tmp_path / "source", csv_files(rows)), tmp_path / "pack")
    pack = Pack(tmp_path / "pack")
    assert pack.names.tolist() == ["fer0028638.png", "fer0000000.png", "fer0000001.png"]
    np.testing.assert_array_equal(pack.image(2)[..., 0], picture(2))
    assert [EXPRESSIONS[label] for label in pack.labels()] == ["sadness", "fear", "anger"]
    assert report.images_skipped == 0


DOUBLE_ROWS = (
    ("test", "fer0033120.png", 0, {"neutral": 10}),
    ("test", "fer0032220.png", 1, {"anger": 10}),
    ("test", "fer0033120.png", 2, {"not_a_face": 10}),
)


def test_doubled_names_in_tables_are_two_images(tmp_path: Path) -> None:
    report = import_dataset(list_ferplus, save_folder(tmp_path / "source", csv_files(DOUBLE_ROWS)), tmp_path / "pack")
    assert Pack(tmp_path / "pack").names.tolist() == ["fer0033120-2.png", "fer0032220.png", "fer0033120.png"]
    assert report.warnings[0] == "1 names occur twice; the earlier image is renamed to NAME-2 (fer0033120.png)"


def test_doubled_names_in_folders_are_one_image(tmp_path: Path) -> None:
    report = import_dataset(
        list_ferplus, save_folder(tmp_path / "source", folder_files(DOUBLE_ROWS)), tmp_path / "pack"
    )
    pack = Pack(tmp_path / "pack")
    assert pack.names.tolist() == ["fer0032220.png", "fer0033120.png"]
    assert pack.column("votes")[1].tolist() == [0] * 9 + [10]  # the last row counts
    assert report.warnings[0] == (
        "1 names are listed twice, the last row counts: fer0033120.png; their votes differ: fer0033120.png"
    )
    # The known counts are of rows, so both rows are compared with them.
    assert "(majority, test): total 2 not 3137, neutral 1 not 1083" in report.warnings[1]


def test_votes_of_fer2013new_for_the_folders(tmp_path: Path) -> None:
    other = [(split, name, number, {"neutral": 10}) for split, name, number, _ in ROWS[:4]]
    votes = tmp_path / "fer2013new.csv"
    votes.write_bytes(csv_files([*other, ("test", "", 9, {}), ("train", "fer0000099.png", 9, {})])["fer2013new.csv"])
    source = save_folder(tmp_path / "source", folder_files())
    report = import_dataset(partial(list_ferplus, fer2013new=votes), source, tmp_path / "pack")
    pack = Pack(tmp_path / "pack")
    assert pack.manifest["label_file"] == "fer2013new"
    assert pack.names.tolist() == [name for _, name, _, _ in other]
    assert set(pack.labels()) == {EXPRESSIONS.index("neutral")}
    left_out = "fer0000011.png, FER2013Valid/fer0028638.png, FER2013Valid/fer0028640.png, FER2013Test/fer0032220.png"
    assert report.warnings[0] == f"{source}: 4 images left out, not in {votes} (FER2013Train/{left_out})"
    assert report.warnings[1].startswith(f"skipped {source}/FER2013Train/fer0000099.png: No such file")


@pytest.mark.parametrize("save", [save_folder, save_zip])
def test_unreadable_images_are_skipped_and_reported(tmp_path: Path, save: Save) -> None:
    files = folder_files()
    files["FER2013Train/fer0000007.png"] = files["FER2013Train/fer0000007.png"][:600]
    del files["FER2013Valid/fer0028640.png"]
    report = import_dataset(list_ferplus, save(tmp_path / "source", files), tmp_path / "pack")
    assert report.images == {"train": 4, "valid": 1, "test": 1}
    assert report.images_skipped == 2
    skipped = [warning for warning in report.warnings if warning.startswith("skipped ")]
    assert "fer0028640.png: " in skipped[0]
    assert "o such file" in skipped[0]
    assert "fer0000007.png: broken image (" in skipped[1]
    assert Pack(tmp_path / "pack").manifest["images_skipped"] == 2
    assert report.counts["majority"]["train"]["fear"] == 0


def test_leaks_are_found_by_their_pixels_and_dropped_from_train(tmp_path: Path) -> None:
    files = folder_files()
    files["FER2013Valid/fer0028638.png"] = png(3, compress_level=0)  # other bytes, the same pixels as in train
    source = save_folder(tmp_path / "source", files)
    listed = tmp_path / "list.txt"
    listed.write_text(hashlib.md5(picture(1).tobytes()).hexdigest() + "\n" + "0" * 32 + "\n")
    found = {"valid in train": 1, "test in train": 0, "test in valid": 0, "listed in train": 1}

    report = import_dataset(list_ferplus, source, tmp_path / "all", ImportOptions(leak_md5=listed))
    assert (report.leaks_found, report.leaks_dropped, report.images["train"]) == (found, 0, 5)
    options = ImportOptions(leak_md5=listed, drop_leaks=True)
    dropped = import_dataset(list_ferplus, source, tmp_path / "fewer", options)
    assert (dropped.leaks_found, dropped.leaks_dropped) == (found, 2)
    assert dropped.images == {"train": 3, "valid": 2, "test": 1}
    assert dropped.warnings == report.warnings  # known counts are of everything
    pack = Pack(tmp_path / "fewer")
    assert pack.names[pack.rows("train")].tolist() == ["fer0000000.png", "fer0000008.png", "fer0000011.png"]
    assert pack.manifest["leaks_dropped"] == 2
    assert pack.manifest["counts"]["majority"]["train"]["fear"] == 0


def save_teacher(path: Path, names: Sequence[str], folders: Sequence[str], **more: Any) -> NDArray[np.float16]:
    landmarks = np.random.default_rng(0).uniform(0, 48, (len(names), 68, 2)).astype(np.float16)
    columns = {"name": np.array(names), "split": np.array(folders), "landmarks68": landmarks, **more}
    np.savez(path, **columns)
    return landmarks


def test_teacher_landmarks(tmp_path: Path) -> None:
    landmarks = save_teacher(
        tmp_path / "teacher.npz",
        ["fer0000000.png", "fer0000007.png", "fer0000000.png"],
        ["FER2013Train", "FER2013Train", "FER2013Valid"],
        found=np.array([True, False, True]),
        mesh_pca=np.ones((3, 64), np.float16),
    )
    source = save_folder(tmp_path / "source", folder_files())
    options = ImportOptions(landmarks=tmp_path / "teacher.npz")
    report = import_dataset(list_ferplus, source, tmp_path / "pack", options)
    pack = Pack(tmp_path / "pack")
    np.testing.assert_array_equal(pack.landmarks_px[3], landmarks[0])
    assert np.isnan(pack.landmarks_px[[0, 1, 2, 4, 5, 6, 7]]).all()
    assert pack.column("landmarks_source").tolist() == ["none"] * 3 + ["teacher"] + ["none"] * 4
    assert (report.landmarks_found, report.landmarks_missing) == (1, 7)
    mesh = pack.column("mesh_pca")
    assert np.isnan(mesh).all(axis=1).tolist() == [True] * 3 + [False] * 2 + [True] * 3
    assert pack.manifest["landmarks"] == "teacher"


@pytest.mark.parametrize("part_rows", [2, 2048])
def test_landmarks_of_another_dataset_are_refused_again_and_again(
    tmp_path: Path, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nkf.data.pack_writer.PART_ROWS", part_rows)
    monkeypatch.setattr(importers, "READ_AHEAD", 2)
    save_teacher(tmp_path / "teacher.npz", ["me.png"], [""], found=np.array([True]))
    source = save_folder(tmp_path / "source", folder_files())
    options = ImportOptions(landmarks=tmp_path / "teacher.npz")
    for _ in range(2):
        message = r"teacher\.npz: names none of these images; expected the landmarks of this dataset$"
        with pytest.raises(NkfError, match=message):
            import_dataset(list_ferplus, source, tmp_path / "pack", options)
        assert not (tmp_path / "pack").exists()
    import_dataset(list_ferplus, source, tmp_path / "pack")  # a corrected call is not held up by the index of that one
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pack", "source", "teacher.npz"]


BROKEN: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "label file": (lambda files: files.pop("FER2013Valid/label.csv"), r"Valid/label\.csv: missing; FER\+ has a label"),
    "every image": (
        lambda files: files.update(dict.fromkeys((name for name in files if name.endswith("png")), b"")),
        r"pack: the source holds no readable image to pack \(skipped .*fer0032220\.png: empty file, expected an im",
    ),
}


@pytest.mark.parametrize("save", [save_folder, save_zip])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_source_leaves_nothing(tmp_path: Path, case: str, save: Save) -> None:
    damage, message = BROKEN[case]
    files = folder_files()
    damage(files)
    source = save(tmp_path / "source", files)
    with pytest.raises(NkfError, match=message) as caught:
        import_dataset(list_ferplus, source, tmp_path / "pack")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("option", ["fer2013new", "landmarks", "leak_md5"])
def test_missing_option_file(tmp_path: Path, option: str) -> None:
    source = save_folder(tmp_path / "source", folder_files())
    file = {option: tmp_path / "nowhere"}
    list_dataset = partial(list_ferplus, **file) if option == "fer2013new" else list_ferplus
    options = ImportOptions() if option == "fer2013new" else ImportOptions(**file)  # type: ignore[arg-type]
    with pytest.raises(NkfError, match=r"nowhere: No such file or directory$"):
        import_dataset(list_dataset, source, tmp_path / "pack", options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_existing_pack_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "source").mkdir()
    with pytest.raises(NkfError, match=r"pack: exists already; name a new folder"):
        import_dataset(lambda _: pytest.fail("listed"), tmp_path / "source", tmp_path / "pack")


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"nowhere: no such file or folder; expected a dataset's folder or a zip of it$"):
        import_dataset(list_ferplus, tmp_path / "nowhere", tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


KAGGLE = [f"{folder}/happy/{usage}_1.jpg" for folder, usage in (("train", "Training"), ("test", "PublicTest"))]
NOT_FERPLUS: dict[str, tuple[dict[str, bytes], str]] = {
    "FER-2013's own table": ({"fer2013.csv": csv_files()["fer2013.csv"]}, "has fer2013.csv alone, with FER-2013's old"),
    "Kaggle's folders": (
        dict.fromkeys([*KAGGLE, "test/happy/PrivateTest_1.jpg"], b""),
        "is Kaggle's folder copy of FE",
    ),
    "nothing": ({"a.png": b""}, r"no FER\+ data; expected FER2013Train"),
}


@pytest.mark.parametrize("save", [save_folder, save_zip])
@pytest.mark.parametrize("case", NOT_FERPLUS)
def test_other_sources_are_refused_in_one_line(tmp_path: Path, case: str, save: Save) -> None:
    files, message = NOT_FERPLUS[case]
    with pytest.raises(NkfError, match=message) as caught:
        import_dataset(list_ferplus, save(tmp_path / "source", files), tmp_path / "pack")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_progress_of_rich_fits(tmp_path: Path) -> None:
    source = save_folder(tmp_path / "source", folder_files())
    report = import_dataset(list_ferplus, source, tmp_path / "pack", progress=partial(track, disable=True))
    assert sum(report.images.values()) == 8


@pytest.mark.slow
@pytest.mark.skipif("NKF_FERPLUS" not in os.environ, reason="NKF_FERPLUS names no folder or zip with the real FER+")
def test_counts_of_the_real_data(tmp_path: Path) -> None:
    report = import_dataset(list_ferplus, Path(os.environ["NKF_FERPLUS"]), tmp_path / "pack")
    assert report.warnings == ()
    known = KNOWN[Pack(tmp_path / "pack").manifest["label_file"]]
    for rule, splits in known.items():
        assert sums(report.counts)[rule] == {split: splits[split].total for split in report.images}
    for split, row in report.counts["majority"].items():
        assert row == known["majority"][split].by_class
    if {"train", "valid"} <= set(report.images):
        assert report.leaks_found["valid in train"] == 279
