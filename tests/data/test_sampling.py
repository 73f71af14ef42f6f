"""Orders of an epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkf.data.sampling import balanced, epoch_order, shuffled, turned_weights, weighted
from nkf.pose import MEAN_SHAPE_3D


def test_shuffled_is_the_order_that_runs_have_always_had() -> None:
    np.testing.assert_array_equal(shuffled(100, 3, 7), np.random.default_rng([3, 7]).permutation(100))


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 100), st.integers(0, 100))
def test_balanced_shows_classes_equally_often_and_repeats_no_image_needlessly(
    labels: list[int], seed: int, epoch: int
) -> None:
    rows = balanced(np.array(labels, int), seed, epoch)
    assert len(rows) == len(labels)
    if not labels:
        return
    by_class = Counter(labels[row] for row in rows)
    shown = [by_class[value] for value in set(labels)]
    assert max(shown) - min(shown) <= 1
    by_row = Counter(rows.tolist())
    for value in set(labels):
        times = [by_row[row] for row, label in enumerate(labels) if label == value]
        assert max(times) - min(times) <= 1


def test_balanced_orders_are_mixed_and_differ_by_epoch_and_seed() -> None:
    labels = np.repeat([0, 1, 2], [90, 8, 2])
    first = balanced(labels, 0, 0)
    np.testing.assert_array_equal(first, balanced(labels, 0, 0))
    assert first.tolist() != balanced(labels, 0, 1).tolist()
    assert first.tolist() != balanced(labels, 1, 0).tolist()
    assert all(len(set(labels[first[start : start + 20]])) == 3 for start in range(0, 100, 20))  # not class by class
    unseen = set(np.flatnonzero(labels == 0)) - set(first)
    assert len(unseen) in (56, 57)
    assert unseen & set(balanced(labels, 0, 1))  # another part of the large class


@pytest.mark.parametrize("labels", [None, np.array([0, 0, 1])], ids=["shuffled", "balanced"])
def test_order_is_computed_once_an_epoch(labels: np.ndarray | None) -> None:
    order = epoch_order(3, 5, labels)
    expected = shuffled(3, 5, 2) if labels is None else balanced(labels, 5, 2)
    np.testing.assert_array_equal(order(2), expected)
    assert order(2) is order(2)
    assert order(2) is not order(3)
    np.testing.assert_array_equal(order(2), expected)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60), st.integers(0, 100), st.integers(0, 100))
def test_weighted_shows_each_row_as_often_as_its_share_says(weights: list[float], seed: int, epoch: int) -> None:
    rows = weighted(np.array(weights), seed, epoch)
    assert len(rows) == len(weights)
    times, expected = np.bincount(rows, minlength=len(weights)), np.array(weights) / np.mean(weights)
    assert (np.abs(times - expected) < 1 + 1e-6).all()


def test_weighted_orders_are_mixed_and_differ_by_epoch_and_seed() -> None:
    weights = np.repeat([1.0, 5.0], [80, 20])
    order = epoch_order(100, 0, weights=weights)
    first = order(0)
    np.testing.assert_array_equal(first, weighted(weights, 0, 0))
    assert 0.5 < (first >= 80).mean() < 0.62  # 100 of 180
    assert first.tolist() != order(1).tolist()
    assert first.tolist() != weighted(weights, 1, 0).tolist()
    assert all((first[start : start + 25] >= 80).any() for start in range(0, 100, 25))


def test_turned_faces_weigh_more_either_way_and_lines_like_frontal_ones() -> None:
    """A turn by the yaw squeezes x by its cosine and shifts it by z's part."""
    turns = np.radians([0, 20, -40])
    x, y, z = MEAN_SHAPE_3D.T
    faces = np.stack([np.stack([np.cos(turn) * x - np.sin(turn) * z, y], axis=1) * 40 for turn in turns])
    line = np.stack([np.arange(68), np.arange(68)], axis=1).astype(float)
    np.testing.assert_allclose(turned_weights(np.concatenate([faces, line[None]])), [1, 2, 5, 1], atol=0.01)
