"""Pictures of ablations, from what `nkf.ablation_tables.analyse` saved. Imports matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nkf.report import require_matplotlib

DPI = 120
MARKERS = "osD^vPX*"


def draw_study(study: Mapping[str, Any], file: Path) -> None:
    """Draw the rows' accuracies with their intervals over images, and every row's difference to the reference.

    Args:
        study: of ``ablation.json``; where its rows differ in one number alone, that is the horizontal axis.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    rows, sweep = [row for row in study["rows"] if row["repeats"]], bool(study["axis"])
    size = (9.0, 4.0) if sweep else (10.0, 1.4 + 0.42 * len(study["rows"]))
    figure = Figure(figsize=size, layout="constrained")
    if sweep:
        rows = sorted(rows, key=lambda row: row["value"])
        panels = figure.subplots(1, 2, sharex=True)
        panels[0].set_xticks(range(len(rows)), [f"{row['value']:g}\n{_runs(row)}" for row in rows], fontsize=8)
        for axes in panels:
            axes.set_xlabel(study["axis"], fontsize=8)
    else:
        panels = figure.subplots(1, 2, sharey=True)
        panels[0].set_yticks(range(len(rows)), [f"{row['row']}\n{_runs(row)}" for row in rows], fontsize=8)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
    _draw_accuracies(panels[0], rows, upright=sweep)
    _draw_differences(panels[1], rows, study["reference"], upright=sweep)
    figure.suptitle(study["title"], fontsize=10)
    figure.savefig(file, format="png", dpi=DPI)


def _draw_accuracies(axes: Any, rows: Sequence[Mapping[str, Any]], *, upright: bool) -> None:
    for place, row in enumerate(rows):
        _bar(axes, row["accuracy_ci95"], place, upright, linewidth=2.5, alpha=0.6)
        _bar(axes, [row["accuracy"]], place, upright, marker="o", markersize=5)
    _name_values(axes, "accuracy, %; bar: 95 % over images", upright)


def _draw_differences(axes: Any, rows: Sequence[Mapping[str, Any]], reference: str, *, upright: bool) -> None:
    """Two bars a row: over images (thick), over runs (thin)."""
    (axes.axhline if upright else axes.axvline)(0, color="grey", linewidth=1)
    for place, row in enumerate(rows):
        if one := row["comparison"]:
            color = {"better": "tab:green", "worse": "tab:red"}.get(one["verdict"], "tab:gray")
            _bar(axes, one["ci95"], place, upright, color=color, linewidth=2.5, alpha=0.6)
            _bar(axes, one["run_ci95"] or [], place + 0.15, upright, color=color, linewidth=1)
            _bar(axes, [one["difference"]], place, upright, color=color, marker="o", markersize=5)
    _name_values(axes, f"points more than {reference};\nthick: 95 % over images, thin: over runs", upright)


def _bar(
    axes: Any, shares: Sequence[float], place: float, upright: bool, color: str = "tab:blue", **style: Any
) -> None:
    """A line through shares, drawn in per cent, at a place of the other axis."""
    values, places = 100 * np.array(shares), [place] * len(shares)
    axes.plot(*((places, values) if upright else (values, places)), color=color, **style)


def _name_values(axes: Any, label: str, upright: bool) -> None:
    (axes.set_ylabel if upright else axes.set_xlabel)(label, fontsize=8)
    axes.grid(alpha=0.3)


def draw_noise(curves: Mapping[str, Any], file: Path) -> None:
    """Draw accuracy against noise on the landmarks, a line for each row, with intervals over images.

    Args:
        curves: ``noise`` of a study in ``ablation.json``; its conditions are numbers.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    noises = [float(name) for name in curves["conditions"]]
    for row, marker in zip(curves["rows"], MARKERS * len(curves["rows"]), strict=False):
        (line,) = axes.plot(noises, 100 * np.array(row["accuracy"]), marker=marker, markersize=4, label=row["row"])
        low, high = 100 * np.array(row["ci95"]).T
        axes.fill_between(noises, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xlabel("noise on the landmarks, σ over the distance of the eye centres")
    axes.set_ylabel("accuracy, %; band: 95 % over images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, format="png", dpi=DPI)


def _runs(row: Mapping[str, Any]) -> str:
    count = len(row["repeats"])
    return f"{count} run{'s' * (count != 1)}"
