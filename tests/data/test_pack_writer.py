"""Writing packs: whole or not at all, in parts that survive a kill, in several files of images."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_packs import IDENTITY, names, png, sample, write

from nkf.data import pack_writer
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter, Picture
from nkf.data.tables import Table
from nkf.errors import ImageError, NkfError
from nkf.files import file_sha256


def test_undecodable_image_leaves_the_pack_as_it_was(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "pack", {}) as writer:
        writer.add(sample(0))
        with pytest.raises(ImageError, match=r"^bad\.png: not an image"):
            writer.add(Sample("bad.png", "train", b"no image"))
        writer.add(sample(1))
        assert writer.notes.consumed == 2
    pack = Pack(tmp_path / "pack")
    assert pack.names.tolist() == ["0.png", "1.png"]
    assert pack.image_bytes(1) == png(1)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_existing_path_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pack"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("mine")
    with pytest.raises(NkfError, match=r"pack: exists already; name a new folder for the pack$"):
        PackWriter(path, {})
    assert kind == "folder" or path.read_text() == "mine"


def test_unwritable_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(NkfError, match=r"file/pack: cannot be written \(Not a directory\)$"),
        PackWriter(tmp_path / "file" / "pack", {}),
    ):
        pytest.fail("the block must not run")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the refusal is made up."""

    def acquire(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with (
        pytest.raises(NkfError, match=r"pack: cannot be written \(Permission denied\)$"),
        PackWriter(tmp_path / "pack", {}),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("identity", [None, IDENTITY])
@pytest.mark.parametrize("skipped", [0, 1])
def test_empty_pack_is_refused(tmp_path: Path, identity: Mapping[str, Any] | None, skipped: int) -> None:
    def write() -> None:
        with PackWriter(tmp_path / "pack", {}, identity=identity) as writer:
            for _ in range(skipped):
                writer.skip("skipped a.png: empty file")

    with pytest.raises(NkfError, match=r"pack: the source holds no readable image to pack") as caught:
        write()
    first = " (skipped a.png: empty file)" if skipped else ""
    assert str(caught.value).endswith(f"to pack{first}")
    assert names(tmp_path) == []


@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_names_twice_in_a_split_are_refused(tmp_path: Path, identity: Mapping[str, Any] | None) -> None:
    def write() -> None:
        with PackWriter(tmp_path / "pack", {}, identity=identity) as writer:
            for number, name, split in [(0, "0", "train"), (1, "0", "train"), (2, "1", "test"), (3, "1", "test")]:
                writer.add(sample(number, name=f"{name}.png", split=split))

    with pytest.raises(NkfError, match=r"pack: train: 1 names come twice, such as 0\.png$") as caught:
        write()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == (["pack.partial"] if identity else [])


def test_a_name_may_come_in_each_split(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "pack", {}) as writer:
        for number, split in enumerate(["train", "valid", "test"]):
            writer.add(sample(number, name="a.png", split=split))
    assert Pack(tmp_path / "pack").names.tolist() == ["a.png"] * 3


def test_two_faces_of_one_photo_share_their_bytes(tmp_path: Path) -> None:
    photo = png(1)
    with PackWriter(tmp_path / "pack", {}) as writer:
        for number, data in enumerate([png(0), photo, photo, photo, png(2), photo]):
            box_xyxy = np.array([number, 0, number + 1, 1], np.float32)
            writer.add(sample(number, image_bytes=data, box_xyxy=box_xyxy))
    pack = Pack(tmp_path / "pack")
    offset, length = pack.column("offset"), pack.column("length")
    assert offset[1] == offset[2] == offset[3] == len(png(0))
    assert len({*offset.tolist()}) == 4
    assert [pack.image_bytes(row) for row in range(6)] == [png(0), photo, photo, photo, png(2), photo]
    assert (tmp_path / "pack" / "images-00000.bin").stat().st_size == len(png(0) + photo + png(2) + photo)
    assert length.tolist() == [len(png(0)), *[len(photo)] * 3, len(png(2)), len(photo)]
    assert pack.column("box_xyxy")[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_picture_that_a_caller_has_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Picture.decode(png(0), "a.png")
    assert picture.bytes_md5 == hashlib.md5(png(0)).hexdigest()
    assert picture.image_rgb.shape == (8, 6, 3)
    monkeypatch.setattr(Picture, "decode", None)
    with PackWriter(tmp_path / "pack", {}) as writer:
        writer.add(sample(0), picture)
    assert Pack(tmp_path / "pack").column("pixels_md5").tolist() == [picture.pixels_md5]


@pytest.mark.parametrize(
    ("limit", "shards"),
    [("SHARD_BYTES", [2, 2, 2, 1]), ("PART_BYTES", [7]), ("both", [1] * 7)],
)
def test_several_images_files(
    tmp_path: Path, small_parts: None, limit: str, shards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of images ends with a part, so a limit of one byte makes one for each part."""
    for name in ("SHARD_BYTES", "PART_BYTES") if limit == "both" else (limit,):
        monkeypatch.setattr(pack_writer, name, 1)
    write(tmp_path / "pack", 7)
    pack = Pack(tmp_path / "pack")
    assert [pack.image_bytes(row) for row in range(7)] == [png(row) for row in range(7)]
    assert np.bincount(pack.column("shard")).tolist() == shards
    described = [
        {"file": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted((tmp_path / "pack").glob("images-*.bin"))
    ]
    assert pack.manifest["shards"] == described
    assert [shard["file"] for shard in described] == [f"images-{k:05}.bin" for k in range(len(shards))]
    for first in np.flatnonzero(np.diff(pack.column("shard"), prepend=-1)):
        assert pack.column("offset")[first] == 0


def test_columns_of_metadata(tmp_path: Path, small_parts: None) -> None:
    rows: list[dict[str, Any]] = [
        {"subject": "Ann", "age": 3, "pose": 0.5, "shape": np.arange(2.0), "known": True},
        {"subject": None},
        {},
        {"age": 4, "shape": np.ones(2), "known": False},
    ]
    with PackWriter(tmp_path / "pack", {}) as writer:
        for number, metadata in enumerate(rows):
            writer.add(sample(number, metadata=metadata))
    pack = Pack(tmp_path / "pack")
    assert pack.metadata_names == ["subject", "age", "pose", "shape", "known"]
    assert pack.column("subject").tolist() == ["Ann", "", "", ""]
    np.testing.assert_array_equal(pack.column("age"), [3, np.nan, np.nan, 4])
    np.testing.assert_array_equal(pack.column("pose"), np.array([0.5, np.nan, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(pack.column("shape"), [[0, 1], [np.nan] * 2, [np.nan] * 2, [1, 1]])
    np.testing.assert_array_equal(pack.column("known"), [1, np.nan, np.nan, 0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"size": np.ones(2)}, {"size": np.ones(3)}], "inhomogeneous shape|cannot reshape"),
        ([{}, {"subject": "Ann"}], "no columns for subject"),
        ([{"age": 3}, {"age": "three"}], "three"),
    ],
    ids=["unequal shapes", "unknown column", "another type"],
)
def test_metadata_that_fits_no_column_is_a_mistake(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    def write() -> None:
        with PackWriter(tmp_path / "pack", {}) as writer:
            for number, metadata in enumerate(rows):
                writer.add(sample(number, metadata=metadata))

    with pytest.raises((ValueError, TypeError), match=message):
        write()
    assert names(tmp_path) == []


def test_unknown_source_of_landmarks_is_a_mistake(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "pack", {}) as writer:
        with pytest.raises(ValueError, match=r"^landmarks_source 'me': not one of "):
            writer.add(sample(0, landmarks_source="me"))
        writer.add(sample(1))
    assert Pack(tmp_path / "pack").names.tolist() == ["1.png"]


def test_new_splits_and_more_for_the_manifest_at_the_end(tmp_path: Path, small_parts: None) -> None:
    def split_by(rows: Table) -> Any:
        assert len(rows) == 5
        return np.where(rows.column("name") == "3.png", "valid", rows.column("split"))

    def describe(rows: Table) -> dict[str, Any]:
        return {"valid": int((rows.column("split") == "valid").sum()), "dataset": "described"}

    with PackWriter(tmp_path / "pack", {"dataset": "made up", "licence": "none"}) as writer:
        for number in range(5):
            writer.add(sample(number))
        writer.split_by, writer.describe = split_by, describe
        writer.manifest["licence"] = "changed"
    pack = Pack(tmp_path / "pack")
    assert pack.splits.tolist() == ["train", "train", "train", "valid", "train"]
    assert (pack.manifest["valid"], pack.manifest["dataset"], pack.manifest["licence"]) == (1, "described", "changed")
    assert pack.manifest["images_by_split"] == {"train": 4, "valid": 1}
    assert pack.manifest["rows_sha256"] == file_sha256(pack.path / "rows.arrow")


@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_splits_that_cannot_be_made_keep_the_parts(tmp_path: Path, identity: Any) -> None:
    def split_by(_: Table) -> Any:
        raise NkfError("one image cannot be split")

    def write() -> None:
        with PackWriter(tmp_path / "pack", {}, identity=identity) as writer:
            writer.add(sample(0))
            writer.split_by = split_by

    with pytest.raises(NkfError, match=r"^one image cannot be split$"):
        write()
    assert names(tmp_path) == (["pack.partial"] if identity else [])
    with PackWriter(tmp_path / "pack", {}, identity=identity) as writer:
        assert writer.notes.consumed == (1 if identity else 0)
        writer.add(sample(1))
    assert Pack(tmp_path / "pack").names.tolist() == (["0.png"] if identity else []) + ["1.png"]


@pytest.mark.parametrize("length", [-1, 1])
def test_images_that_do_not_end_where_the_rows_say(tmp_path: Path, length: int) -> None:
    partial = tmp_path / "pack.partial"

    def change(_: Table) -> dict[str, Any]:
        os.truncate(partial / "images-00000.bin", len(png(0)) + length)
        return {}

    def write() -> None:
        with PackWriter(tmp_path / "pack", {}, identity=IDENTITY) as writer:
            writer.add(sample(0))
            writer.describe = change

    message = (
        rf"images-00000\.bin: damaged, {len(png(0)) + length} bytes, expected {len(png(0))}; remove .* import again$"
    )
    with pytest.raises(NkfError, match=message):
        write()
    assert names(tmp_path) == ["pack.partial"]


def test_images_of_which_none_is_readable_end_it_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_writer, "HOPELESS", 3)
    skipped = []

    def write(name: str, *samples: Sample) -> None:
        with PackWriter(tmp_path / name, {}, identity=IDENTITY) as writer:
            for one in samples:
                writer.add(one)
            for number in range(9):
                skipped.append(number)
                writer.skip(f"skipped {number}.png: gone")

    write("some", sample(0))
    assert skipped == list(range(9))
    with pytest.raises(NkfError, match=r"pack: none of the first 3 images is readable \(skipped 0\.png: gone\)$"):
        write("pack")
    assert skipped == [*range(9), 0, 1, 2]
    assert names(tmp_path) == ["some"]
