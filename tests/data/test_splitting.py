"""Splits by class with groups kept together: properties of random cases, and scikit-learn's splitter beside ours."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from nkf.data.splitting import folds, stratified_groups
from nkf.errors import NkfError

SHARES = st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any).map(lambda n: [k / sum(n) for k in n])
SEEDS = st.integers(0, 1000)


@given(st.lists(st.integers(-1, 5), min_size=5, max_size=80), SHARES, SEEDS)
@settings(deadline=None, max_examples=60)
def test_without_groups_each_class_is_spread_exactly(labels: list[int], shares: list[float], seed: int) -> None:
    of_row = np.array(labels)
    parts = stratified_groups(of_row, None, shares, seed)
    used = [number for number, share in enumerate(shares) if share > 0]
    assert set(parts) <= set(used)
    for value in set(labels):
        total = labels.count(value)
        for number in used:
            count = int(((of_row == value) & (parts == number)).sum())
            # One row may have moved to where there was none, out of each part that had rounded up already.
            assert abs(count - shares[number] * total) < (1 if total * min(shares[n] for n in used) >= 1 else len(used))
            assert count >= 1 or total < len(used)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=80), SHARES, SEEDS)
@settings(deadline=None, max_examples=100)
def test_no_group_is_torn_and_no_part_is_empty(rows: list[tuple[int, int]], shares: list[float], seed: int) -> None:
    groups, labels = (np.array(column) for column in zip(*rows, strict=True))
    used = {number for number, share in enumerate(shares) if share > 0}
    if len(set(groups)) < len(used):
        with pytest.raises(NkfError, match=r"\d+ groups of images cannot be split into \d parts"):
            stratified_groups(labels, groups, shares, seed)
        return
    parts = stratified_groups(labels, groups, shares, seed)
    assert set(parts) == used
    assert all(len(set(parts[groups == group])) == 1 for group in set(groups))
    letters = np.array([chr(ord("a") + group) for group in groups])
    np.testing.assert_array_equal(parts, stratified_groups(labels, letters, shares, seed))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), min_size=6, max_size=21), SHARES, SEEDS)
@settings(deadline=None, max_examples=100)
def test_every_part_has_every_class_that_has_enough_groups(
    sizes: list[tuple[int, int]], shares: list[float], seed: int
) -> None:
    """Groups of one class each, of many sizes."""
    class_of_group = np.array([kind % 3 for kind, _ in sizes])
    groups = np.repeat(np.arange(len(sizes)), [size for _, size in sizes])
    labels = class_of_group[groups]
    used = [number for number, share in enumerate(shares) if share > 0]
    parts = stratified_groups(labels, groups, shares, seed)
    for value in set(labels):
        if (class_of_group == value).sum() >= len(used):
            assert set(parts[labels == value]) == set(used)


def test_groups_that_cannot_serve_every_part_are_split_all_the_same() -> None:
    """Three groups, each two of three classes: two parts cannot both have all classes."""
    groups, labels = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    parts = stratified_groups(labels, groups, [0.5, 0.5], 0)
    assert set(parts) == {0, 1}
    assert all(len(set(parts[groups == group])) == 1 for group in range(3))


def people(seed: int, *, rows: int, count: int, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and groups of a dataset in which every person has expressions of their own."""
    generator = np.random.default_rng(seed)
    mix = generator.dirichlet(np.full(classes, 0.7))
    own = generator.dirichlet(mix * 5 + 0.05, size=count)
    groups = generator.integers(0, count, rows)
    return np.array([generator.choice(classes, p=own[group]) for group in groups]), groups


def deviation(parts: NDArray[np.int64], labels: NDArray[np.int64], count: int) -> float:
    """Standard deviation over the folds of the share of a class that a fold has; mean over the classes."""
    shares = [np.bincount(parts[labels == value], minlength=count) / (labels == value).sum() for value in set(labels)]
    return float(np.mean(np.std(shares, axis=1)))


@pytest.mark.parametrize(
    ("rows", "count", "classes", "number"),
    [(1000, 100, 7, 5), (1000, 30, 7, 5), (213, 10, 7, 5), (327, 118, 7, 10), (2000, 60, 2, 3), (800, 600, 8, 4)],
)
def test_balance_of_classes_is_no_worse_than_that_of_scikit_learn(
    rows: int, count: int, classes: int, number: int
) -> None:
    ours, theirs = [], []
    for seed in range(4):
        labels, groups = people(seed, rows=rows, count=count, classes=classes)
        ours.append(deviation(folds(labels, groups, number, seed), labels, number))
        splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
        parts = np.zeros(rows, np.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes with fewer rows than folds
            for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
                parts[test] = fold
        theirs.append(deviation(parts, labels, number))
    assert np.mean(ours) <= 1.1 * np.mean(theirs)
    assert max(np.array(ours) / theirs) <= 1.5


def test_the_same_seed_gives_the_same_parts_everywhere() -> None:
    """Numbers recorded once: a later version must not move images between training and validation."""
    labels, groups = np.arange(24) % 3, np.arange(24) // 4
    assert "".join(map(str, folds(labels, groups, 3, 0))) == "000022220000222211111111"
    assert "".join(map(str, stratified_groups(labels, None, [0.75, 0.25], 0))) == "010100000010001001000100"
    assert folds(labels, groups, 3, 1).tolist() != folds(labels, groups, 3, 0).tolist()


def test_a_small_part_gets_large_and_small_groups_in_proportion() -> None:
    sizes = np.tile([1, 2, 5], 200)
    groups = np.repeat(np.arange(600), sizes)
    labels = np.random.default_rng(0).choice(4, len(groups))
    parts = stratified_groups(labels, groups, [0.9, 0.1], 0)
    assert np.mean(parts) == pytest.approx(0.1, abs=0.002)
    for size in (1, 2, 5):
        assert np.mean(parts[sizes[groups] == size]) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5, 0.4], r"shares 0\.5, 0\.4: expected shares from 0 to 1 with sum 1"),
        ([1.5, -0.5], r"shares 1\.5, -0\.5: expected"),
        ([float("nan"), 1.0], "shares nan, 1: expected"),
        ([], "expected shares"),
        ([0.2] * 5, "4 images cannot be split into 5 parts"),
    ],
)
def test_impossible_shares_are_refused(shares: list[float], message: str) -> None:
    with pytest.raises(NkfError, match=message):
        stratified_groups(np.zeros(4, int), None, shares, 0)


def test_arrays_that_do_not_fit_and_single_folds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels of shape \(4,\), groups of \(3,\)"):
        stratified_groups(np.zeros(4, int), np.zeros(3), [1.0], 0)
    with pytest.raises(NkfError, match="1 folds: expected two or more"):
        folds(np.zeros(4, int), None, 1, 0)
