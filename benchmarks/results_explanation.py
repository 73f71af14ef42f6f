"""The section of docs/results.md about explanations, and its picture, from what benchmarks/deletion.py saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nkf.ablation_text import between, interval, percent, points, table
from nkf.report import require_matplotlib

Document = Mapping[str, Any]

TITLE = "## Explanation: the deletion test"
PICTURE = "results_deletion.png"
COLOURS = {
    "highest contribution": "#d95f02", "highest attention": "#1b9e77", "random": "#666666",
    "lowest contribution": "#3b6fd4",
}  # fmt: skip


def explanation_parts(of: Document) -> list[str]:
    """What covering keypoints costs, by how they were chosen; where the network looks, by expression."""
    orders = of["orders"]
    counts = [f"{part['keypoints']}" for part in orders["random"]]
    stays, sure, differ = [], [], []
    for name, parts in orders.items():
        stays.append([name, *(f"{percent(p['accuracy'], 1)} ({interval(p['accuracy_ci95'], 1)})" for p in parts)])
        sure.append([name, *(f"{p['probability']:.3f} ({_ends(p['probability_ci95'])})" for p in parts)])
    for name, parts in of["differences"].items():
        differ.append([name, *(f"{points(p['accuracy'])} ({between(p['accuracy_ci95'])})" for p in parts)])
    lead = (
        f"Of {of['n']:,} images that `{of['model']}` gets right, keypoints are covered together by soft discs (radius"
        f" {percent(of['radius'], 0)} of the crop's side): those of the highest contribution (`docs/explanation.md`),"
        " of the highest attention, of the lowest contribution, or random ones. Contributions were measured with a"
        f" {of['fill_of_contributions']}; here what is covered gets the {of['fill_of_deletion']}, so that the test is"
        f" not the measurement again. Images whose expression stays, by the number of keypoints:"
    )
    return [
        TITLE, lead, table(["covered", *counts], stays),
        "Difference to random ones on the same images, in points:", table(["covered", *counts], differ),
        "Mean probability of the expression:", table(["covered", *counts], sure),
        _words(of), f"![expressions that stay, by covered keypoints]({PICTURE})",
        "Mean contribution of a keypoint by region (drop of the log-odds when it is covered):", _regions(of),
    ]  # fmt: skip


def _words(of: Document) -> str:
    """What the intervals say, and how much of the crop the discs cover."""
    told = [_compared(name, of["differences"][name]) for name in of["differences"]]
    most = {name: parts[-1] for name, parts in of["orders"].items()}
    shares = ", ".join(f"{name} {percent(part['covered'], 1)}" for name, part in most.items())
    count = most["random"]["keypoints"]
    told.append(f"- {count} discs overlap, and cover of the crop: {shares}.")
    if of["attention"] is not None:
        low, high = of["attention"]["rank_correlation_ci95"]
        told.append(
            f"- Attention and contribution order the keypoints of a face alike with a rank correlation of"
            f" {of['attention']['rank_correlation']:.2f} ({low:.2f} to {high:.2f}) on average."
        )
    return "\n".join(told)


def _compared(name: str, parts: Sequence[Document]) -> str:
    def those(sign: int) -> list[str]:
        kept = [part for part in parts if min(sign * end for end in part["accuracy_ci95"]) > 0]
        return [str(part["keypoints"]) for part in kept]

    found = [(those(-1), "costs more expressions"), (those(1), "costs fewer")]
    words = [f"{what} than random ones with {', '.join(counts)} covered" for counts, what in found if counts]
    return f"- **{name}**: {' and '.join(words) or 'not told apart from random ones'}."


def _regions(of: Document) -> str:
    regions = list(next(iter(of["by_expression"].values()))["regions"])
    rows = [
        [expression, f"{part['n']}", *(f"{part['regions'][region]:+.2f}".replace("-", "−") for region in regions)]
        for expression, part in of["by_expression"].items()
    ]
    return table(["expression", "images", *regions], rows)


def _ends(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f}–{ends[1]:.3f}"


def draw_deletion(of: Document, file: Path) -> None:
    """Draw how many expressions stay, and how probable they are, by the number of covered keypoints.

    Args:
        of: ``deletion.json``.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(
        panels,
        ("accuracy", "probability"),
        ("expressions that stay", "mean probability of the expression"),
        strict=True,
    ):
        for name, parts in of["orders"].items():
            counts = [part["keypoints"] for part in parts]
            axes.plot(counts, [part[key] for part in parts], marker=".", color=COLOURS[name], label=name)
            low, high = zip(*(part[f"{key}_ci95"] for part in parts), strict=True)
            axes.fill_between(counts, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("keypoints covered")
        axes.grid(alpha=0.3)
    panels[0].set_ylim(0, 1.02)
    panels[0].legend(fontsize=8, loc="lower left")
    figure.savefig(file, format="png", dpi=110)
