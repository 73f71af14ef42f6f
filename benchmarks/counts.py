"""Count the compared systems' parameters and multiply-adds by part, beside the public code's.

    python benchmarks/counts.py --json benchmarks/results/counts.json

The public code's counts (published_counts.json) were taken from its modules with random weights, at 224x224 pixels and
with the parts in that have no effect. Nothing is computed here: the networks are on torch's meta device.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nkf.ablation_text import table
from nkf.costs import macs_by_part, parameters_by_part
from nkf.files import replacing
from nkf.models import COMPARED, count_parameters

PUBLISHED = Path(__file__).with_name("published_counts.json")


def count(published: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours and the public code's counts of a system: of all of it, of what has an effect, and of each part."""
    create = COMPARED[published["kind"]]
    dead = {"dead_parts": True} if published["dead"] else {}
    with torch.device("meta"):
        live = create(**published["options"])
        network = create(**published["options"], **dead).eval()
    parts = {name: part["ours"] for name, part in published["parts"].items()}
    parameters = parameters_by_part(network, parts) | {"total": count_parameters(network)}
    macs = macs_by_part(network, parts, torch.empty(1, 3, 224, 224, device="meta"))
    of_published = published["parts"] | {"total": published["total"]}
    rows = [
        {"part": name, "parameters": (parameters[name], of["parameters"]), "macs": (macs.get(name, 0), of["macs"])}
        for name, of in of_published.items()
    ]
    without = published["total"]["parameters"] - published["dead"]
    rows.append({"part": "total without dead parts", "parameters": (count_parameters(live), without), "macs": None})
    return [row | {"equal": all(len(set(row[key])) == 1 for key in ("parameters", "macs") if row[key])} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    systems = {name: count(published) for name, published in json.loads(PUBLISHED.read_text()).items()}
    for name, rows in systems.items():
        print(f"\n{name}\n\n{counts_table(rows)}")
    if options.json:
        document = {"schema": 1, "date": time.strftime("%Y-%m-%d"), "command": command(options.json)}
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(document | {"systems": systems}, indent=1) + "\n")
    return 0 if all(row["equal"] for rows in systems.values() for row in rows) else 1


def command(file: Path) -> str:
    return f"python benchmarks/counts.py --json {file}"


def counts_table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row for each part."""
    header = ["part", "parameters", "public code", "multiply-adds", "public code", "equal"]
    lines = []
    for row in rows:
        cells = [f"{value:,}" for key in ("parameters", "macs") for value in row[key] or ()]
        lines.append([row["part"], *(cells + [""] * (4 - len(cells))), "yes" if row["equal"] else "**no**"])
    return table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
