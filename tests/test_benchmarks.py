"""What the benchmarks of prediction compute without a network: scenes, matching, figures."""

import end_to_end
import numpy as np
import pytest
from PIL import Image

SQUARES = np.array([[0.0, 0, 100, 100], [200, 0, 260, 60]])


@pytest.mark.parametrize(
    ("boxes", "matched", "false_faces"),
    [
        ([], [None, None], 0),
        ([[210, 5, 255, 55], [10, 10, 90, 95]], [1, 0], 0),
        ([[10, 10, 90, 95], [0, 0, 100, 99]], [1, None], 0),  # of two on one face the nearer
        ([[400, 400, 450, 450], [20, 20, 50, 50]], [None, None], 2),  # elsewhere; a part of a face
        ([[30, 30, 80, 85], [90, 20, 180, 60]], [0, None], 1),  # a face in a loose picture; mostly outside
    ],
)
def test_matched_boxes(boxes, matched, false_faces):
    assert end_to_end.match(np.array(boxes, float).reshape(-1, 4), SQUARES) == (matched, false_faces)


def test_figures_are_paired_and_count_a_missed_face_as_wrong():
    right = np.array([True, True, False, False])
    row = end_to_end.Row(np.arange(4), np.array([True, True, True, False]), right, np.array([True] * 4), 2, 1)
    figures = row.figures()
    assert (figures["n"], figures["missed"], figures["scenes"], figures["false_faces"]) == (4, 1, 2, 1)
    assert (figures["end_to_end"]["accuracy"], figures["crop"]["accuracy"], figures["difference"]) == (0.5, 1, -0.5)
    assert figures["found"]["n"] == 3
    assert figures["found"]["difference"] == pytest.approx(-1 / 3)
    both = end_to_end.joined([row, row]).figures()
    assert (both["n"], both["scenes"], both["difference"]) == (8, 4, -0.5)


def test_an_upright_face_is_pasted_whole_at_its_own_size():
    rng = np.random.default_rng(1)
    picture = np.repeat(rng.integers(0, 256, (48, 48, 1), np.uint8), 3, axis=2)
    background = Image.new("RGB", (800, 600), (90, 90, 90))
    scene, (placed,) = end_to_end.compose(rng, [picture], [7], end_to_end.Condition((48,)), background)
    x0, y0, x1, y1 = placed.box_xyxy.astype(int)
    assert (placed.face, x1 - x0, y1 - y0) == (7, 48, 48)
    np.testing.assert_array_equal(scene[y0:y1, x0:x1], picture)
    dark, _ = end_to_end.compose(
        np.random.default_rng(1), [picture], [7], end_to_end.Condition((48,), light="dark"), background
    )
    assert dark.mean() == pytest.approx(0.35 * scene.mean(), rel=0.05)


@pytest.mark.parametrize("angle", [0, 45])
def test_places_are_apart_and_inside(angle):
    for seed in range(20):
        placed = end_to_end.place(np.random.default_rng(seed), [144, 72, 96, 48], angle)
        assert placed is not None
        reach = (np.cos(np.radians(angle)) + np.sin(np.radians(angle))) / 2
        for k, (size, corner) in enumerate(placed):
            middle = corner + size / 2
            assert (middle - reach * size >= -1).all()
            assert (middle + reach * size <= np.array(end_to_end.SCENE_WH) + 1).all()
            for other_size, other in placed[:k]:
                assert np.abs(middle - other - other_size / 2).max() >= (size + other_size) / 2
