"""What the log of a run (`nkf.train`) tells of its training: how long it took, and how far it came."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nkf.errors import NkfError


def training_seconds(folder: Path) -> float | None:
    """What a run's training took, without pauses: median time of a step times the steps; None if it tells too little.

    Raises:
        NkfError: when the run has no log, or it is damaged.
    """
    times = {int(line["step"]): float(line["time"]) for line in reversed(_lines(folder))}  # of two of a step the first
    steps = sorted(times)
    if len(steps) < 2:
        return None
    return float(np.median(np.diff([times[step] for step in steps]) / np.diff(steps)) * steps[-1])


def learning(folder: Path) -> dict[str, float]:
    """How far a training came: ``steps``, ``ms_a_step``, and the mean loss in its ``first_loss`` and ``last_loss``
    tenth.

    Raises:
        NkfError: when the run has no log, or it is damaged or too short.
    """
    steps = [line for line in _lines(folder) if "loss" in line]
    if len(steps) < 2:
        raise NkfError(f"{folder}: too few steps in its log to tell what it learnt; give it more minutes")
    losses = [line["loss"] for line in steps]
    tenth = max(1, len(losses) // 10)
    seconds = np.diff([line["time"] for line in steps]) / np.diff([line["step"] for line in steps])
    return {
        "steps": steps[-1]["step"],
        "ms_a_step": 1e3 * float(np.median(seconds)),
        "first_loss": float(np.mean(losses[:tenth])),
        "last_loss": float(np.mean(losses[-tenth:])),
    }


def _lines(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of the log; what a kill left after the last of them is not looked at."""
    file = folder / "log.jsonl"
    try:
        return [_numbers(json.loads(line)) for line in file.read_text().split("\n")[:-1]]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise NkfError(f"{file}: no log of a training run ({error}); remove the folder to run it again") from error


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    loss = {"loss": float(line["loss"])} if "loss" in line else {}
    return line | {"step": int(line["step"]), "time": float(line["time"])} | loss
