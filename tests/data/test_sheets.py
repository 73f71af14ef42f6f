"""Contact sheets: where things land, what is cut, and what must not fail."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from nkf.data.sheets import BOX, CAPTION_PX, CELL, GAP_PX, LANDMARK, contact_sheet, cut, shrink

RED = np.array([255, 0, 0], np.uint8)


def plain(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), RED)


def find(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Bounding box (xyxy) of all the sheet's pixels of exactly one colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == color).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(
    ("size_wh", "expected_wh"),
    [((96, 96), (96, 96)), ((10, 10), (40, 40)), ((48, 48), (96, 96)), ((400, 200), (96, 48)), ((1, 500), (1, 96))],
)
def test_picture_keeps_its_aspect_fits_its_cell_and_is_enlarged_at_most_four_times(size_wh, expected_wh):
    x0, y0, x1, y1 = find(contact_sheet([plain(*size_wh)], ["a"]), (255, 0, 0))
    assert (x1 - x0, y1 - y0) == expected_wh
    assert abs((x0 + x1) / 2 - (GAP_PX + 48)) <= 0.5  # centred in the cell
    assert abs((y0 + y1) / 2 - (GAP_PX + 48)) <= 0.5


def test_pictures_fill_rows_from_left_to_right():
    sheet = np.asarray(contact_sheet([plain(96, 96)] * 5, list("abcde"), columns=3))
    centres_x = [GAP_PX + k * (96 + GAP_PX) + 48 for k in range(3)]
    assert [bool((sheet[GAP_PX + 48, x] == RED).all()) for x in centres_x] == [True] * 3
    second_row_y = sheet.shape[0] - 60
    assert [bool((sheet[second_row_y, x] == RED).all()) for x in centres_x] == [True, True, False]


def test_one_picture_leaves_no_empty_cells():
    assert find(contact_sheet([plain(10, 10)], ["a"]), CELL) == (GAP_PX, GAP_PX, GAP_PX + 96, GAP_PX + 96)


def test_box_is_scaled_with_the_picture():
    sheet = contact_sheet([plain(48, 24)], ["a"], boxes_xyxy=[np.array([12.0, 6, 36, 18])])
    top = GAP_PX + 24  # 48x24 becomes 96x48, in the middle of 96 rows
    assert find(sheet, BOX) == (GAP_PX + 24, top + 12, GAP_PX + 72, top + 36)


def test_landmarks_are_scaled_with_the_picture():
    sheet = contact_sheet([plain(48, 24)], ["a"], landmarks_px=[np.array([[12.5, 6.0], [36.0, 18.0]])])
    assert find(sheet, LANDMARK) == (GAP_PX + 24, GAP_PX + 24 + 11, GAP_PX + 73, GAP_PX + 24 + 37)


def test_nothing_is_drawn_outside_its_own_cell():
    outside = np.array([[-500.0, 5.0], [500.0, 5.0], [5.0, 5.0]])
    sheet = contact_sheet([plain(48, 48)], ["a"], landmarks_px=[outside], boxes_xyxy=[np.array([-50.0, -9, 99, 99])])
    x0, y0, x1, y1 = find(sheet, BOX)
    assert (x0, y0, x1, y1) == (GAP_PX, GAP_PX, GAP_PX + 96, GAP_PX + 96)
    assert find(sheet, LANDMARK) == (GAP_PX + 9, GAP_PX + 9, GAP_PX + 11, GAP_PX + 11)


def test_missing_and_non_finite_boxes_and_landmarks_are_left_out():
    pictures, names = [plain(48, 48)] * 2, ["a", "b"]
    nothing = np.full((68, 2), np.nan), np.full(4, np.nan)
    sheet = contact_sheet(pictures, names, landmarks_px=[None, nothing[0]], boxes_xyxy=[None, nothing[1]])
    assert np.array_equal(np.asarray(sheet), np.asarray(contact_sheet(pictures, names)))


def test_a_long_caption_stays_below_its_own_picture():
    short, long = (contact_sheet([plain(96, 96)] * 2, ["", text], columns=2) for text in ("", "W" * 1000))
    changed = np.nonzero((np.asarray(short) != np.asarray(long)).any(axis=(0, 2)))[0]
    assert changed.min() >= GAP_PX + 96 + GAP_PX
    assert changed.max() < GAP_PX + 96 + GAP_PX + 96


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fits", "fits"),
        ("two\nlines", "two lines"),
        ("", ""),
        ("Müller – 笑", "Muller - ?"),
        ("i" * 500, None),
        ("one  " + "m" * 50, None),
    ],
)
def test_cut_ends_with_an_ellipsis_only_when_needed(text, expected):
    font = ImageFont.load_default(CAPTION_PX)
    line = cut(text, 96, font)
    assert font.getlength(line) <= 96
    if expected is None:
        assert line.endswith("…")
        assert text.startswith(line[:3])
        assert font.getlength(line) > 80  # no shorter than it has to be
    else:
        assert line == expected


@pytest.mark.parametrize("caption", ["Müller", "笑顔", "broken \udc80 name", "null \x00", "👩‍👩‍👧", "a\tb"])
def test_any_caption_is_drawn(caption):
    drawn, empty = (contact_sheet([plain(48, 48)], [text], title=text) for text in (caption, ""))
    assert drawn.mode == "RGB"
    assert np.asarray(drawn).min() == 0
    assert drawn.size[1] > empty.size[1]


def test_without_pictures_the_sheet_says_so():
    sheet, titled = contact_sheet([], []), contact_sheet([], [], title="train / test")
    assert (np.asarray(sheet) < 128).any()
    assert titled.size[0] >= 200
    assert not np.array_equal(np.asarray(sheet.resize(titled.size)), np.asarray(titled))


def test_sheets_are_deterministic():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((48, 48), (120, 90), (20, 33))]
    first, second = (contact_sheet(pictures, ["a", "b", "c"], title="t") for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("name", ["captions", "landmarks_px", "boxes_xyxy"])
def test_lengths_that_differ_are_refused(name):
    arguments = {"captions": ["a"], name: []}
    with pytest.raises(ValueError, match=f"0 {name} for 1 pictures"):
        contact_sheet([plain(9, 9)], **arguments)


@pytest.mark.parametrize("sizes", [{"columns": 0}, {"side": 7}])
def test_sizes_that_make_no_sheet_are_refused(sizes):
    with pytest.raises(ValueError, match="expected at least 1 and 8"):
        contact_sheet([], [], **sizes)


def test_shrunk_pictures_give_the_same_sheet():
    """Boxes and landmarks are scaled along; a picture that is smaller than its cell stays as it is."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (300, 200, 3), np.uint8)
    points, box = np.array([[20.0, 30.0], [150.0, 280.0]]), np.array([10.0, 20.0, 190.0, 290.0])
    small, scale = shrink(picture)
    assert (small.shape, scale.tolist()) == ((96, 64, 3), [64 / 200, 96 / 300])
    whole = contact_sheet([picture], ["a"], landmarks_px=[points], boxes_xyxy=[box])
    scaled = contact_sheet([small], ["a"], landmarks_px=[points * scale], boxes_xyxy=[box * np.tile(scale, 2)])
    assert np.array_equal(np.asarray(whole), np.asarray(scaled))
    unchanged, one = shrink(picture[:90, :96])
    assert (unchanged.shape, one.tolist()) == ((90, 96, 3), [1, 1])
