"""Pictures of a calibration, made from ``calibration.json``."""

from pathlib import Path
from typing import Any

import numpy as np

from nkf.reliability import BINS
from nkf.report import require_matplotlib


def draw_reliability(document: dict[str, Any], file: Path, *, title: str) -> None:
    """Draw accuracy over confidence before and after, with 95 % intervals, and how many faces each bin has.

    Args:
        document: content of a ``calibration.json``.
        file: PNG to write.
        title: line above the picture.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 2, sharex=True, height_ratios=(3, 1))
    figure.suptitle(title)
    for (name, bins), top, bottom in zip(document["reliability"].items(), upper, lower, strict=True):
        confidence, accuracy, count = (np.array([row[key] for row in bins]) for key in ("confidence", "accuracy", "n"))
        low, high = np.array([row["accuracy_ci95"] for row in bins]).T
        top.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
        errors = np.maximum([accuracy - low, high - accuracy], 0)
        top.errorbar(confidence, accuracy, errors, marker="o", markersize=4, capsize=2, label="mean of a bin, 95 %")
        told = document[name]
        text = f"ECE {told['ece']:.2%}, log-likelihood {-told['nll']:.3f}"
        top.set(title=f"{name}: {text}", xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        top.grid(alpha=0.3)
        starts = np.array([row["low"] for row in bins])
        bottom.bar(starts, count / document["n"], width=1 / BINS, align="edge", color="tab:grey")
        bottom.set(xlabel="confidence", ylabel="share of faces")
    upper[0].legend(loc="upper left")
    figure.savefig(file, format="png", dpi=110)


def draw_coverage(document: dict[str, Any], file: Path, *, title: str) -> None:
    """Draw the accuracy of the faces kept when the least sure are left out, before and after.

    Args:
        document: content of a ``calibration.json``.
        file: PNG to write.
        title: line above the picture.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in document["curve"].items():
        axes.plot(curve["coverage"], curve["accuracy"], label=name)
    axes.axhline(document["target_accuracy"], color="grey", linestyle=":", linewidth=1)
    at = document["at_min_confidence"]
    if document["min_confidence"] is not None and at["accuracy"] is not None:
        x, y = at["coverage"], at["accuracy"]
        x_error, y_error = np.abs([np.array(at["coverage_ci95"]) - x, np.array(at["accuracy_ci95"]) - y])[:, :, None]
        told = f"confidence at least {document['min_confidence']:.2f}, on unseen folds"
        axes.errorbar(x, y, yerr=y_error, xerr=x_error, color="black", marker="o", capsize=3, label=told)
    axes.set(xlabel="share of faces kept", ylabel="accuracy of these", xlim=(0, 1.01), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(file, format="png", dpi=110)
