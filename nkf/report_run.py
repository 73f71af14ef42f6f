"""Plots of a training run, as SVG that stands inside a page of HTML."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.reliability import BINS, reliability_bins
from nkf.report import require_matplotlib

Values = Sequence[float] | NDArray[np.float64]

_FEW = 30
_COLOURS = ("#2f5d8a", "#c8553d", "#5b8e7d")
_SMOOTHED_OVER = 20  # parts of a curve, whose noise would hide it
_STYLE: Any = {  # matplotlib's type for it lists every key there is
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nkf",  # the same curves give the same file
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8b97a3",
    "axes.grid": True,
    "grid.color": "#e8ecf0",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot of curves that share a unit.

    Attributes:
        title: above it.
        curves: name -> (x, y) of equal length.
        dots: show the points, where they are few.
        noisy: show what is there faintly, and a moving mean.
        percent: the unit is a share.
    """

    title: str
    curves: Mapping[str, tuple[Values, Values]]
    dots: bool = True
    noisy: bool = False
    percent: bool = False


def draw_curves(panels: Sequence[Panel], x_label: str, best: float | None = None) -> str:
    """Draw panels in rows of three, or four in one.

    Args:
        panels: one at least.
        x_label: of all horizontal axes.
        best: place on these of the best checkpoint, marked if known.

    Returns:
        An ``<svg>`` element.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = 4 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    end = max((float(max(x)) for panel in panels for x, _ in panel.curves.values() if len(x)), default=1.0)
    with rc_context(_STYLE):
        figure = Figure(figsize=(10.4, 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, best)
            axes.set(title=panel.title, xlabel=x_label, xlim=(0, 1.03 * end))
        for axes in grid[len(panels) :]:
            axes.remove()
        return _svg(figure)


def _draw_panel(axes: Any, panel: Panel, best: float | None) -> None:
    from matplotlib.ticker import PercentFormatter

    for colour, (name, (x, y)) in zip(_COLOURS * 9, panel.curves.items(), strict=False):
        if panel.noisy:
            axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
            x, y = moving_mean(x, 1 + len(x) // _SMOOTHED_OVER), moving_mean(y, 1 + len(y) // _SMOOTHED_OVER)
        marker = "o" if panel.dots and len(x) <= _FEW else ""
        axes.plot(x, y, color=colour, label=name, linewidth=1.6, marker=marker, markersize=3.5)
    if best is not None:
        axes.axvline(best, color="#5b6875", linestyle=":", linewidth=1)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    if len(panel.curves) > 1:
        axes.legend()


def moving_mean(values: Values, width: int) -> NDArray[np.float64]:
    """(N - width + 1,) means of neighbours."""
    return np.convolve(values, np.full(width, 1 / width), mode="valid")


def draw_reliability(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> str:
    """Draw how often answers of a confidence are right, with 95 % intervals, above how many there are.

    Args:
        confidence: (N,) probability of the predicted class.
        right: (N,) whether that is the label.

    Returns:
        An ``<svg>`` element.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    bins = reliability_bins(confidence, right)
    keys = ("low", "confidence", "accuracy", "n", "accuracy_ci95")
    starts, sure, hits, counts, ends = (np.array([row[key] for row in bins]) for key in keys)
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 3.3), layout="constrained")
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        top.plot([0, 1], [0, 1], color="#8b97a3", linestyle=":")
        errors = np.maximum(np.abs(ends.T - hits), 0)
        top.errorbar(sure, hits, yerr=errors, color=_COLOURS[0], marker="o", markersize=4, capsize=2, linewidth=1.4)
        top.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="share that is right")
        below.bar(starts + 0.5 / BINS, counts, 0.9 / BINS, color="#8fb4d9")
        below.set(xlabel="confidence", ylabel="images")
        return _svg(figure)


def _svg(figure: Any) -> str:
    """The picture without what only a file of its own needs."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
