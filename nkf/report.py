"""Pictures made from saved numbers; matplotlib is imported here and in the modules `report_*` alone."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.errors import NkfError


def require_matplotlib() -> None:
    """Raise `NkfError` where pictures could not be drawn, before any work is done for them."""
    if find_spec("matplotlib") is None:
        raise NkfError("drawing needs matplotlib: pip install matplotlib")


def draw_confusion(confusion: NDArray[np.integer], classes: tuple[str, ...], file: Path, *, title: str) -> None:
    """Draw a confusion matrix: colour is the share of the true class, the text is count and share.

    Args:
        confusion: (C, C) counts, ``confusion[true, predicted]``.
        classes: C names.
        file: PNG to write.
        title: line above the picture.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(title)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            color = "white" if share[row, column] > 0.5 else "black"
            text = f"{count}\n{share[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.savefig(file, format="png", dpi=120)


def draw_cumulative_error(curves: dict[str, NDArray[np.float64]], file: Path, *, limit: float) -> None:
    """Draw which share of the faces has at most a given error.

    Args:
        curves: name to (N,) errors over the inter-ocular distance.
        file: PNG to write.
        limit: from where a face counts as failed, marked in the picture.

    Raises:
        NkfError: without matplotlib.
    """
    axes, figure = _axes((7, 4.5))
    for name, errors in curves.items():
        axes.plot(np.sort(errors), np.arange(1, len(errors) + 1) / len(errors), label=f"{name}: {errors.mean():.2%}")
    axes.axvline(limit, color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlim=(0, 1.5 * limit), ylim=(0, 1), xlabel="mean error over inter-ocular distance", ylabel="share of faces"
    )
    axes.grid(alpha=0.3)
    axes.legend(title="crops: mean error", loc="lower right")
    figure.savefig(file, format="png", dpi=120)


def draw_calibration(expected: NDArray[np.float64], distances: NDArray[np.float64], file: Path) -> None:
    """Draw what the landmarks' errors are against what the network says that they are, in twenty groups of equal size.

    Args:
        expected: (N,) expected distances of points.
        distances: (N,) true ones, in the same unit.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    axes, figure = _axes((5, 4.5))
    groups = np.array_split(np.argsort(expected), 20)
    x = [expected[group].mean() for group in groups]
    axes.plot([0, max(x)], [0, max(x)], color="grey", linestyle=":", label="perfect")
    axes.plot(x, [distances[group].mean() for group in groups], marker="o", markersize=4, label="mean")
    axes.plot(x, [np.median(distances[group]) for group in groups], marker=".", alpha=0.6, label="median")
    axes.set(xlabel="expected distance over inter-ocular distance", ylabel="distance", xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, format="png", dpi=120)


def draw_landmark_cases(
    rows: dict[str, list[tuple[NDArray[np.uint8], NDArray[np.floating], NDArray[np.floating], float]]], file: Path
) -> None:
    """Draw faces with their known and found landmarks, titled by their errors.

    Args:
        rows: title to (picture (H, W, 3), known (68, 2) and found (68, 2) pixels of it, error) of each face.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    columns = max(len(cases) for cases in rows.values())
    figure = Figure(figsize=(1.6 * columns, 1.85 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for (title, cases), line in zip(rows.items(), grid, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (picture, known, found, error) in zip(line, cases, strict=False):
            axes.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0))
            axes.plot(*known.T, ".", color="lime", markersize=2)
            axes.plot(*found.T, ".", color="red", markersize=2)
            axes.set_title(f"{error:.1%}", fontsize=8, pad=2)
        line[0].set_title(f"{title}: {line[0].get_title()}", fontsize=8, pad=2)
    figure.savefig(file, format="png", dpi=120)


def draw_tradeoff(panels: dict[str, dict[str, list[tuple[float, float]]]], file: Path, *, x: str, y: str) -> None:
    """Draw two costs against each other, logarithmically: each method as its settings, and a line through its best.

    Args:
        panels: title of a panel to name of a method to (x, y) of each of its settings.
        file: PNG to write.
        x: label of the horizontal axis.
        y: label of the vertical axis.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.6), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, methods) in zip(grid, panels.items(), strict=True):
        for name, points in methods.items():
            if len(points) == 1:
                axes.plot(*points[0], marker="*", markersize=13, linestyle="", label=name, zorder=3)
                continue
            best, lowest = [], float("inf")
            for point in sorted(points):
                if point[1] < lowest:
                    best.append(point)
                    lowest = point[1]
            (line,) = axes.plot(*zip(*best, strict=True), marker=".", label=name)
            axes.plot(*zip(*points, strict=True), ".", color=line.get_color(), alpha=0.2, markersize=4)
        axes.set(xscale="log", yscale="log", xlabel=x, title=title)
        axes.grid(alpha=0.3, which="both")
    grid[0].set_ylabel(y)
    grid[-1].legend(fontsize=8)
    figure.savefig(file, format="png", dpi=100)


def draw_rejection(scores: dict[str, NDArray[np.floating]], truth: NDArray[np.integer], file: Path) -> None:
    """Draw ROC curves of telling faces from non-faces.

    Args:
        scores: name to (N,) values, higher for faces.
        truth: (N,) 1 for a face, 0 for none.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    axes, figure = _axes((5, 4.5))
    for name, values in scores.items():
        faces = truth[np.argsort(-values, kind="stable")]
        axes.plot(np.cumsum(1 - faces) / max((1 - faces).sum(), 1), np.cumsum(faces) / max(faces.sum(), 1), label=name)
    axes.set(xlim=(-0.01, 0.5), ylim=(0.5, 1.005), xlabel="non-faces kept", ylabel="faces kept")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, format="png", dpi=120)


def _axes(size_inches: tuple[float, float]) -> tuple[Any, Any]:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_inches, layout="constrained")
    return figure.add_subplot(), figure


def draw_recalls(groups: dict[str, dict[str, dict[str, Any]]], names: tuple[str, ...], file: Path) -> None:
    """Draw recalls with their intervals as bars, one panel a group.

    Args:
        groups: title -> label -> ``n``, and for each name ``recall`` and ``ci95`` (low, high).
        names: of what is compared.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(groups), 3.6), layout="constrained")
    width = 0.8 / len(names)
    for axes, (title, parts) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        for number, name in enumerate(names):
            recalls = np.array([part[name]["recall"] for part in parts.values()])
            low, high = np.array([part[name]["ci95"] for part in parts.values()]).T
            places = np.arange(len(parts)) + (number - (len(names) - 1) / 2) * width
            errors = np.maximum([recalls - low, high - recalls], 0)
            axes.bar(places, recalls, width, yerr=errors, capsize=2, label=name)
        axes.set_xticks(range(len(parts)), [f"{label}\nn={part['n']}" for label, part in parts.items()], fontsize=8)
        axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("recall")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), fontsize=8)
    figure.savefig(file, format="png", dpi=110)


def draw_balance(counts: dict[str, dict[str, int]], file: Path, *, title: str) -> None:
    """Draw how many images each class has, by split, logarithmically.

    Args:
        counts: split -> class -> images.
        file: PNG to write.
        title: line above the picture.

    Raises:
        NkfError: without matplotlib.
    """
    axes, figure = _axes((8, 4))
    width = 0.8 / len(counts)
    classes = list(next(iter(counts.values())))
    for number, (split, row) in enumerate(counts.items()):
        places = np.arange(len(classes)) + (number - (len(counts) - 1) / 2) * width
        bars = axes.bar(places, [row[name] for name in classes], width, label=f"{split}: {sum(row.values()):,}")
        axes.bar_label(bars, [f"{row[name]:,}" for name in classes], fontsize=7)
    axes.set_xticks(range(len(classes)), classes)
    most = max(max(row.values()) for row in counts.values())
    axes.set(yscale="symlog", ylim=(0, 3 * most + 1), ylabel="images (logarithmic)", title=title)
    axes.legend(fontsize=8)
    figure.savefig(file, format="png", dpi=120)
