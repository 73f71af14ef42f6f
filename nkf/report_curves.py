"""Pictures of robustness: accuracy against the severity of damage, and against noise on the landmarks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nkf.report import require_matplotlib

_COLUMNS = 5
_CURVES = {
    "features": "noise where features are read",
    "alignment": "noise before the crop is cut",
}


def draw_robustness(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw accuracy against severity, one panel a kind of damage, the same scale in all; bands are 95 % intervals.

    Args:
        results: name of a model to its ``robustness.json`` (`nkf.robustness.measure_robustness`).
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    first = next(iter(results.values()))
    names = list(first["corruptions"])
    lines = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(2.7 * _COLUMNS, 2.7 * lines), layout="constrained")
    grid = figure.subplots(lines, _COLUMNS, squeeze=False, sharey=True)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for axes, name in zip(grid.flat, names, strict=False):
        for model, result in results.items():
            rows = [result["clean"], *result["corruptions"][name]]
            _curve(axes, range(len(rows)), rows, model)
        ticks = ["clean", *(f"{row['amount']:g}" for row in first["corruptions"][name])]
        axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel(first["units"][name], fontsize=8)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy")
    grid[0, 0].set_ylim(0, 1)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(results))
    figure.savefig(file, format="png", dpi=110)


def draw_landmark_noise(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw accuracy against noise on the landmarks, with 95 % intervals: where features are read, and in the alignment.

    Args:
        results: name of a model to its ``robustness.json``.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, len(_CURVES), sharey=True)
    for axes, (curve, title) in zip(panels, _CURVES.items(), strict=True):
        for model, result in results.items():
            rows = result["landmark_noise"][curve]
            _curve(axes, [row["noise"] for row in rows], rows, model)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("noise over the distance of the eye centres")
    panels[0].set_ylabel("accuracy")
    panels[0].legend(fontsize=8)
    figure.savefig(file, format="png", dpi=110)


def _curve(axes: Any, x: Sequence[float], rows: Sequence[Mapping[str, Any]], label: str) -> None:
    """A line through the accuracies, and a band of their intervals."""
    (line,) = axes.plot(x, [row["accuracy"] for row in rows], marker=".", label=label)
    if rows:
        low, high = np.array([row["accuracy_ci95"] for row in rows]).T
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)
