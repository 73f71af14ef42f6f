"""New splits of a pack: what stays together, what is linked, and what the new manifest says."""

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from nkf.data.check import check_pack
from nkf.data.listing import KnownCount, known_to_json
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter, write_manifest
from nkf.data.split import LOCK, fold_pack, split_pack
from nkf.errors import NkfError

LABELS = ("happiness", "sadness", "anger")


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_pack(
    path: Path,
    splits: Sequence[str],
    *,
    pictures: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    metadata: dict[str, Sequence[Any]] | None = None,
    **manifest: Any,
) -> Path:
    """A pack of tiny pictures; those of the same number are copies."""
    with PackWriter(path, {"dataset": "made", "source": "drawn", "licence": "none", **manifest}) as pack:
        for number, split in enumerate(splits):
            picture = number if pictures is None else pictures[number]
            name = f"{number:02}.png" if names is None else names[number]
            more = {key: values[number] for key, values in (metadata or {}).items()}
            pack.add(Sample(name, split, png(picture), label=LABELS[picture % 3], metadata=more))
    return path


def test_shares_of_each_class(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 48 + ["valid"] * 12)
    splits = split_pack(source, tmp_path / "out", valid=0.1, test=0.3, seed=1)
    pack = Pack(tmp_path / "out")
    assert pack.splits.tolist() == splits.tolist()
    assert Counter(zip(splits.tolist(), pack.column("label").tolist(), strict=True)) == {
        (split, label): count for split, count in (("train", 12), ("valid", 2), ("test", 6)) for label in LABELS
    }
    before = Pack(source)
    for name in before.table.columns:
        if name != "split":
            np.testing.assert_array_equal(pack.column(name), before.column(name))
    assert [pack.image_bytes(row) for row in range(60)] == [before.image_bytes(row) for row in range(60)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "source"]
    assert check_pack(tmp_path / "out").problems == []


def test_the_seed_makes_the_choice(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 30)
    first, again, other = (
        split_pack(source, tmp_path / str(n), valid=0.2, test=0, seed=s).tolist() for n, s in enumerate((3, 3, 4))
    )
    assert first == again != other
    assert Counter(first) == {"train": 24, "valid": 6}
    files = [(tmp_path / str(n) / name).read_bytes() for n in (0, 1) for name in ("manifest.json", "rows.arrow")]
    assert files[:2] == files[2:]


def test_the_manifest_tells_of_the_new_splits(tmp_path: Path) -> None:
    known = known_to_json({"label": {"train": KnownCount(17), "test": KnownCount(3)}})
    official = {"valid_carved": {"share": 0.1, "seed": 0}, "test_split_is": "the official validation set"}
    pictures = [*range(18), 0, 1]  # test has two copies of train images
    source = write_pack(
        tmp_path / "source", ["train"] * 17 + ["test"] * 3, pictures=pictures, known_counts=known, **official
    )
    split_pack(source, tmp_path / "out", valid=0.2, test=0.2, seed=7)
    manifest = Pack(tmp_path / "out").manifest
    assert manifest["split"] == {"valid": 0.2, "test": 0.2, "seed": 7, "by": ""}
    assert manifest["images_by_split"] == {"train": 12, "valid": 4, "test": 4}
    assert {split: sum(row.values()) for split, row in manifest["counts"]["label"].items()} == {
        "train": 12, "valid": 4, "test": 4,
    }  # fmt: skip
    assert set(manifest["leaks_found"].values()) == {0}
    assert (manifest["known_counts"], manifest["valid_carved"], manifest["test_split_is"]) == ({}, None, None)
    assert manifest["licence"] == "none"
    assert check_pack(tmp_path / "out").problems == []


def test_test_may_stay_as_it_is(tmp_path: Path) -> None:
    known = known_to_json({"label": {"train": KnownCount(30), "test": KnownCount(10)}})
    source = write_pack(
        tmp_path / "source", ["train"] * 30 + ["test"] * 10, known_counts=known, test_split_is="the official one"
    )
    splits = split_pack(source, tmp_path / "out", valid=0.2, test=0, seed=1, keep_test=True)
    assert splits[30:].tolist() == ["test"] * 10
    assert Counter(splits[:30].tolist()) == {"train": 24, "valid": 6}
    manifest = Pack(tmp_path / "out").manifest
    assert manifest["test_split_is"] == "the official one"
    assert manifest["valid_carved"] == {"share": 0.2, "seed": 1}
    assert check_pack(tmp_path / "out").problems == []  # train and valid together have the known count


def test_an_official_valid_split_that_is_shared_out_anew_counts_as_train(tmp_path: Path) -> None:
    counts = {"train": KnownCount(20, {"fear": 0}), "valid": KnownCount(4, {"fear": 1}), "test": KnownCount(3)}
    known = known_to_json({"label": counts})
    source = write_pack(tmp_path / "source", ["train"] * 20 + ["valid"] * 4 + ["test"] * 3, known_counts=known)
    splits = split_pack(source, tmp_path / "out", valid=0.5, test=0, keep_test=True)
    assert Counter(splits.tolist()) == {"train": 12, "valid": 12, "test": 3}
    manifest = Pack(tmp_path / "out").manifest
    assert manifest["valid_carved"] == {"share": 0.5, "seed": 0}
    assert manifest["known_counts"] == known_to_json(
        {"label": {"train": KnownCount(24, {"fear": 1}), "test": KnownCount(3)}}
    )
    assert check_pack(tmp_path / "out").problems == [
        "counts differ from the known made (label, train): fear 0 not 1"  # as of the whole
    ]
    split_pack(tmp_path / "out", tmp_path / "again", valid=0.25, test=0, keep_test=True)
    assert Pack(tmp_path / "again").manifest["known_counts"] == manifest["known_counts"]


def test_rows_without_an_image_count_for_train_and_valid_together(tmp_path: Path) -> None:
    known = known_to_json({"label": {"train": KnownCount(9), "valid": KnownCount(4)}})
    gone = {"label": {"train": {"anger": 1}, "valid": {"anger": 1}}}
    more = {"known_counts": known, "counts_not_in_pack": gone}
    source = write_pack(tmp_path / "source", ["train"] * 8 + ["valid"] * 3 + ["test"], **more)
    split_pack(source, tmp_path / "out", valid=0.5, test=0, keep_test=True)
    assert check_pack(tmp_path / "out").problems == []


LINKED = [("subject", ""), ("subject", "subject"), ("photo", ""), ("family", "family")]


@pytest.mark.parametrize(("column", "by"), LINKED)
def test_people_photos_groups_and_copies_stay_together(tmp_path: Path, column: str, by: str) -> None:
    groups = [f"G{number // 3}" for number in range(30)]
    pictures = [*range(27), 0, 3, 6]  # the last group has copies of the first three ones' pictures
    source = write_pack(tmp_path / "source", ["train"] * 30, pictures=pictures, metadata={column: groups})
    splits = split_pack(source, tmp_path / "out", valid=0.2, test=0.3, by=by)
    assert set(splits.tolist()) == {"train", "valid", "test"}
    for group in set(groups):
        assert len({split for split, own in zip(splits, groups, strict=True) if own == group}) == 1
    assert len({splits[row] for row in (0, 3, 6, 27)}) == 1
    assert check_pack(tmp_path / "out").problems == []


def test_copies_stay_together_without_any_group(tmp_path: Path) -> None:
    pictures = [number // 2 for number in range(40)]
    splits = split_pack(
        write_pack(tmp_path / "source", ["train"] * 40, pictures=pictures), tmp_path / "out", valid=0.5, test=0
    )
    assert Counter(splits.tolist()) == {"train": 20, "valid": 20}
    assert (splits[::2] == splits[1::2]).all()


def test_names_that_come_together_are_told_apart(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(12)] + [f"{number}.jpg" for number in range(6)]
    source = write_pack(tmp_path / "source", ["train"] * 12 + ["test"] * 6, names=names)
    before = Pack(source)
    for path in fold_pack(source, tmp_path / "folds", count=3):
        pack = Pack(path)
        paths = [f"{split}/{name}" for split, name in zip(pack.splits, pack.names, strict=True)]
        assert len(set(paths)) == 18
        assert pack.names.tolist() == [
            f"{split}/{name}" if names.count(name) > 1 else name
            for split, name in zip(before.splits.tolist(), names, strict=True)
        ]
    split_pack(source, tmp_path / "kept", valid=0.5, test=0, keep_test=True)
    assert Pack(tmp_path / "kept").names.tolist() == names  # none of them come together


def test_folds_test_every_row_once_and_link_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nkf.data.pack_writer.SHARD_BYTES", 1)
    monkeypatch.setattr("nkf.data.pack_writer.PART_ROWS", 5)
    source = write_pack(tmp_path / "source", ["train"] * 14 + ["test"] * 7)
    made = fold_pack(source, tmp_path / "new" / "folds", count=3, seed=2)
    assert made == [tmp_path / "new" / "folds" / f"fold-0{n}" for n in range(3)]
    packs = [Pack(path) for path in made]
    tested = np.stack([pack.splits == "test" for pack in packs])
    assert (tested.sum(axis=0) == 1).all()
    assert tested.sum(axis=1).tolist() == [7, 7, 7]
    for fold, pack in enumerate(packs):
        assert set(pack.splits.tolist()) == {"train", "test"}
        assert pack.manifest["split"] == {"fold": fold, "folds": 3, "seed": 2, "by": ""}
        for file in source.glob("images-*.bin"):
            assert os.path.samefile(file, pack.path / file.name)
        assert pack.image_bytes(20) == Pack(source).image_bytes(20)
    assert len(list(source.glob("images-*.bin"))) == 5


def test_images_are_copied_where_the_disk_knows_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    source = write_pack(tmp_path / "source", ["train"] * 6)
    monkeypatch.setattr("nkf.data.split.os.link", refuse)
    split_pack(source, tmp_path / "out", valid=0.5, test=0)
    file = tmp_path / "out" / "images-00000.bin"
    assert file.stat().st_nlink == 1
    assert file.read_bytes() == (source / file.name).read_bytes()


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"valid": 0.0, "test": 0.0}, "valid 0 and test 0: expected shares from 0 to below 1, and one above 0"),
    ({"valid": 0.6, "test": 0.4}, "valid 0.6 and test 0.4: expected shares"),
    ({"valid": -0.1, "test": 0.4}, "valid -0.1 and test 0.4: expected shares"),
    ({"valid": float("nan"), "test": 0.4}, "valid nan and test 0.4: expected shares"),
    ({"valid": 0.1, "test": 0.4, "keep_test": True}, "keep_test: the test split stays as it is"),
    ({"valid": 0.1, "test": 0.4, "seed": -1}, "seed -1: expected a whole number from 0"),
    ({"valid": 0.1, "test": 0.4, "by": "photo"}, "source: has no column 'photo'; its metadata columns: subject$"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_unusable_wishes_are_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 6, metadata={"subject": list("abcdef")})
    with pytest.raises(NkfError, match=message) as raised:
        split_pack(source, tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1}, "1 folds: expected two or more"),
        ({"count": 4}, "3 groups of images cannot be split into 4 parts"),
        ({"count": 2, "seed": -1}, "seed -1: expected a whole number from 0"),
        ({"count": 2, "by": "family"}, "source: has no column 'family'; its metadata columns: subject$"),
    ],
)
def test_unusable_folds_are_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 6, metadata={"subject": list("aabbcc")})
    with pytest.raises(NkfError, match=message):
        fold_pack(source, tmp_path / "out", **options)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_what_exists_is_not_replaced(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 6)
    (tmp_path / "out").mkdir()
    with pytest.raises(NkfError, match="out: exists already; name a new folder"):
        split_pack(source, tmp_path / "out", valid=0.5, test=0)
    with pytest.raises(NkfError, match="out: exists already; name a new folder"):
        fold_pack(source, tmp_path / "out", count=2)
    with pytest.raises(NkfError, match="source: exists already"):
        split_pack(source, source, valid=0.5, test=0)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(NkfError, match="nowhere: no pack"):
        split_pack(tmp_path / "nowhere", tmp_path / "new", valid=0.5, test=0)


def both(source: Path, out: Path) -> list[Callable[[], object]]:
    """The two ways to make new packs."""
    return [lambda: split_pack(source, out, valid=0.5, test=0), lambda: fold_pack(source, out, count=2)]


def test_a_folder_of_someone_else_is_not_deleted(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 6)
    mine = tmp_path / "out.partial" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    for make in both(source, tmp_path / "out"):
        with pytest.raises(NkfError, match=r"out\.partial: is in the way, and not of another split; rename it"):
            make()
    assert mine.read_text() == "keep"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.partial", "source"]


def test_two_runs_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 6)
    (tmp_path / "out.partial" / "fold-00").mkdir(parents=True)
    with FileLock(tmp_path / "out.partial" / LOCK):  # of the other run
        for make in both(source, tmp_path / "out"):
            with pytest.raises(NkfError, match="out: another split is writing it; wait for it, or name another folder"):
                make()
    assert (tmp_path / "out.partial" / "fold-00").is_dir()


@pytest.mark.parametrize("kind", [0, 1])
def test_after_a_kill_the_same_command_starts_anew(tmp_path: Path, kind: int) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 6)
    (tmp_path / "out.partial" / "fold-07").mkdir(parents=True)
    (tmp_path / "out.partial" / "rows.arrow").write_text("half a table")
    (tmp_path / "out.partial" / LOCK).touch()
    both(source, tmp_path / "out")[kind]()
    made = {"images-00000.bin", "manifest.json", "rows.arrow"} if kind == 0 else {"fold-00", "fold-01"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == made
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "source"]


def test_folds_appear_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 6)
    made = []

    def fail_later(folder: Path, *arguments: Any) -> None:
        made.append(folder.name)
        if len(made) == 2:
            raise OSError(28, "No space left on device")
        write_manifest(folder, *arguments)

    monkeypatch.setattr("nkf.data.split.write_manifest", fail_later)
    with pytest.raises(NkfError, match=r"out: cannot be written \(No space left on device\)"):
        fold_pack(source, tmp_path / "out", count=3)
    assert made == ["fold-00", "fold-01"]
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 6)
    (tmp_path / "file").touch()
    with pytest.raises(NkfError, match=r"file/out: cannot be written \(Not a directory\)"):
        split_pack(source, tmp_path / "file" / "out", valid=0.5, test=0)
    (source / "images-00000.bin").unlink()
    with pytest.raises(NkfError, match=r"source/images-00000\.bin: missing; import the dataset again$"):
        split_pack(source, tmp_path / "out", valid=0.5, test=0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "source"]


def test_a_split_of_a_split(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", ["train"] * 30)
    split_pack(source, tmp_path / "one", valid=0, test=0.5)
    splits = split_pack(tmp_path / "one", tmp_path / "two", valid=0.2, test=0, keep_test=True)
    assert Counter(splits.tolist()) == {"train": 12, "valid": 3, "test": 15}
    (tmp_path / "one" / "images-00000.bin").unlink()  # the new pack needs neither of the old ones
    assert check_pack(tmp_path / "two").problems == []
