"""Checking packs: each thing that is wrong is found on its own, and nothing in a clean pack."""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.check import CheckReport, check_pack, choose
from nkf.data.labels import EXPRESSIONS
from nkf.data.listing import KnownCount, known_to_json
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter, resplit
from nkf.data.tables import Table
from nkf.errors import NkfError
from nkf.geometry import MEAN_SHAPE

LABELS = ("happiness", "sadness")


def picture(number: int, side: int = 64) -> Image.Image:
    """A smooth picture of few coarse patches: no two of different numbers look alike, copies of other sizes do."""
    patches = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    return Image.fromarray(patches).resize((64, 64), Image.Resampling.BICUBIC).resize((side, side))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def sample(number: int, split: str, **changes: Any) -> Sample:
    made = Sample(f"{number:02}.png", split, encode(picture(number)), label=LABELS[number % 2])
    return replace(made, **changes)


def clean() -> list[Sample]:
    """Four train, two valid and two test images of two classes, all different."""
    splits = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    return [sample(number, split) for number, split in enumerate(splits)]


def write_pack(path: Path, samples: Sequence[Sample], **manifest: Any) -> Path:
    with PackWriter(path, {"dataset": "made", "source": "drawn", "licence": "none", **manifest}) as pack:
        for one in samples:
            pack.add(one)
    return path


def check(path: Path, samples: Sequence[Sample], **manifest: Any) -> CheckReport:
    return check_pack(write_pack(path / "pack", samples, **manifest))


def test_nothing_is_wrong_with_a_clean_pack(tmp_path: Path) -> None:
    report = check(tmp_path, clean())
    assert (report.problems, report.warnings, report.pairs, report.unreadable) == ([], [], [], [])
    assert (report.images, report.images_by_split) == (8, {"train": 4, "valid": 2, "test": 2})
    assert report.counts["label"]["train"] == {name: 2 if name in LABELS else 0 for name in EXPRESSIONS}
    assert [file.name for file in tmp_path.iterdir()] == ["pack"]
    assert sorted(file.name for file in (tmp_path / "pack").iterdir()) == [
        "images-00000.bin", "manifest.json", "rows.arrow",
    ]  # fmt: skip


KNOWN = {"happiness": 2, "sadness": 2}


@pytest.mark.parametrize(
    ("known", "problems"),
    [
        (KnownCount(4, KNOWN), []),
        (KnownCount(5), ["counts differ from the known made (label, train): total 4 not 5"]),
        (KnownCount(4, {"happiness": 1, "sadness": 2, "fear": 1}), [
            "counts differ from the known made (label, train): happiness 2 not 1, fear 0 not 1"]),
    ],
)  # fmt: skip
def test_counts_are_compared_with_the_known_ones(tmp_path: Path, known: KnownCount, problems: list[str]) -> None:
    report = check(tmp_path, clean(), known_counts=known_to_json({"label": {"train": known}}))
    assert report.problems == problems


def test_a_split_that_is_missing_is_a_warning(tmp_path: Path) -> None:
    report = check(tmp_path, clean()[:4], known_counts=known_to_json({"label": {"test": KnownCount(3068)}}))
    assert (report.problems, report.warnings) == ([], ["made: no images of the split test, a complete copy has 3,068"])


def test_a_valid_split_carved_out_of_train_counts_as_train(tmp_path: Path) -> None:
    known = known_to_json({"label": {"train": KnownCount(6)}})
    assert check(tmp_path, clean(), known_counts=known, valid_carved={"share": 0.3, "seed": 0}).problems == []


SAME_FILE, SAME_PIXELS = encode(picture(0)), encode(picture(0), compress_level=1)


@pytest.mark.parametrize(
    ("image_bytes", "kinds"), [(SAME_FILE, ["byte-identical", "pixel-identical"]), (SAME_PIXELS, ["pixel-identical"])]
)
@pytest.mark.parametrize(("where", "pair"), [(4, "valid in train"), (6, "test in train")])
def test_a_copy_in_another_split_is_wrong(
    tmp_path: Path, image_bytes: bytes, kinds: list[str], where: int, pair: str
) -> None:
    assert SAME_FILE != SAME_PIXELS
    samples = clean()
    samples[where] = replace(samples[where], image_bytes=image_bytes)
    report = check(tmp_path, samples)
    assert report.problems == [f"1 images are in two splits ({pair}), {kind}" for kind in kinds]
    assert report.pairs == [("same pixels", f"{samples[where].split}/{samples[where].name}", "train/00.png")]
    assert report.warnings == []  # a copy is not told again as being similar


def test_a_copy_in_all_three_splits_is_told_for_each_two(tmp_path: Path) -> None:
    samples = clean()
    for where in (4, 6):
        samples[where] = replace(samples[where], image_bytes=SAME_FILE)
    report = check(tmp_path, samples)
    assert {problem.partition(", ")[0] for problem in report.problems} == {
        f"1 images are in two splits ({pair})" for pair in ("valid in train", "test in train", "test in valid")
    }
    copies = {pair[1:] for pair in report.pairs}
    assert copies == {
        ("valid/04.png", "train/00.png"), ("test/06.png", "train/00.png"), ("test/06.png", "valid/04.png"),
    }  # fmt: skip


def test_copies_within_a_split_are_no_leak(tmp_path: Path) -> None:
    samples = clean()
    samples[2] = replace(samples[2], image_bytes=SAME_FILE)
    report = check(tmp_path, samples)
    assert (report.problems, report.warnings, report.pairs) == ([], [], [])


@pytest.mark.parametrize(
    "copy",
    [encode(picture(0, 48)), encode(picture(0), "JPEG", quality=60), encode(picture(0).point(lambda grey: grey * 0.9))],
    ids=["resized", "recompressed", "darker"],
)
def test_a_picture_that_is_nearly_the_same_in_another_split_is_a_warning(tmp_path: Path, copy: bytes) -> None:
    samples = clean()
    samples[7] = replace(samples[7], image_bytes=copy)
    report = check(tmp_path, samples)
    assert report.problems == []
    (warning,) = report.warnings
    assert warning == "1 pairs of images in two splits are nearly the same, 1 of train, 1 of test"
    assert report.pairs == [("similar", "train/00.png", "test/07.png")]


@pytest.mark.parametrize(("column", "what"), [("subject", "people"), ("photo", "photos")])
def test_a_person_a_photo_or_a_group_in_two_splits_is_wrong(tmp_path: Path, column: str, what: str) -> None:
    names = ["a", "b", "b", "", "c", "d", "a", ""]  # "" is nobody, and not the same one twice
    samples = [replace(one, metadata={column: name}) for one, name in zip(clean(), names, strict=True)]
    assert check(tmp_path, samples).problems == [f"1 {what} are in test and in train: a"]


def test_only_some_examples_are_named(tmp_path: Path) -> None:
    names = [f"S{number}" for number in range(7)]
    samples = [
        sample(2 * n + k, ("train", "test")[k], metadata={"subject": names[n]}) for n in range(7) for k in (0, 1)
    ]
    (problem,) = check(tmp_path, samples).problems
    assert problem == "7 people are in test and in train: S0, S1, S2, S3, S4, ..."


def overwrite(pack: Path, row: int, content: bytes) -> None:
    """Write over the beginning of an image file in a pack."""
    with (pack / "images-00000.bin").open("r+b") as stream:
        stream.seek(int(Pack(pack).column("offset")[row]))
        stream.write(content)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", clean())
    overwrite(pack, 5, b"no picture")
    report = check_pack(pack, tmp_path / "out")
    assert report.unreadable == ["valid/05.png"]
    changed, unreadable = report.problems
    assert changed == f"{pack}/images-00000.bin: changed since the import, its SHA-256 is not the one in manifest.json"
    assert unreadable == "1 unreadable images: valid/05.png"
    assert (tmp_path / "out" / "sheet-sadness.png").exists()  # of the others


def test_an_image_in_place_of_another_is_named(tmp_path: Path) -> None:
    samples = [replace(one, image_bytes=encode(picture(n), "BMP")) for n, one in enumerate(clean())]
    pack = write_pack(tmp_path / "pack", samples)
    overwrite(pack, 3, encode(picture(99), "BMP"))  # of the same length
    assert check_pack(pack).problems[1:] == ["1 images are not those that were imported: train/03.png"]


def test_pixels_that_another_decoder_made_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("nkf.data.pack_writer.pixels_md5", lambda image_rgb: f"{image_rgb.sum():032}")
        pack = write_pack(tmp_path / "pack", clean()[:1])
    report = check_pack(pack)
    assert report.problems == []
    assert report.warnings == ["1 images decode to other pixels than at the import: train/00.png"]


def test_changed_rows_are_wrong(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", clean())
    rows = Table(pack / "rows.arrow")
    resplit(pack / "rows.arrow", rows.columns, ["train"] * 7 + ["test"])
    report = check_pack(pack)
    assert report.images_by_split == {"train": 7, "test": 1}
    assert report.problems == [
        f"{pack}/rows.arrow: changed since the import, its SHA-256 is not the one in manifest.json"
    ]


def test_a_missing_shard_is_wrong(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", clean())
    (pack / "images-00000.bin").unlink()
    report = check_pack(pack, tmp_path / "out")
    assert report.problems[0] == f"{pack}/images-00000.bin: missing"
    assert report.problems[1].startswith("8 unreadable images: train/00.png, ")
    assert len(report.problems) == 2


def test_missing_or_broken_rows_are_one_line(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", clean())
    (pack / "rows.arrow").write_bytes(b"no table")
    with pytest.raises(NkfError, match=r"rows\.arrow: damaged table"):
        check_pack(pack)
    (pack / "rows.arrow").unlink()
    with pytest.raises(NkfError, match=r"rows\.arrow: damaged table"):
        check_pack(pack)
    with pytest.raises(NkfError, match="nowhere: no pack"):
        check_pack(tmp_path / "nowhere")


def test_a_manifest_that_says_less_is_no_crash(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", clean())
    needed = ("schema", "images", "images_by_split", "shards")
    kept = {key: value for key, value in Pack(pack).manifest.items() if key in needed}
    (pack / "manifest.json").write_text(json.dumps(kept))
    report = check_pack(pack)
    assert report.images_by_split == {"train": 4, "valid": 2, "test": 2}
    (problem,) = report.problems
    assert "rows.arrow" in problem


@pytest.mark.parametrize(
    ("box", "outside"),
    [
        ((-5, -5, 70, 70), False),  # detectors do that
        ((63, 63, 90, 90), False),
        ((64, 10, 90, 30), True),
        ((10, -30, 30, 0), True),
        ((-90, 10, -3, 30), True),
        ((30, 10, 20, 40), True),  # turned inside out
    ],
)
def test_a_box_outside_of_its_image_is_wrong(tmp_path: Path, box: tuple[float, ...], outside: bool) -> None:
    samples = clean()
    samples[2] = replace(samples[2], box_xyxy=np.array(box, np.float32))
    expected = ["1 boxes are empty or outside their images: 02.png"] if outside else []
    assert check(tmp_path, samples).problems == expected


def test_copies_with_several_labels_are_a_warning(tmp_path: Path) -> None:
    samples = clean()
    samples[1] = replace(samples[1], image_bytes=SAME_PIXELS)  # of sadness, a copy of one of happiness
    samples += [sample(20, "train"), replace(sample(21, "train"), image_bytes=encode(picture(20)), label=LABELS[0])]
    report = check(tmp_path, samples)
    assert report.problems == []
    assert report.warnings == ["1 of 2 pictures that come several times have several labels"]


def test_votes_decide_about_labels(tmp_path: Path) -> None:
    votes = [[0, 9, 1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 9, 0, 0, 0, 0, 0, 0, 0], [0, 8, 2, 0, 0, 0, 0, 0, 0, 0]]
    samples = [
        sample(n, "train", label=None, image_bytes=SAME_FILE, votes=np.array(row, np.uint8))
        for n, row in enumerate(votes)
    ]
    report = check(tmp_path, samples)
    assert report.warnings == ["1 of 1 pictures that come several times have several labels"]
    assert list(report.counts) == ["majority", "argmax8", "argmax10"]


def test_a_class_without_an_image_in_a_split_is_a_warning(tmp_path: Path) -> None:
    samples = [*clean(), sample(20, "train", label="fear"), sample(21, "test", label="fear")]
    assert check(tmp_path, samples).warnings == ["valid has no image of fear"]


def test_against_another_pack(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", clean())
    copies = [sample(30, "train"), replace(sample(31, "train"), image_bytes=SAME_PIXELS)]
    copies += [sample(32, "test"), replace(sample(33, "test"), image_bytes=encode(picture(2)))]
    other = write_pack(tmp_path / "other", copies)
    assert check_pack(pack, against=[other]).problems == [f"1 train images are in valid or test of {other}: 02.png"]
    assert check_pack(other, against=[pack]).problems == []  # what this one tests is in the other's train only
    with pytest.raises(NkfError, match="nowhere: no pack"):
        check_pack(pack, tmp_path / "out", against=[tmp_path / "nowhere"])
    assert not (tmp_path / "out").exists()


def test_files_of_a_check(tmp_path: Path) -> None:
    landmarks = MEAN_SHAPE.astype(np.float32) * 64
    samples = [replace(one, landmarks_px=landmarks, landmarks_source="teacher") for one in clean()]
    samples[4] = replace(samples[4], image_bytes=SAME_PIXELS)
    samples[7] = replace(samples[7], image_bytes=encode(picture(1), "JPEG", quality=60), name="=a,b.png")
    report = check_pack(write_pack(tmp_path / "pack", samples), tmp_path / "out" / "new")
    out = tmp_path / "out" / "new"
    assert sorted(file.name for file in out.iterdir()) == [
        "balance.png", "check.json", "duplicates.csv", "sheet-happiness.png", "sheet-near-duplicates.png",
        "sheet-sadness.png",
    ]  # fmt: skip
    saved = json.loads((out / "check.json").read_text())
    assert saved["schema"] == 1
    assert saved["problems"] == report.problems == ["1 images are in two splits (valid in train), pixel-identical"]
    assert saved["counts"]["label"]["test"]["happiness"] == 1
    with (out / "duplicates.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["kind", "image", "copy"],
            ["same pixels", "valid/04.png", "train/00.png"],
            ["similar", "train/01.png", "test/=a,b.png"],
        ]
    for file in out.glob("*.png"):
        with Image.open(file) as image:
            assert min(image.size) > 100


def test_an_earlier_sheet_of_near_duplicates_goes(tmp_path: Path) -> None:
    pack, out = write_pack(tmp_path / "pack", clean()), tmp_path / "out"
    out.mkdir()
    (out / "sheet-near-duplicates.png").touch()
    check_pack(pack, out)
    assert not (out / "sheet-near-duplicates.png").exists()


def test_a_pack_without_labels(tmp_path: Path) -> None:
    report = check_pack(write_pack(tmp_path / "pack", [replace(one, label=None) for one in clean()]), tmp_path / "out")
    assert (report.problems, report.warnings, report.counts) == ([], [], {})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["check.json", "duplicates.csv"]


def test_without_matplotlib_one_line_comes_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = write_pack(tmp_path / "pack", clean())
    monkeypatch.setattr("nkf.report.find_spec", lambda name: None)
    monkeypatch.setattr(Pack, "image_bytes", lambda *_: pytest.fail("work began"))
    with pytest.raises(NkfError, match=r"^drawing needs matplotlib: pip install matplotlib$"):
        check_pack(pack, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_packs_can_be_checked_where_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nkf.report.find_spec", lambda name: None)
    assert check(tmp_path, clean()).problems == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(NkfError, match="out: a file, expected a folder"):
        check_pack(write_pack(tmp_path / "pack", clean()), tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = write_pack(tmp_path / "pack", clean())
    (tmp_path / "file").touch()
    monkeypatch.setattr("nkf.data.check._read_all", lambda pack: pytest.fail("images are read"))
    with pytest.raises(NkfError, match=r"out: cannot be written \(Not a directory\); name another folder with --out$"):
        check_pack(pack, tmp_path / "file" / "out")


def test_images_of_all_shards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nkf.data.pack_writer.SHARD_BYTES", 1)
    monkeypatch.setattr("nkf.data.pack_writer.PART_ROWS", 3)
    samples = [replace(one, image_bytes=encode(picture(n), "BMP")) for n, one in enumerate(clean())]
    pack = write_pack(tmp_path / "pack", samples)
    assert len(list(pack.glob("images-*.bin"))) == 3
    assert check_pack(pack).problems == []
    shutil.copy(pack / "images-00000.bin", pack / "images-00001.bin")
    changed, others, *copies = check_pack(pack).problems
    assert changed.startswith(f"{pack}/images-00001.bin: changed since the import")
    assert others == "3 images are not those that were imported: train/03.png, valid/04.png, valid/05.png"
    assert copies == [f"2 images are in two splits (valid in train), {kind}-identical" for kind in ("byte", "pixel")]


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (50, 10)])
def test_a_choice_is_seeded_and_in_order(count: int, expected: int) -> None:
    rows = np.arange(100, 110)
    chosen = choose(rows, count, seed=3)
    assert len(chosen) == len(set(chosen)) == expected
    assert chosen == sorted(chosen) == choose(rows, count, seed=3)
    assert set(chosen) <= set(rows.tolist())
    assert count > 10 or chosen != choose(rows, count, seed=4)
