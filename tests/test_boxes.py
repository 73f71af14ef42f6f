"""Boxes: overlap, suppression of duplicates, turned pictures, matching."""

import numpy as np
import pytest

from nkf.boxes import average_precision, box_iou, match_boxes, non_maximum_suppression, turn_back


def test_box_iou():
    one, two = np.array([[0, 0, 4, 4]]), np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 4, 8, 8], [1, 1, 1, 1]])
    np.testing.assert_allclose(box_iou(one, two), [[1, 8 / 24, 0, 0]])
    assert box_iou(np.zeros((0, 4)), two).shape == (0, 4)


def test_each_true_box_is_hit_once_by_the_best_score():
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10]])
    found = np.array([[1, 0, 11, 10], [0, 0, 10, 10], [20, 0, 30, 11], [50, 50, 60, 60]])
    right, hit = match_boxes(found, np.array([0.6, 0.9, 0.7, 0.8]), truth, 0.4)
    assert right.tolist() == [False, True, True, False]
    assert hit.tolist() == [True, True]
    right, hit = match_boxes(found, np.ones(4), np.zeros((0, 4)), 0.4)
    assert not right.any()
    assert hit.shape == (0,)


def test_average_precision():
    scores = np.array([0.9, 0.8, 0.7])
    assert average_precision(np.array([True, True, True]), scores, 3) == pytest.approx(1)
    assert average_precision(np.array([True, False, True]), scores, 4) == pytest.approx((1 + 2 / 3) / 4)
    assert average_precision(np.zeros(0, bool), np.zeros(0), 3) == 0


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        ([], [], []),
        ([[0, 0, 4, 4], [0, 0, 4, 4]], [0.6, 0.9], [1]),
        ([[0, 0, 4, 4], [1, 0, 5, 4], [4, 0, 8, 4]], [0.9, 0.8, 0.7], [0, 2]),
        ([[0, 0, 4, 4], [20, 0, 24, 4]], [0.6, 0.9], [1, 0]),
    ],
)
def testnon_maximum_suppression(boxes, scores, kept):
    assert non_maximum_suppression(np.reshape(boxes, (-1, 4)).astype(float), np.array(scores)) == kept


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turn_back_follows_rot90(turns):
    image = np.zeros((5, 8))
    image[1, 6] = 1
    row, column = np.argwhere(np.rot90(image, turns))[0]
    turned_size = np.rot90(image, turns).shape
    assert turn_back(np.array([column + 0.5, row + 0.5]), turns, turned_size).tolist() == [6.5, 1.5]
