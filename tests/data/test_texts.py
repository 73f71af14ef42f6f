"""What the commands print: tables by split and class, warnings on standard error."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.check import CheckReport
from nkf.data.counts import ImportReport, count_classes
from nkf.data.labels import VOTE_COLUMNS
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.data.texts import print_check, print_counts, print_pack, print_report, print_table


def grey(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (6, 6), level).save(stream, "PNG")
    return stream.getvalue()


def test_tables_are_aligned_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["split", "n"], ["train", "1,234"], ["a", ""]])
    assert capsys.readouterr().out.split("\n") == ["split      n", "train  1,234", "    a       ", ""]


def test_labels_are_counted_by_split_and_class(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.array(["fear", "", "fear", "anger"])
    counts = count_classes(np.array(["train"] * 3 + ["test"]), np.zeros((4, 10), np.uint8), labels)
    print_counts({"train": 3, "test": 1}, counts)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["split", "images", "neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt",
         "labelled"],
        ["train", "3", "0", "0", "0", "0", "2", "0", "0", "0", "2"],
        ["test", "1", "0", "0", "0", "0", "0", "0", "1", "0", "1"],
    ]  # fmt: skip


def test_votes_are_counted_under_each_rule(capsys: pytest.CaptureFixture[str]) -> None:
    votes = np.zeros((2, 10), np.uint8)
    votes[:, VOTE_COLUMNS.index("fear")] = 9, 3
    votes[:, VOTE_COLUMNS.index("unknown")] = 1, 7
    print_counts({"train": 2}, count_classes(np.array(["train"] * 2), votes, np.array(["", ""])))
    *table, note = capsys.readouterr().out.splitlines()
    assert table[0].split()[10:] == ["majority", "argmax8", "argmax10"]
    assert table[1].split() == ["train", "2", "0", "0", "0", "0", "1", "0", "0", "0", "1", "2", "1"]
    assert note == "(classes under the rule majority; then the images that each rule keeps)"


def test_without_labels_only_images_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_counts({"train": 12_345}, {})
    assert capsys.readouterr().out.splitlines() == ["split  images", "train  12,345"]


def test_a_report_of_an_import(capsys: pytest.CaptureFixture[str]) -> None:
    report = ImportReport(
        dataset="made",
        images={"train": 1200},
        left_out={"no face": 1234},
        warnings=("skipped\nthis", "counts differ"),
        leaks_found={"test in train": 3},
        leaks_dropped=2,
        images_skipped=1,
        landmarks_found=1000,
        landmarks_missing=200,
    )
    print_report(report)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["nkf: warning: skipped this", "nkf: warning: counts differ"]
    assert printed.out.splitlines() == [
        "split  images",
        "train   1,200",
        "left out: 1,234 no face",
        "duplicates: 3 test in train",
        "dropped from train: all 2 images that show one of valid, of test or of the list",
        "landmarks: 1,000 found, 200 missing",
        "skipped: 1 unreadable images",
    ]


def test_a_report_without_findings_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(ImportReport("made", {"train": 1}, landmarks_found=1))
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["split  images", "train       1", "landmarks: 1 found, 0 missing"]
    assert printed.err == ""


@pytest.mark.parametrize(("splits", "told"), [((), None), (("train", "test"), "train, test")])
def test_counts_of_a_complete_copy_are_told(
    splits: tuple[str, ...], told: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(ImportReport("rafdb", {"train": 1}, splits_as_known=splits))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("counts")]
    assert lines == ([f"counts as in a complete copy of rafdb: {told}"] if told else [])


def test_leaks_that_stay_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(ImportReport("own", {"train": 1}, leaks_found={"test in train": 2}))
    assert capsys.readouterr().out.splitlines()[2:4] == [
        "duplicates: 2 test in train", "(--drop-leaks leaves such images out of train)",
    ]  # fmt: skip


METADATA: list[dict[str, Any]] = [
    {"subject": f"S{n % 9}", "sex": ("f", "m", "")[n % 3], "age": (None, 31, 45)[n % 3], "valence": None}
    for n in range(9)
]  # fmt: skip


def test_a_pack_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = {"dataset": "made", "source": "drawn", "licence": "none", "label_file": "label.csv", "crop": ""}
    manifest |= {"valid_carved": {"share": 0.25, "seed": 3}, "test_split_is": "the official validation set"}
    columns: Any = {"subject": "text", "sex": "text", "age": "integer", "valence": "number", "mesh": ("float32", 4)}
    points = np.ones((68, 2), np.float32)
    with PackWriter(tmp_path / "pack", manifest, metadata=columns) as pack:
        for n, metadata in enumerate(METADATA):
            found: dict[str, Any] = {"landmarks_px": points, "landmarks_source": "fan"} if n < 3 else {}
            pack.add(Sample(f"{n}.png", "train", grey(n), label="fear", metadata=metadata, **found))
    print_pack(Pack(tmp_path / "pack"))
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path / 'pack'}: made, 9 images, 0.0 MB"
    for line in (
        "source: drawn",
        "label file: label.csv",
        "test split is: the official validation set",
        "licence: none",
        "valid: 25% of train, seed 3",
        "landmarks: none 6, fan 3",
        "subject: 9 different ones",
        "sex: f 3, m 3",
        "age: 6 of 9, 31 to 45",
        "valence: 0 of 9",
        "mesh: 4 numbers each",
    ):
        assert line in lines
    assert not any(line.startswith("crop") for line in lines)


@pytest.mark.parametrize(
    ("problems", "verdict"), [([], "nothing is wrong"), (["a", "b"], "2 things are wrong"), (["a"], "1 thing is wrong")]
)
def test_the_verdict_of_a_check(problems: list[str], verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_check(CheckReport("data/made", 1500, {"train": 1500}, problems=problems, warnings=["look at it"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        *(f"wrong: {problem}" for problem in problems),
        "warning: look at it",
        f"data/made: 1,500 images checked, {verdict}",
    ]
