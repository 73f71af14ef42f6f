"""Figures of merit, in numpy. Labels are class indices; fractions are in [0, 1]."""

import math

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]  # (N,)


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


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 1927); by default 95 %.

    Raises:
        ValueError: without any trial.
    """
    if trials < 1:
        raise ValueError("an interval needs at least one trial")
    p = successes / trials
    centre = p + z**2 / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
