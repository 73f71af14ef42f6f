"""The sections of docs/results.md about robustness and calibration, from what the commands of these names wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nkf.ablation_text import interval, percent, table
from nkf.report_calibration import draw_coverage, draw_reliability
from nkf.report_curves import draw_landmark_noise, draw_robustness

Document = dict[str, Any]

ROBUSTNESS, COLOUR, CALIBRATION = "robustness-mobile", "colour-mobile", "calibration-mobile"  # names of the files
COMMANDS = {
    ROBUSTNESS: "nkf robustness data/ferplus --limit 300 --out results/robustness",
    COLOUR: "nkf robustness data/fairface --colour --split train --limit 1500 --out results/colour",
    CALIBRATION: "nkf calibrate data/ferplus --model mobile --method temperature --out results/calibration",
}
TITLES = {
    ROBUSTNESS: "## Damaged pictures and wrong landmarks",
    COLOUR: "## Grey and colour alike",
    CALIBRATION: "## Calibration",
}


def robustness_parts(of: Document) -> list[str]:
    """What damage of the picture, and noise on the landmarks, cost."""
    clean = of["clean"]
    lead = (
        f"`{of['model']}` is right on {percent(clean['accuracy'])} ({interval(clean['accuracy_ci95'])}) of {of['n']:,}"
        " images as they are. Relative drop of the accuracy (with the interval of a paired bootstrap over the images):"
    )
    parts = [lead, _drops(of), _hardest(of), "![accuracy by severity](results_robustness.png)"]
    if of["landmark_noise"]["n"]:
        parts += ["With noise on the landmarks (standard deviation over the distance of the eye centres):", _noise(of)]
        parts.append("![accuracy by noise on the landmarks](results_landmark_noise.png)")
    return parts


def _drops(of: Document) -> str:
    rows = []
    for name, severities in of["corruptions"].items():
        cells = [f"{percent(one['relative_drop'], 1)} ({_ends(one['relative_drop_ci95'])})" for one in severities]
        rows.append([name.replace("_", " "), *cells])
    return table(["damage", *(f"severity {severity}" for severity in range(1, 6))], rows)


def _ends(ends: Sequence[float] | None) -> str:
    """Of drops, which may be below zero."""
    return "" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}".replace("-", "−")


def _hardest(of: Document) -> str:
    """Name what costs most and least, by the mean over the severities."""
    mean = {
        name.replace("_", " "): sum(one["accuracy"] for one in severities) / len(severities)
        for name, severities in of["corruptions"].items()
    }
    order = sorted(mean, key=lambda name: mean[name])
    told = ", ".join(f"{name} ({percent(mean[name], 1)})" for name in order)
    return f"From what costs most to what costs least, by the mean accuracy of the five severities: {told}."


def _noise(of: Document) -> str:
    curves = of["landmark_noise"]
    rows = []
    for first, second in zip(curves["features"], curves["alignment"], strict=True):
        cells = [f"{percent(one['accuracy'], 1)} ({interval(one['accuracy_ci95'], 1)})" for one in (first, second)]
        rows.append([f"{first['noise']:g}", *cells])
    return table(["noise", "where features are read", "before the crop is cut"], rows)


def colour_parts(of: Document) -> list[str]:
    """Whether a colour photo and its grey version get the same answer."""
    text = (
        f"`{of['model']}` gives a colour photo and its grey version the same expression for {percent(of['agreement'])}"
        f" ({interval(of['agreement_ci95'])}) of {of['n']:,} faces; the probabilities differ by"
        f" {100 * of['mean_absolute_difference']:.2f} points on average."
    )
    return [text]


def calibration_parts(of: Document) -> list[str]:
    """Calibration error before and after, and what confidence is needed for a wanted accuracy."""
    lead = (
        f"Fitted and judged on different folds ({of['folds']}, copies of a picture together): {of['n']:,} images,"
        f" method {of['method'].replace('_', ' ')}, temperature {of['temperature']:.3f}."
        " The model card has these figures of the network before its weights were cut to half precision for the"
        " package."
    )
    rows = [
        [
            when,
            f"{percent(of[when]['ece'])} ({interval(of[when]['ece_ci95'])})",
            percent(of[when]["ece_if_perfect"]),
            f"{of[when]['nll']:.4f}",
            f"{of[when]['brier']:.4f}",
            f"{percent(of[when]['accuracy'])} ({interval(of[when]['accuracy_ci95'])})",
        ]
        for when in ("before", "after")
    ]
    header = ["", "ECE", "ECE of perfect probabilities", "NLL", "Brier", "accuracy"]
    pictures = "![reliability](results_reliability.png)\n![coverage and accuracy](results_coverage.png)"
    return [lead, table(header, rows), _abstention(of), pictures]


def _abstention(of: Document) -> str:
    wanted, kept = percent(of["target_accuracy"], 0), of["at_min_confidence"]
    if of["min_confidence"] is None or kept["accuracy"] is None:
        return f"No confidence reaches an accuracy of {wanted}."
    return (
        f"From confidence {of['min_confidence']:.3f} on, {percent(kept['coverage'], 1)}"
        f" ({interval(kept['coverage_ci95'], 1)}) of the faces are answered, and {percent(kept['accuracy'], 1)}"
        f" ({interval(kept['accuracy_ci95'], 1)}) of the answers are right; wanted were {wanted}. Judged on other folds"
        " than those that the confidence was taken from."
    )


def what(name: str, of: Document) -> str:
    """What the numbers of a file are about."""
    if name == COLOUR:
        return f"{of['data']} {of['split']}"
    about = f"{of['data']} {of['split']}, rule {of['rule']}, landmarks of {of['landmarks']}"
    return f"{about}, {of['n']:,} images" if name == ROBUSTNESS else about


def draw_robustness_pictures(of: Document, folder: Path) -> list[Path]:
    """Draw what `robustness_parts` shows; returns the files."""
    files = [folder / "results_robustness.png"]
    draw_robustness({of["model"]: of}, files[0])
    if of["landmark_noise"]["n"]:
        files.append(folder / "results_landmark_noise.png")
        draw_landmark_noise({of["model"]: of}, files[-1])
    return files


def draw_calibration_pictures(of: Document, folder: Path) -> list[Path]:
    """Draw what `calibration_parts` shows; returns the files."""
    files = [folder / "results_reliability.png", folder / "results_coverage.png"]
    draw_reliability(of, files[0], title=of["model"])
    draw_coverage(of, files[1], title=of["model"])
    return files


PARTS = {ROBUSTNESS: robustness_parts, COLOUR: colour_parts, CALIBRATION: calibration_parts}
