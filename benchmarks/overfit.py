"""Whether every compared system can learn at all: the same few faces again and again, to know them by heart.

    python benchmarks/overfit.py configs/compare/cpu.yaml

Large networks that start fresh need days of a CPU to learn a dataset. What shows a mistake in a network, a loss or a
gradient in minutes is this: each row of the grid, with its own loss, sees all the faces at every step, unchanged, in
float32, with a fixed learning rate. Loss and accuracy are of these faces; accuracy is in evaluation mode, with the
statistics of these faces. The file is written after every row.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nkf.ablation_grid import Grid, load_grid
from nkf.config import TrainConfig, merged, validated
from nkf.files import replacing
from nkf.machine import machine
from nkf.progress import track
from nkf.recipes.expression import ExpressionRecipe

UNCHANGED = dict.fromkeys(("rotation_deg", "scale", "shift", "flip", "brightness", "contrast", "erase"), 0.0)
LEARNING_RATE = 1e-4
FACES, STEPS = 8, 50


def config_of(grid: Grid, row: str) -> TrainConfig:
    """A row's system and loss, on a few faces as they are."""
    few = {"name": "overfit", "limit": FACES, "targets": "label", "augment": UNCHANGED, "bf16": False}
    return validated(merged(grid.base, grid.rows[row]) | few, f"row {row}")


@torch.no_grad()
def settle_statistics(network: nn.Module, crops: Tensor, landmarks_px: Tensor) -> None:
    """Take the statistics of batch norms from these faces: running ones lag behind in so few steps."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network(crops, landmarks_px)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def overfit(config: TrainConfig, row: str, steps: int) -> dict[str, Any]:
    """Train on the same faces; returns loss and accuracy before and after, and seconds."""
    torch.manual_seed(config.seed)
    recipe = ExpressionRecipe(config, torch.device("cpu"))
    network = recipe.create()
    rows = np.arange(recipe.num_train)
    batch = recipe.batch(rows, torch.Generator().manual_seed(config.seed))
    labels = recipe.targets.argmax(dim=1).numpy()

    def accuracy() -> float:
        settle_statistics(network, batch.crops, batch.landmarks_px)
        predicted = recipe.probabilities(network.eval(), recipe.train).argmax(axis=1)
        network.train()
        return float((predicted == labels).mean())

    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=0)
    network.train()
    before, losses, start = accuracy(), [], time.monotonic()
    for _ in track(range(steps), row, steps):
        loss = recipe.loss(network, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    seconds = time.monotonic() - start
    return {
        "faces": len(rows),
        "steps": steps,
        "first_loss": losses[0],
        "last_loss": float(np.mean(losses[-5:])),
        "accuracy_before": before,
        "accuracy": accuracy(),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--rows", nargs="*", help="of the grid; by default all")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/overfit.json"))
    options = parser.parse_args()
    grid = load_grid(options.grid)
    document: dict[str, Any] = {
        "schema": 1,
        "command": f"python benchmarks/overfit.py {options.grid}",
        "seed": grid.base.get("seed", 0),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "rows": {},
    }
    for row in options.rows or grid.rows:
        found = overfit(config_of(grid, row), row, options.steps)
        print(row, json.dumps(found), flush=True)
        document["rows"][row] = found
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
