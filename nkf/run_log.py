"""What the log of a run (`nkf.train`) tells of its training: how long it took, and how far it came."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nkf.errors import NkfError

_MAX_STEP = 10**15  # more is no step that anything took, and too large for exact arithmetic


def training_seconds(folder: Path) -> float | None:
    """What a run's training took, without pauses: median time of a step times the steps; None if it tells too little.

    Raises:
        NkfError: when the run has no log, or it is damaged.
    """
    lines = _lines(folder)
    seconds = _seconds_a_step(lines)
    return None if seconds is None else seconds * max(line["step"] for line in lines)


def learning(folder: Path) -> dict[str, float]:
    """How far a training came: ``steps``, ``ms_a_step``, and the mean loss in its ``first_loss`` and ``last_loss``
    tenth.

    Raises:
        NkfError: when the run has no log, or it is damaged or too short.
    """
    steps = [line for line in _lines(folder) if "loss" in line]
    seconds = _seconds_a_step(steps)
    if seconds is None:
        raise NkfError(f"{folder}: too few steps in its log to tell what it learnt; give it more minutes")
    losses = [line["loss"] for line in steps]
    tenth = max(1, len(losses) // 10)
    return {
        "steps": steps[-1]["step"],
        "ms_a_step": 1e3 * seconds,
        "first_loss": float(np.mean(losses[:tenth])),
        "last_loss": float(np.mean(losses[-tenth:])),
    }


def _seconds_a_step(lines: Sequence[dict[str, Any]]) -> float | None:
    """Median over the steps; None of fewer than two."""
    times = {line["step"]: line["time"] for line in reversed(lines)}  # of two lines of a step the first
    steps = sorted(times)
    return float(np.median(np.diff([times[step] for step in steps]) / np.diff(steps))) if len(steps) > 1 else None


def _lines(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of the log; what a kill left after the last of them is not looked at."""
    file = folder / "log.jsonl"
    try:
        return [_numbers(json.loads(line)) for line in file.read_text().split("\n")[:-1]]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise NkfError(f"{file}: no log of a training run ({error}); remove the folder to run it again") from error


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    loss = {"loss": float(line["loss"])} if "loss" in line else {}
    step = int(line["step"])
    if abs(step) > _MAX_STEP:
        raise ValueError(f"step {line['step']:.3g}")
    return line | {"step": step, "time": float(line["time"])} | loss
