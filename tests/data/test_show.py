"""Looking at single images of a pack, as JSON and as a sheet."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.pack import COLUMNS, Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.data.show import describe_image, draw_some
from nkf.errors import NkfError
from nkf.geometry import MEAN_SHAPE

VOTES = np.array([1, 4, 0, 0, 0, 0, 0, 0, 5, 0], np.uint8)  # of neutral, happiness, unknown


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """One image of fear in each split, two of them of one name; further images with votes and with nothing."""
    path = tmp_path_factory.mktemp("packs") / "made"
    person = {"subject": "S1", "age": 31, "valence": 0.1}
    box = np.array([1.25, 2, 30.126, 40], np.float32)
    points = MEAN_SHAPE.astype(np.float32) * 40
    with PackWriter(path, {"dataset": "made", "source": "drawn", "licence": "none"}) as writer:
        writer.add(
            Sample("a.png", "train", png(0), "fear", box_xyxy=box, landmarks_px=points, landmarks_source="fan",
                   file="x/a.png", metadata=person)
        )  # fmt: skip
        writer.add(Sample("a.png", "test", png(1), "fear"))
        writer.add(Sample("b.png", "valid", png(2), "fear"))
        writer.add(Sample("c.png", "train", png(3), votes=VOTES))
        writer.add(Sample("d.png", "train", png(4)))
    return Pack(path)


def described(pack: Pack, name: str, split: str | None = None) -> Any:
    return json.loads(describe_image(pack, name, split))


def test_all_that_is_known_is_told(pack: Pack) -> None:
    told = described(pack, "a.png", "train")
    assert told == {
        "name": "a.png", "split": "train", "label": "fear", "box_xyxy": [1.25, 2, 30.13, 40],
        "landmarks_px": told["landmarks_px"], "landmarks_source": "fan", "file": "x/a.png", "width": 50, "height": 40,
        "bytes_md5": pack.column("bytes_md5")[0], "pixels_md5": pack.column("pixels_md5")[0], "length": len(png(0)),
        "subject": "S1", "age": 31, "valence": 0.1,
    }  # fmt: skip
    assert list(told)[:3] == list(COLUMNS)[:3]
    np.testing.assert_allclose(told["landmarks_px"], MEAN_SHAPE * 40, atol=0.006)


def test_what_is_not_known_is_left_out(pack: Pack) -> None:
    told = described(pack, "d.png")
    assert told.keys() == {
        "name", "split", "landmarks_source", "file", "width", "height", "bytes_md5", "pixels_md5", "length",
    }  # fmt: skip


def test_votes_are_told_with_what_each_rule_makes_of_them(pack: Pack) -> None:
    told = described(pack, "c.png")
    assert told["votes"] == {"neutral": 1, "happiness": 4, "unknown": 5}
    assert told["label_by_rule"] == {"majority": None, "argmax8": "happiness", "argmax10": None}
    assert "label" not in told


def test_one_name_in_two_splits_is_a_list(pack: Pack) -> None:
    assert [image["split"] for image in described(pack, "a.png")] == ["train", "test"]
    assert described(pack, "a.png", "test")["split"] == "test"


def test_the_text_has_a_line_a_field(pack: Pack) -> None:
    lines = describe_image(pack, "b.png").splitlines()
    assert lines[0] == "{"
    assert lines[1] == ' "name": "b.png",'
    assert len(lines) == len(described(pack, "b.png")) + 2


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("e.png", None, "made: no image called 'e.png'$"),
        ("b.png", "train", "made: no image called 'b.png' in train$"),
        ("A.PNG", None, "made: no image called 'A.PNG'$"),
    ],
)
def test_unknown_names_are_one_line(pack: Pack, name: str, split: str | None, message: str) -> None:
    with pytest.raises(NkfError, match=message):
        describe_image(pack, name, split)


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["train/a.png", "test/a.png", "valid/b.png", "train/c.png", "train/d.png"]),
    ({"split": "train"}, ["train/a.png", "train/c.png", "train/d.png"]),
    ({"label": "fear"}, ["train/a.png", "test/a.png", "valid/b.png"]),
    ({"label": "fear", "split": "test"}, ["test/a.png"]),
    ({"name": "a.png"}, ["train/a.png", "test/a.png"]),
    ({"name": "a.png", "split": "train"}, ["train/a.png"]),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_filters_of_a_sheet(
    pack: Pack, filters: dict[str, Any], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[str] = []

    def contact_sheet(pictures: Any, given: list[str], **_: Any) -> Image.Image:
        assert len(pictures) == len(given)
        captions.extend(given)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("nkf.data.check.contact_sheet", contact_sheet)
    wanted = {"name": None, "split": None, "label": None, **filters}
    assert draw_some(pack, tmp_path / "sheet.png", count=60, seed=0, **wanted) == len(expected)
    assert captions == expected


def test_a_sheet_is_a_picture_with_the_landmarks(pack: Pack, tmp_path: Path) -> None:
    file = tmp_path / "sheet.png"
    assert draw_some(pack, file, name="a.png", split="train", label=None, count=1, seed=0) == 1
    with Image.open(file) as image:
        assert image.format == "PNG"
        colours = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    assert {(255, 170, 0), (0, 255, 80)} <= colours  # of boxes and landmarks
    assert [left.name for left in tmp_path.iterdir()] == ["sheet.png"]


def test_how_many_are_drawn_is_the_callers_choice(pack: Pack, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        assert draw_some(pack, file, name=None, split=None, label=None, count=2, seed=seed) == 2
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "happy"}, "label 'happy': choose one of neutral, happiness, "),
        ({"label": "contempt"}, "made: no such image"),
        ({"name": "none.png"}, "made: no image called 'none.png'"),
        ({"count": 0}, "count 0: expected 1 to 2000$"),
        ({"count": 2001}, "count 2001: expected 1 to 2000$"),
        ({"seed": -1}, "seed -1: expected a whole number from 0"),
    ],
)
def test_mistakes_draw_nothing(pack: Pack, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    wanted = {"name": None, "split": None, "label": None, "count": 60, "seed": 0, **options}
    with pytest.raises(NkfError, match=message):
        draw_some(pack, tmp_path / "sheet.png", **wanted)
    assert list(tmp_path.iterdir()) == []
