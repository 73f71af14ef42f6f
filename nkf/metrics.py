"""Figures of merit, in numpy. Labels are class indices; fractions are in [0, 1]."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]  # (N,)
Answers = NDArray[np.bool_]  # (N,) whether each is right

_Z95 = 1.959964  # 97.5 % of the normal distribution are below it


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Share of equal entries."""
    return float(np.mean(labels == predicted))


def confusion_matrix(labels: Labels, predicted: Labels, num_classes: int) -> NDArray[np.int64]:
    """(C, C) counts, ``confusion[true, predicted]``."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def recall_by_class(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """(C,) recall of each class; NaN for a class without examples."""
    totals = confusion.sum(axis=1)
    return np.divide(confusion.diagonal(), totals, out=np.full(len(totals), np.nan), where=totals > 0)


def mean_class_accuracy(labels: Labels, predicted: Labels, num_classes: int) -> float:
    """Mean recall of the classes that have examples."""
    return float(np.nanmean(recall_by_class(confusion_matrix(labels, predicted, num_classes))))


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 1927), 95 %.

    Raises:
        ValueError: without any trial.
    """
    if trials < 1:
        raise ValueError("an interval needs at least one trial")
    p, z = successes / trials, _Z95
    centre = p + z**2 / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def accuracy_figures(right: Answers) -> dict[str, Any]:
    """``n``, ``accuracy`` and ``accuracy_ci95`` (Wilson) of answers (N,), N ≥ 1."""
    interval = wilson_interval(int(right.sum()), len(right))
    return {"n": len(right), "accuracy": float(right.mean()), "accuracy_ci95": interval}


def mcnemar(first: Answers, second: Answers) -> float:
    """Two-sided p of McNemar's exact (binomial) test: are two classifiers right equally often on the same examples?

    Args:
        first: (N,) whether one is right.
        second: the same of the other.
    """
    return sign_test(int(np.sum(first & ~second)), int(np.sum(second & ~first)))


def sign_test(more: int, fewer: int) -> float:
    """Two-sided exact p that so uneven a split of `more` + `fewer` fair coins comes by chance."""
    total, tail = more + fewer, min(more, fewer)
    # In logarithms: the binomial coefficients of some thousand coins are no floats.
    terms = (math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(tail + 1))
    return min(1.0, 2 * math.fsum(math.exp(term - total * math.log(2)) for term in terms))


def paired_difference(
    first: Answers, second: Answers, examples: NDArray[np.integer] | None = None
) -> tuple[float, tuple[float, float]]:
    """How much more accurate `first` is than `second` on the same examples, with its 95 % interval.

    The interval is the normal approximation from the discordant answers, with examples as the units that vary.

    Args:
        first: (N,) whether one is right.
        second: the same of the other.
        examples: (N,) which example each answer is about, where some were asked several times; by default all differ.
    """
    gains = example_sums(first.astype(np.int64) - second, examples)
    counts = example_sums(np.ones(len(first), np.int64), examples)
    mean = gains.sum() / len(first)
    spread = _Z95 * math.sqrt(float(np.sum((gains - mean * counts) ** 2))) / len(first)
    return float(mean), (float(mean - spread), float(mean + spread))


def example_sums(values: NDArray[np.int64], examples: NDArray[np.integer] | None) -> NDArray[np.int64]:
    """Add up the values (N,) of each example: (M,), in the order of the examples' numbers; None: all differ."""
    if examples is None:
        return values
    _, places = np.unique(examples, return_inverse=True)
    sums = np.zeros(places.max(initial=-1) + 1, np.int64)
    np.add.at(sums, places, values)
    return sums


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of independent values; None for fewer than two."""
    count = len(values)
    if count < 2:
        return None
    spread = student_t(count - 1, 0.95) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = float(np.mean(values))
    return mean - spread, mean + spread


def student_t(freedom: int, level: float) -> float:
    """The t that Student's distribution stays below in absolute value with probability `level`, by bisection."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < level else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) tan(angle)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for being several (Holm, Scandinavian Journal of Statistics 1979)."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = worst
    return adjusted
