"""Train a network: one loop for every task, resumable to the same result.

Randomness of a step is drawn from generators seeded by (seed, step), the order of an epoch from (seed, epoch). So a
checkpoint needs no generator states, and a run that was killed ends with the weights of an unbroken one (on a CPU; some
CUDA kernels add in no fixed order).

    RUN/config.yaml           the configuration
    RUN/log.jsonl             one JSON object a line: training losses, validations
    RUN/last/state.pt         everything that resuming needs
    RUN/last/model.*          weight average at the last checkpoint, with its sidecar
    RUN/best/model.*          weight average that validated best, or the last where nothing validates, with its sidecar
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nkf.config import TrainConfig, load_config, save_config
from nkf.errors import NkfError, NkfWarning
from nkf.files import replacing
from nkf.models import save_model
from nkf.progress import Progress, no_progress
from nkf.recipes import Recipe, create_recipe

LOG_EVERY = 20  # steps
CHECKPOINT_SECONDS = 120.0


@dataclass(slots=True)
class State:
    """What changes while a network is trained."""

    model: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    best_score: float = -math.inf
    losses: list[float] = field(default_factory=list)  # since the last line of the log

    def save(self, file: Path) -> None:
        """Write everything that resuming needs, whole or not at all."""
        content = {"step": self.step, "best_score": self.best_score, "losses": self.losses}
        parts: dict[str, Any] = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        with replacing(file) as partial:
            torch.save(content | {name: part.state_dict() for name, part in parts.items()}, partial)

    def load(self, file: Path) -> None:
        """Continue from what `save` wrote; never unpickles code."""
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            self.model.load_state_dict(content["model"])
            self.average.load_state_dict(content["average"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.step, self.best_score, self.losses = content["step"], content["best_score"], content["losses"]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise NkfError(f"{file}: no checkpoint of this run ({reason})") from error


def train(
    config: TrainConfig,
    run: Path,
    *,
    device: str = "cpu",
    max_minutes: float = math.inf,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train, or go on where the run folder ends.

    Args:
        config: what to train.
        run: run folder, made when missing; if it holds a checkpoint, training resumes.
        device: a torch device.
        max_minutes: stop after so long with a checkpoint; the next call goes on.
        progress: shows how far the preparation of the data is.

    Returns:
        ``step``, ``finished``, and the metrics of the last validation that this call made, if any.

    Raises:
        NkfError: when the folder belongs to another configuration, or data or weights are unusable.
    """
    deadline = time.monotonic() + 60 * max_minutes
    file = run / "config.yaml"
    if file.exists() and load_config(file) != config:
        raise NkfError(f"{run}: holds a run with another configuration; choose another --out, or remove it")
    if run.exists() and not file.exists() and (not run.is_dir() or any(run.iterdir())):
        raise NkfError(f"{run}: exists and is no run folder; name a new or empty one")
    if config.pretrained is not None and not config.pretrained.is_file():
        raise NkfError(f"{config.pretrained}: no such file, expected starting weights (safetensors)")
    recipe = create_recipe(config, torch.device(device), progress)
    _warn_of_little_use(recipe, device)
    state = _start(recipe)
    checkpoint = run / "last" / "state.pt"
    if checkpoint.exists():
        state.load(checkpoint)
    _shorten_log(run, state.step)
    for folder in ("last", "best"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        save_config(config, partial)
    return _fit(recipe, state, run, deadline)


def _warn_of_little_use(recipe: Recipe, device: str) -> None:
    """Say what would waste a run; raises when the data are too few for a batch."""
    config = recipe.config
    total = total_steps(config, recipe.num_train)
    if total <= config.warmup_steps:
        message = f"{total} steps in all, and warm-up takes {config.warmup_steps}: the network will hardly learn"
        warnings.warn(f"{message}; raise epochs, or lower batch_size and warmup_steps", NkfWarning, stacklevel=3)
    if config.bf16 and device == "cpu":
        warnings.warn("bf16 is slow on most CPUs; set bf16: false", NkfWarning, stacklevel=3)


def _shorten_log(run: Path, step: int) -> None:
    """Drop the lines written after the checkpoint: these steps are taken again."""
    log = run / "log.jsonl"
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
        with replacing(log) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines))


def _start(recipe: Recipe) -> State:
    config = recipe.config
    torch.manual_seed(config.seed)
    model = recipe.create().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in config.frozen:
        try:
            model.get_submodule(part).requires_grad_(False)
        except AttributeError as error:
            raise NkfError(f"frozen: the network has no part {part!r}; name modules such as backbone.stem") from error
    average = AveragedModel(model, multi_avg_fn=_moving_average(config.ema_decay), use_buffers=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [  # biases, batch norms and PReLU slopes are not decayed
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return State(model, average, torch.optim.AdamW(groups, lr=config.learning_rate))


def _moving_average(decay: float) -> Callable[..., None]:
    """Exponential moving average that forgets faster at first: min(decay, (1 + n) / (10 + n)) after n steps."""

    def update(average: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        if average[0].is_floating_point():  # one call has tensors of one type
            torch._foreach_lerp_(average, current, weight)
        else:
            torch._foreach_copy_(average, current)

    return update


def train_mode(model: nn.Module, frozen: tuple[str, ...]) -> None:
    """Switch to training, except the frozen parts, whose batch norms keep their statistics."""
    model.train()
    for part in frozen:
        model.get_submodule(part).eval()


def total_steps(config: TrainConfig, num_train: int) -> int:
    """Number of optimisation steps of a run; an epoch leaves out its last, incomplete batch."""
    return max(1, int(config.epochs * steps_per_epoch(config, num_train)))


def steps_per_epoch(config: TrainConfig, num_train: int) -> int:
    """Number of complete batches in the training data."""
    if num_train < config.batch_size:
        raise NkfError(f"batch_size {config.batch_size}: more than the {num_train} training images")
    return num_train // config.batch_size


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * step / total))


def batch_rows(recipe: Recipe, step: int) -> NDArray[np.int64]:
    """Row numbers of a step: the next ones in the order of its epoch."""
    size = recipe.config.batch_size
    epoch, position = divmod(step, steps_per_epoch(recipe.config, recipe.num_train))
    return recipe.order(epoch)[position * size :][:size]


def train_step(recipe: Recipe, state: State, total: int) -> float:
    """One optimisation step; returns its loss.

    Raises:
        NkfError: when the loss is no finite number.
    """
    config = recipe.config
    device = next(state.model.parameters()).device
    seed = int(np.random.SeedSequence([config.seed, state.step]).generate_state(1)[0])
    torch.manual_seed(seed)  # dropout, landmark perturbation
    generator = torch.Generator(device).manual_seed(seed)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step, total)
    loss = recipe.loss(state.model, recipe.batch(batch_rows(recipe, state.step), generator))
    value = loss.item()
    if not math.isfinite(value):
        raise NkfError(f"loss is {value} at step {state.step}; lower learning_rate")
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    state.optimizer.step()
    state.average.update_parameters(state.model)
    state.step += 1
    return value


def _fit(recipe: Recipe, state: State, run: Path, deadline: float) -> dict[str, Any]:
    total = total_steps(recipe.config, recipe.num_train)
    validate_every = math.ceil(total / recipe.config.evaluations)
    summary: dict[str, Any] = {"step": state.step, "finished": state.step >= total}
    saved = time.monotonic()
    train_mode(state.model, recipe.config.frozen)
    for _ in _progress(state, total):
        state.losses.append(train_step(recipe, state, total))
        if state.step % LOG_EVERY == 0:
            _log_losses(recipe, state, run, total)
        validated = state.step % validate_every == 0 or state.step == total
        if validated:
            summary = _validate(recipe, state, run) | {"finished": state.step == total}
        late = time.monotonic() > deadline
        if late or validated or time.monotonic() > saved + CHECKPOINT_SECONDS:
            state.save(run / "last" / "state.pt")
            saved = time.monotonic()
        if late:
            break
    average = state.average.module
    save_model(average, run / "last" / "model.safetensors", recipe.info(average))
    return summary | {"step": state.step}


def _progress(state: State, total: int) -> Iterator[None]:
    """Yield once a step, with a progress bar that shows the loss."""
    columns = (SpinnerColumn(), *ProgressBar.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with ProgressBar(*columns, TextColumn("loss {task.fields[loss]:.3f}"), transient=True, console=console) as bar:
        task = bar.add_task("training", total=total, completed=state.step, loss=math.nan)
        while state.step < total:
            yield
            bar.update(task, completed=state.step, loss=state.losses[-1] if state.losses else math.nan)


def _log_losses(recipe: Recipe, state: State, run: Path, total: int) -> None:
    rate = learning_rate(recipe.config, state.step - 1, total)
    _append(run, {"step": state.step, "loss": float(np.mean(state.losses)), "learning_rate": rate})
    state.losses.clear()


def _validate(recipe: Recipe, state: State, run: Path) -> dict[str, Any]:
    average = state.average.module.eval()
    metrics = recipe.validate(average)
    epoch = state.step / steps_per_epoch(recipe.config, recipe.num_train)
    row = {"step": state.step, "epoch": round(epoch, 3), **metrics}
    score = metrics.get("score", float(state.step))  # without validation the last weights are the best
    if score > state.best_score:
        state.best_score = score
        measured = {"validation_in_training": row} if metrics else {}
        info = recipe.info(average).model_copy(update={"metrics": measured})
        save_model(average, run / "best" / "model.safetensors", info)
    _append(run, row)
    return row


def _append(run: Path, row: dict[str, Any]) -> None:
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"time": round(time.time(), 1), **row}) + "\n")
