"""The coordinate convention, similarity transforms and the mirror pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nkf import geometry

FACE = geometry.MEAN_SHAPE * 112


def similarity(degrees: float, scale: float, shift: tuple[float, float]) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    return np.array(
        [
            [scale * np.cos(angle), -scale * np.sin(angle), shift[0]],
            [scale * np.sin(angle), scale * np.cos(angle), shift[1]],
        ]
    )


@settings(deadline=None, database=None)  # a busy machine is no failure
@given(
    degrees=st.floats(-180, 180),
    scale=st.floats(0.01, 100),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    count=st.integers(2, 68),
)
def test_similarity_transform_is_recovered(
    degrees: float, scale: float, shift: tuple[float, float], count: int
) -> None:
    expected = similarity(degrees, scale, shift)
    source = np.random.default_rng(count).uniform(0, 100, (count, 2))
    found = geometry.similarity_transform(source, geometry.transform_points(expected, source))
    np.testing.assert_allclose(found, expected, atol=1e-7 * max(1, scale))


def test_similarity_transform_has_the_least_error() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.uniform(0, 100, (2, 5, 2))
    best = geometry.similarity_transform(source, target)
    # The same problem as a linear system in a, b and the translation.
    rows = [([x, -y, 1, 0], [y, x, 0, 1]) for x, y in source]
    a, b, tx, ty = np.linalg.lstsq(np.reshape(rows, (-1, 4)), target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(best, [[a, -b, tx], [b, a, ty]], atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_similarity_transform_never_reflects(seed: int) -> None:
    source = np.random.default_rng(seed).uniform(0, 100, (5, 2))
    matrix = geometry.similarity_transform(source, source * [-1, 1])
    assert np.linalg.det(matrix[:, :2]) >= 0
    np.testing.assert_allclose(matrix[0, 0], matrix[1, 1])
    np.testing.assert_allclose(matrix[0, 1], -matrix[1, 0])


def test_similarity_transform_needs_different_points() -> None:
    with pytest.raises(ValueError, match="the source points of a similarity transform coincide"):
        geometry.similarity_transform([[3, 4], [3, 4]], [[0, 0], [1, 1]])


def test_invert_transform() -> None:
    matrix = similarity(33, 1.7, (5, -9))
    back = geometry.transform_points(geometry.invert_transform(matrix), geometry.transform_points(matrix, FACE))
    np.testing.assert_allclose(back, FACE)


def test_transform_points_takes_batches() -> None:
    matrix = similarity(12, 2, (3, 4))
    batch = np.stack([FACE, FACE + 1])
    np.testing.assert_allclose(geometry.transform_points(matrix, batch)[1], geometry.transform_points(matrix, FACE + 1))


def test_crop_transform_puts_a_face_on_the_template() -> None:
    landmarks = np.zeros((68, 2))
    right_eye, left_eye, nose, right_mouth, left_mouth = geometry.CROP_TEMPLATE * 112
    landmarks[36:42], landmarks[42:48] = right_eye, left_eye
    landmarks[33], landmarks[48], landmarks[54] = nose, right_mouth, left_mouth
    moved = geometry.transform_points(similarity(25, 3, (40, 7)), landmarks)
    aligned = geometry.transform_points(geometry.crop_transform(moved, 56), moved)
    np.testing.assert_allclose(geometry.five_points(aligned), geometry.CROP_TEMPLATE * 56)


@pytest.mark.parametrize("points", [None, np.full((68, 2), 7.0)], ids=["none", "all in one place"])
def test_without_landmarks_a_face_is_cut_by_its_box(points: geometry.Points | None) -> None:
    matrix, moved = geometry.face_transform(points, [10, 20, 50, 60], 80)
    np.testing.assert_allclose(matrix, geometry.box_transform([10, 20, 50, 60], 80))
    np.testing.assert_allclose(moved, geometry.MEAN_SHAPE * 80)


def test_with_landmarks_the_box_does_not_count() -> None:
    points = geometry.MEAN_SHAPE * 33 + 4
    matrix, moved = geometry.face_transform(points, [0, 0, 1, 1], 112)
    np.testing.assert_allclose(matrix, geometry.crop_transform(points, 112))
    np.testing.assert_allclose(moved, geometry.transform_points(matrix, points))


def test_five_points_takes_batches() -> None:
    five = geometry.five_points(np.stack([FACE, FACE + 1]))
    assert five.shape == (2, 5, 2)
    np.testing.assert_allclose(five[0, 0], FACE[36:42].mean(axis=0))
    np.testing.assert_allclose(five[1, 2:], FACE[[33, 48, 54]] + 1)


@pytest.mark.parametrize(
    ("box", "corners"),
    [
        ((10, 20, 30, 40), [(10, 20), (30, 40)]),
        ((10, 20, 30, 60), [(0, 20), (40, 60)]),  # the square grows over the shorter side
        ((0, 0, 96, 48), [(0, -24), (96, 72)]),
    ],
)
def test_box_transform_maps_the_square_around_a_box(
    box: tuple[float, float, float, float], corners: list[tuple[float, float]]
) -> None:
    moved = geometry.transform_points(geometry.box_transform(box, 112), np.array(corners, float))
    np.testing.assert_allclose(moved, [(0, 0), (112, 112)], atol=1e-9)


def test_expand_box() -> None:
    np.testing.assert_allclose(geometry.expand_box((10, 20, 30, 60), 1.5), (5, 10, 35, 70))


def test_interocular_distance_is_between_the_outer_corners() -> None:
    landmarks = np.zeros((2, 68, 2))
    landmarks[:, 45] = (30, 40)
    np.testing.assert_allclose(geometry.interocular_distance(landmarks), (50, 50))


def test_landmark_groups_cover_each_landmark_once() -> None:
    assert sorted(k for group in geometry.LANDMARK_GROUPS.values() for k in group) == list(range(68))


def test_mirror_pairs_are_an_involution() -> None:
    np.testing.assert_array_equal(geometry.LANDMARK_MIRROR[geometry.LANDMARK_MIRROR], np.arange(68))


@pytest.mark.parametrize(
    ("group", "partner"),
    [
        ("jaw", "jaw"),
        ("right_brow", "left_brow"),
        ("nose_bridge", "nose_bridge"),
        ("nose_bottom", "nose_bottom"),
        ("right_eye", "left_eye"),
        ("outer_lip", "outer_lip"),
        ("inner_lip", "inner_lip"),
    ],
)
def test_mirror_pairs_stay_in_their_group(group: str, partner: str) -> None:
    mirrored = geometry.LANDMARK_MIRROR[list(geometry.LANDMARK_GROUPS[group])]
    assert sorted(mirrored) == list(geometry.LANDMARK_GROUPS[partner])


def test_the_mirrored_mean_shape_is_itself() -> None:
    np.testing.assert_allclose(geometry.mirror_landmarks(FACE, 112), FACE, atol=0.02)


def test_mirror_landmarks_twice_is_nothing() -> None:
    landmarks = np.random.default_rng(0).uniform(0, 50, (3, 68, 2))
    before = landmarks.copy()
    mirrored = geometry.mirror_landmarks(landmarks, 50)
    np.testing.assert_allclose(geometry.mirror_landmarks(mirrored, 50), landmarks)
    np.testing.assert_array_equal(landmarks, before)


@pytest.mark.parametrize("degrees", [-170, -60, 0, 25, 90])
def test_roll_is_the_rotation_of_the_face(degrees: float) -> None:
    turned = geometry.transform_points(similarity(degrees, 1.7, (40, -3)), FACE)
    assert np.degrees(geometry.roll(turned)) == pytest.approx(degrees)
    assert geometry.roll(np.stack([FACE, turned])).shape == (2,)


@pytest.mark.parametrize("degrees", [-120, 0, 35])
def test_upright_square_puts_every_face_into_the_same_crop(degrees: float) -> None:
    """Whatever the similarity, the crop shows the face upright, centred, and with the agreed margin."""
    face = geometry.transform_points(similarity(degrees, 0.6, (300, 20)), FACE)
    matrix = geometry.square_transform(geometry.upright_square(face), 96)
    found = geometry.transform_points(matrix, face)
    low, high = found.min(axis=0), found.max(axis=0)
    np.testing.assert_allclose((low + high) / 2, 48, atol=1e-9)
    assert (high - low).max() == pytest.approx(96 / geometry.UPRIGHT_SCALE)
    assert geometry.roll(found) == pytest.approx(0, abs=1e-9)


def test_loose_square_is_level_and_has_forehead() -> None:
    x, y, side, angle = geometry.loose_square(geometry.transform_points(similarity(30, 1, (0, 0)), FACE))
    turned = geometry.transform_points(similarity(30, 1, (0, 0)), FACE)
    low, high = turned.min(axis=0), turned.max(axis=0)
    assert angle == 0
    assert side == pytest.approx((high - low).max() * geometry.LOOSE_SCALE)
    assert x == pytest.approx((low[0] + high[0]) / 2)
    assert y < (low[1] + high[1]) / 2
    assert geometry.loose_square(np.stack([FACE] * 3)).shape == (3, 4)


def test_square_transform_undoes_the_angle() -> None:
    matrix = geometry.square_transform([10, 20, 40, np.pi / 2], 80)
    # The square's centre, and the point half a side to the right of it in the face's own frame, which is below it.
    points = geometry.transform_points(matrix, np.array([[10.0, 20], [10, 40]]))
    np.testing.assert_allclose(points, [[40, 40], [80, 40]], atol=1e-9)
