"""Imports of a table of one's own that go on: after an error at their end, and not after the table was changed."""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data import importers, pack_writer
from nkf.data.formats.ferplus import list_ferplus
from nkf.data.formats.table import list_table
from nkf.data.identity import describe, files_bound, refuse_changed, stamp
from nkf.data.importers import ImportOptions, import_dataset, usable_landmarks
from nkf.data.listing import Listing
from nkf.data.pack import Pack
from nkf.data.sources import Source, file_stamp
from nkf.errors import NkfError
from nkf.geometry import Points

ROWS = [(f"{number}.png", ("sad", "happy")[number % 2], "ann") for number in range(8)]


def png(seed: int, shape: tuple[int, ...] = (20, 20, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(source: Path, rows: Iterable[Iterable[str]] = ROWS) -> None:
    lines = [",".join(row) + "\n" for row in rows]
    (source / "t.csv").write_text("path,label,subject\n" + "".join(lines))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of eight pictures of one person; parts of an import have two."""
    monkeypatch.setattr(pack_writer, "PART_ROWS", 2)
    folder = tmp_path / "source"
    folder.mkdir()
    for number, (name, *_) in enumerate(ROWS):
        (folder / name).write_bytes(png(number))
    write_table(folder)
    return folder


def interrupted(items: Iterable[Any], text: str, _: int, /) -> Iterator[Any]:
    for number, item in enumerate(items):
        if text == "Importing" and number == 7:
            raise KeyboardInterrupt
        yield item


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def labels(pack: Path) -> set[str]:
    return set(Pack(pack).column("label").tolist())


def test_a_table_that_was_corrected_is_not_gone_on_with(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importers, "READ_AHEAD", 1)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(list_table, source, tmp_path / "pack", progress=interrupted)
    write_table(source, [(name, "angry", subject) for name, _, subject in ROWS])
    message = (
        rf"^{source / 't.csv'}: the label table changed since the import began; "
        rf"remove the folder {tmp_path / 'pack.partial'} to start anew$"
    )
    for _ in range(2):
        with pytest.raises(NkfError, match=message):
            import_dataset(list_table, source, tmp_path / "pack")
    assert len(list((tmp_path / "pack.partial").glob("part-*.arrow"))) > 0
    for file in (tmp_path / "pack.partial").iterdir():
        file.unlink()
    import_dataset(list_table, source, tmp_path / "pack")
    assert labels(tmp_path / "pack") == {"anger"}


def test_a_table_outside_of_the_source_is_watched_too(tmp_path: Path) -> None:
    votes = tmp_path / "votes.csv"
    votes.write_text("one")
    bound = files_bound(partial(list_ferplus, fer2013new=votes))
    assert bound == {str(votes.resolve()): file_stamp(votes)}
    refuse_changed(tmp_path / "elsewhere", bound, tmp_path / "pack.partial")
    votes.write_text("other")
    with pytest.raises(
        NkfError, match=r"votes\.csv: the label table changed since the import began; remove the folder"
    ):
        refuse_changed(tmp_path / "elsewhere", bound, tmp_path / "pack.partial")
    assert files_bound(list_ferplus) == {}


def test_stamps_tell_a_change_that_keeps_the_size(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    before = stamp(file)
    os.utime(file, ns=(0, 1))
    assert stamp(file) != before
    assert stamp(file) == [str(file.resolve()), 3, 1]


def test_what_a_reader_is_called() -> None:
    assert describe(list_table) == "list_table"
    assert describe(partial(list_table, "a.csv", shows="face")) == "list_table('a.csv', shows='face')"
    assert describe(partial(list_table, "b.csv", shows="face")) != describe(partial(list_table, "a.csv", shows="face"))


def test_what_cannot_be_carved_out_does_not_undo_the_work(source: Path, tmp_path: Path) -> None:
    options = ImportOptions(valid_share=0.5, licence="ours")
    for _ in range(2):
        with pytest.raises(
            NkfError, match=r"^valid_share 0\.5: 1 group.*with another, or none, the import goes on at its"
        ):
            import_dataset(list_table, source, tmp_path / "pack", options)
    for name, *_ in ROWS:
        (source / name).unlink()  # not read again
    report = import_dataset(list_table, source, tmp_path / "pack", ImportOptions(licence="theirs", seed=3))
    assert report.images == {"train": 8}
    assert Pack(tmp_path / "pack").manifest["licence"] == "theirs"
    assert names(tmp_path) == ["pack", "source"]


def test_an_error_after_the_listing_keeps_the_list(source: Path, tmp_path: Path) -> None:
    def list_once(source: Source) -> Listing:
        assert not (tmp_path / "pack.partial" / "index-done.json").exists()
        return list_table(source)

    np.savez(tmp_path / "t.npz", name=["x.png"], found=np.array([True]), landmarks68=np.zeros((1, 68, 2)))
    for _ in range(2):
        with pytest.raises(NkfError, match=r"t\.npz: names none of these images"):
            import_dataset(list_once, source, tmp_path / "pack", ImportOptions(landmarks=tmp_path / "t.npz"))
        assert (tmp_path / "pack.partial" / "index-done.json").exists()
    import_dataset(list_table, source, tmp_path / "pack")  # without parts, another call starts anew
    assert names(tmp_path) == ["pack", "source", "t.npz"]


def test_many_unreadable_images_are_told_together(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importers, "TOLD_SINGLY", 3)
    write_table(source, [*ROWS, *((f"gone{number}.png", "sad", "bob") for number in range(1500))])
    report = import_dataset(list_table, source, tmp_path / "pack")
    assert report.images_skipped == Pack(tmp_path / "pack").manifest["images_skipped"] == 1500
    assert [f"skipped {source}/gone{number}.png: No such file or directory" for number in range(3)] == list(
        report.warnings[:3]
    )
    assert report.warnings[3:] == ("... and 1,497 more unreadable images",)


def test_a_source_without_its_images_is_told_early(source: Path, tmp_path: Path) -> None:
    write_table(source, [(f"gone{number}.png", "sad", "bob") for number in range(1500)])
    message = r"pack: none of the first 200 images is readable \(skipped .*gone0\.png: No such file or directory\)$"
    with pytest.raises(NkfError, match=message):
        import_dataset(list_table, source, tmp_path / "pack")
    assert names(tmp_path) == ["source"]


def test_a_pack_may_not_lie_in_its_source(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for out in (source / "pack", source / "a" / "pack", tmp_path / "link" / "pack", source):
        with pytest.raises(NkfError, match=r": lies in the folder that is imported; name one outside of .*source$"):
            import_dataset(list_table, source, out)
    assert "pack.partial" not in names(source)


def test_pictures_in_memory_are_bounded_by_their_size(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def find(images: Any, *_: Any) -> list[Points | None]:
        searched.append(len(images))
        return [None] * len(images)

    size = 20 * 20 * 3
    for limit, expected in [(1, [1] * 8), (3 * size, [2] * 4), (100 * size, [8])]:
        searched.clear()
        monkeypatch.setattr(importers, "BATCH_BYTES", limit)
        import_dataset(list_table, source, tmp_path / f"pack{limit}", ImportOptions(find_faces=find))
        assert searched == expected
    files = [(tmp_path / f"pack{limit}" / "rows.arrow").read_bytes() for limit in (1, 3 * size, 100 * size)]
    assert files[0] == files[1] == files[2]


def test_pixels_are_only_kept_to_be_searched(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    without = pack_writer.Picture.without_pixels

    def noting(picture: pack_writer.Picture) -> pack_writer.Picture:
        black = without(picture)
        kept.append(black.image_rgb.base.nbytes)
        assert black.image_rgb.shape == picture.image_rgb.shape
        assert replace(black, image_rgb=picture.image_rgb) == picture
        return black

    monkeypatch.setattr(pack_writer.Picture, "without_pixels", noting)
    import_dataset(list_table, source, tmp_path / "none")
    assert kept == [1] * 8
    assert Pack(tmp_path / "none").column("width").tolist() == [20] * 8
    import_dataset(
        list_table, source, tmp_path / "all", ImportOptions(find_faces=lambda images, *_: [None] * len(images))
    )
    assert len(kept) == 8


FACE = np.arange(136, dtype=np.float32).reshape(68, 2)
NO_FACE = {
    "not finite": np.where(np.arange(136).reshape(68, 2) == 7, np.inf, FACE),
    "missing": np.full((68, 2), np.nan),
    "in one place": np.full((68, 2), 3.0),
    "far away": FACE + 2e6,
}


@pytest.mark.parametrize("case", NO_FACE)
def test_landmarks_of_no_face_count_as_not_found(source: Path, tmp_path: Path, case: str) -> None:
    assert usable_landmarks(NO_FACE[case]) is None
    assert usable_landmarks(FACE) is FACE
    options = ImportOptions(find_faces=lambda images, *_: [FACE] + [NO_FACE[case]] * (len(images) - 1))
    report = import_dataset(list_table, source, tmp_path / "pack", options)
    assert (report.landmarks_found, report.landmarks_missing) == (1, 7)


def test_landmarks_of_a_dataset_that_are_no_face_are_searched(source: Path, tmp_path: Path) -> None:
    def list_far(source: Source) -> Listing:
        listing = list_table(source)
        entries = listing.entries
        listing.entries = (replace(entry, landmarks_px=NO_FACE["far away"]) for entry in entries)
        return listing

    options = ImportOptions(find_faces=lambda images, *_: [FACE] * len(images))
    import_dataset(list_far, source, tmp_path / "pack", options)
    assert set(Pack(tmp_path / "pack").column("landmarks_source").tolist()) == {"fan"}
    import_dataset(list_far, source, tmp_path / "unsearched")
    assert set(Pack(tmp_path / "unsearched").column("landmarks_source").tolist()) == {"none"}
