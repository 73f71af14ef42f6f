"""Orders of an epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkf.data.sampling import balanced, epoch_order, shuffled


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
