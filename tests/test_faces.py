"""Faces: the face alignment network's crops, and alignment."""

import numpy as np
import pytest

from nkf.data.patches import rotation
from nkf.faces import Face, crop_from_points, find_in_crops, find_landmarks, is_badly_placed, to_batch
from nkf.geometry import (
    MEAN_SHAPE,
    Matrix,
    five_points,
    roll,
    similarity_transform,
    square_transform,
    transform_points,
    upright_square,
)
from nkf.runtime import FoundLandmarks

WITHOUT_SPREAD = np.zeros(68)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"box_xyxy": [0, 0, 1]}, r"box_xyxy has shape \(3,\)"),
        ({"box_xyxy": [0, 0, np.nan, 1]}, "box_xyxy .* is not finite"),
        ({"box_xyxy": [5, 0, 5, 1]}, "is empty; expected x0 < x1"),
        ({"detection_score": 1.5}, "detection_score is 1.5; expected 0 to 1"),
        ({"points5_px": np.zeros((4, 2))}, r"points5_px has shape \(4, 2\)"),
        ({"landmarks_px": np.zeros((5, 2))}, r"landmarks_px has shape \(5, 2\) .*; expected \(68, 2\)"),
        ({"landmark_spread_px": np.zeros(5)}, r"landmark_spread_px has shape \(5,\) .*; expected \(68,\)"),
    ],
)
def test_face_is_checked_when_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Face(**({"box_xyxy": [0, 0, 2, 3], "detection_score": 0.9} | fields))


def test_face_takes_lists_and_knows_its_area():
    face = Face([0, 0, 2, 3], 1.0)
    assert face.box_xyxy.dtype == np.float64
    assert face.area == 6
    assert face.status == "ok"
    assert Face([0, 0, 2, 3], 1.0, problems=("small",)).status == "low_quality"


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("dot_xy", [(40, 30), (75, 52)])
def test_find_landmarks_maps_back_to_the_image(dot_xy, turns):
    image = np.zeros((90, 120, 3), np.uint8)
    x, y = dot_xy
    image[y - 1 : y + 1, x - 1 : x + 1] = 255  # centred on the corner between four pixels

    def brightest(crops):
        grey = crops.mean(axis=1)
        rows, columns = np.indices(grey.shape[1:]) + 0.5
        weight = grey.sum(axis=(1, 2))
        centre = np.stack([(grey * columns).sum(axis=(1, 2)), (grey * rows).sum(axis=(1, 2))], axis=1) / weight[:, None]
        return FoundLandmarks(np.repeat(centre[:, None], 68, axis=1), np.ones((len(crops), 68)))

    boxes = [np.array([20, 10, 80, 70]), np.array([35, 20, 85, 60])]
    points_px, spread_px = find_landmarks(brightest, image, boxes, quarter_turns=[turns] * 2)
    np.testing.assert_allclose(points_px, np.broadcast_to(dot_xy, (2, 68, 2)), atol=0.05)
    sides = np.array([60, 50]) * 1.15  # of the crops, in pixels of the image
    np.testing.assert_allclose(spread_px, np.repeat(sides[:, None] / 112, 68, axis=1))


def test_find_landmarks_turns_the_face_upright():
    image = np.zeros((80, 80, 3), np.uint8)
    image[:40] = 255  # the brow of an upright face
    seen = []

    def fan(crops):
        seen.append(crops)
        return FoundLandmarks(np.zeros((len(crops), 68, 2)), np.zeros((len(crops), 68)))

    find_landmarks(fan, np.ascontiguousarray(np.rot90(image)), [np.array([0, 0, 80, 80])], quarter_turns=[3])
    find_landmarks(fan, image, [np.array([0, 0, 80, 80])])
    np.testing.assert_allclose(seen[0], seen[1], atol=1 / 255)


def test_find_landmarks_without_boxes():
    points_px, spread_px = find_landmarks(lambda crops: crops, np.zeros((9, 9, 3), np.uint8), [])
    assert points_px.shape == (0, 68, 2)
    assert spread_px.shape == (0, 68)


class Painted:
    """A network that knows a face painted with the coordinates of its pixels: red is x, green is y, of 200.

    In the second pass it is exact; in the first it is off by `error` pixels of the crop, and says so.
    """

    def __init__(self, shape_px, error):
        self.shape_px, self.error = shape_px, error
        self.batches = []

    def __call__(self, crops):
        self.batches.append(len(crops))
        first = len(self.batches) == 1
        points = np.stack([self._find(crop) for crop in crops]) + (self.error if first else 0)
        return FoundLandmarks(points, np.full((len(crops), 68), self.error if first else 0.1))

    def _find(self, crop):
        """Read the map from crop to image off three pixels, and put the known shape into the crop."""
        spots = np.array([[40, 40], [70, 40], [40, 70]])
        seen = np.array([crop[:2, y, x] * 255 for x, y in spots])  # image coordinates
        linear = np.column_stack([(seen[1] - seen[0]) / 30, (seen[2] - seen[0]) / 30])
        inverse = np.linalg.inv(linear)
        return (self.shape_px - seen[0]) @ inverse.T + spots[0] + 0.5


def painted_image():
    image = np.zeros((200, 200, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(200)[None, :], np.arange(200)[:, None]
    return image


def face_at(angle_deg, centre=(100, 100), side=80):
    """The mean shape turned clockwise, its crop as long as `side`."""
    square = np.array([*centre, side, np.radians(angle_deg)])
    inverse = square_transform(square, 1)
    matrix = np.linalg.inv(np.vstack([inverse, [0, 0, 1]]))[:2]
    return transform_points(matrix, MEAN_SHAPE)


@pytest.mark.parametrize(("angle", "calls"), [(0, 1), (30, 2), (-50, 2)])
def test_a_turned_face_is_looked_at_again(angle, calls):
    shape = face_at(angle)
    x, y, side, _ = upright_square(face_at(0))
    half = side / 2 / 1.15
    fan = Painted(shape, error=4.0)
    points_px, spread_px = find_landmarks(fan, painted_image(), [[x - half, y - half, x + half, y + half]])
    assert len(fan.batches) == calls
    error = np.abs(points_px[0] - shape).mean()
    assert 2 < error < 5 if calls == 1 else error < 1.5  # the map is read off 8-bit colours
    assert (spread_px < 0.2).all() == (calls == 2)


@pytest.mark.parametrize(("passes", "batches"), [(1, [3]), (2, [3, 3]), ("auto", [3, 1])])
def test_only_faces_that_need_it_get_a_second_pass(passes, batches):
    shape = face_at(0)
    fan = Painted(shape, error=0.0)
    good = square_transform(upright_square(shape), 112)
    shifted = good + np.array([[0, 0, 12], [0, 0, 0]])
    matrices: list[Matrix] = [good, shifted, good]
    points_px, _ = find_in_crops(fan, [painted_image()] * 3, matrices, passes=passes)
    assert fan.batches == batches
    assert np.abs(points_px - shape).mean() < 1.5


@pytest.mark.parametrize(
    ("angle", "move", "side", "expected"),
    [(0, 0, 80, False), (5, 2, 84, False), (15, 0, 80, True), (0, 12, 80, True), (0, 0, 50, True), (0, 0, 120, True)],
)
def test_is_badly_placed(angle, move, side, expected):
    reference = upright_square(face_at(0))  # its crop shows the face as it should be
    matrix = square_transform(reference, 112)
    landmarks = transform_points(matrix, face_at(angle, (100 + move, 100), side))
    assert is_badly_placed(landmarks, 112) is expected


def test_to_batch():
    crop = np.zeros((2, 2, 3), np.uint8)
    crop[0, 1] = (255, 51, 0)
    batch = to_batch([crop, crop])
    assert batch.shape == (2, 3, 2, 2)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch[1, :, 0, 1], [1, 0.2, 0])


@pytest.mark.parametrize("angle", [0, 40, 180])
def test_five_points_give_an_upright_crop_of_the_face(angle):
    matrix = similarity_transform([[0, 0], [1, 0]], [[90, 40], 90 * rotation(angle)[:, 0] + [90, 40]])
    shape = transform_points(matrix, MEAN_SHAPE)
    in_crop = transform_points(crop_from_points(five_points(shape), 64), shape)
    assert abs(roll(in_crop)) < 1e-6
    assert not is_badly_placed(in_crop, 64)


def test_five_points_in_one_place_give_none():
    with pytest.raises(ValueError, match="coincide"):
        crop_from_points(np.full((5, 2), 7.0), 64)
