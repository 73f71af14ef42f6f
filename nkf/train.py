"""Train a network: one loop for every task, resumable to the same result.

Randomness of a step is drawn from generators seeded by (seed, step), the order of an epoch from (seed, epoch). So a
checkpoint needs no generator states, and a run that was killed ends with the weights of an unbroken one (on a CPU; some
CUDA kernels add in no fixed order).

Several processes that torchrun started train one network (`nkf.distributed`): the first one writes and validates, the
others draw from (seed, step, number of the process). A run may go on with another number of them.

    RUN/config.yaml           the configuration
    RUN/log.jsonl             one JSON object a line: training losses and skipped steps, validations
    RUN/last/state.pt         everything that resuming needs
    RUN/last/model.*          weight average at the last checkpoint, with its sidecar
    RUN/best/model.*          weight average that validated best, or the last where nothing validates, with its sidecar
"""

import io
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nkf import distributed
from nkf.config import TrainConfig, load_config, save_config
from nkf.errors import NkfError, NkfWarning
from nkf.files import replacing
from nkf.models import save_model
from nkf.optim import Descent, learning_rate, make_optimizer, moving_average
from nkf.progress import Progress, no_progress, show_nothing, steps_shown
from nkf.recipes import Recipe, create_recipe

LOG_EVERY = 20  # steps
CHECKPOINT_SECONDS = 120.0
PATIENCE = 10  # steps in a row that may be skipped; fewer than LOG_EVERY, so that each line of the log has a loss
_COUNTS = ("step", "best_score", "losses", "skipped", "failures")


class Objective(nn.Module):
    """The loss of a batch as a module: recipes call other methods of a network too, which DDP would not pass on."""

    def __init__(self, recipe: Recipe, model: nn.Module) -> None:
        super().__init__()
        self._recipe = recipe
        self.model = model

    def forward(self, batch: Any) -> Tensor:
        """Mean loss of what `Recipe.batch` made."""
        return self._recipe.loss(self.model, batch)


@dataclass(slots=True)
class State:
    """What changes while a network is trained, and the objects that change it.

    Attributes:
        objective: batch -> loss; with several processes its gradients are averaged.
        losses: since the last line of the log.
        skipped: steps without a finite loss and gradient, since the last line of the log.
        failures: such steps in a row.
    """

    model: nn.Module
    average: AveragedModel
    descent: Descent
    objective: nn.Module
    step: int = 0
    best_score: float = -math.inf
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    failures: int = 0

    def save(self, file: Path) -> None:
        """Write everything that resuming needs, whole or not at all.

        Raises:
            NkfError: when a weight is not finite.
        """
        self.check_finite()
        content = {name: getattr(self, name) for name in _COUNTS}
        parts: dict[str, Any] = {"model": self.model, "average": self.average}
        parts["optimizer"] = self.descent.optimizer
        with replacing(file) as partial_file:
            torch.save(content | {name: part.state_dict() for name, part in parts.items()}, partial_file)

    def load(self, content: bytes, file: Path) -> None:
        """Continue from what `save` wrote to a file; never unpickles code."""
        try:
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.average.load_state_dict(saved["average"])
            self.descent.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.best_score, self.losses = saved["step"], saved["best_score"], saved["losses"]
            self.skipped, self.failures = saved.get("skipped", 0), saved.get("failures", 0)  # older ones have none
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise NkfError(f"{file}: no checkpoint of this run ({reason})") from error

    def count(self, loss: float) -> None:
        """Note that a step was taken, or skipped if its loss is NaN.

        Raises:
            NkfError: after `PATIENCE` skipped steps in a row.
        """
        self.step += 1
        if math.isfinite(loss):
            self.losses.append(loss)
            self.failures = 0
            return
        self.skipped += 1
        self.failures += 1
        if self.failures == PATIENCE:
            raise _diverged(f"no finite loss and gradient in {PATIENCE} steps up to step {self.step}")

    def check_finite(self) -> None:
        """Raise when a weight or statistic is not finite."""
        for module in (self.model, self.average):
            for name, tensor in module.state_dict().items():
                if not tensor.isfinite().all():
                    raise _diverged(f"{name} is not finite after step {self.step}")


def _diverged(what: str) -> NkfError:
    return NkfError(f"{what}; lower learning_rate (the checkpoint before is intact)")


def train(
    config: TrainConfig,
    run: Path,
    *,
    device: str = "cpu",
    max_minutes: float = math.inf,
    progress: Progress = no_progress,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train, or go on where the run folder ends.

    Args:
        config: what to train.
        run: run folder, made when missing; if it holds a checkpoint, training resumes.
        device: a torch device.
        max_minutes: stop after so long with a checkpoint; the next call goes on.
        progress: shows how far the preparation of the data is.
        checkpoint_seconds: time between checkpoints.

    Returns:
        ``step``, ``finished``, and the metrics of the last validation that this call made, if any; these in the first
        of several processes alone.

    Raises:
        NkfError: when the folder belongs to another configuration, data or weights are unusable, or training diverges.
    """
    deadline = time.monotonic() + 60 * max_minutes
    with distributed.joined(device) as place:
        if distributed.is_main():
            _check_folder(config, run)
        _check_parts(config)
        recipe = create_recipe(config, torch.device(place), progress if distributed.is_main() else no_progress)
        _warn_of_little_use(recipe, device)
        state = _start(recipe)
        _resume(state, run / "last" / "state.pt")
        if distributed.is_main():
            _prepare_folder(config, run, state.step)
        return _fit(recipe, state, run, deadline, checkpoint_seconds)


def _check_folder(config: TrainConfig, run: Path) -> None:
    file = run / "config.yaml"
    if file.exists() and load_config(file) != config:
        raise NkfError(f"{run}: holds a run with another configuration; choose another --out, or remove it")
    if run.exists() and not file.exists() and (not run.is_dir() or any(run.iterdir())):
        raise NkfError(f"{run}: exists and is no run folder; name a new or empty one")
    if config.pretrained is not None and not config.pretrained.is_file():
        raise NkfError(f"{config.pretrained}: no such file, expected starting weights (safetensors)")


def _check_parts(config: TrainConfig) -> None:
    """Raise when a batch cannot be shared evenly, or its parts have fewer images than the two that batch norm needs."""
    own = len(distributed.share(np.arange(config.batch_size)))
    if own < 2 * config.accumulate:
        count = distributed.world_size() * config.accumulate
        raise NkfError(f"batch_size {config.batch_size}: its {count} parts (accumulate) need two images or more each")


def _warn_of_little_use(recipe: Recipe, device: str) -> None:
    """Say what would waste a run; raises when the data are too few for a batch."""
    config = recipe.config
    total = total_steps(config, recipe.num_train)
    if total <= config.warmup_steps:
        message = f"{total} steps in all, and warm-up takes {config.warmup_steps}: the network will hardly learn"
        warnings.warn(f"{message}; raise epochs, or lower batch_size and warmup_steps", NkfWarning, stacklevel=3)
    if config.bf16 and device == "cpu" and _lacks_bf16():
        message = "bf16 is slow on a CPU without instructions for it (AVX512-BF16, AMX)"
        warnings.warn(f"{message}; set bf16: false", NkfWarning, stacklevel=3)


def _lacks_bf16() -> bool:
    """Whether this CPU is known not to multiply bfloat16 itself."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 may not tell
    return bool(capabilities) and not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _start(recipe: Recipe) -> State:
    config = recipe.config
    torch.manual_seed(config.seed)
    model = recipe.create().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in config.frozen:
        try:
            recipe.network(model).get_submodule(part).requires_grad_(False)
        except AttributeError as error:
            raise NkfError(f"frozen: the network has no part {part!r}; name modules such as backbone.stem") from error
    average = AveragedModel(model, multi_avg_fn=moving_average(config.ema_decay), use_buffers=True)
    objective = distributed.wrap(Objective(recipe, model))
    descent = make_optimizer(config, model, local=partial(distributed.no_sync, objective))
    return State(model, average, descent, objective)


def _resume(state: State, checkpoint: Path) -> None:
    """Go on from the main process's checkpoint, if there is one."""
    content = checkpoint.read_bytes() if distributed.is_main() and checkpoint.exists() else None
    if distributed.decided(content is not None):
        state.load(distributed.from_main(content or b""), checkpoint)


def _prepare_folder(config: TrainConfig, run: Path, step: int) -> None:
    """Make the folders; drop the lines logged after the checkpoint, since these steps are taken again."""
    for folder in ("last", "best"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    with replacing(run / "config.yaml") as partial_file:
        save_config(config, partial_file)
    log = run / "log.jsonl"
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if _step_of(line) <= step]
        with replacing(log) as partial_file:
            partial_file.write_text("".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    """Step of a line of the log; infinite if it is incomplete, since only a kill after the checkpoint leaves such."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf


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


def rate_of(recipe: Recipe, step: int) -> float:
    """Learning rate of a step of a run."""
    config, count = recipe.config, recipe.num_train
    return learning_rate(config, step, total_steps(config, count), steps_per_epoch(config, count))


def batch_rows(recipe: Recipe, step: int) -> NDArray[np.int64]:
    """Row numbers of a step, for all processes: the next ones in the order of its epoch."""
    size = recipe.config.batch_size
    epoch, position = divmod(step, steps_per_epoch(recipe.config, recipe.num_train))
    return recipe.order(epoch)[position * size :][:size]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of all that a process draws in a step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def add_gradients(objective: nn.Module, batches: Sequence[Any], shares: Sequence[float], seed: int) -> Tensor:
    """Add the gradients of a batch that is computed in parts, and return its loss, a scalar.

    Batch norm sees one part at a time. A loss that is no mean over images (the detector's, per face) is that of each
    part.

    Args:
        objective: batch -> loss.
        batches: the parts.
        shares: of each part in the batch, with sum 1.
        seed: of dropout and landmark perturbation; the same one gives the same gradients.
    """
    torch.manual_seed(seed)
    losses = []
    for number, (batch, share) in enumerate(zip(batches, shares, strict=True)):
        last = number == len(batches) - 1
        with nullcontext() if last else distributed.no_sync(objective):  # the exchange of the last has them all
            loss = share * objective(batch)
            loss.backward()
        losses.append(loss.detach())
    return distributed.mean(torch.stack(losses).sum())


def train_step(recipe: Recipe, state: State) -> float:
    """One optimisation step; returns its loss, NaN if it was skipped since loss or gradient is not finite."""
    config = recipe.config
    for group in state.descent.optimizer.param_groups:
        group["lr"] = rate_of(recipe, state.step)
    seed = step_seed(config.seed, state.step, distributed.rank())
    generator = torch.Generator(next(state.model.parameters()).device).manual_seed(seed)
    rows = distributed.share(batch_rows(recipe, state.step))
    parts = np.array_split(rows, config.accumulate)
    batches = [recipe.batch(part, generator) for part in parts]
    shares = [len(part) / len(rows) for part in parts]
    loss = state.descent.step(lambda: add_gradients(state.objective, batches, shares, seed))
    if math.isfinite(loss):
        state.average.update_parameters(state.model)
    state.count(loss)
    return loss


def _fit(recipe: Recipe, state: State, run: Path, deadline: float, checkpoint_seconds: float) -> dict[str, Any]:
    total = total_steps(recipe.config, recipe.num_train)
    validate_every = math.ceil(total / recipe.config.evaluations)
    summary: dict[str, Any] = {}
    main, late = distributed.is_main(), False
    saved = time.monotonic()
    state.model.train()
    train_mode(recipe.network(state.model), recipe.config.frozen)
    with steps_shown(state.step, total) if main else nullcontext(show_nothing) as show:
        while state.step < total and not late:
            loss = train_step(recipe, state)
            show(state.step, loss)
            if state.step % LOG_EVERY == 0:
                _log_losses(recipe, state, run)
            validated = state.step % validate_every == 0 or state.step == total
            if validated and main:
                summary = _validate(recipe, state, run)
            late = distributed.decided(time.monotonic() > deadline)
            if main and (late or validated or time.monotonic() > saved + checkpoint_seconds):
                state.save(run / "last" / "state.pt")
                saved = time.monotonic()
    if main:
        _save_average(recipe, state, run / "last")
    return summary | {"step": state.step, "finished": state.step >= total}


def _log_losses(recipe: Recipe, state: State, run: Path) -> None:
    row = {"step": state.step, "loss": float(np.mean(state.losses)), "learning_rate": rate_of(recipe, state.step - 1)}
    if distributed.is_main():
        _append(run, row | ({"skipped": state.skipped} if state.skipped else {}))
    state.losses.clear()
    state.skipped = 0


def _validate(recipe: Recipe, state: State, run: Path) -> dict[str, Any]:
    state.check_finite()
    metrics = recipe.validate(state.average.module.eval())
    epoch = state.step / steps_per_epoch(recipe.config, recipe.num_train)
    row = {"step": state.step, "epoch": round(epoch, 3), **metrics}
    score = metrics.get("score", float(state.step))  # without validation the last weights are the best
    if score > state.best_score:
        state.best_score = score
        _save_average(recipe, state, run / "best", {"validation_in_training": row} if metrics else {})
    _append(run, row)
    return row


def _save_average(recipe: Recipe, state: State, folder: Path, metrics: dict[str, Any] | None = None) -> None:
    """Write the network of the weight average, without what it has for training alone."""
    model = state.average.module
    info = recipe.info(model)
    if metrics is not None:
        info = info.model_copy(update={"metrics": metrics})
    save_model(recipe.network(model), folder / "model.safetensors", info)


def _append(run: Path, row: dict[str, Any]) -> None:
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"time": round(time.time(), 3), **row}) + "\n")
