"""Orders in which an epoch goes through the training images: pure functions of (seed, epoch), so that runs resume."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nkf.geometry import Points
from nkf.pose import head_pose

_TURNED_DEG = 20.0
Order = Callable[[int], NDArray[np.int64]]  # epoch -> row numbers


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Every row once, in a random order."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def balanced(labels: NDArray[np.integer], seed: int, epoch: int) -> NDArray[np.int64]:
    """As many rows as there are labels, every class equally often (one more or less), in a random order.

    The samplers of the literature draw each row with replacement, weighted by one over the size of its class, so that
    classes are even on average, and an image may come again while others of its class have not been seen. Here classes
    are even in each epoch, and an image repeats only after all others of its class: large classes show a random part
    of theirs once, small ones go round as often as needed.

    Args:
        labels: (N,) integers; each value is a class.
        seed: of the run.
        epoch: from 0.

    Returns:
        (N,) row numbers.
    """
    generator = np.random.default_rng([seed, epoch])
    members = [np.flatnonzero(labels == value) for value in np.unique(labels)]
    share, rest = divmod(len(labels), max(1, len(members)))
    one_more = generator.permutation(len(members)) < rest
    parts = [_round_and_round(rows, share + int(more), generator) for rows, more in zip(members, one_more, strict=True)]
    return generator.permutation(np.concatenate([np.empty(0, np.int64), *parts]))


def _round_and_round(rows: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    rounds = -(-count // len(rows))
    return np.concatenate([np.empty(0, np.int64), *(generator.permutation(rows) for _ in range(rounds))])[:count]


def weighted(weights: NDArray[np.floating], seed: int, epoch: int) -> NDArray[np.int64]:
    """As many rows as there are weights, each as often as its share of them says, in a random order.

    A row comes as often as its expected number rounded down or up: one of less than 1 may be left out of an epoch.

    Args:
        weights: (N,), above 0.
        seed: of the run.
        epoch: from 0.

    Returns:
        (N,) row numbers.
    """
    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(len(weights))
    ends = np.cumsum(weights[rows])
    at = (np.arange(len(weights)) + generator.random()) * (ends[-1] / len(weights))
    return generator.permutation(rows[np.searchsorted(ends, at, side="right").clip(max=len(rows) - 1)])


def turned_weights(landmarks_px: Points) -> NDArray[np.float64]:
    """How often to show faces (N, 68, 2) so that profiles, which are rare, count: (N,) from 1 on.

    One turned to a side by 20 degrees weighs twice as much as one from the front, one turned by 40 five times.
    Landmarks on one line, which have no pose, weigh 1.
    """
    return np.array([1 + (_yaw_deg(points) / _TURNED_DEG) ** 2 for points in landmarks_px])


def _yaw_deg(landmarks_px: Points) -> float:
    try:
        return head_pose(landmarks_px).yaw_deg
    except ValueError:
        return 0.0


def epoch_order(
    count: int,
    seed: int,
    labels: NDArray[np.integer] | None = None,
    weights: NDArray[np.floating] | None = None,
) -> Order:
    """Make the function epoch -> row numbers: shuffled, balanced by labels, or by weights; one of the two at most.

    It remembers the last epoch, since every step asks; do not write to what it returns.
    """

    assert labels is None or weights is None

    @lru_cache(maxsize=1)
    def order(epoch: int) -> NDArray[np.int64]:
        if weights is not None:
            return weighted(weights, seed, epoch)
        return shuffled(count, seed, epoch) if labels is None else balanced(labels, seed, epoch)

    return order
