"""Compare systems: the same images, budget and seeds for all, with what each costs.

A comparison is an ablation (`nkf.ablate`) whose rows are systems: their runs, intervals and tests are the same. What
is added is cost: weights, multiply-adds and latency of every system, of those that were not trained yet too, measured
in one go, and how far training brought each in its time.

    OUT/compare.json   all numbers
    OUT/compare.md     the table
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nkf.ablate import Run, grid_runs
from nkf.ablation_grid import Grid
from nkf.ablation_tables import analyse
from nkf.ablation_text import between, interval, percent, points, table
from nkf.config import TrainConfig
from nkf.costs import count_macs, milliseconds_a_face
from nkf.errors import NkfError
from nkf.files import replacing
from nkf.geometry import MEAN_SHAPE
from nkf.machine import machine
from nkf.models import count_parameters, create_model
from nkf.recipes.common import architecture
from nkf.recipes.expression import ExpressionRecipe
from nkf.run_log import learning

BATCHES = (1, 32)  # faces in one call, whose latency is measured
STUDY = "systems"  # of the grid, whose rows are compared
_START_FACES = 512  # that the accuracy before training is measured on


def measure_costs(grid: Grid, *, device: str = "cpu", rounds: int = 10) -> dict[str, dict[str, Any]]:
    """Weights, multiply-adds and milliseconds a face of each row's network, with fresh weights.

    Args:
        grid: with a study ``systems``.
        device: a torch device.
        rounds: see `nkf.costs.milliseconds_a_face`.

    Returns:
        For each row ``system``, ``crop_size``, ``parameters``, ``trainable``, ``macs``, and for each of `BATCHES`
        ``ms_1``, ``ms_32``: median milliseconds a face.
    """
    configs = {row: grid.config(row, grid.repeats[0]) for row in grid.studies[STUDY].rows}
    networks = {row: (fresh_network(config).to(device), config.crop_size) for row, config in configs.items()}
    found: dict[str, dict[str, Any]] = {}
    for row, (network, size) in networks.items():
        inputs = torch.zeros(1, 3, size, size), torch.from_numpy(size * MEAN_SHAPE[None]).float()
        found[row] = {
            "system": configs[row].network.system,
            "crop_size": size,
            "parameters": count_parameters(network),
            "trainable": sum(p.numel() for p in network.parameters() if p.requires_grad),
            "macs": count_macs(network, *(tensor.to(device) for tensor in inputs)),
        }
    for batch in BATCHES:
        for row, times in milliseconds_a_face(networks, batch, device=device, rounds=rounds).items():
            found[row][f"ms_{batch}"] = times["median_ms"]
    return found


def fresh_network(config: TrainConfig) -> nn.Module:
    """The network of a configuration before any training, in evaluation mode."""
    torch.manual_seed(config.seed)
    return create_model(config.network.system, architecture(config), len(config.protocol.classes)).eval()


def measure_start(run: Run, device: str = "cpu") -> float:
    """Accuracy before training, with the starting weights, on the first of the images that the run is measured on."""
    recipe = ExpressionRecipe(run.config, torch.device(device))
    torch.manual_seed(run.config.seed)  # as the trainer does, after a teacher was built
    network = recipe.network(recipe.create()).eval()
    _, labels, faces = recipe.measured(_START_FACES)
    return float((recipe.probabilities(network, faces).argmax(axis=1) == labels).mean())


def compare(grid: Grid, out: Path, *, device: str = "cpu", rounds: int = 10) -> dict[str, Any]:
    """Make the table of what has run so far, with the costs of all systems.

    Args:
        grid: what was run by `nkf.ablate.ablate`; has a study ``systems``.
        out: its folder; gets ``compare.json`` and ``compare.md`` beside the tables of `nkf.ablation_tables.analyse`.
        device: a torch device, where latency is measured.
        rounds: see `nkf.costs.milliseconds_a_face`.

    Returns:
        What ``compare.json`` holds.

    Raises:
        NkfError: when the grid has no study ``systems``, or a run is of another configuration.
    """
    if STUDY not in grid.studies:
        raise NkfError(f"the grid has no study {STUDY!r}, whose rows are compared; there are {', '.join(grid.studies)}")
    document = analyse(grid, out)
    costs = measure_costs(grid, device=device, rounds=rounds)
    runs = [run for run in grid_runs(grid, out, [STUDY]) if run.measured.exists()]
    rows = []
    for result in document["studies"][STUDY]["rows"]:
        own = [run for run in runs if run.row == result["row"]]
        learnt = [learning(run.folder) | {"start": _start(run, device)} for run in own]
        means = {key: float(np.mean([one[key] for one in learnt])) for key in learnt[0]} if learnt else {}
        rows.append(result | costs[result["row"]] | {"learning": means or None})
    document = {key: document[key] for key in ("schema", "date", "data", "protocol", "repeats", "base")} | {
        "machine": machine(device),
        "device": device,
        "minutes": grid.minutes,
        "images": grid.images,
        "reference": grid.studies[STUDY].reference,
        "title": grid.studies[STUDY].title,
        "rows": rows,
    }
    with replacing(out / "compare.json") as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n")
    with replacing(out / "compare.md") as partial:
        partial.write_text(comparison_table(rows) + "\n")
    return document


def _start(run: Run, device: str) -> float:
    """`measure_start`, once for each run."""
    file = run.folder / "start.json"
    if not file.exists():
        with replacing(file) as partial:
            partial.write_text(json.dumps({"accuracy": measure_start(run, device)}) + "\n")
    return float(json.loads(file.read_text())["accuracy"])


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``compare.json`` as Markdown; systems without a run have their costs alone."""
    header = [
        "system", "runs", "accuracy (95 %)", "before training", "difference", "over images", "loss", "steps",
        "ms / step", "s / run", "crop", "weights", "GMACs", "ms / face, 1", "ms / face, 32",
    ]  # fmt: skip
    return table(header, [[row["row"], *_learnt(row), *_cost(row)] for row in rows])


def _learnt(row: Mapping[str, Any]) -> list[str]:
    if not row["repeats"]:
        return ["0", "not run yet", *[""] * 7]
    one, how = row["comparison"], row["learning"]
    return [
        str(len(row["repeats"])),
        f"{percent(row['accuracy'])} ({interval(row['accuracy_ci95'])})",
        percent(how["start"], 1),
        points(one["difference"]) if one else "",
        between(one["ci95"]) if one else "",
        f"{how['first_loss']:.3f} → {how['last_loss']:.3f}",
        f"{how['steps']:.0f}",
        f"{how['ms_a_step']:.0f}",
        f"{row['seconds']:.0f}",
    ]


def _cost(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["crop_size"]),
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['macs'] / 1e9:.3f}",
        *(f"{row[f'ms_{batch}']:.1f}" for batch in BATCHES),
    ]
