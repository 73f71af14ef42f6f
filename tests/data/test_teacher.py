"""Landmark files that a teacher made."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nkf.data.listing import Entry
from nkf.data.tables import ColumnType, Table, TableWriter
from nkf.data.teacher import TeacherLandmarks
from nkf.errors import NkfError

RNG = np.random.default_rng(0)
COLUMNS: dict[str, Any] = {
    "name": np.array(["a.png", "b.png", "a.png"]),
    "split": np.array(["FER2013Train", "FER2013Train", "FER2013Valid"]),
    "found": np.array([True, False, True]),
    "landmarks68": RNG.uniform(0, 48, (3, 68, 2)).astype(np.float16),
    "mesh_pca": RNG.normal(size=(3, 4)).astype(np.float16),
    "race": np.array(["Black", "White", "Indian"]),
}


def save(path: Path, **changes: Any) -> Path:
    columns = {key: value for key, value in (COLUMNS | changes).items() if value is not None}
    np.savez(path, **columns)
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def entry(name: str, folder: str = "") -> Entry:
    return Entry(name, "train", name, folder=folder)


def test_by_folder_and_name(tmp_path: Path) -> None:
    teacher = TeacherLandmarks(save(tmp_path / "a.npz"))
    for row, folder in ((0, "FER2013Train"), (2, "FER2013Valid")):
        found = teacher.landmarks_px(entry("a.png", folder))
        assert found is not None
        np.testing.assert_array_equal(found, COLUMNS["landmarks68"][row].astype(np.float32))
        assert teacher.metadata(entry("a.png", folder))["race"] == COLUMNS["race"][row]
    assert teacher.landmarks_px(entry("b.png", "FER2013Train")) is None
    assert teacher.row(entry("b.png", "FER2013Valid")) is None


def test_by_name_alone(tmp_path: Path) -> None:
    teacher = TeacherLandmarks(save(tmp_path / "a.npz", split=None, name=np.array(["a", "b", "c"])))
    assert teacher.row(entry("c", "FER2013Valid")) == 2


def test_metadata(tmp_path: Path) -> None:
    teacher = TeacherLandmarks(save(tmp_path / "a.npz"))
    assert teacher.columns() == {"mesh_pca": ("float32", 4), "race": "text"}
    metadata = teacher.metadata(entry("b.png", "FER2013Train"))  # without a face
    assert metadata == {"mesh_pca": COLUMNS["mesh_pca"][1].tolist(), "race": "White"}


def test_metadata_of_an_image_that_the_file_lacks(tmp_path: Path) -> None:
    assert TeacherLandmarks(save(tmp_path / "a.npz")).metadata(entry("z.png")) == {}


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (np.array(["a", "b", "c"]), "text"),
        (np.array([b"a", b"b", b"c"]), "text"),
        (np.array([1, 2, 3], np.uint16), "integer"),
        (np.array([True, False, True]), "integer"),
        (np.array([1, 2, 3], np.float16), "number"),
        (np.ones((3, 1), np.int8), ("float32", 1)),
        (np.ones((3, 2, 5)), ("float32", 10)),
    ],
)
def test_columns_of_each_type_fit_a_table(tmp_path: Path, column: np.ndarray, kind: ColumnType) -> None:
    teacher = TeacherLandmarks(save(tmp_path / "a.npz", race=None, mesh_pca=None, more=column))
    assert teacher.columns() == {"more": kind}
    with TableWriter(tmp_path / "a.arrow", teacher.columns()) as table:
        table.write([teacher.metadata(entry("a.png", "FER2013Valid"))])
    (row,) = Table(tmp_path / "a.arrow").rows()
    expected = column[2].decode() if isinstance(column[2], bytes) else column[2].ravel().tolist()
    assert np.ravel(row["more"]).tolist() == np.ravel(expected).tolist()


def test_landmarks_with_nan_are_not_found(tmp_path: Path) -> None:
    landmarks = COLUMNS["landmarks68"].copy()
    landmarks[0, 5, 1] = np.nan
    teacher = TeacherLandmarks(save(tmp_path / "a.npz", landmarks68=landmarks))
    assert teacher.landmarks_px(entry("a.png", "FER2013Train")) is None


def test_keys_that_cannot_name_a_column_are_left_out(tmp_path: Path) -> None:
    others = {"../../evil": np.zeros(3), "basis": np.zeros((7, 2)), "version": np.array(3)}
    others |= {"day": np.array(["2020-01-01"] * 3, "M8[D]"), "texts": np.full((3, 2), "a"), "wave": np.ones(3) * 1j}
    teacher = TeacherLandmarks(save(tmp_path / "a.npz", **others))
    assert set(teacher.columns()) == {"mesh_pca", "race"}
    assert set(teacher.metadata(entry("a.png", "FER2013Train"))) == {"mesh_pca", "race"}


OBJECTS = np.array([{"a": 1}, None, 3], object)
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, r"No such file or directory$"),
    "text": (lambda path: path.write_text("landmarks"), r"not a readable \.npz \("),
    "empty": (lambda path: path.write_text(""), r"not a readable \.npz \("),
    "one array": (lambda path: path.write_bytes(npy(np.zeros(3))), r"one array only; expected an \.npz with name"),
    "no landmarks": (lambda path: save(path, landmarks68=None, found=None), r"lacks found, landmarks68; expected"),
    "five landmarks": (
        lambda path: save(path, landmarks68=np.zeros((3, 5, 2))),
        r"landmarks68 has shape \(3, 5, 2\), expected \(3, 68, 2\)$",
    ),
    "rows missing": (lambda path: save(path, found=np.array([True])), r"found has shape \(1,\), expected \(3,\)$"),
    "text landmarks": (lambda path: save(path, landmarks68=np.full((3, 68, 2), "x")), "of type <U1, expected numbers$"),
    "objects": (lambda path: save(path, race=OBJECTS), r"not a readable \.npz \(Object arrays cannot be loaded"),
    "doubles": (lambda path: save(path, split=None), r"1 names occur twice; expected one row an image$"),
    "column of every pack": (
        lambda path: save(path, label=np.zeros(3), width=np.zeros(3)),
        r"label, width: every pack has a column of that name; expected another name$",
    ),
    "cut off": (
        lambda path: path.write_bytes(save(path).read_bytes()[:-40]),
        r"not a readable \.npz \(File is not a zip file\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(tmp_path: Path, case: str) -> None:
    make, message = BROKEN[case]
    make(tmp_path / "a.npz")
    with pytest.raises(NkfError, match=message) as caught:
        TeacherLandmarks(tmp_path / "a.npz")
    assert str(caught.value).startswith(str(tmp_path / "a.npz"))
    assert "\n" not in str(caught.value)
