"""An ablation's document (``ablation.json``) as Markdown: tables, and what the numbers say in words."""

from collections.abc import Mapping, Sequence
from typing import Any

HOW_TO_READ = """\
*Accuracy* is of all answers of the finished runs pooled; its 95 % interval (Wilson) is about other images, not about
other runs. *Runs* gives mean and standard deviation of the runs' accuracies. *Difference* is to the reference row, in
points, on the same images, in the repeats that both have; first its interval over images (from the discordant answers,
for these trained networks), then over runs (Student's t, one difference for each repeat). *p* is McNemar's exact test
or, where several repeats measured the same images, an exact sign test of which row is right on an image more often;
*Holm* is p adjusted for the rows of the table. A row is called better or worse only if both intervals exclude zero,
Holm's p is below 0.05, and there are at least three repeats. Folds share most of their training images, so that the
interval over runs is somewhat too narrow. *s / run* is the median time of training; on a machine that does other work
too it says little. Under the tables of noise and damage the conditions are named in which the interval over runs
excludes zero; these intervals are not adjusted for being many."""
FEWEST_RUNS = 3


def tables_markdown(document: Mapping[str, Any]) -> str:
    """All of an ablation's tables."""
    parts = [f"# Ablation on {', '.join(document['data'])}", HOW_TO_READ]
    for study in document["studies"].values():
        parts.append(f"## {study['title']}")
        parts += study_parts(study)
    return "\n\n".join(parts) + "\n"


def study_parts(study: Mapping[str, Any]) -> list[str]:
    """Table and words of a study, then the same of its landmark noise and damaged pictures where there are any."""
    parts = [study_table(study), study_words(study)]
    for name, title in (
        ("noise", "Accuracy by noise on the landmarks"),
        ("robustness", "Accuracy on damaged pictures"),
    ):
        if study[name]:
            parts += [f"{title}:", damage_table(study[name]), damage_words(study, study[name])]
    return [part for part in parts if part]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first stand right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float | None, digits: int = 2) -> str:
    """0.8825 gives "88.25 %"."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def interval(ends: Sequence[float] | None, digits: int = 2) -> str:
    """(0.8708, 0.8932) gives "87.08–89.32"; of a difference "−0.10 to +0.20"."""
    if ends is None:
        return ""
    return f"{100 * ends[0]:.{digits}f}–{100 * ends[1]:.{digits}f}"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign: "+1.20"."""
    return f"{100 * difference:+.2f}".replace("-", "−")


def between(ends: Sequence[float] | None) -> str:
    """An interval of a difference: "−0.10 to +0.20"."""
    return "" if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def p_value(p: float) -> str:
    """A p-value with two digits; tiny ones as a bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def study_table(study: Mapping[str, Any]) -> str:
    """A row each: its accuracy, and how it stands against the reference."""
    header = [
        "row", "runs", "images", "accuracy (95 %)", "runs, mean ± s. d.", "mean recall", "difference", "over images",
        "over runs", "p", "Holm", "verdict", "weights", "s / run",
    ]  # fmt: skip
    field = (study["axis"] or "").rpartition(".")[2]
    rows = [_row(row, study["reference"]) for row in study["rows"]]
    if field:
        for row, cells in zip(study["rows"], rows, strict=True):
            value = f"{field} {row['value']:g}"
            cells[0] = value if cells[0] == value else f"{cells[0]} ({value})"
    return table(header, rows)


def _row(row: Mapping[str, Any], reference: str) -> list[str]:
    if not row["repeats"]:
        return [row["row"], "0", *[""] * 9, "not run", "", ""]
    scatter = "" if row["run_std"] is None else f" ± {100 * row['run_std']:.2f}"
    cells = [
        row["row"], str(len(row["repeats"])), f"{row['images']:,}",
        f"{percent(row['accuracy'])} ({interval(row['accuracy_ci95'])})", f"{100 * row['run_mean']:.2f}{scatter}",
        percent(row["mean_class_recall"], 1),
    ]  # fmt: skip
    costs = [
        "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M",
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
    ]
    one = row["comparison"]
    if one is None:
        return [*cells, *[""] * 5, "reference" if row["row"] == reference else "", *costs]
    paired = [points(one["difference"]), between(one["ci95"]), between(one["run_ci95"])]
    return [*cells, *paired, p_value(one["p"]), p_value(one["p_holm"]), one["verdict"], *costs]


def study_words(study: Mapping[str, Any]) -> str:
    """What a study's numbers say, a line for each row."""
    return "\n".join(f"- {_says(row, study['reference'])}" for row in study["rows"] if row["comparison"])


def _says(row: Mapping[str, Any], reference: str) -> str:
    one = row["comparison"]
    figures = f"{points(one['difference'])} points, {between(one['ci95'])} over {one['images']:,} images"
    if one["run_ci95"]:
        figures += f", {between(one['run_ci95'])} over {one['repeats']} runs"
    match one["verdict"]:
        case "better" | "worse":
            return f"**{row['row']}** is {one['verdict']} than {reference}: {figures}."
        case "too few runs":
            return f"**{row['row']}** against {reference}: {figures}; {one['repeats']} of three runs, so no claim."
        case _:
            return f"**{row['row']}**: no difference to {reference} shown ({figures})."


def damage_table(curves: Mapping[str, Any]) -> str:
    """Accuracy of each row in each condition, with its interval over images."""
    rows = [
        [row["row"], str(row["runs"]), f"{row['images']:,}"]
        + [
            f"{percent(share, 1)} ({interval(ends, 1)})"
            for share, ends in zip(row["accuracy"], row["ci95"], strict=True)
        ]
        for row in curves["rows"]
    ]
    return table(["row", "runs", "images", *curves["conditions"]], rows)


def damage_words(study: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """Where a row is better or worse than the reference: the interval over runs, not adjusted, excludes zero."""
    lines = []
    for row in curves["rows"]:
        if row["compared"] < FEWEST_RUNS:  # as of the reference itself
            continue
        shown = [
            f"{points(difference)} points at {condition} ({between(ends)})"
            for condition, difference, ends in zip(
                curves["conditions"], row["difference"], row["run_ci95"], strict=True
            )
            if ends and (ends[0] > 0 or ends[1] < 0)
        ]
        told = "; ".join(shown) or "no difference shown"
        lines.append(f"- **{row['row']}** against {study['reference']}, over {row['compared']} runs: {told}.")
    return "\n".join(lines)
