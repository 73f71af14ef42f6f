"""Pictures and tables made from saved numbers. The only file that imports matplotlib."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nkf.errors import NkfError


def require_matplotlib() -> None:
    """Raise `NkfError` where pictures could not be drawn, before any work is done for them."""
    if find_spec("matplotlib") is None:
        raise NkfError("drawing needs matplotlib: pip install 'nkf[plot]'")


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
