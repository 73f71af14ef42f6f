"""What a check takes for the same picture, and for the same face."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.check import CheckReport, check_pack, draw_sheet
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.data.split import split_pack

Box = tuple[float, float, float, float]


def black(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def write_pack(path: Path, samples: Sequence[Sample]) -> Path:
    with PackWriter(path, {"dataset": "made", "source": "drawn", "licence": "none"}) as pack:
        for sample in samples:
            pack.add(sample)
    return path


def check(path: Path, samples: Sequence[Sample]) -> CheckReport:
    return check_pack(write_pack(path, samples))


def test_pictures_of_another_shape_are_no_copies(tmp_path: Path) -> None:
    samples = [Sample("a", "train", black(10, 40), label="fear"), Sample("b", "test", black(20, 20), label="anger")]
    report = check(tmp_path / "pack", samples)
    assert len(set(Pack(tmp_path / "pack").column("pixels_md5"))) == 1
    assert report.problems == []
    assert not [warning for warning in report.warnings if "labels" in warning]
    assert not [pair for pair in report.pairs if pair[0] == "same pixels"]
    other = write_pack(tmp_path / "other", [Sample("c", "valid", black(20, 20))])
    assert check_pack(tmp_path / "pack", against=[other]).problems == []


def test_a_new_split_does_not_keep_them_together(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", [Sample(f"{n}", "train", black(2**n, 2 ** (3 - n))) for n in range(4)])
    splits = split_pack(pack, tmp_path / "out", valid=0, test=0.5)
    assert sorted(splits.tolist()) == ["test", "test", "train", "train"]
    assert set(Pack(tmp_path / "out").manifest["leaks_found"].values()) == {0}


@pytest.mark.parametrize(
    ("boxes", "warnings"),
    [
        ([(0, 0, 9, 9), (9, 0, 18, 9), (9, 9, 18, 18)], []),
        ([(0, 0, 9, 9), (9, 0, 18, 9), (0, 0, 9, 9)], ["1 of 1 pictures that come several times have several labels"]),
        ([(0, 0, 9, 9), None, None], ["1 of 1 pictures that come several times have several labels"]),
    ],
)
def test_the_faces_of_a_photo_may_have_several_labels(
    tmp_path: Path, boxes: Sequence[Box | None], warnings: list[str]
) -> None:
    labels = ("fear", "anger", "sadness")
    samples = [
        Sample(f"{n}", "train", black(20, 20), label=labels[n], box_xyxy=None if box is None else np.array(box))
        for n, box in enumerate(boxes)
    ]
    assert check(tmp_path / "pack", samples).warnings == warnings


def test_a_sheet_holds_no_picture_larger_than_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its box and landmarks are scaled along."""
    points = np.stack([np.arange(68.0), 2 * np.arange(68.0)], axis=1)
    box = np.array([40, 30, 400, 240])
    sample = Sample("a", "train", black(480, 240), box_xyxy=box, landmarks_px=points, landmarks_source="dataset")
    drawn: dict[str, Any] = {}

    def contact_sheet(pictures: Sequence[Any], captions: Sequence[str], **more: Any) -> Image.Image:
        drawn.update(more, shapes=[picture.shape for picture in pictures], captions=list(captions))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("nkf.data.check.contact_sheet", contact_sheet)
    draw_sheet(Pack(write_pack(tmp_path / "pack", [sample])), [0], tmp_path / "sheet.png", title="")
    assert (drawn["shapes"], drawn["captions"]) == ([(48, 96, 3)], ["train/a"])
    np.testing.assert_allclose(drawn["boxes_xyxy"][0], box / 5)
    np.testing.assert_allclose(drawn["landmarks_px"][0], points / 5)
