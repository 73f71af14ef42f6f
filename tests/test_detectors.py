"""Our own detector's passes, and how detectors are made."""

from collections.abc import Callable

import numpy as np
import pytest

import nkf.detectors
from nkf.detectors import NkfDetector, WholeImage, make_detector, network_input, scaled, tiles
from nkf.errors import NkfError
from nkf.faces import Face, quarter_turns_upright
from nkf.images import read_image

RIGHT_EYE, LEFT_EYE = (206, 102), (247, 105)  # in the portrait, read off by eye


@pytest.fixture(scope="module")
def portrait(portrait_path):
    return read_image(portrait_path)


@pytest.fixture(scope="module")
def detector():
    return NkfDetector("cpu")


def surest(faces: list[Face]) -> Face:
    return max(faces, key=lambda face: face.detection_score)


def test_the_portrait_is_found(detector, portrait):
    face = surest(detector(portrait))
    x0, y0, x1, y1 = face.box_xyxy
    assert x0 < RIGHT_EYE[0] < LEFT_EYE[0] < x1
    assert y0 < RIGHT_EYE[1] < y1
    assert 0.5 < face.detection_score <= 1
    np.testing.assert_allclose(face.points5_px[:2], [RIGHT_EYE, LEFT_EYE], atol=12)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_portrait_is_found_and_which_way_is_up(detector, portrait, turns):
    face = surest(detector(np.ascontiguousarray(np.rot90(portrait, turns))))
    assert quarter_turns_upright(face.points5_px) == (4 - turns) % 4


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 3000), (3000, 1), (40, 30), (240, 320)])
def test_nothing_is_found_where_nothing_is(detector, size_hw):
    assert detector(np.full((*size_hw, 3), 120, np.uint8)) == []


@pytest.fixture
def found_by(monkeypatch) -> Callable[..., NkfDetector]:
    """Return a function that makes a detector whose network is a function of the batch."""

    def make(network, **options):
        monkeypatch.setattr(nkf.detectors, "load_detector", lambda model, device, threads: network)
        return NkfDetector(**options)

    return make


def maps(score: float, box: tuple[float, ...]):
    """What the network says with one box in a corner cell."""
    scores, boxes, points = np.zeros((1, 2, 2)), np.zeros((1, 2, 2, 4)), np.zeros((1, 2, 2, 5, 2))
    scores[0, 0, 1], boxes[0, 0, 1], points[0, 0, 1] = score, box, np.arange(10).reshape(5, 2)
    return scores, boxes, points


def test_two_scales_agree_on_one_face(found_by):
    shapes = []

    def network(batch):
        shapes.append(batch.shape)
        scale = 640 / 1280 if batch.shape[3] == 640 else 160 / 1280
        return maps(0.95 if scale == 0.5 else 0.8, tuple(scale * v for v in (100, 200, 300, 400)))

    (face,) = found_by(network)(np.zeros((900, 1280, 3), np.uint8))
    assert shapes == [(1, 3, 512, 640), (1, 3, 128, 192)]
    np.testing.assert_allclose(face.box_xyxy, [100, 200, 300, 400])
    np.testing.assert_allclose(face.points5_px[1], [4, 6])
    assert face.detection_score == pytest.approx(0.95)


def test_a_doubtful_picture_is_looked_at_larger(found_by):
    shapes = []

    def network(batch):
        shapes.append(batch.shape)
        return maps(0.95 if batch.shape[3] == 960 else 0.3, (150, 150, 300, 300))

    (face,) = found_by(network)(np.zeros((480, 640, 3), np.uint8))
    np.testing.assert_allclose(face.box_xyxy, [100, 100, 200, 200])
    assert [shape[3] for shape in shapes] == [640, 192, 320, 960]  # and not turned


def test_the_picture_is_turned_when_nothing_was_found(found_by):
    image = np.zeros((160, 320, 3), np.uint8)
    image[10:20, 30:40] = 255

    def network(batch):
        turned_once = batch.shape[2] > batch.shape[3] and batch[0, 0, 285, 15] > 0.5
        return maps(0.9 if turned_once else 0.1, (10, 280, 20, 290))

    (face,) = found_by(network)(image)
    np.testing.assert_allclose(face.box_xyxy, [30, 10, 40, 20])


def test_long_side_and_threshold_are_options(found_by):
    shapes = []

    def network(batch):
        shapes.append(batch.shape)
        return maps(0.4, (0, 0, 10, 10))

    image = np.zeros((640, 640, 3), np.uint8)
    assert len(found_by(network, long_side=320, score_threshold=0.3)(image)) == 2  # of those upright passes that differ
    assert shapes == [(1, 3, side, side) for side in (320, 192, 192, 512, 320, 320, 320)]  # no sure face anywhere
    with pytest.raises(NkfError, match="long_side 10: at least 64"):
        found_by(network, long_side=10)
    with pytest.raises(NkfError, match="score_threshold 2: between 0 and 1"):
        found_by(network, score_threshold=2)


@pytest.mark.parametrize(
    ("size_hw", "long_side", "shape", "scale_xy"),
    [
        ((240, 480), 320, (1, 3, 192, 320), (2 / 3, 2 / 3)),
        ((100, 100), 160, (1, 3, 192, 192), (1.6, 1.6)),
        ((3000, 1), 320, (1, 3, 320, 64), (1, 320 / 3000)),
    ],
)
def test_input_has_sides_of_64_and_a_known_scale(size_hw, long_side, shape, scale_xy):
    small, scale = scaled(np.full((*size_hw, 3), 255, np.uint8), long_side)
    batch = network_input(small)
    assert batch.shape == shape
    assert batch.max() == 1
    np.testing.assert_allclose(scale, scale_xy)


def test_faces_come_largest_first(found_by):
    def network(batch):
        scores, boxes, points = maps(0.95, (0, 0, 10, 10))
        scores[0, 1, 0], boxes[0, 1, 0] = 0.6, (20, 20, 60, 60)
        return scores, boxes, points

    faces = found_by(network)(np.zeros((160, 160, 3), np.uint8))
    assert [face.area for face in faces] == [1600, 100]
    assert all(isinstance(face, Face) for face in faces)


def test_min_face_px_finds_a_face_that_the_usual_passes_do_not_show(detector, portrait):
    photo = np.full((800, 2400, 3), 100, np.uint8)
    photo[200:712, 1300:1812] = portrait
    right_eye = np.array([1300, 200]) + RIGHT_EYE
    assert not faces_around(detector(photo), right_eye)
    (face,) = faces_around(NkfDetector("cpu", min_face_px=30)(photo), right_eye)
    np.testing.assert_allclose(face.points5_px[0], right_eye, atol=12)


def faces_around(faces: list[Face], point: np.ndarray) -> list[Face]:
    """Those around a point that are smaller than 150 pixels."""
    boxes = [face.box_xyxy.reshape(2, 2) for face in faces]
    around = [bool((box[0] < point).all() and (point < box[1]).all()) for box in boxes]
    return [face for face, holds in zip(faces, around, strict=True) if holds and face.area < 150**2]


@pytest.mark.parametrize(
    ("size_wh", "min_face_px", "shapes"),
    [
        ((640, 480), 24, []),  # shown by the usual pass
        ((1280, 960), 48, []),
        ((1280, 960), 24, [(1, 3, 960, 1280)]),
        ((1280, 960), 36, [(1, 3, 640, 896)]),
        ((2400, 400), 24, [(1, 3, 448, 1280)] * 2),
        ((4800, 800), 48, [(1, 3, 448, 1280)] * 2),
    ],
)
def test_min_face_px_adds_passes_at_the_scale_it_needs(found_by, size_wh, min_face_px, shapes):
    seen = []

    def network(batch):
        seen.append(batch.shape)
        return maps(0.95, (0, 0, 10, 10))

    found_by(network, min_face_px=min_face_px)(np.zeros((size_wh[1], size_wh[0], 3), np.uint8))
    assert seen[2:] == shapes


def test_faces_in_tiles_are_moved_to_their_place_and_those_that_a_tile_cuts_are_left_out(found_by):
    image = np.zeros((400, 2400, 3), np.uint8)
    image[100:140, 1150:1190] = 255  # whole in both tiles, from 0 and 1120
    image[300:340, 1260:1300] = 255  # cut by the first

    def network(batch):
        scores, boxes, points = maps(0.0, (0, 0, 1, 1))
        if batch.shape[3] == 1280:
            for cell, rows in enumerate((slice(0, 200), slice(200, 400))):
                ys, xs = np.nonzero(batch[0, 0, rows])
                if len(xs):
                    low_y = ys.min() + rows.start
                    boxes[0, 0, cell] = xs.min(), low_y, xs.max() + 1, ys.max() + rows.start + 1
                    scores[0, 0, cell], points[0, 0, cell] = 0.9, (xs.min(), low_y)
        return scores, boxes, points

    faces = found_by(network, min_face_px=24)(image)
    assert sorted(face.box_xyxy.tolist() for face in faces) == [[1150, 100, 1190, 140], [1260, 300, 1300, 340]]
    assert sorted(face.points5_px[0].tolist() for face in faces) == [[1150, 100], [1260, 300]]


@pytest.mark.parametrize("size_wh", [(100, 60), (101, 35), (20, 30), (47, 200)])
def test_tiles_show_all_that_is_small_in_one_piece(size_wh):
    width, height = size_wh
    parts = list(tiles(width, height, side=40, overlap=15))
    assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in parts)
    assert max(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in parts) <= 40
    for x in range(width - 14):
        for y in range(height - 14):
            assert any(x0 <= x and y0 <= y and x + 15 <= x1 and y + 15 <= y1 for x0, y0, x1, y1 in parts)


def test_min_face_px_is_for_our_own_detector_and_has_a_least_value():
    assert isinstance(make_detector("auto", "cpu", min_face_px=30), NkfDetector)
    with pytest.raises(NkfError, match="detector 'none': cannot look for faces of a least size; only our own"):
        make_detector("none", min_face_px=30)
    with pytest.raises(NkfError, match="min_face_px 10: smaller faces than 24 pixels cannot be found"):
        make_detector("nkf", "cpu", min_face_px=10)


def test_auto_is_our_own():
    assert isinstance(make_detector("auto", "cpu"), NkfDetector)
    assert isinstance(make_detector("nkf", "cpu"), NkfDetector)


def test_detector_none_takes_the_whole_image():
    (face,) = make_detector("none")(np.zeros((20, 30, 3), np.uint8))
    assert face.box_xyxy.tolist() == [0, 0, 30, 20]
    assert isinstance(make_detector("none"), WholeImage)


def test_unknown_detector_lists_the_known_ones():
    with pytest.raises(NkfError, match="detector 'haar': unknown; known are auto, nkf, centerface, none"):
        make_detector("haar")
