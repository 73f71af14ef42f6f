"""Accuracy on the images with a near-copy in another split, and on the others.

nkf data check data/ferplus-clean --out results/check
nkf evaluate data/ferplus --split valid --out results/mobile
python benchmarks/near_copies.py results/mobile/predictions.csv results/check/duplicates.csv --split valid
"""

import argparse
import csv
from pathlib import Path

from nkf.metrics import wilson_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("duplicates", type=Path)
    parser.add_argument("--split", default="valid")
    options = parser.parse_args()
    with options.duplicates.open(newline="") as stream:
        pairs = [(row["image"], row["copy"]) for row in csv.DictReader(stream)]
    start = f"{options.split}/"
    copied = {name.removeprefix(start) for pair in pairs for name in pair if name.startswith(start)}
    with options.predictions.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    classes = [key for key in rows[0] if key not in ("name", "label")]
    right = {row["name"]: max(classes, key=lambda one: float(row[one])) == row["label"] for row in rows}
    for title, part in (("with a copy", right.keys() & copied), ("without", right.keys() - copied)):
        hits = sum(right[name] for name in part)
        low, high = wilson_interval(hits, len(part))
        print(f"{title}: {hits / max(len(part), 1):.1%} [{low:.1%}, {high:.1%}] of {len(part):,} images")


if __name__ == "__main__":
    main()
