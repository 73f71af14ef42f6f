"""The sections of the results page about the compared systems: what they learn and cost, and how large they are."""

from typing import Any

from nkf.ablation_text import percent, table
from nkf.compare import comparison_table

Document = dict[str, Any]

HEADER = "## The compared systems in one harness"
COMMANDS = {
    "compare-cpu": "nkf compare configs/compare/cpu.yaml --out runs/compare-cpu",
    "compare": "nkf compare configs/compare/cuda.yaml --out runs/compare --device cuda",
    "overfit": "python benchmarks/overfit.py configs/compare/cpu.yaml",
    "counts": "python benchmarks/counts.py --json benchmarks/results/counts.json",
}
TITLES = {
    "compare-cpu": "### Minutes on a CPU",
    "compare": "### Epochs on CUDA",
    "overfit": "### The same few faces",
    "counts": "## Sizes beside the public code's",
}

COMPARED = """\
*Before training* is the accuracy of the fresh network on the first 512 images, *loss* the mean of the first and of the
last tenth of its steps (each system's own loss: the numbers of two systems do not compare). Latency is of fresh
networks, by turns in one go, and per face; multiply-adds are of convolutions and matrix products. *Over images* is the
interval of the difference for these trained networks; one run tells nothing about other runs. What was the same for
all, and what was not: `docs/systems.md`."""
OVERFITTED = """\
Whether each network, with its own loss, can learn at all: it sees the same few faces at every step, unchanged, and
should know them by heart in the end. EfficientFace learns what its teacher says of them, which may differ from the
labels."""
COUNTED = """\
The public code's counts were taken from its modules with random weights, at 224×224 pixels, seven or eight classes,
with the parts in that have no effect on the answer; ours leave these out unless asked."""


def comparison_parts(of: Document) -> list[str]:
    """The table of one comparison."""
    budget = f"{of['base']['epochs']:g} epochs" if of["minutes"] is None else f"{of['minutes']:g} minutes of training"
    measured = f"the first {of['images']:,} images" if of.get("images") else "all images"
    lead = f"{budget} each, measured on {measured} of {of['protocol']['test']};"
    text = f"{lead} differences are to {of['reference']}. {COMPARED}"
    return [text, comparison_table(of["rows"])]


def overfit_parts(of: Document) -> list[str]:
    """Losses and accuracies of a few faces that every compared system learns by heart."""
    header = ["system", "faces", "steps", "loss", "right before", "right after", "s"]
    rows = [
        [
            row,
            f"{one['faces']}",
            f"{one['steps']}",
            f"{one['first_loss']:.2f} → {one['last_loss']:.2f}",
            percent(one["accuracy_before"], 0),
            percent(one["accuracy"], 0),
            f"{one['seconds']:.0f}",
        ]
        for row, one in of["rows"].items()
    ]
    return [OVERFITTED, table(header, rows)]


def counts_parts(of: Document) -> list[str]:
    """Ours and the public code's sizes of the compared systems; part by part where they differ."""
    lines, different = [], []
    for system, rows in of["systems"].items():
        total = next(row for row in rows if row["part"] == "total")
        live = next(row for row in rows if row["part"] == "total without dead parts")
        equal = sum(row["equal"] for row in rows)
        cells = (f"{value:,}" for key in ("parameters", "macs") for value in total[key])
        lines.append([system, *cells, f"{live['parameters'][0]:,}", f"{equal} of {len(rows)}"])
        different += [
            f"- {system}, {row['part']}: {row['parameters']}, {row['macs']}" for row in rows if not row["equal"]
        ]
    header = [
        "system", "parameters", "public code's", "multiply-adds", "public code's", "parameters with an effect",
        "parts equal",
    ]  # fmt: skip
    told = "Different:\n\n" + "\n".join(different) if different else "No part differs."
    return [COUNTED, table(header, lines), told]


PARTS = {
    "compare-cpu": comparison_parts,
    "compare": comparison_parts,
    "overfit": overfit_parts,
    "counts": counts_parts,
}


def what(name: str, of: Document) -> str:
    """What a document is about, for the line under its tables."""
    return ", ".join(of["data"]) if "compare" in name else ""
