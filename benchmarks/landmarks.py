"""Error of the face alignment network on held-out teacher faces, from random loose crops, by pack and by rotation.

    python benchmarks/landmarks.py configs/fan.yaml --model fan

The faces are the one in ten that training never saw (`nkf.recipes.is_held_out`). Each gives one crop: rotation ±60°,
scale ±30 %, shift ±15 %, drawn with a fixed seed. Error: mean distance to the teacher's 68 points over the distance of
the outer eye corners; intervals: 95 %, bootstrap over faces.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nkf.config import load_config
from nkf.models import load_model
from nkf.progress import track
from nkf.recipes import LandmarkRecipe
from nkf.weights import find_weights

ROTATIONS = ((0, 15), (15, 30), (30, 45), (45, 60))


def describe(errors: NDArray[np.float64]) -> dict[str, float | int | list[float]]:
    """Mean with its interval, median, and share of faces over 10 %."""
    generator = np.random.default_rng(0)
    means = [generator.choice(errors, len(errors)).mean() for _ in range(1000)]
    return {
        "n": len(errors),
        "mean": float(errors.mean()),
        "mean_ci95": [float(value) for value in np.percentile(means, [2.5, 97.5])],
        "median": float(np.median(errors)),
        "over_10_percent": float((errors > 0.1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--model", default="fan")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/landmarks.json"))
    options = parser.parse_args()
    recipe = LandmarkRecipe(load_config(options.config), torch.device("cpu"), track)
    found = recipe.held_out_errors(load_model(*find_weights(options.model, (".safetensors",))), recipe.config.augment)
    errors, turned = found["error"].astype(float), np.abs(found["rotation_deg"])
    rows = {"all": describe(errors)}
    for index, pack in enumerate(recipe.packs):
        rows[pack.path.name] = describe(errors[found["pack"] == index])
    for low, high in ROTATIONS:
        rows[f"turned {low}-{high} degrees"] = describe(errors[(turned >= low) & (turned < high)])
    print(f"{'faces':24} {'n':>6} {'mean':>7} {'95 % interval':>16} {'median':>7} {'>10 %':>7}")
    for name, row in rows.items():
        low, high = row["mean_ci95"]
        print(f"{name:24} {row['n']:6} {row['mean']:7.2%} {low:7.2%}-{high:7.2%} {row['median']:8.2%} ", end="")
        print(f"{row['over_10_percent']:7.2%}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"schema": 1, "model": options.model, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
