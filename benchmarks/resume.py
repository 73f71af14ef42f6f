"""Whether a run that is killed again and again ends like one that is not: weights and losses, bit for bit.

    python benchmarks/resume.py --json benchmarks/results/resume.json

Two runs of one configuration on the CPU. One is left alone. The other's process gets SIGKILL `--kills` times: each time
when a step that was drawn at random is logged, and a random moment later, so that it may be in a step, a validation or
the writing of a checkpoint; then it is started again. Compared are the weights in last/ and best/, the state that
training would go on from, and every line of the log but for its time. Exit code 1 if anything differs.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from nkf.config import TrainConfig, load_config, override
from nkf.files import replacing
from nkf.machine import machine
from nkf.train import LOG_EVERY, train

# Without --config: the smallest network for about a minute, with all that a step can have.
SMALL = Path("configs/ablation/tiny.yaml")
SMALL_CHANGES: dict[str, Any] = {
    "epochs": 0.2,
    "batch_size": 32,
    "evaluations": 4,
    "sam_rho": 0.05,
    "accumulate": 2,
    "schedule": "exponential",
    "mix": {"probability": 0.5, "cutmix": 1.0},
    "protocol": {"name": "ferplus"},
}
POLL_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help=f"by default {SMALL}, a fifth of an epoch, with SAM, parts, mixing")
    parser.add_argument("--epochs", type=float, help="instead of the configuration's")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--checkpoint-seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/resume"), help="folder of the two runs, emptied before")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    config = load_config(options.config) if options.config else override(load_config(SMALL), **SMALL_CHANGES)
    config = override(config, epochs=options.epochs)
    unbroken, killed = options.out / "unbroken", options.out / "killed"
    for run in (unbroken, killed):
        shutil.rmtree(run, ignore_errors=True)

    begun = time.monotonic()
    finish(config, unbroken, options.checkpoint_seconds)
    kills = []
    for moment in draw_moments(unbroken, options.kills, options.seed):
        kills.append(kill_at(moment, config, killed, options.checkpoint_seconds))
        print(json.dumps(kills[-1]), flush=True)
    finish(config, killed, options.checkpoint_seconds)
    equal = compare(unbroken, killed)
    result = {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "command": " ".join(["python", "benchmarks/resume.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - begun),
        "seed": options.seed,
        "config": config.model_dump(mode="json"),
        "steps": log_of(unbroken)[-1]["step"],
        "kills": kills,
        "equal": equal,
    }
    print(json.dumps({"steps": result["steps"], "kills": len(kills), "equal": equal}, indent=1))
    if options.json:
        with replacing(options.json) as file:
            file.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if all(equal.values()) else 1)


@dataclass(frozen=True, slots=True)
class Moment:
    """When to kill: so many seconds after the log tells of a step."""

    step: int
    seconds: float


def draw_moments(run: Path, count: int, seed: int) -> list[Moment]:
    """Draw steps of a run in their order, none at its very end, and delays of up to the time between two lines."""
    lines = [line for line in log_of(run, times=True) if "loss" in line]
    if len(lines) < 3:
        sys.exit(f"{run}: too short a run to kill, {len(lines)} lines of losses")
    between = (lines[-1]["time"] - lines[0]["time"]) / (len(lines) - 1)
    generator = random.Random(seed)
    steps = sorted(generator.randrange(lines[-2]["step"]) for _ in range(count))
    return [Moment(step, generator.uniform(0, between)) for step in steps]


def kill_at(moment: Moment, config: TrainConfig, run: Path, checkpoint_seconds: float) -> dict[str, Any]:
    """Train until a moment, then SIGKILL; tells which step was logged, and which one the checkpoint holds."""
    before = modified(run / "config.yaml")
    process = start(config, run, checkpoint_seconds)
    # The configuration is written anew when the data are loaded and the first step is next.
    while modified(run / "config.yaml") == before or last_step(run) < moment.step - moment.step % LOG_EVERY:
        time.sleep(POLL_SECONDS)
        if not process.is_alive():
            sys.exit(f"{run}: training ended before it could be killed")
    time.sleep(moment.seconds)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        sys.exit(f"{run}: training ended before it could be killed")
    state = run / "last" / "state.pt"
    saved = torch.load(state, weights_only=True)["step"] if state.exists() else 0
    return {"drawn_step": moment.step, "logged_step": last_step(run), "checkpoint_step": saved}


def finish(config: TrainConfig, run: Path, checkpoint_seconds: float) -> None:
    """Train to the end."""
    process = start(config, run, checkpoint_seconds)
    process.join()
    if process.exitcode:
        sys.exit(f"{run}: training failed")


def start(config: TrainConfig, run: Path, checkpoint_seconds: float) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=work, args=(config, run, checkpoint_seconds))
    process.start()
    return process


def work(config: TrainConfig, run: Path, checkpoint_seconds: float) -> None:
    """Train in a process of its own."""
    torch.set_num_threads(1)
    train(config, run, checkpoint_seconds=checkpoint_seconds)


def compare(one: Path, other: Path) -> dict[str, bool]:
    """Whether weights, states and logs are the same."""
    equal = {
        f"{folder} weights": same(*(load_file(run / folder / "model.safetensors") for run in (one, other)))
        for folder in ("last", "best")
    }
    states = [torch.load(run / "last" / "state.pt", weights_only=True) for run in (one, other)]
    return equal | {"last state": same(*states), "log": log_of(one) == log_of(other)}


def same(one: Any, other: Any) -> bool:
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def log_of(run: Path, *, times: bool = False) -> list[dict[str, Any]]:
    """Complete lines of the log, by default without their times."""
    file = run / "log.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return rows if times else [{key: value for key, value in row.items() if key != "time"} for row in rows]


def last_step(run: Path) -> int:
    return max((line["step"] for line in log_of(run)), default=0)


def modified(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


if __name__ == "__main__":
    main()
